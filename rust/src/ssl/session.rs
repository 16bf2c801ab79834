//! The session: `SSL_read`, `SSL_write` and OpenSSL's error queue.
//!
//! Node owns the session. These functions take the pointer for one call each and keep
//! nothing of it. The error queue is that of the calling thread.

use std::ops::Range;

use libc::{c_int, c_ulong};
use openssl_sys as ffi;
use openssl_sys::SSL;

use crate::sys;

/// What `SSL_read` gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// This many bytes of cleartext.
    Data(usize),
    /// Nothing until more ciphertext arrives, or a callback has been answered.
    Want,
    /// No more cleartext, ever.
    End(End),
}

/// How the peer's cleartext ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The return value of the `SSL_read` that said so, for `SSL_get_error`.
    pub ret: c_int,
    /// Why.
    pub cause: Cause,
}

/// Why the peer's cleartext ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The peer has sent close_notify.
    CloseNotify,
    /// The session has failed with this packed OpenSSL error.
    Error(c_ulong),
}

impl End {
    /// Makes SSL_get_error(3) give the right answer for [`End::ret`], which is returned,
    /// although other calls may have come since `SSL_read` returned it.
    ///
    /// # Safety
    /// As for [`read`].
    pub unsafe fn report(&self, ssl: *mut SSL) -> c_int {
        match self.cause {
            // After close_notify, SSL_read keeps returning 0.
            Cause::CloseNotify => {
                // SAFETY: passed on.
                unsafe { read(ssl, &mut [0]) };
            }
            Cause::Error(error) => raise(error),
        }
        self.ret
    }
}

/// Puts a packed error into this thread's queue, where `SSL_get_error` and Node's own
/// error path look for it. An error that is still in the queue stays there with all its
/// details: it is gone only if bytes that were decrypted before it had to wait.
///
/// Node makes the code of its error from OpenSSL's reason string, and drops an error whose
/// reason has none. A fatal alert with a number that OpenSSL does not know is such an error, and
/// becomes an [`UNKNOWN_ALERT_TYPE`] with the number in its data. The others are errors of the
/// system, and of providers without strings. They stay as they are: the socket is destroyed
/// without them, and the splice ends with ERR_SOCKET_CLOSED.
pub fn raise(error: c_ulong) {
    let (lib, reason) = (ffi::ERR_GET_LIB(error), ffi::ERR_GET_REASON(error));
    // SAFETY: plain calls on this thread's error queue. The library and reason are
    // constants of OpenSSL, or those of an error that OpenSSL reported. The format is NULL,
    // so no variadic argument is read; or it reads one `int`, which is passed.
    unsafe {
        let is_unassigned_alert = lib == LIB_SSL
            && ALERT_REASONS.contains(&reason)
            && ffi::ERR_reason_error_string(error).is_null();
        if !is_unassigned_alert && sys::ERR_peek_error() == error {
            return;
        }
        ffi::ERR_clear_error();
        ffi::ERR_new();
        if is_unassigned_alert {
            let number = reason - ALERT_REASONS.start;
            let format = c"SSL alert number %d".as_ptr();
            ffi::ERR_set_error(LIB_SSL, UNKNOWN_ALERT_TYPE, format, number);
        } else {
            ffi::ERR_set_error(lib, reason, std::ptr::null());
        }
    }
}

/// What `SSL_write` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// All bytes are encrypted: without SSL_MODE_ENABLE_PARTIAL_WRITE, OpenSSL never
    /// accepts a part of them.
    All,
    /// Nothing is encrypted yet; the same bytes at the same address must be tried again.
    Want,
    /// A fatal error, packed.
    Failed(c_ulong),
}

/// Empties the queue, which SSL_get_error(3) asks for before each TLS operation.
fn clear_errors() {
    // SAFETY: plain calls on this thread's error queue.
    unsafe {
        if sys::ERR_peek_error() != 0 {
            ffi::ERR_clear_error();
        }
    }
}

/// The oldest error of the queue, packed; 0 if the queue is empty.
fn peek_error() -> c_ulong {
    // SAFETY: a plain call on this thread's error queue.
    unsafe { sys::ERR_peek_error() }
}

/// The error of a session that fails without saying why, since it has reported its error
/// before the splice: SSL_R_PROTOCOL_IS_SHUTDOWN.
const FAILED_BEFORE: c_ulong = ffi::ERR_PACK(LIB_SSL, 0, 207);

/// The error of a peer that asks for KeyUpdates and does not read the answers, which OpenSSL
/// would collect without bound: SSL_R_TOO_MANY_KEY_UPDATES. OpenSSL has the text of this
/// error, and does not raise it.
const TOO_MANY_KEY_UPDATES: c_ulong = ffi::ERR_PACK(LIB_SSL, 0, 132);

/// The error of a peer of TLS 1.2 that asks for renegotiation again and again, and does not read
/// that this is refused: SSL_R_NO_RENEGOTIATION, which is also the name of the alert that OpenSSL
/// answers with, each time.
const NO_RENEGOTIATION: c_ulong = ffi::ERR_PACK(LIB_SSL, 0, 339);

fn clamp(len: usize) -> c_int {
    c_int::try_from(len).unwrap_or(c_int::MAX)
}

/// SSL_read(3) into `out`, which must not be empty.
///
/// # Safety
/// `ssl` must be valid, and stay so while its callbacks run.
pub unsafe fn read(ssl: *mut SSL, out: &mut [u8]) -> Read {
    clear_errors();
    // SAFETY: `ssl` by the contract above; `out` is writable for its length.
    let ret = unsafe { ffi::SSL_read(ssl, out.as_mut_ptr().cast(), clamp(out.len())) };
    if ret > 0 {
        return Read::Data(ret as usize);
    }
    // SAFETY: as above; nothing ran between the two calls.
    match unsafe { ffi::SSL_get_error(ssl, ret) } {
        ffi::SSL_ERROR_ZERO_RETURN | ffi::SSL_ERROR_SSL | ffi::SSL_ERROR_SYSCALL => {
            // SAFETY: by the contract above.
            Read::End(unsafe { end_of(ssl, ret) })
        }
        _ => Read::Want,
    }
}

/// What has ended the cleartext. `ret` is what `SSL_read` has returned, and the queue is
/// as `SSL_read` left it.
///
/// SSL_get_error(3) is not enough to tell. In TLS 1.3 a close_notify after a
/// user_canceled is SSL_ERROR_SYSCALL there, because user_canceled is the last warning
/// that it knows of. And a fatal alert that is reported for the second time is
/// SSL_ERROR_ZERO_RETURN, because its error is not in the queue any more.
///
/// # Safety
/// `ssl` must be valid.
unsafe fn end_of(ssl: *mut SSL, ret: c_int) -> End {
    // The error stays in the queue, for `raise`.
    let error = peek_error();
    // SAFETY: by the contract above.
    let (shutdown, has_failed) = unsafe { (ffi::SSL_get_shutdown(ssl), has_failed(ssl)) };
    let cause = match error {
        0 if !has_failed && shutdown & ffi::SSL_RECEIVED_SHUTDOWN != 0 => Cause::CloseNotify,
        0 => Cause::Error(FAILED_BEFORE),
        error => Cause::Error(error),
    };
    End { ret, cause }
}

/// How the cleartext ends if the peer makes `SSL_read` write one message after the other, and reads
/// none of them: with TLS 1.3 it asks for KeyUpdates, and with TLS 1.2 for the renegotiation that
/// SSL_OP_NO_RENEGOTIATION forbids.
///
/// # Safety
/// `ssl` must be valid.
pub unsafe fn too_many_answers(ssl: *const SSL) -> End {
    // SAFETY: by the contract above.
    let error = match unsafe { ffi::SSL_version(ssl) } {
        ffi::TLS1_3_VERSION => TOO_MANY_KEY_UPDATES,
        _ => NO_RENEGOTIATION,
    };
    End {
        ret: -1,
        cause: Cause::Error(error),
    }
}

/// Whether what `SSL_read` has just written belongs to a handshake that is under way. That is long
/// if certificates are among it, but the peer has to read it before it can begin another handshake.
///
/// This is never so with TLS 1.3, which has no handshake after the first one. There, `SSL_in_init`
/// is also true while a KeyUpdate has arrived in part, and the peer would choose what counts.
///
/// # Safety
/// `ssl` must be valid.
pub unsafe fn is_answering_handshake(ssl: *mut SSL) -> bool {
    // SAFETY: by the contract above.
    unsafe { ffi::SSL_version(ssl) != ffi::TLS1_3_VERSION && is_renegotiating(ssl) }
}

/// SSL_write(3) of `bytes`, which must not be empty. After [`Write::Want`] the
/// next call must pass the same slice.
///
/// # Safety
/// `ssl` must be valid, and stay so while its callbacks run.
pub unsafe fn write(ssl: *mut SSL, bytes: &[u8]) -> Write {
    clear_errors();
    // SAFETY: `ssl` by the contract above; `bytes` is readable for its length.
    let ret = unsafe { ffi::SSL_write(ssl, bytes.as_ptr().cast(), clamp(bytes.len())) };
    if ret > 0 {
        return Write::All;
    }
    // SAFETY: as above; nothing ran between the two calls.
    match unsafe { ffi::SSL_get_error(ssl, ret) } {
        ffi::SSL_ERROR_SSL | ffi::SSL_ERROR_SYSCALL | ffi::SSL_ERROR_ZERO_RETURN => {
            let error = peek_error();
            clear_errors();
            Write::Failed(if error == 0 { FAILED_BEFORE } else { error })
        }
        _ => Write::Want,
    }
}

/// Whether a handshake is under way, or to begin (TLS 1.2). Only `SSL_read` may carry it
/// on: `SSL_write` would fail for good at application data that the peer had sent before
/// the handshake.
///
/// # Safety
/// `ssl` must be valid.
pub unsafe fn is_renegotiating(ssl: *mut SSL) -> bool {
    // SAFETY: by the contract above.
    unsafe {
        match sys::SSL_in_init(ssl) {
            0 => sys::SSL_renegotiate_pending(ssl) != 0,
            // A failed session is within a handshake too, and SSL_write reports that.
            _ => !has_failed(ssl),
        }
    }
}

/// Whether the session has failed: then it is within a handshake for ever, without any
/// message to wait for.
///
/// # Safety
/// `ssl` must be valid.
unsafe fn has_failed(ssl: *mut SSL) -> bool {
    // SAFETY: by the contract above.
    unsafe { sys::SSL_in_init(ssl) != 0 && sys::SSL_get_state(ssl) == TLS_ST_OK }
}

// From the headers of OpenSSL; openssl-sys does not have them.
const TLS_ST_OK: c_int = 1;
const LIB_SSL: c_int = 20;
/// SSL_R_UNKNOWN_ALERT_TYPE.
const UNKNOWN_ALERT_TYPE: c_int = 246;
/// The reasons of the errors for alerts: SSL_AD_REASON_OFFSET, plus the number of the alert.
const ALERT_REASONS: Range<c_int> = 1000..1256;

/// Bytes of ciphertext that wait in the write BIO, including those that the stream is
/// writing.
///
/// # Safety
/// `ssl` must be valid.
pub unsafe fn pending_ciphertext(ssl: *mut SSL) -> usize {
    // SAFETY: `ssl` by the contract above; Node always sets a write BIO.
    unsafe { sys::BIO_ctrl_pending(ffi::SSL_get_wbio(ssl)) }
}

/// Bytes of ciphertext that wait in the read BIO, which is Node's or the splice's.
///
/// # Safety
/// `ssl` must be valid.
pub unsafe fn unread_ciphertext(ssl: *mut SSL) -> usize {
    // SAFETY: `ssl` by the contract above; Node always sets a read BIO.
    unsafe { sys::BIO_ctrl_pending(ffi::SSL_get_rbio(ssl)) }
}

#[cfg(test)]
#[allow(clippy::undocumented_unsafe_blocks)]
mod tests {
    use super::*;

    const LIB_SYS: c_int = 2;
    /// No library of OpenSSL's.
    const LIB_OTHER: c_int = 200;

    /// Which error this thread's queue has after an error with that library and reason was
    /// raised, with `is_queued` while it is in the queue.
    fn raised(lib: c_int, reason: c_int, is_queued: bool) -> (c_ulong, c_ulong) {
        unsafe {
            ffi::ERR_clear_error();
            ffi::ERR_new();
            ffi::ERR_set_error(lib, reason, std::ptr::null());
            let error = sys::ERR_peek_error();
            if !is_queued {
                ffi::ERR_clear_error();
            }
            raise(error);
            (error, ffi::ERR_get_error())
        }
    }

    #[test]
    fn only_an_alert_becomes_one_that_has_a_name() {
        let unknown_alert = ffi::ERR_PACK(LIB_SSL, 0, UNKNOWN_ALERT_TYPE);
        for is_queued in [true, false] {
            let (_, raised) = raised(LIB_SSL, 1199, is_queued);
            assert_eq!(raised, unknown_alert);
        }
        for reason in [2, 999, 1199, 1256] {
            for is_queued in [true, false] {
                let (error, raised) = raised(LIB_OTHER, reason, is_queued);
                assert_eq!(raised, error);
            }
        }
        for reason in [999, 1256] {
            let (error, raised) = raised(LIB_SSL, reason, true);
            assert_eq!(raised, error);
        }
        // OpenSSL has no reason strings for the errors of the system.
        let (error, raised) = raised(LIB_SYS, libc::ECONNRESET, true);
        assert_eq!(raised, error);
    }
}
