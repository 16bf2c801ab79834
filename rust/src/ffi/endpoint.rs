//! C ABI: waiting for the endpoint, and transfers.

use libc::{c_int, ssize_t};
use openssl_sys::SSL;

use super::*;
use crate::error::{TLS_SPLICE_EARG, TLS_SPLICE_NOTHING, TLS_SPLICE_OK};
use crate::events;
use crate::handle::tls_splice;
use crate::splice::{Direction, Transfer};

/// Sets `*fd` to the file descriptor to poll for the readiness of the endpoint. It belongs to
/// the splice, and stays the same as long as the splice lives. -1 if the endpoint cannot be
/// polled, since it is a file or has no descriptor: transfers take the place of polling.
///
/// # Safety
/// `splice` is NULL or valid, `fd` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_poll_fd(splice: *mut tls_splice, fd: *mut c_int) -> c_int {
    // SAFETY: passed on.
    unsafe { give(splice, fd, -1, |splice| Ok(splice.endpoint().poll_fd())) }
}

/// Prepares to wait for the endpoint, and sets `*readiness` to what is to be waited for:
/// TLS_SPLICE_READABLE, TLS_SPLICE_WRITABLE, both, or 0 for nothing. The caller polls
/// `tls_splice_poll_fd` for it, level-triggered as uv_poll_start() does, or begins transfers.
///
/// To be called after the actions of each event are carried out: it is here that a direction
/// which has to wait is counted as a stall.
///
/// # Safety
/// `splice` and `ssl` are NULL or valid, `readiness` is NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_begin_wait(
    splice: *mut tls_splice,
    ssl: *mut SSL,
    readiness: *mut u32,
) -> c_int {
    // SAFETY: NULL or valid, by the contract above.
    let connection = unsafe { splice.as_ref() }.map(tls_splice::connection);
    // SAFETY: passed on; `ssl` is checked, so it is valid by the contract above.
    unsafe {
        give(splice, readiness, 0, |splice| {
            let ssl = check(ssl)?;
            let connection = connection.ok_or(TLS_SPLICE_EARG)?;
            Ok(events::begin_wait(splice, &connection, ssl))
        })
    }
}

/// Sets `*readiness` to what the endpoint is ready for, as bits TLS_SPLICE_READABLE and
/// TLS_SPLICE_WRITABLE, if `tls_splice_poll_fd` is ready for the bits `polled`. The two may
/// differ, since `tls_splice_poll_fd` can be an epoll(7) descriptor that watches the endpoint.
/// This changes nothing. The caller reports TLS_SPLICE_ON_SINK_READY for
/// TLS_SPLICE_WRITABLE, and then TLS_SPLICE_ON_SOURCE_READY for TLS_SPLICE_READABLE.
///
/// # Safety
/// `splice` is NULL or valid, `readiness` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_ready(
    splice: *mut tls_splice,
    polled: u32,
    readiness: *mut u32,
) -> c_int {
    // SAFETY: passed on.
    unsafe {
        give(splice, readiness, 0, |splice| {
            Ok(splice.endpoint().ready(polled))
        })
    }
}

/// The direction whose transfers have that readiness.
fn direction_with(readiness: u32) -> Result<Direction, c_int> {
    match readiness {
        TLS_SPLICE_READABLE => Ok(Direction::Outbound),
        TLS_SPLICE_WRITABLE => Ok(Direction::Inbound),
        _ => Err(TLS_SPLICE_EARG),
    }
}

/// Begins a transfer, and sets `*transfer` to what the caller has to do: with
/// TLS_SPLICE_READABLE, to read(2) into `transfer->buf`; with TLS_SPLICE_WRITABLE, to
/// write(2) from there; each at the position of the file, which moves on. A transfer of a
/// file begins when `tls_splice_begin_wait` has asked for it, a transfer of a stream of the
/// caller's at any time.
///
/// If `transfer->buf.len` is 0, there is nothing to do, and no transfer has begun. That is also
/// so if the source has given enough for one turn of the event loop: a stream of the caller's
/// is asked again when it has more, and a file in the next turn.
///
/// Otherwise `tls_splice_end_transfer` must follow. Until then the memory is used for nothing
/// else, `tls_splice_begin_wait` does not ask for a transfer of that direction, and the
/// splice must not be freed.
///
/// # Safety
/// `splice` and `ssl` are NULL or valid. `transfer` is NULL, or points to a struct that is
/// writable for its `struct_size`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_begin_transfer(
    splice: *mut tls_splice,
    ssl: *mut SSL,
    readiness: u32,
    transfer: *mut tls_splice_transfer,
) -> c_int {
    let nothing = tls_splice_transfer {
        struct_size: size_of::<tls_splice_transfer>(),
        fd: -1,
        buf: tls_splice_buf::NOTHING,
    };
    // SAFETY: passed on; `ssl` is checked, so it is valid by the contract above.
    unsafe {
        give_struct(splice, transfer, nothing, |splice| {
            let (ssl, direction) = (check(ssl)?, direction_with(readiness)?);
            let Transfer { fd, base, len } = splice.begin_transfer(ssl, direction);
            Ok(tls_splice_transfer {
                fd,
                buf: tls_splice_buf { base, len },
                ..nothing
            })
        })
    }
}

/// Ends a transfer. `result` is what read(2) or write(2) has returned, which is not more than
/// the length of the memory; or `-errno` if it has failed, as in libuv; or -ECANCELED if the
/// transfer was not carried out. The caller then reports TLS_SPLICE_ON_SOURCE_READY or
/// TLS_SPLICE_ON_SINK_READY.
///
/// That a stream of the caller's has ended, which is a read with a result of 0, may be said
/// without a transfer that has begun.
///
/// # Safety
/// `splice` is NULL or valid. Nobody uses the memory of the transfer any more.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_end_transfer(
    splice: *mut tls_splice,
    readiness: u32,
    result: ssize_t,
) -> c_int {
    let direction = match direction_with(readiness) {
        Ok(direction) => direction,
        Err(code) => return code,
    };
    let result = usize::try_from(result).map_err(|_| result.wrapping_neg() as c_int);
    // SAFETY: passed on.
    unsafe { run(splice, |splice| splice.end_transfer(direction, result)) }
}

/// Moves the bytes that the splice `from` has decrypted to the splice `to`, whose endpoint is
/// `from`. No byte is copied unless packets require it. The caller then reports
/// TLS_SPLICE_ON_SOURCE_READY, or TLS_SPLICE_ON_SOURCE_GAVE, to `to`. `ssl` is the session of
/// `to`.
///
/// TLS_SPLICE_NOTHING if nothing was moved, since `from` holds nothing, or `to` has no room or
/// sends nothing more. TLS_SPLICE_EBUSY also if both are one splice. A panic is a panic of
/// both.
///
/// # Safety
/// `from`, `to` and `ssl` are NULL or valid.
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
        // SAFETY: `ssl` is not NULL, so it is valid by the contract above.
        Ok(ssl) => match unsafe { from.pass(to, ssl) } {
            true => TLS_SPLICE_OK,
            false => TLS_SPLICE_NOTHING,
        },
    })
}

/// Shuts down the write side of a socket endpoint (shutdown(2) with SHUT_WR). With another
/// endpoint nothing happens.
///
/// # Safety
/// `splice` is NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_shutdown_write(splice: *mut tls_splice) -> c_int {
    // SAFETY: passed on.
    unsafe { run(splice, |splice| splice.endpoint().shutdown_write()) }
}
