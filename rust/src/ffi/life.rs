//! C ABI: making, starting and freeing a splice.

use libc::{c_char, c_int, size_t};

use super::types::{self, direction_of};
use super::*;
use crate::endpoint::{Access, Endpoint};
use crate::error::{
    OpenError, TLS_SPLICE_EARG, TLS_SPLICE_ENOPACKETS, TLS_SPLICE_EPANIC, TLS_SPLICE_OK,
};
use crate::frame::{Framing, PacketFormat};
use crate::handle::tls_splice;
use crate::panic::guard;
use crate::splice::Splice;

/// Returns the value TLS_SPLICE_ABI_VERSION of the library. Any thread may call this.
#[no_mangle]
pub extern "C" fn tls_splice_abi_version() -> u32 {
    TLS_SPLICE_ABI_VERSION
}

/// Returns the version of the library, which `process.versions` shows: a string that stays
/// valid for ever. Any thread may call this.
#[no_mangle]
pub extern "C" fn tls_splice_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Makes a splice, with no direction started, and sets `*out` to it. `tls_splice_free` frees
/// it.
///
/// Returns TLS_SPLICE_OK; or one of TLS_SPLICE_E*; or `-errno` of a failed system call, for
/// example -EBADF if `config->fd` is closed. `*out` is left as it is then.
///
/// # Safety
/// `config` is NULL, or points to a struct that is readable for its `struct_size`. `out` is
/// NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_new(
    config: *const tls_splice_config,
    out: *mut *mut tls_splice,
) -> c_int {
    guard(|| {
        if out.is_null() {
            return TLS_SPLICE_EARG;
        }
        // SAFETY: `config` is NULL or readable for its size, by the contract above.
        let config = match unsafe { types::read(config, tls_splice_config::default()) } {
            Ok(config) => config,
            Err(code) => return code,
        };
        match splice_of(&config) {
            Ok(splice) => {
                let splice = Box::into_raw(Box::new(tls_splice::new(splice)));
                // SAFETY: `out` is not NULL, so it is writable by the contract above.
                unsafe { out.write(splice) };
                TLS_SPLICE_OK
            }
            Err(code) => code,
        }
    })
    .unwrap_or(TLS_SPLICE_EPANIC)
}

fn splice_of(config: &tls_splice_config) -> Result<Splice, c_int> {
    const BOTH: u32 = TLS_SPLICE_DECRYPT | TLS_SPLICE_ENCRYPT;
    let access = match config.directions {
        TLS_SPLICE_DECRYPT => Access::Write,
        TLS_SPLICE_ENCRYPT => Access::Read,
        BOTH => Access::ReadWrite,
        _ => return Err(TLS_SPLICE_EARG),
    };
    if config.high_water_mark == 0 {
        return Err(TLS_SPLICE_EARG);
    }
    let framing = match config.framing {
        TLS_SPLICE_FRAMING_AUTO => None,
        TLS_SPLICE_FRAMING_RAW => Some(Framing::Raw),
        TLS_SPLICE_FRAMING_IP => Some(Framing::Ip),
        TLS_SPLICE_FRAMING_IPV4 => Some(Framing::Ipv4),
        TLS_SPLICE_FRAMING_IPV6 => Some(Framing::Ipv6),
        TLS_SPLICE_FRAMING_U16BE => Some(Framing::U16be),
        _ => return Err(TLS_SPLICE_EARG),
    };
    let endpoint = match config.fd {
        TLS_SPLICE_FD_NONE => Ok(Endpoint::of_caller()),
        fd => Endpoint::open(fd, access),
    }
    .map_err(OpenError::code)?;
    let framing = endpoint.framing(framing).map_err(OpenError::code)?;
    let format = match config.max_packet_size {
        0 => framing.into(),
        max_len => PacketFormat::new(framing, max_len),
    };
    if config.max_packet_size != 0 && !format.has_packets() {
        return Err(TLS_SPLICE_ENOPACKETS);
    }
    Ok(Splice::new(endpoint, format, config.high_water_mark))
}

/// Frees a splice and closes its file descriptors. This is also allowed after a panic. With
/// NULL nothing happens.
///
/// Returns TLS_SPLICE_OK; or TLS_SPLICE_EPANIC if freeing panics, after which some memory or
/// descriptors stay allocated.
///
/// # Safety
/// `splice` is NULL, or comes from `tls_splice_new`; no call on it is under way, nor a
/// transfer; it is not used again. Its directions are detached from the `SSL`
/// (`tls_splice_detach`), unless the `SSL` is freed already or is not used any more, as it
/// must not be after a panic.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_free(splice: *mut tls_splice) -> c_int {
    let freed = guard(|| {
        if !splice.is_null() {
            // SAFETY: by the contract above the pointer comes from the Box::into_raw in
            // tls_splice_new, and nobody uses it any more.
            drop(unsafe { Box::from_raw(splice) });
        }
    });
    match freed {
        Some(()) => TLS_SPLICE_OK,
        None => TLS_SPLICE_EPANIC,
    }
}

/// Hands the file descriptor `fd` of the caller's over to the splice, which closes it when
/// it is freed. With -1 a file descriptor that was handed over before is closed now.
///
/// # Safety
/// `splice` is NULL or valid. `fd` is the caller's to give away, or -1.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_adopt_fd(splice: *mut tls_splice, fd: c_int) -> c_int {
    // SAFETY: passed on; `fd` is the caller's to give away, by the contract above.
    unsafe { run(splice, |splice| splice.adopt_fd(fd)) }
}

/// Closes the endpoint before the splice is freed: the file descriptors of the splice, and
/// the one that was handed over with `tls_splice_adopt_fd`. For a splice that has given its
/// directions back, and that is kept only because of what JavaScript is yet to be told
/// (`tls_splice_state.owes`), or for the `before` of `tls_splice_start`.
///
/// # Safety
/// `splice` is NULL or valid. Nobody polls its file descriptor any more.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_close_endpoint(splice: *mut tls_splice) -> c_int {
    // SAFETY: passed on.
    unsafe { run(splice, Splice::close_endpoint) }
}

/// Starts `direction`, which is one of the directions in the config, on a TLS connection.
/// Nothing moves before the event TLS_SPLICE_ON_TURN, which the caller reports in the next
/// turn of the event loop.
///
/// `before` is a splice that has, or has had, a direction of the TLS connection, or NULL if
/// there is none: the splices of a connection share what is known of it. The two directions
/// of a connection may belong to one splice or to two; at any time a direction belongs to at
/// most one splice.
///
/// TLS_SPLICE_EARG if the splice has, or has had, the direction.
///
/// # Safety
/// `splice` and `before` are NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_start(
    splice: *mut tls_splice,
    direction: u32,
    before: *const tls_splice,
) -> c_int {
    // SAFETY: NULL or valid, by the contract above.
    let (splice, before) = unsafe { (splice.as_ref(), before.as_ref()) };
    match (splice, direction_of(direction)) {
        (Some(splice), Ok(direction)) => splice.start(direction, before),
        _ => TLS_SPLICE_EARG,
    }
}

/// Queues a copy of `len` bytes of cleartext that JavaScript has read before the start, and
/// that go first: bytes of the TLS peer's that the endpoint is to get (TLS_SPLICE_DECRYPT),
/// or bytes of the endpoint's that the TLS peer is to get (TLS_SPLICE_ENCRYPT). Several calls
/// queue their bytes one behind the other. To be called after `tls_splice_start` of the
/// direction, and before the first event. Nothing happens if the direction is not started.
///
/// # Safety
/// `splice` is NULL or valid. `bytes` is readable for `len` bytes; it may be NULL if `len`
/// is 0.
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
        // SAFETY: `bytes` is not NULL, so it is readable for `len` by the contract above;
        // nobody writes to it during the call, which copies it.
        (false, _) => unsafe { std::slice::from_raw_parts(bytes, len) },
    };
    let direction = match direction_of(direction) {
        Ok(direction) => direction,
        Err(code) => return code,
    };
    // SAFETY: passed on.
    unsafe { run(splice, |splice| splice.push_before(direction, bytes)) }
}
