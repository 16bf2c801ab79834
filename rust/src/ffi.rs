//! The C ABI: exports only.
//!
//! Every function may be called from any thread, one call at a time per handle, and
//! answers with a `TLS_SPLICE_*` code. A pointer that is NULL, the handle included, is
//! `TLS_SPLICE_EARG`. `TLS_SPLICE_EBUSY` is a call from inside of another one on the
//! same handle. What a call gives is behind its last pointers, and is nothing (0)
//! unless the code is `TLS_SPLICE_OK`.
//!
//! A panic does not leave the library, nor does one in a callback that OpenSSL makes
//! to a BIO of a splice. It is `TLS_SPLICE_EPANIC`, then and for each later call on
//! the handle, which can only be freed.

use std::cell::Cell;

use libc::{c_int, c_ulong, size_t, ssize_t};
use openssl_sys::SSL;

use crate::endpoint::{Endpoint, WRITABLE};
use crate::error::*;
use crate::events::{self, Actions, Event, Lower};
use crate::frame::Framing;
use crate::handle::tls_splice;
use crate::lifecycle::LowerEnd;
use crate::panic::guard;
use crate::pump::*;
use crate::splice::{Direction, Flush, Transfer};
use crate::ssl::session;
use crate::ssl::wbio::Rest;
use crate::stats::Stats;

/// Version of this ABI; `tls_splice_abi_version` must return the same.
pub const TLS_SPLICE_ABI_VERSION: u32 = 3;

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
#[derive(Clone, Copy)]
pub struct tls_splice_buf {
    /// Start; NULL when `len` is 0.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: size_t,
}

impl tls_splice_buf {
    const NOTHING: tls_splice_buf = tls_splice_buf {
        base: std::ptr::null_mut(),
        len: 0,
    };
}

/// What to do with a file, on another thread than that of the loop, or with a
/// stream.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tls_splice_transfer {
    /// The file, which stays the splice's; -1 for a stream.
    pub fd: c_int,
    /// What to read into, or to write; the splice's too.
    pub buf: tls_splice_buf,
}

/// Why a splice failed.
#[repr(C)]
#[derive(Clone, Copy, Default)]
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
    guard(|| {
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
    .unwrap_or(TLS_SPLICE_EPANIC)
}

/// Frees a splice and closes its descriptors, also after a panic. Nothing if NULL.
/// `TLS_SPLICE_EPANIC` if that panics: then some of it stays.
///
/// # Safety
/// `splice` must come from `tls_splice_new`, be in no call, and not be used
/// again. Its BIOs must have been detached, unless the `SSL` is gone, or is going to be
/// used no more: after a panic they cannot be.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_free(splice: *mut tls_splice) -> c_int {
    let freed = guard(|| {
        if !splice.is_null() {
            // SAFETY: by the contract above it is ours, from Box::into_raw.
            drop(unsafe { Box::from_raw(splice) });
        }
    });
    match freed {
        Some(()) => TLS_SPLICE_OK,
        None => TLS_SPLICE_EPANIC,
    }
}

/// Runs `f`, which returns a code, on the pump of `splice`.
///
/// # Safety
/// `splice` must be NULL or valid.
unsafe fn with(
    splice: *const tls_splice,
    f: impl FnOnce(&mut Pump, &Cell<bool>) -> c_int,
) -> c_int {
    // SAFETY: NULL or valid, by the contract above.
    match unsafe { splice.as_ref() } {
        Some(splice) => splice.with(f),
        None => TLS_SPLICE_EARG,
    }
}

/// Runs `f`, which always succeeds, on the pump of `splice`.
///
/// # Safety
/// `splice` must be NULL or valid.
unsafe fn run(splice: *const tls_splice, f: impl FnOnce(&mut Pump)) -> c_int {
    // SAFETY: passed on.
    unsafe {
        with(splice, |pump, _| {
            f(pump);
            TLS_SPLICE_OK
        })
    }
}

/// Runs `f` on the pump of `splice` and writes what it returns to `out`, or `nothing`.
///
/// # Safety
/// `splice` must be NULL or valid, `out` NULL or writable.
unsafe fn give<T: Copy>(
    splice: *const tls_splice,
    out: *mut T,
    nothing: T,
    f: impl FnOnce(&mut Pump, &Cell<bool>) -> Result<T, c_int>,
) -> c_int {
    if out.is_null() {
        return TLS_SPLICE_EARG;
    }
    let mut given = nothing;
    // SAFETY: passed on.
    let code = unsafe {
        with(splice, |pump, cancelled| match f(pump, cancelled) {
            Ok(result) => {
                given = result;
                TLS_SPLICE_OK
            }
            Err(code) => code,
        })
    };
    // A callback of a BIO may have panicked in between.
    let given = if code == TLS_SPLICE_OK {
        given
    } else {
        nothing
    };
    // SAFETY: writable by the contract above, as it is not NULL.
    unsafe { out.write(given) };
    code
}

/// `Err` if it is NULL.
fn check(ssl: *mut SSL) -> Result<*mut SSL, c_int> {
    match ssl.is_null() {
        true => Err(TLS_SPLICE_EARG),
        false => Ok(ssl),
    }
}

/// The direction that is waited for with an event of `tls_splice_interest`.
fn direction_of(event: u32) -> Direction {
    match event {
        WRITABLE => Direction::Inbound,
        _ => Direction::Outbound,
    }
}

/// Hands the caller's fd number over too (`autoClose`): it is closed when the
/// splice is freed. With -1, one that was handed over is closed now.
///
/// # Safety
/// `splice` must be NULL or valid, and `fd` the caller's to give away, or -1.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_adopt_fd(splice: *mut tls_splice, fd: c_int) -> c_int {
    // SAFETY: passed on; the descriptor is the caller's to give away.
    unsafe { run(splice, |pump| pump.adopt_fd(fd)) }
}

/// `*fd` is the descriptor to poll for the endpoint's readiness. It stays the
/// splice's. -1 if the endpoint is a file or the caller's: then
/// `tls_splice_begin_transfer` takes the place of polling. -1 too instead of nothing.
///
/// # Safety
/// `splice` must be NULL or valid, `fd` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_poll_fd(splice: *mut tls_splice, fd: *mut c_int) -> c_int {
    // SAFETY: passed on.
    unsafe { give(splice, fd, -1, |pump, _| Ok(pump.endpoint().poll_fd())) }
}

/// `*events` is what to poll `tls_splice_poll_fd` for: 1 readable, 2 writable, or
/// both, as UV_READABLE and UV_WRITABLE; 0 not at all. To be asked after each call
/// that gives steps, once these are taken, and when the write BIO has drained.
/// Level-triggered.
///
/// # Safety
/// `splice`, `ssl` and `events` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_interest(
    splice: *mut tls_splice,
    ssl: *mut SSL,
    events: *mut u32,
) -> c_int {
    // SAFETY: NULL or valid, by the contract above.
    let Some(handle) = (unsafe { splice.as_ref() }) else {
        return TLS_SPLICE_EARG;
    };
    let connection = handle.connection();
    // SAFETY: passed on.
    unsafe {
        give(splice, events, 0, |pump, _| {
            Ok(events::begin_wait(pump, &connection, check(ssl)?))
        })
    }
}

/// `*events` is what the endpoint is ready for, in the same bits, when
/// `tls_splice_poll_fd` is for `polled`.
///
/// # Safety
/// `splice` and `events` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_ready(
    splice: *mut tls_splice,
    polled: u32,
    events: *mut u32,
) -> c_int {
    // SAFETY: passed on.
    unsafe {
        give(splice, events, 0, |pump, _| {
            Ok(pump.endpoint().ready(polled))
        })
    }
}

/// Begins a transfer for `event`, which `tls_splice_interest` has given: 1 for a
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
/// `splice`, `ssl` and `transfer` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_begin_transfer(
    splice: *mut tls_splice,
    ssl: *mut SSL,
    event: u32,
    transfer: *mut tls_splice_transfer,
) -> c_int {
    let nothing = tls_splice_transfer {
        fd: -1,
        buf: tls_splice_buf::NOTHING,
    };
    // SAFETY: passed on.
    unsafe {
        give(splice, transfer, nothing, |pump, _| {
            let Transfer { fd, base, len } = pump.begin_transfer(check(ssl)?, direction_of(event));
            Ok(tls_splice_transfer {
                fd,
                buf: tls_splice_buf { base, len },
            })
        })
    }
}

/// Ends it: `result` is what read(2) or write(2) returned, or -errno. -ECANCELED
/// if it has not been done. To be followed by what readiness is followed by. That a
/// stream has ended (0, of a read) may be said without a transfer.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_end_transfer(
    splice: *mut tls_splice,
    event: u32,
    result: ssize_t,
) -> c_int {
    let result = usize::try_from(result).map_err(|_| result.wrapping_neg() as c_int);
    // SAFETY: passed on.
    unsafe {
        run(splice, |pump| {
            pump.end_transfer(direction_of(event), result)
        })
    }
}

/// Hands what `from` has decrypted to `to`, of which it is the source, to be sent on
/// the session `ssl` of that by `tls_splice_encrypt`. No byte is copied.
/// `TLS_SPLICE_NOTHING` if none was handed over, since there is none, or `to` has no
/// room. Where they end, `tls_splice_end_encrypt` tells `to`. A panic is one of both.
///
/// # Safety
/// Each of `from`, `to` and `ssl` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_pass(
    from: *mut tls_splice,
    to: *mut tls_splice,
    ssl: *mut SSL,
) -> c_int {
    // SAFETY: NULL or valid, by the contract above.
    let (Some(from), Some(to)) = (unsafe { from.as_ref() }, unsafe { to.as_ref() }) else {
        return TLS_SPLICE_EARG;
    };
    let can_send = to.connection().lifecycle().can_send();
    from.with_both(to, |from, to| match check(ssl) {
        Err(code) => code,
        Ok(_) if !can_send => TLS_SPLICE_NOTHING,
        // SAFETY: passed on.
        Ok(ssl) => match unsafe { from.pass(to, ssl) } {
            true => TLS_SPLICE_OK,
            false => TLS_SPLICE_NOTHING,
        },
    })
}

/// Starts `direction`, one of those in the config, on a TLS connection. `before` is a
/// splice that holds, or held, a direction of that connection, or NULL if none has.
///
/// # Safety
/// `splice` and `before` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_start(
    splice: *mut tls_splice,
    direction: u32,
    before: *const tls_splice,
) -> c_int {
    let direction = match direction {
        TLS_SPLICE_DECRYPT => Direction::Inbound,
        TLS_SPLICE_ENCRYPT => Direction::Outbound,
        _ => return TLS_SPLICE_EARG,
    };
    // SAFETY: NULL or valid, by the contract above.
    let (splice, before) = unsafe { (splice.as_ref(), before.as_ref()) };
    match splice {
        Some(splice) => splice.start(direction, before),
        None => TLS_SPLICE_EARG,
    }
}

/// Event: the turn of the event loop that `TLS_SPLICE_ACTION_NEXT_TURN` has asked for.
pub const TLS_SPLICE_ON_TURN: u32 = 0;
/// Event: the stream below has given ciphertext, which the session has read.
pub const TLS_SPLICE_ON_LOWER_READ: u32 = 1;
/// Event: the stream below has ended (UV_EOF).
pub const TLS_SPLICE_ON_LOWER_EOF: u32 = 2;
/// Event: reading the stream below has failed; the value is a libuv error code.
pub const TLS_SPLICE_ON_LOWER_READ_FAILED: u32 = 3;
/// Event: writing ciphertext of the splice has failed; the value is a libuv error code.
pub const TLS_SPLICE_ON_LOWER_WRITE_FAILED: u32 = 4;
/// Event: the stream below has written all ciphertext.
pub const TLS_SPLICE_ON_LOWER_DRAINED: u32 = 5;
/// Event: the endpoint can be written.
pub const TLS_SPLICE_ON_SINK_READY: u32 = 6;
/// Event: the endpoint can be read.
pub const TLS_SPLICE_ON_SOURCE_READY: u32 = 7;
/// Event: the splice that is the source has given bytes, which are to be sent in the next
/// turn.
pub const TLS_SPLICE_ON_SOURCE_GAVE: u32 = 8;
/// Event: the source is not to be read any more.
pub const TLS_SPLICE_ON_LEAVE_SOURCE: u32 = 9;
/// Event: Node asks for cleartext (TLSWrap::ClearOut).
pub const TLS_SPLICE_ON_DECRYPT: u32 = 10;
/// Event: TLSWrap::Cycle, which `TLS_SPLICE_ACTION_CYCLE` has asked for, has returned.
pub const TLS_SPLICE_ON_CYCLED: u32 = 11;
/// Event: the splice is to stop.
pub const TLS_SPLICE_ON_STOP: u32 = 12;
/// Event: the direction that is the value goes back to JavaScript, with what
/// `tls_splice_take_undelivered` has given.
pub const TLS_SPLICE_ON_RELEASE: u32 = 13;
/// Event: JavaScript has had a turn of the loop to read what it was given back. The value
/// is not 0 if JavaScript has been told of the end of what the peer sends.
pub const TLS_SPLICE_ON_RESUME: u32 = 14;
/// Event: the `SSL` or the stream below is about to be freed.
pub const TLS_SPLICE_ON_GONE: u32 = 15;

/// Action: flush the write BIO (TLSWrap::EncOut).
pub const TLS_SPLICE_ACTION_FLUSH: u32 = 1;
/// Action: call TLSWrap::Cycle, then report `TLS_SPLICE_ON_CYCLED`.
pub const TLS_SPLICE_ACTION_CYCLE: u32 = 2;
/// Action: report `TLS_SPLICE_ON_TURN` in the next turn of the event loop.
pub const TLS_SPLICE_ACTION_NEXT_TURN: u32 = 4;
/// Action: the splice of the other direction needs a turn.
pub const TLS_SPLICE_ACTION_WAKE_OTHER: u32 = 8;
/// Action: write what is held, or pass it on, and then report
/// `TLS_SPLICE_ON_DECRYPT` again.
pub const TLS_SPLICE_ACTION_DELIVER: u32 = 16;
/// Action: JavaScript is to be told of the peer's close_notify.
pub const TLS_SPLICE_ACTION_CLOSE_NOTIFY: u32 = 32;
/// Action: JavaScript is to be told of the end of the stream below.
pub const TLS_SPLICE_ACTION_LOWER_EOF: u32 = 64;
/// Action: tell JavaScript that a write to the stream below has failed with `lower_error`.
pub const TLS_SPLICE_ACTION_LOWER_WRITE_FAILED: u32 = 128;

/// What the stream below is to do: stay as it is.
pub const TLS_SPLICE_READING_AS_IT_IS: u32 = 0;
/// What the stream below is to do: be read.
pub const TLS_SPLICE_READING_ON: u32 = 1;
/// What the stream below is to do: not be read.
pub const TLS_SPLICE_READING_OFF: u32 = 2;

/// What to do after an event.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tls_splice_actions {
    /// `sizeof(struct tls_splice_actions)`.
    pub struct_size: size_t,
    /// Bits of `TLS_SPLICE_ACTION_*`.
    pub orders: u32,
    /// What SSL_read(3) returned, if JavaScript is to be told of it; this thread's error
    /// queue is what it left. Else 1.
    pub ssl_ret: c_int,
    /// A libuv error code of the stream below that JavaScript is to be told of, or 0.
    pub lower_error: c_int,
}

/// What has become of a splice.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct tls_splice_state {
    /// Bits of `TLS_SPLICE_OUTCOME_*` of the directions that the splice has.
    pub outcome: u32,
    /// One of `TLS_SPLICE_READING_*`.
    pub reading: u32,
    /// SSL_read(3) has failed, and nobody has been told.
    pub holds_tls_error: bool,
    /// The stream below has ended, and nobody has been told.
    pub holds_lower_end: bool,
    /// The inbound direction was given back, and JavaScript is still to be told of an
    /// error or end behind the bytes that it was given.
    pub owes: bool,
    /// Whether a write to the stream below has failed, be it reported yet or not, or the
    /// connection has failed otherwise, so that a failed write would be no news.
    pub has_write_failed: bool,
    /// The libuv error code of the write to the stream below with which the connection
    /// has failed, or 0.
    pub write_error: c_int,
}

/// Outcome: everything is delivered, and JavaScript has been told of the end.
pub const TLS_SPLICE_OUTCOME_IN_OVER: u32 = 1;
/// Outcome: the source has ended, and everything is flushed.
pub const TLS_SPLICE_OUTCOME_OUT_OVER: u32 = 2;
/// Outcome: nothing moves to the endpoint any more, as asked.
pub const TLS_SPLICE_OUTCOME_IN_STOPPED: u32 = 4;
/// Outcome: what was read from the endpoint is flushed, as asked, or cannot be.
pub const TLS_SPLICE_OUTCOME_OUT_STOPPED: u32 = 8;
/// Outcome: the endpoint has failed, see `tls_splice_get_failure`.
pub const TLS_SPLICE_OUTCOME_ENDPOINT_FAILED: u32 = 16;
/// Outcome: TLS or the stream below has failed.
pub const TLS_SPLICE_OUTCOME_TLS_FAILED: u32 = 32;
/// Outcome: TLS or the stream below has failed, which is reported when the endpoint has
/// what was decrypted before.
pub const TLS_SPLICE_OUTCOME_TLS_FAILING: u32 = 64;
/// Outcome: what was read from the endpoint waits for the peer's handshake.
pub const TLS_SPLICE_OUTCOME_WANTS_HANDSHAKE: u32 = 128;

fn event_of(event: u32, value: c_int) -> Option<Event> {
    Some(match event {
        TLS_SPLICE_ON_TURN => Event::Turn,
        TLS_SPLICE_ON_LOWER_READ => Event::LowerRead,
        TLS_SPLICE_ON_LOWER_EOF => Event::LowerEnded(LowerEnd::Eof),
        TLS_SPLICE_ON_LOWER_READ_FAILED => Event::LowerEnded(LowerEnd::ReadFailed(value)),
        TLS_SPLICE_ON_LOWER_WRITE_FAILED => Event::LowerEnded(LowerEnd::WriteFailed(value)),
        TLS_SPLICE_ON_LOWER_DRAINED => Event::LowerDrained,
        TLS_SPLICE_ON_SINK_READY => Event::SinkReady,
        TLS_SPLICE_ON_SOURCE_READY => Event::SourceReady,
        TLS_SPLICE_ON_SOURCE_GAVE => Event::SourceGave,
        TLS_SPLICE_ON_LEAVE_SOURCE => Event::LeaveSource,
        TLS_SPLICE_ON_DECRYPT => Event::Decrypt,
        TLS_SPLICE_ON_CYCLED => Event::Cycled,
        TLS_SPLICE_ON_STOP => Event::Stop,
        TLS_SPLICE_ON_RELEASE => Event::Release(match value as u32 {
            TLS_SPLICE_DECRYPT => Direction::Inbound,
            TLS_SPLICE_ENCRYPT => Direction::Outbound,
            _ => return None,
        }),
        TLS_SPLICE_ON_RESUME => Event::Resume {
            has_ended: value != 0,
        },
        TLS_SPLICE_ON_GONE => Event::Gone,
        _ => return None,
    })
}

/// Tells the splice what has happened (`TLS_SPLICE_ON_*`). `value` is what goes with the
/// event; for TLS_SPLICE_ON_CYCLED, a readable source, ciphertext and a stop it is whether the stream
/// below takes no write now. The splice moves what can be moved, and says
/// in `*actions` what is to be done. Inside of a call on `splice`, which a callback
/// of OpenSSL has left, the event is dealt with when that call returns, and there is
/// nothing to be done.
///
/// # Safety
/// `splice` must be NULL or valid, `ssl` valid and kept alive by the caller for the whole
/// call, `actions` NULL or writable with `struct_size` set.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_on(
    splice: *mut tls_splice,
    event: u32,
    value: c_int,
    ssl: *mut SSL,
    actions: *mut tls_splice_actions,
) -> c_int {
    // SAFETY: NULL or valid, by the contract above.
    let (Some(splice), Some(event)) = (unsafe { splice.as_ref() }, event_of(event, value)) else {
        return TLS_SPLICE_EARG;
    };
    if actions.is_null() || ssl.is_null() {
        return TLS_SPLICE_EARG;
    }
    // SAFETY: writable, by the contract above; the first field is there in every version.
    unsafe {
        if (&raw const (*actions).struct_size).read() != size_of::<tls_splice_actions>() {
            return TLS_SPLICE_EABI;
        }
    }
    let mut given = Actions::default();
    let lower = match event {
        Event::Cycled | Event::SourceReady | Event::LowerRead | Event::Stop if value != 0 => {
            Lower::Busy
        }
        _ => Lower::Ready,
    };
    // SAFETY: by the contract above.
    let code = unsafe { splice.on(event, lower, ssl, &mut given) };
    let mut orders = 0;
    for (is_ordered, bit) in [
        (given.flush == Flush::Yes, TLS_SPLICE_ACTION_FLUSH),
        (given.cycle, TLS_SPLICE_ACTION_CYCLE),
        (given.next_turn, TLS_SPLICE_ACTION_NEXT_TURN),
        (given.wake_other, TLS_SPLICE_ACTION_WAKE_OTHER),
        (given.deliver, TLS_SPLICE_ACTION_DELIVER),
        (given.is_close_notify, TLS_SPLICE_ACTION_CLOSE_NOTIFY),
        (
            given.lower_end == Some(LowerEnd::Eof),
            TLS_SPLICE_ACTION_LOWER_EOF,
        ),
        (
            matches!(given.lower_end, Some(LowerEnd::WriteFailed(_))),
            TLS_SPLICE_ACTION_LOWER_WRITE_FAILED,
        ),
    ] {
        if is_ordered {
            orders |= bit;
        }
    }
    // SAFETY: writable, by the contract above.
    unsafe {
        actions.write(tls_splice_actions {
            struct_size: size_of::<tls_splice_actions>(),
            orders,
            ssl_ret: given.ssl_ret,
            lower_error: match given.lower_end {
                Some(LowerEnd::ReadFailed(status) | LowerEnd::WriteFailed(status)) => status,
                Some(LowerEnd::Eof) | None => 0,
            },
        });
    }
    code
}

/// `*state` is what has become of the splice. Also inside of a call on `splice`.
///
/// # Safety
/// `splice` must be NULL or valid, `state` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_get_state(
    splice: *const tls_splice,
    state: *mut tls_splice_state,
) -> c_int {
    // SAFETY: NULL or valid, by the contract above.
    let Some(splice) = unsafe { splice.as_ref() }.filter(|_| !state.is_null()) else {
        return TLS_SPLICE_EARG;
    };
    // SAFETY: writable, by the contract above.
    unsafe { state.write(splice.state()) };
    TLS_SPLICE_OK
}

/// Queues a copy of bytes that were read before the splice, and that go first:
/// cleartext for the endpoint (`TLS_SPLICE_DECRYPT`), or from it
/// (`TLS_SPLICE_ENCRYPT`). Only between `tls_splice_start` and the first call
/// that moves bytes.
///
/// # Safety
/// `splice` must be NULL or valid, `bytes` readable for `len`; NULL if that is 0.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_push_before(
    splice: *mut tls_splice,
    direction: u32,
    bytes: *const u8,
    len: size_t,
) -> c_int {
    let bytes = match (bytes.is_null(), len) {
        (_, 0) => &[],
        (true, _) => return TLS_SPLICE_EARG,
        // SAFETY: by the contract above.
        (false, _) => unsafe { std::slice::from_raw_parts(bytes, len) },
    };
    let direction = match direction {
        TLS_SPLICE_DECRYPT => Direction::Inbound,
        _ => Direction::Outbound,
    };
    // SAFETY: passed on.
    unsafe { run(splice, |pump| pump.push_before(direction, bytes)) }
}

/// Asks the started directions to stop. `tls_splice_decrypt` moves nothing any
/// more; `tls_splice_encrypt` must be called until it gives STOPPED, since an
/// `SSL_write` that has begun must be finished.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_stop(splice: *mut tls_splice) -> c_int {
    // SAFETY: passed on.
    unsafe { run(splice, |pump| pump.stop()) }
}

/// Stops reading the source, as if it had ended; also before the start. Inside an
/// OpenSSL callback of a call on `splice`, when that call returns: that is
/// `TLS_SPLICE_OK`, too.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_end_encrypt(splice: *mut tls_splice) -> c_int {
    // SAFETY: NULL or valid, by the contract above.
    match unsafe { splice.as_ref() } {
        Some(splice) => splice.end_encrypt(),
        None => TLS_SPLICE_EARG,
    }
}

/// Tells a call on `splice` that is under way, inside whose OpenSSL callback
/// this is called, to return without using the `SSL` again. Nothing if there is none.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_cancel(splice: *mut tls_splice) -> c_int {
    // SAFETY: NULL or valid, by the contract above.
    match unsafe { splice.as_ref() } {
        Some(splice) => splice.cancel(),
        None => TLS_SPLICE_EARG,
    }
}

/// Makes `ssl` read ciphertext from the splice's buffer (`tls_splice_alloc`),
/// after what its present read BIO holds. `TLS_SPLICE_EBUSY` inside a handshake,
/// too; `TLS_SPLICE_ENOMEM`.
///
/// # Safety
/// `splice` must be NULL or valid; `ssl` must be NULL, or valid, have a read BIO, and
/// be in no call.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_attach_rbio(splice: *mut tls_splice, ssl: *mut SSL) -> c_int {
    // SAFETY: by the contract above.
    unsafe { attach(splice, ssl, |pump| pump.attach_rbio(ssl)) }
}

/// # Safety
/// `splice` and `ssl` must be NULL or valid.
unsafe fn attach(
    splice: *mut tls_splice,
    ssl: *mut SSL,
    f: impl FnOnce(&mut Pump) -> bool,
) -> c_int {
    // SAFETY: passed on.
    unsafe {
        with(splice, |pump, _| match check(ssl) {
            Err(code) => code,
            Ok(ssl) if crate::sys::SSL_in_init(ssl) != 0 => TLS_SPLICE_EBUSY,
            Ok(_) if f(pump) => TLS_SPLICE_OK,
            Ok(_) => TLS_SPLICE_ENOMEM,
        })
    }
}

/// # Safety
/// `splice` must be NULL or valid.
unsafe fn detach(
    splice: *mut tls_splice,
    ssl: *mut SSL,
    f: impl FnOnce(&mut Pump, *mut SSL),
) -> c_int {
    // SAFETY: passed on.
    unsafe {
        with(splice, |pump, _| match check(ssl) {
            Err(code) => code,
            Ok(ssl) => {
                f(pump, ssl);
                TLS_SPLICE_OK
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
pub unsafe extern "C" fn tls_splice_detach_rbio(splice: *mut tls_splice, ssl: *mut SSL) -> c_int {
    // SAFETY: by the contract above.
    unsafe { detach(splice, ssl, |pump, ssl| pump.detach_rbio(ssl)) }
}

/// Makes `ssl` write the ciphertext of `tls_splice_encrypt` to the splice's
/// buffers (`tls_splice_collected`), while its present write BIO is empty, and
/// all else to that. `TLS_SPLICE_EBUSY` inside a handshake, too; `TLS_SPLICE_ENOMEM`.
///
/// # Safety
/// `splice` must be NULL or valid; `ssl` must be NULL, or valid, have a write BIO, and
/// be in no call.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_attach_wbio(splice: *mut tls_splice, ssl: *mut SSL) -> c_int {
    // SAFETY: by the contract above.
    unsafe { attach(splice, ssl, |pump| pump.attach_wbio(ssl)) }
}

/// Gives `ssl` its own write BIO back, with what is collected. Nothing if
/// `tls_splice_attach_wbio` was not called.
///
/// # Safety
/// As for `tls_splice_attach_wbio`, with the same `ssl`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_detach_wbio(splice: *mut tls_splice, ssl: *mut SSL) -> c_int {
    // SAFETY: by the contract above.
    unsafe { detach(splice, ssl, |pump, ssl| pump.detach_wbio(ssl)) }
}

/// What `tls_splice_encrypt` has collected, for the stream, in order: writes at
/// most `len` pieces to `out`; `*count` is how many. They stay the splice's, and
/// valid until the `tls_splice_written` that must follow before any other call.
///
/// # Safety
/// `splice` must be NULL or valid, `out` writable for `len`, `count` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_collected(
    splice: *mut tls_splice,
    out: *mut tls_splice_buf,
    len: size_t,
    count: *mut size_t,
) -> c_int {
    // SAFETY: passed on; `out` is writable by the contract above.
    unsafe {
        give(splice, count, 0, |pump, _| {
            if out.is_null() {
                return Err(TLS_SPLICE_EARG);
            }
            let pieces = pump.wbio().into_iter().flat_map(|wbio| wbio.collected());
            let mut n = 0;
            for piece in pieces.take(len) {
                out.add(n).write(tls_splice_buf {
                    base: piece.as_ptr().cast_mut(),
                    len: piece.len(),
                });
                n += 1;
            }
            Ok(n)
        })
    }
}

/// Drops the first `n` bytes of that, which are written. If `is_all` is false, the
/// stream takes no more now, and the rest goes to the `SSL`'s own write BIO.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_written(
    splice: *mut tls_splice,
    n: size_t,
    is_all: bool,
) -> c_int {
    // SAFETY: passed on.
    unsafe {
        run(splice, |pump| {
            if let Some(wbio) = pump.wbio() {
                let rest = match is_all {
                    true => Rest::Keep,
                    false => Rest::HandOver,
                };
                wbio.written(n, rest);
            }
        })
    }
}

/// `*buf` is the memory that the next read of ciphertext goes to: valid until the
/// `tls_splice_commit` that must follow, with 0 if nothing was read. Empty when
/// no read BIO is attached, when there is no room, and once each time that it has
/// given enough for one turn of the loop.
///
/// # Safety
/// `splice` and `buf` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_alloc(
    splice: *mut tls_splice,
    buf: *mut tls_splice_buf,
) -> c_int {
    // SAFETY: passed on.
    unsafe {
        give(splice, buf, tls_splice_buf::NOTHING, |pump, _| {
            let buf = pump.alloc();
            Ok(tls_splice_buf {
                base: buf.as_mut_ptr(),
                len: buf.len(),
            })
        })
    }
}

/// Takes in `nread` bytes of ciphertext that were read into
/// `tls_splice_alloc`'s memory.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_commit(splice: *mut tls_splice, nread: size_t) -> c_int {
    // SAFETY: passed on.
    unsafe { run(splice, |pump| pump.commit(nread)) }
}

/// Moves what it can from `ssl` to the endpoint. `*steps` are the steps to take.
/// To be called when ciphertext has arrived and when the endpoint has become
/// writable. With `TLS_SPLICE_STEP_OVER`, `*ssl_ret` is what SSL_read(3)
/// returned, and this thread's error queue is what it left; otherwise it is 1.
///
/// # Safety
/// `splice` must be NULL or valid, `ssl` NULL, or valid and kept alive by the caller
/// for the whole call, `steps` and `ssl_ret` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_decrypt(
    splice: *mut tls_splice,
    ssl: *mut SSL,
    steps: *mut u32,
    ssl_ret: *mut c_int,
) -> c_int {
    if steps.is_null() || ssl_ret.is_null() {
        return TLS_SPLICE_EARG;
    }
    let mut given = (0, 1);
    // SAFETY: by the contract above.
    unsafe {
        let code = give(splice, &raw mut given, (0, 1), |pump, cancelled| {
            Ok(pump.decrypt(check(ssl)?, cancelled))
        });
        (*steps, *ssl_ret) = given;
        code
    }
}

/// Moves what it can from the endpoint to `ssl`. `*steps` are the steps to take.
/// To be called when the endpoint has become readable, and as the steps say.
///
/// # Safety
/// As for `tls_splice_decrypt`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_encrypt(
    splice: *mut tls_splice,
    ssl: *mut SSL,
    steps: *mut u32,
) -> c_int {
    // SAFETY: by the contract above.
    unsafe {
        give(splice, steps, 0, |pump, cancelled| {
            Ok(pump.encrypt(check(ssl)?, cancelled))
        })
    }
}

/// Shuts the write side of a socket endpoint down; nothing for others.
///
/// # Safety
/// `splice` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_shutdown_write(splice: *mut tls_splice) -> c_int {
    // SAFETY: passed on.
    unsafe { run(splice, |pump| pump.endpoint().shutdown_write()) }
}

/// `*is_blocked` is whether the endpoint has not taken all that it could be given.
///
/// # Safety
/// `splice` and `is_blocked` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_is_blocked(
    splice: *mut tls_splice,
    is_blocked: *mut bool,
) -> c_int {
    // SAFETY: passed on.
    unsafe { give(splice, is_blocked, false, |pump, _| Ok(pump.is_blocked())) }
}

/// Says that no more will be decrypted, since the stream has ended without a
/// close_notify. `*is_cut_off` is whether that was within a packet: then the splice
/// has failed.
///
/// # Safety
/// `splice` and `is_cut_off` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_end_decrypt(
    splice: *mut tls_splice,
    is_cut_off: *mut bool,
) -> c_int {
    // SAFETY: passed on.
    unsafe { give(splice, is_cut_off, false, |pump, _| Ok(!pump.end_inbound())) }
}

/// `*is_failing` is whether SSL_read(3) has ended with an error that nobody has been
/// told of, since there are bytes before it that are still undelivered.
///
/// # Safety
/// `splice` must be NULL or valid, `is_failing` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_is_failing(
    splice: *mut tls_splice,
    is_failing: *mut bool,
) -> c_int {
    // SAFETY: passed on.
    unsafe { give(splice, is_failing, false, |pump, _| Ok(pump.is_failing())) }
}

/// Hands over the error that SSL_read(3) has ended with, after bytes that are still
/// undelivered, so that no `TLS_SPLICE_STEP_OVER` has said so: OpenSSL tells of it
/// only once. `*ssl_ret` is what SSL_read(3) returned, and `*error` is for
/// `tls_splice_raise`, once these bytes are where they go instead.
/// `TLS_SPLICE_NOTHING` if there is none, or if it is a close_notify, which OpenSSL
/// repeats.
///
/// # Safety
/// `splice` must be NULL or valid, `ssl_ret` and `error` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_take_end(
    splice: *mut tls_splice,
    ssl_ret: *mut c_int,
    error: *mut c_ulong,
) -> c_int {
    if ssl_ret.is_null() || error.is_null() {
        return TLS_SPLICE_EARG;
    }
    let mut given = (0, 0);
    // SAFETY: by the contract above.
    unsafe {
        let code = give(splice, &raw mut given, (0, 0), |pump, _| {
            pump.take_error().ok_or(TLS_SPLICE_NOTHING)
        });
        (*ssl_ret, *error) = given;
        code
    }
}

/// Puts a packed OpenSSL error into this thread's queue, in place of what is there:
/// with it, SSL_get_error(3) gives for what SSL_read(3) had returned what it gave
/// then.
#[no_mangle]
pub extern "C" fn tls_splice_raise(error: c_ulong) -> c_int {
    if error == 0 {
        return TLS_SPLICE_EARG;
    }
    match guard(|| session::raise(error)) {
        Some(()) => TLS_SPLICE_OK,
        None => TLS_SPLICE_EPANIC,
    }
}

/// `*len` is how many bytes were decrypted and not taken by the endpoint.
///
/// # Safety
/// `splice` and `len` must be NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_undelivered(
    splice: *mut tls_splice,
    len: *mut size_t,
) -> c_int {
    // SAFETY: passed on.
    unsafe {
        give(splice, len, 0, |pump, _| {
            Ok(pump.undelivered().map_or(0, |held| held.len()))
        })
    }
}

/// Moves at most `len` bytes of that to `out`, in order. `*taken` is how many.
///
/// # Safety
/// `splice` must be NULL or valid, `out` writable for `len`, `taken` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_take_undelivered(
    splice: *mut tls_splice,
    out: *mut u8,
    len: size_t,
    taken: *mut size_t,
) -> c_int {
    // SAFETY: passed on; `out` is writable by the contract above.
    unsafe {
        give(splice, taken, 0, |pump, _| {
            if out.is_null() && len > 0 {
                return Err(TLS_SPLICE_EARG);
            }
            let Some(held) = pump.undelivered() else {
                return Ok(0);
            };
            let mut copied = 0;
            while copied < len && !held.is_empty() {
                let n = held.front().len().min(len - copied);
                std::ptr::copy_nonoverlapping(held.front().as_ptr(), out.add(copied), n);
                held.consume(n);
                copied += n;
            }
            Ok(copied)
        })
    }
}

/// Copies the counters; after a panic the last ones, although that is the code.
/// Nothing is copied with another one.
///
/// # Safety
/// `splice` must be NULL or valid, `out` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_get_stats(splice: *mut tls_splice, out: *mut Stats) -> c_int {
    // SAFETY: NULL or valid, by the contract above.
    let Some(splice) = unsafe { splice.as_ref() }.filter(|_| !out.is_null()) else {
        return TLS_SPLICE_EARG;
    };
    let (code, stats) = splice.stats();
    if let Some(stats) = stats {
        // SAFETY: writable by the contract above, as it is not NULL.
        unsafe { out.write(stats) };
    }
    code
}

/// Why the splice failed. `TLS_SPLICE_NOTHING` if it has not.
///
/// # Safety
/// `splice` must be NULL or valid, `out` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_get_failure(
    splice: *mut tls_splice,
    out: *mut tls_splice_failure,
) -> c_int {
    let nothing = tls_splice_failure::default();
    // SAFETY: passed on.
    unsafe {
        give(splice, out, nothing, |pump, _| {
            Ok(match pump.failure().ok_or(TLS_SPLICE_NOTHING)? {
                Failure::Endpoint { syscall, errno } => tls_splice_failure {
                    errnum: errno,
                    is_write: syscall == Syscall::Write,
                    ..nothing
                },
                Failure::Framing { direction, offset } => tls_splice_failure {
                    framing: direction.bit(),
                    offset,
                    ..nothing
                },
                Failure::Tls(error) => tls_splice_failure {
                    is_tls: true,
                    tls_error: error,
                    ..nothing
                },
            })
        })
    }
}
