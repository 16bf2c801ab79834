//! `SSL_read`, `SSL_write` and the error queue.

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
    /// The packed OpenSSL error; 0 for close_notify.
    pub error: c_ulong,
    /// Whether this is the peer's close_notify.
    pub close_notify: bool,
}

impl End {
    /// Makes SSL_get_error(3) give the right answer for [`End::ret`], which is returned,
    /// although other calls may have come since `SSL_read` returned it.
    ///
    /// # Safety
    /// As for [`read`].
    pub unsafe fn report(&self, ssl: *mut SSL) -> c_int {
        if self.close_notify {
            // SAFETY: passed on. After close_notify, SSL_read keeps returning 0.
            unsafe { read(ssl, &mut [0]) };
        } else {
            raise(self.error);
        }
        self.ret
    }
}

/// Puts a packed error into this thread's queue, where `SSL_get_error` and Node's own
/// error path look for it, unless it is still there with all its details. It is not
/// when the bytes decrypted before it had to wait.
pub fn raise(error: c_ulong) {
    // SAFETY: plain calls on this thread's error queue; the library and reason are
    // those of an error that OpenSSL reported, and the format is NULL, so no
    // variadic argument is read.
    unsafe {
        if sys::ERR_peek_error() == error {
            return;
        }
        ffi::ERR_clear_error();
        ffi::ERR_new();
        ffi::ERR_set_error(
            ffi::ERR_GET_LIB(error),
            ffi::ERR_GET_REASON(error),
            std::ptr::null(),
        );
    }
}

/// What `SSL_write` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// All of it is encrypted: without SSL_MODE_ENABLE_PARTIAL_WRITE there is no
    /// less.
    All,
    /// Nothing yet; the same bytes at the same address must be tried again.
    Want,
    /// A fatal error, packed.
    Failed(c_ulong),
}

/// Empties the queue: SSL_get_error(3) asks for that before each TLS operation.
fn clear_errors() {
    // SAFETY: plain calls on this thread's error queue.
    unsafe {
        if sys::ERR_peek_error() != 0 {
            ffi::ERR_clear_error();
        }
    }
}

/// The oldest error, 0 if there is none.
fn peek_error() -> c_ulong {
    // SAFETY: a plain call on this thread's error queue.
    unsafe { sys::ERR_peek_error() }
}

/// An error that was reported before the splice leaves a session that fails
/// without saying why: SSL_R_PROTOCOL_IS_SHUTDOWN of ERR_LIB_SSL.
const FAILED_BEFORE: c_ulong = ffi::ERR_PACK(20, 0, 207);

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

/// What ended the cleartext, `SSL_read` having returned `ret`, and left the queue as
/// it is.
///
/// SSL_get_error(3) does not say it. In TLS 1.3 the close_notify after a user_canceled
/// is SSL_ERROR_SYSCALL, since that is the last warning it knows of. And the second time
/// a fatal alert is SSL_ERROR_ZERO_RETURN, when its error is not in the queue any more:
/// it too is the end of what the peer sends, and OpenSSL just says so again.
///
/// # Safety
/// `ssl` must be valid.
unsafe fn end_of(ssl: *mut SSL, ret: c_int) -> End {
    // Left in the queue, for `raise`.
    let error = peek_error();
    // SAFETY: by the contract above.
    let (shutdown, has_failed) = unsafe { (ffi::SSL_get_shutdown(ssl), has_failed(ssl)) };
    let close_notify = error == 0 && !has_failed && shutdown & ffi::SSL_RECEIVED_SHUTDOWN != 0;
    End {
        ret,
        error: match error {
            0 if !close_notify => FAILED_BEFORE,
            error => error,
        },
        close_notify,
    }
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
            Write::Failed(error)
        }
        _ => Write::Want,
    }
}

/// Whether a handshake is under way, or to begin (TLS 1.2). That is for SSL_read:
/// SSL_write would carry it on too, and fail for good at application data that
/// the peer had sent before.
///
/// # Safety
/// `ssl` must be valid.
pub unsafe fn is_renegotiating(ssl: *mut SSL) -> bool {
    // SAFETY: by the contract above.
    unsafe {
        match sys::SSL_in_init(ssl) {
            0 => sys::SSL_renegotiate_pending(ssl) != 0,
            // One that has failed is in there too, and SSL_write says so.
            _ => !has_failed(ssl),
        }
    }
}

/// Whether the session has failed: it is within a handshake for ever, without any
/// message to wait for.
///
/// # Safety
/// `ssl` must be valid.
unsafe fn has_failed(ssl: *mut SSL) -> bool {
    // SAFETY: by the contract above.
    unsafe { sys::SSL_in_init(ssl) != 0 && sys::SSL_get_state(ssl) == TLS_ST_OK }
}

// From openssl/ssl.h; openssl-sys does not have it.
const TLS_ST_OK: c_int = 1;

/// Bytes of ciphertext that wait in the write BIO, those of a write in progress
/// included.
///
/// # Safety
/// `ssl` must be valid.
pub unsafe fn pending_ciphertext(ssl: *mut SSL) -> usize {
    // SAFETY: `ssl` by the contract above; Node always sets a write BIO.
    unsafe { sys::BIO_ctrl_pending(ffi::SSL_get_wbio(ssl)) }
}

/// Bytes of ciphertext that wait in the read BIO, whosever that is.
///
/// # Safety
/// `ssl` must be valid.
pub unsafe fn unread_ciphertext(ssl: *mut SSL) -> usize {
    // SAFETY: `ssl` by the contract above; Node always sets a read BIO.
    unsafe { sys::BIO_ctrl_pending(ffi::SSL_get_rbio(ssl)) }
}
