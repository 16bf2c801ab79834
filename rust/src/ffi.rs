//! The C ABI: exports only.
//!
//! Every function may be called from any thread, one call at a time per handle.
//! A NULL handle is refused or ignored. A panic does not leave the library.

use libc::{c_int, c_ulong, size_t, ssize_t};
use openssl_sys::SSL;

use crate::endpoint::Endpoint;
use crate::error::*;
use crate::frame::Framing;
use crate::handle::tls_splice;
use crate::panic::guard;
use crate::pump::*;
use crate::stats::Stats;

/// Version of this ABI; `tls_splice_abi_version` must return the same.
pub const TLS_SPLICE_ABI_VERSION: u32 = 1;

/// The framing that goes with the endpoint: `IP` for a TUN device, `U16BE` for
/// TAP devices and datagram sockets, `RAW` for all else.
pub const TLS_SPLICE_FRAMING_AUTO: u32 = 0;
/// Bytes.
pub const TLS_SPLICE_FRAMING_RAW: u32 = 1;
/// IPv4 and IPv6 packets, back to back.
pub const TLS_SPLICE_FRAMING_IP: u32 = 2;
/// A length of two bytes, big-endian, before each packet.
pub const TLS_SPLICE_FRAMING_U16BE: u32 = 3;

/// Instead of a descriptor: the endpoint is a byte stream of the caller's, or another
/// splice. Nothing is polled; `tls_splice_begin_transfer` or `tls_splice_pass` takes
/// the place of that.
pub const TLS_SPLICE_FD_NONE: c_int = -2;

/// What `tls_splice_new` is told. `struct_size` comes first in each version.
#[repr(C)]
pub struct tls_splice_config {
    /// `sizeof(struct tls_splice_config)`.
    pub struct_size: size_t,
    /// The endpoint. Borrowed for the call: the pump takes its own descriptor. Or
    /// `TLS_SPLICE_FD_NONE`.
    pub fd: c_int,
    /// `TLS_SPLICE_DECRYPT`, `TLS_SPLICE_ENCRYPT` or both.
    pub directions: u32,
    /// Bytes to hold per direction at most, but never less than one packet; at
    /// least 1.
    pub high_water_mark: size_t,
    /// One of `TLS_SPLICE_FRAMING_*`.
    pub framing: u32,
}

/// A piece of memory that belongs to the splice.
#[repr(C)]
pub struct tls_splice_buf {
    /// Start; NULL when `len` is 0.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: size_t,
}

/// What to do with a file, on another thread than that of the loop, or with a
/// stream.
#[repr(C)]
pub struct tls_splice_transfer {
    /// The file, which stays the splice's; -1 for a stream.
    pub fd: c_int,
    /// What to read into, or to write; the splice's too.
    pub buf: tls_splice_buf,
}

/// Why a splice failed.
#[repr(C)]
#[derive(Default)]
pub struct tls_splice_failure {
    /// errno of a failed system call on the endpoint, else 0.
    pub errnum: c_int,
    /// Whether that was a write.
    pub is_write: bool,
    /// Direction whose packets are out of step, else 0.
    pub framing: u32,
    /// In bytes of its stream, where a packet would have to begin.
    pub offset: u64,
    /// Whether `SSL_write` failed.
    pub is_tls: bool,
    /// Its packed OpenSSL error.
    pub tls_error: c_ulong,
}

/// The ABI version of the library.
#[no_mangle]
pub extern "C" fn tls_splice_abi_version() -> u32 {
    TLS_SPLICE_ABI_VERSION
}

/// Makes a splice to `config->fd`, with no direction started.
///
/// Returns `TLS_SPLICE_OK` and sets `*out`, which the caller frees with
/// `tls_splice_free`; or a `TLS_SPLICE_E*` code, or `-errno` of a failed system
/// call (EBADF for a closed fd).
///
/// # Safety
/// `config` must point to a readable config of the size it says, `out` to a
/// writable pointer.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_new(
    config: *const tls_splice_config,
    out: *mut *mut tls_splice,
) -> c_int {
    guard(TLS_SPLICE_EPANIC, || {
        if config.is_null() || out.is_null() {
            return TLS_SPLICE_EARG;
        }
        // SAFETY: not NULL, and readable by the contract above; the first field
        // is there in every version.
        let config = unsafe {
            if (&raw const (*config).struct_size).read() != size_of::<tls_splice_config>() {
                return TLS_SPLICE_EABI;
            }
            &*config
        };
        let both = TLS_SPLICE_DECRYPT | TLS_SPLICE_ENCRYPT;
        if config.directions == 0 || config.directions & !both != 0 || config.high_water_mark == 0 {
            return TLS_SPLICE_EARG;
        }
        let readable = config.directions & TLS_SPLICE_ENCRYPT != 0;
        let writable = config.directions & TLS_SPLICE_DECRYPT != 0;
        let framing = match config.framing {
            TLS_SPLICE_FRAMING_AUTO => None,
            TLS_SPLICE_FRAMING_RAW => Some(Framing::Raw),
            TLS_SPLICE_FRAMING_IP => Some(Framing::Ip),
            TLS_SPLICE_FRAMING_U16BE => Some(Framing::U16be),
            _ => return TLS_SPLICE_EARG,
        };
        let endpoint = match config.fd {
            TLS_SPLICE_FD_NONE => Ok(Endpoint::of_caller()),
            fd => Endpoint::open(fd, readable, writable),
        };
        match endpoint.and_then(|endpoint| Ok((endpoint.framing(framing)?, endpoint))) {
            Ok((framing, endpoint)) => {
                let splice = tls_splice::new(Pump::new(endpoint, framing, config.high_water_mark));
                // SAFETY: `out` is writable by the contract above.
                unsafe { *out = Box::into_raw(Box::new(splice)) };
                TLS_SPLICE_OK
            }
            Err(error) => error.code(),
        }
    })
}

/// Frees a splice and closes its descriptors. Nothing if NULL.
///
/// # Safety
/// `splice` must come from `tls_splice_new`, be in no call, and not be used
/// again. Its BIOs must have been detached, unless the `SSL` is gone.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_free(splice: *mut tls_splice) {
    guard((), || {
        if !splice.is_null() {
            // SAFETY: by the contract above it is ours, from Box::into_raw.
            drop(unsafe { Box::from_raw(splice) });
        }
    });
}

/// Runs `f` on the pump of `splice`; `otherwise` if NULL, busy or panicking.
///
/// # Safety
/// `splice` must be NULL or valid.
unsafe fn with<T: Copy>(
    splice: *const tls_splice,
    otherwise: T,
    f: impl FnOnce(&mut Pump, &std::cell::Cell<bool>) -> T,
) -> T {
    // SAFETY: passed on.
    unsafe { with_or(splice, otherwise, otherwise, f) }
}

/// The same, with another result for a panic.
///
/// # Safety
/// `splice` must be NULL or valid.
unsafe fn with_or<T: Copy>(
    splice: *const tls_splice,
    otherwise: T,
    panicked: T,
    f: impl FnOnce(&mut Pump, &std::cell::Cell<bool>) -> T,
) -> T {
    // SAFETY: NULL or valid, by the contract above.
    let splice = unsafe { splice.as_ref() };
    guard(panicked, || {
        splice
            .and_then(|splice| splice.with(f))
            .unwrap_or(otherwise)
    })
}

/// Hands the caller's fd number over too (`autoClose`): it is closed when the
/// splice is freed.
///
/// # Safety
/// `splice` must be NULL or valid, and `fd` the caller's to give away.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_adopt_fd(splice: *mut tls_splice, fd: c_int) {
    // SAFETY: passed on; the descriptor is the caller's to give away.
    unsafe { with(splice, (), |pump, _| pump.endpoint().adopt(fd)) }
}

/// The descriptor to poll for the endpoint's readiness. It stays the splice's.
/// -1 if the endpoint is a file or the caller's: then `tls_splice_begin_transfer`
/// takes the place of polling. -1 too if `splice` is NULL.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_poll_fd(splice: *mut tls_splice) -> c_int {
    // SAFETY: passed on.
    unsafe { with(splice, -1, |pump, _| pump.endpoint().poll_fd()) }
}

/// What to poll `tls_splice_poll_fd` for: 1 readable, 2 writable, or both, as
/// UV_READABLE and UV_WRITABLE; 0 not at all. To be asked after each call that
/// returns steps, once these are taken, and when the write BIO has drained.
/// Level-triggered.
///
/// # Safety
/// `splice` must be NULL or valid, `ssl` valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_interest(splice: *mut tls_splice, ssl: *mut SSL) -> u32 {
    // SAFETY: passed on.
    unsafe { with(splice, 0, |pump, _| pump.interest(ssl)) }
}

/// What the endpoint is ready for, in the same bits, when `tls_splice_poll_fd`
/// is for `polled`.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_ready(splice: *mut tls_splice, polled: u32) -> u32 {
    // SAFETY: passed on.
    unsafe { with(splice, 0, |pump, _| pump.endpoint().ready(polled)) }
}

/// Begins a transfer for `event`, which `tls_splice_interest` has returned: 1 for a
/// read(2) at the file's position, 2 for a write(2). To or from a stream of the
/// caller's it may be begun at any time.
///
/// Until the `tls_splice_end_transfer` that must follow, the memory is only for
/// the transfer, `tls_splice_interest` does not ask for the event again, what is
/// undelivered is not to be taken, and the splice is not to be freed. `buf.len` is
/// 0 if there is nothing to do, and no end then; and, of a stream, once each time
/// that it has given enough for one turn of the loop.
///
/// # Safety
/// `splice` must be NULL or valid, `ssl` valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_begin_transfer(
    splice: *mut tls_splice,
    ssl: *mut SSL,
    event: u32,
) -> tls_splice_transfer {
    let nothing = Transfer {
        fd: -1,
        base: std::ptr::null_mut(),
        len: 0,
    };
    // SAFETY: passed on.
    let Transfer { fd, base, len } =
        unsafe { with(splice, nothing, |pump, _| pump.begin_transfer(ssl, event)) };
    tls_splice_transfer {
        fd,
        buf: tls_splice_buf { base, len },
    }
}

/// Ends it: `result` is what read(2) or write(2) returned, or -errno. -ECANCELED
/// if it has not been done. To be followed by what readiness is followed by.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_end_transfer(
    splice: *mut tls_splice,
    event: u32,
    result: ssize_t,
) {
    let result = usize::try_from(result).map_err(|_| result.wrapping_neg() as c_int);
    // SAFETY: passed on.
    unsafe { with(splice, (), |pump, _| pump.end_transfer(event, result)) }
}

/// Hands what `from` has decrypted to `to`, of which it is the source, to be sent on
/// the session `ssl` of that by `tls_splice_encrypt`. No byte is copied. Returns
/// whether any was handed over: not if there is none, or `to` has no room. Where they
/// end, `tls_splice_end_encrypt` tells `to`.
///
/// # Safety
/// Each of `from` and `to` must be NULL or valid, and `ssl` valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_pass(
    from: *mut tls_splice,
    to: *mut tls_splice,
    ssl: *mut SSL,
) -> bool {
    // SAFETY: passed on. One that is both is busy the second time.
    unsafe {
        with(from, false, |from, _| {
            with(to, false, |to, _| from.pass(to, ssl))
        })
    }
}

/// Starts `direction`, one of those in the config.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_start(splice: *mut tls_splice, direction: u32) {
    // SAFETY: passed on.
    unsafe { with(splice, (), |pump, _| pump.start(direction)) }
}

/// Queues a copy of bytes that were read before the splice, and that go first:
/// cleartext for the endpoint (`TLS_SPLICE_DECRYPT`), or from it
/// (`TLS_SPLICE_ENCRYPT`). Only between `tls_splice_start` and the first call
/// that moves bytes.
///
/// # Safety
/// `splice` must be NULL or valid, `bytes` readable for `len`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_push_before(
    splice: *mut tls_splice,
    direction: u32,
    bytes: *const u8,
    len: size_t,
) {
    if bytes.is_null() || len == 0 {
        return;
    }
    // SAFETY: by the contract above.
    unsafe {
        let bytes = std::slice::from_raw_parts(bytes, len);
        with(splice, (), |pump, _| pump.push_before(direction, bytes))
    }
}

/// Asks the started directions to stop. `tls_splice_decrypt` moves nothing any
/// more; `tls_splice_encrypt` must be called until it returns STOPPED, since an
/// `SSL_write` that has begun must be finished.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_stop(splice: *mut tls_splice) {
    // SAFETY: passed on.
    unsafe { with(splice, (), |pump, _| pump.stop()) }
}

/// Stops reading the source, as if it had ended; also before the start. Inside an
/// OpenSSL callback of a call on `splice`, when that call returns.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_end_encrypt(splice: *mut tls_splice) {
    // SAFETY: NULL or valid, by the contract above.
    if let Some(splice) = unsafe { splice.as_ref() } {
        guard((), || splice.end_encrypt());
    }
}

/// Tells a call on `splice` that is under way, inside whose OpenSSL callback
/// this is called, to return without using the `SSL` again.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_cancel(splice: *mut tls_splice) {
    // SAFETY: NULL or valid, by the contract above.
    if let Some(splice) = unsafe { splice.as_ref() } {
        splice.cancel();
    }
}

/// Makes `ssl` read ciphertext from the splice's buffer (`tls_splice_alloc`),
/// after what its present read BIO holds. `TLS_SPLICE_OK`,
/// `TLS_SPLICE_EBUSY` inside a handshake or another call, `TLS_SPLICE_ENOMEM`.
///
/// # Safety
/// `splice` must be NULL or valid; `ssl` must be valid, have a read BIO, and be
/// in no call.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_attach_rbio(splice: *mut tls_splice, ssl: *mut SSL) -> c_int {
    // SAFETY: by the contract above.
    unsafe {
        with(splice, TLS_SPLICE_EBUSY, |pump, _| {
            if crate::sys::SSL_in_init(ssl) != 0 {
                TLS_SPLICE_EBUSY
            } else if pump.attach_rbio(ssl) {
                TLS_SPLICE_OK
            } else {
                TLS_SPLICE_ENOMEM
            }
        })
    }
}

/// Gives `ssl` its own read BIO back, with the ciphertext that it has not read.
/// Nothing if `tls_splice_attach_rbio` was not called.
///
/// # Safety
/// As for `tls_splice_attach_rbio`, with the same `ssl`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_detach_rbio(splice: *mut tls_splice, ssl: *mut SSL) {
    // SAFETY: by the contract above.
    unsafe { with(splice, (), |pump, _| pump.detach_rbio(ssl)) }
}

/// Makes `ssl` write the ciphertext of `tls_splice_encrypt` to the splice's
/// buffers (`tls_splice_collected`), while its present write BIO is empty, and
/// all else to that. `TLS_SPLICE_OK`, `TLS_SPLICE_EBUSY` inside a handshake or
/// another call, `TLS_SPLICE_ENOMEM`.
///
/// # Safety
/// `splice` must be NULL or valid; `ssl` must be valid, have a write BIO, and be
/// in no call.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_attach_wbio(splice: *mut tls_splice, ssl: *mut SSL) -> c_int {
    // SAFETY: by the contract above.
    unsafe {
        with(splice, TLS_SPLICE_EBUSY, |pump, _| {
            if crate::sys::SSL_in_init(ssl) != 0 {
                TLS_SPLICE_EBUSY
            } else if pump.attach_wbio(ssl) {
                TLS_SPLICE_OK
            } else {
                TLS_SPLICE_ENOMEM
            }
        })
    }
}

/// Gives `ssl` its own write BIO back, with what is collected. Nothing if
/// `tls_splice_attach_wbio` was not called.
///
/// # Safety
/// As for `tls_splice_attach_wbio`, with the same `ssl`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_detach_wbio(splice: *mut tls_splice, ssl: *mut SSL) {
    // SAFETY: by the contract above.
    unsafe { with(splice, (), |pump, _| pump.detach_wbio(ssl)) }
}

/// What `tls_splice_encrypt` has collected, for the stream, in order: writes at
/// most `len` pieces to `out` and returns how many. They stay the splice's, and
/// valid until the `tls_splice_written` that must follow before any other call.
///
/// # Safety
/// `splice` must be NULL or valid, `out` writable for `len`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_collected(
    splice: *mut tls_splice,
    out: *mut tls_splice_buf,
    len: size_t,
) -> size_t {
    // SAFETY: passed on; `out` is writable by the contract above.
    unsafe {
        with(splice, 0, |pump, _| {
            let pieces = pump.wbio().into_iter().flat_map(|wbio| wbio.collected());
            let mut n = 0;
            for piece in pieces.take(len) {
                out.add(n).write(tls_splice_buf {
                    base: piece.as_ptr().cast_mut(),
                    len: piece.len(),
                });
                n += 1;
            }
            n
        })
    }
}

/// Drops the first `n` bytes of that, which are written. If `is_all` is false, the
/// stream takes no more now, and the rest goes to the `SSL`'s own write BIO.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_written(splice: *mut tls_splice, n: size_t, is_all: bool) {
    // SAFETY: passed on.
    unsafe {
        with(splice, (), |pump, _| {
            if let Some(wbio) = pump.wbio() {
                wbio.written(n, !is_all);
            }
        })
    }
}

/// The memory that the next read of ciphertext goes to: valid until the
/// `tls_splice_commit` that must follow, with 0 if nothing was read. Empty when
/// no read BIO is attached, when there is no room, and once each time that it has
/// given enough for one turn of the loop.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_alloc(splice: *mut tls_splice) -> tls_splice_buf {
    let (base, len) = {
        // SAFETY: passed on.
        unsafe {
            with(splice, (std::ptr::null_mut(), 0), |pump, _| {
                let buf = pump.alloc();
                (buf.as_mut_ptr(), buf.len())
            })
        }
    };
    tls_splice_buf { base, len }
}

/// Takes in `nread` bytes of ciphertext that were read into
/// `tls_splice_alloc`'s memory.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_commit(splice: *mut tls_splice, nread: size_t) {
    // SAFETY: passed on.
    unsafe { with(splice, (), |pump, _| pump.commit(nread)) }
}

/// Moves what it can from `ssl` to the endpoint and returns the steps to take.
/// To be called when ciphertext has arrived and when the endpoint has become
/// writable. With `TLS_SPLICE_STEP_OVER`, `*ssl_ret` is what SSL_read(3)
/// returned, and this thread's error queue is what it left.
///
/// # Safety
/// `splice` must be NULL or valid, `ssl` valid and kept alive by the caller for
/// the whole call, `ssl_ret` writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_decrypt(
    splice: *mut tls_splice,
    ssl: *mut SSL,
    ssl_ret: *mut c_int,
) -> u32 {
    // SAFETY: by the contract above.
    unsafe {
        let failed = TLS_SPLICE_STEP_FAILED | TLS_SPLICE_STEP_PAUSE_TLS;
        let (step, ret) = with_or(splice, (0, 1), (failed, 1), |pump, cancelled| {
            pump.decrypt(ssl, cancelled)
        });
        *ssl_ret = ret;
        step
    }
}

/// Moves what it can from the endpoint to `ssl` and returns the steps to take.
/// To be called when the endpoint has become readable, and as the steps say.
///
/// # Safety
/// As for `tls_splice_decrypt`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_encrypt(splice: *mut tls_splice, ssl: *mut SSL) -> u32 {
    // SAFETY: by the contract above.
    unsafe { with(splice, 0, |pump, cancelled| pump.encrypt(ssl, cancelled)) }
}

/// Shuts the write side of a socket endpoint down; nothing for others.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_shutdown_write(splice: *mut tls_splice) {
    // SAFETY: passed on.
    unsafe { with(splice, (), |pump, _| pump.endpoint().shutdown_write()) }
}

/// Whether the endpoint has not taken all that it could be given.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_is_blocked(splice: *mut tls_splice) -> bool {
    // SAFETY: passed on.
    unsafe { with(splice, false, |pump, _| pump.is_blocked()) }
}

/// Says that no more will be decrypted, since the stream has ended without a
/// close_notify. False if that was within a packet: then the splice has failed.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_end_decrypt(splice: *mut tls_splice) -> bool {
    // SAFETY: passed on.
    unsafe { with(splice, true, |pump, _| pump.end_decrypt()) }
}

/// Cleartext that was decrypted and not taken by the endpoint, in bytes.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_undelivered(splice: *mut tls_splice) -> size_t {
    // SAFETY: passed on.
    unsafe {
        with(splice, 0, |pump, _| {
            pump.undelivered().map_or(0, |held| held.len())
        })
    }
}

/// Moves at most `len` bytes of that to `out`, in order. Returns how many.
///
/// # Safety
/// `splice` must be NULL or valid, `out` writable for `len`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_take_undelivered(
    splice: *mut tls_splice,
    out: *mut u8,
    len: size_t,
) -> size_t {
    // SAFETY: passed on; `out` is writable by the contract above.
    unsafe {
        with(splice, 0, |pump, _| {
            let Some(held) = pump.undelivered() else {
                return 0;
            };
            let mut copied = 0;
            while copied < len && !held.is_empty() {
                let n = held.front().len().min(len - copied);
                std::ptr::copy_nonoverlapping(held.front().as_ptr(), out.add(copied), n);
                held.consume(n);
                copied += n;
            }
            copied
        })
    }
}

/// Copies the counters. False, and nothing copied, if the handle is NULL or
/// inside another call.
///
/// # Safety
/// `splice` must be NULL or valid, `out` writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_get_stats(splice: *mut tls_splice, out: *mut Stats) -> bool {
    // SAFETY: passed on; `out` is writable by the contract above.
    unsafe {
        with(splice, false, |pump, _| {
            *out = pump.stats;
            true
        })
    }
}

/// Why the splice failed. False, and nothing written, if it has not, or if it
/// failed by a bug of this library.
///
/// # Safety
/// `splice` must be NULL or valid, `out` writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_get_failure(
    splice: *mut tls_splice,
    out: *mut tls_splice_failure,
) -> bool {
    // SAFETY: passed on; `out` is writable by the contract above.
    unsafe {
        with(splice, false, |pump, _| {
            let Some(failure) = pump.failure() else {
                return false;
            };
            *out = match failure {
                Failure::Endpoint { syscall, errno } => tls_splice_failure {
                    errnum: errno,
                    is_write: syscall == Syscall::Write,
                    ..Default::default()
                },
                Failure::Framing { direction, offset } => tls_splice_failure {
                    framing: direction,
                    offset,
                    ..Default::default()
                },
                Failure::Tls(error) => tls_splice_failure {
                    is_tls: true,
                    tls_error: error,
                    ..Default::default()
                },
            };
            true
        })
    }
}
