//! C ABI: ciphertext between the session and the stream below.

use libc::{c_int, size_t};
use openssl_sys::SSL;

use super::types::direction_of;
use super::*;
use crate::error::{TLS_SPLICE_EARG, TLS_SPLICE_EBUSY, TLS_SPLICE_ENOMEM, TLS_SPLICE_OK};
use crate::handle::tls_splice;
use crate::sys;

/// Puts a BIO of the splice's in front of one that the session has. This saves a copy of
/// each byte, and is not required. It is for a stream below that can be read into memory of
/// the splice's, and written at once.
///
/// TLS_SPLICE_DECRYPT: the session reads ciphertext from memory that `tls_splice_alloc` gives,
/// after what its own read BIO holds.
///
/// TLS_SPLICE_ENCRYPT: the session writes the ciphertext of the splice to memory that
/// `tls_splice_collected` gives, as long as its own write BIO is empty. Every other
/// ciphertext, and all of it if the write BIO is not empty, goes to the write BIO.
///
/// With a direction that is attached nothing happens. TLS_SPLICE_EBUSY also inside a
/// handshake; TLS_SPLICE_ENOMEM if OpenSSL cannot allocate.
///
/// # Safety
/// `splice` is NULL or valid. `ssl` is NULL; or it is valid, has a read BIO and a write BIO,
/// and no call into OpenSSL with it is under way.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_attach(
    splice: *mut tls_splice,
    direction: u32,
    ssl: *mut SSL,
) -> c_int {
    let (direction, ssl) = match (direction_of(direction), check(ssl)) {
        (Ok(direction), Ok(ssl)) => (direction, ssl),
        _ => return TLS_SPLICE_EARG,
    };
    // SAFETY: passed on; `ssl` is not NULL, so it is valid and in no call, by the contract
    // above.
    unsafe {
        with(splice, |splice| match sys::SSL_in_init(ssl) {
            0 if splice.attach(direction, ssl) => TLS_SPLICE_OK,
            0 => TLS_SPLICE_ENOMEM,
            _ => TLS_SPLICE_EBUSY,
        })
    }
}

/// Undoes `tls_splice_attach` of that direction: the session has its own BIO again, which
/// gets the ciphertext that the session has not read, or that was not written. With a
/// direction that is not attached nothing happens.
///
/// This is also allowed in a callback that OpenSSL calls inside of SSL_read(3) or SSL_write(3),
/// be these calls of the caller's or of the other splice of the connection: OpenSSL takes the
/// BIO from the SSL anew for each read and write.
///
/// # Safety
/// `splice` is NULL or valid. `ssl` is NULL, or the valid SSL that `tls_splice_attach` was
/// given. No function of a BIO is under way, as none is while JavaScript runs.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_detach(
    splice: *mut tls_splice,
    direction: u32,
    ssl: *mut SSL,
) -> c_int {
    let (direction, ssl) = match (direction_of(direction), check(ssl)) {
        (Ok(direction), Ok(ssl)) => (direction, ssl),
        _ => return TLS_SPLICE_EARG,
    };
    // SAFETY: passed on; `ssl` is not NULL, so it is valid, and no function of a BIO is under
    // way, by the contract above.
    unsafe { run(splice, |splice| splice.detach(direction, ssl)) }
}

/// Sets `*buf` to the memory that the next read of the stream below goes to. It belongs to
/// the splice, and is valid until the `tls_splice_commit` that must follow.
///
/// `buf->len` is 0, and nothing must follow, if the decrypt direction is not attached, if
/// there is no room, and once each time that the reads were enough for one turn of the event
/// loop.
///
/// # Safety
/// `splice` is NULL or valid, `buf` NULL or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_alloc(
    splice: *mut tls_splice,
    buf: *mut tls_splice_buf,
) -> c_int {
    // SAFETY: passed on.
    unsafe {
        give(splice, buf, tls_splice_buf::NOTHING, |splice| {
            let buf = splice.alloc();
            Ok(tls_splice_buf {
                base: buf.as_mut_ptr(),
                len: buf.len(),
            })
        })
    }
}

/// Takes in `nread` bytes of ciphertext that were read into the memory of `tls_splice_alloc`:
/// at most its length, and 0 if nothing was read.
///
/// # Safety
/// `splice` is NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_commit(splice: *mut tls_splice, nread: size_t) -> c_int {
    // SAFETY: passed on.
    unsafe { run(splice, |splice| splice.commit(nread)) }
}

/// Gives the ciphertext that was collected for the stream below, in order: sets at most `len`
/// elements of the array `out`, and `*count` to their number, which is 0 if there is no
/// ciphertext. The memory belongs to the splice, and is valid until the next call on the
/// splice, which is `tls_splice_written`. If the stream below has not taken all of it,
/// `tls_splice_write_later` follows.
///
/// # Safety
/// `splice` is NULL or valid. `out` is NULL, or writable for `len` elements. `count` is NULL
/// or writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_collected(
    splice: *mut tls_splice,
    out: *mut tls_splice_buf,
    len: size_t,
    count: *mut size_t,
) -> c_int {
    let collect = |splice: &mut crate::splice::Splice| {
        if out.is_null() {
            return Err(TLS_SPLICE_EARG);
        }
        let pieces = splice.wbio().into_iter().flat_map(|wbio| wbio.collected());
        let mut n = 0;
        for piece in pieces.take(len) {
            // SAFETY: `out` is not NULL, so it is writable for `len` elements by the
            // contract above, and `n` is less than `len`.
            unsafe {
                out.add(n).write(tls_splice_buf {
                    base: piece.as_ptr().cast_mut(),
                    len: piece.len(),
                });
            }
            n += 1;
        }
        Ok(n)
    };
    // SAFETY: passed on.
    unsafe { give(splice, count, 0, collect) }
}

/// Drops the first `n` bytes of what `tls_splice_collected` gives, since the stream below has
/// taken them.
///
/// # Safety
/// `splice` is NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_written(splice: *mut tls_splice, n: size_t) -> c_int {
    // SAFETY: passed on.
    unsafe {
        run(splice, |splice| {
            if let Some(wbio) = splice.wbio() {
                wbio.written(n);
            }
        })
    }
}

/// Moves what `tls_splice_collected` gives to the session's own write BIO, since the stream
/// below takes no more at present: TLSWrap::EncOut writes it later.
///
/// # Safety
/// `splice` is NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_write_later(splice: *mut tls_splice) -> c_int {
    // SAFETY: passed on.
    unsafe {
        run(splice, |splice| {
            if let Some(wbio) = splice.wbio() {
                wbio.write_later();
            }
        })
    }
}
