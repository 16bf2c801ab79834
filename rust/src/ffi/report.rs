//! C ABI: what is left of a splice: undelivered bytes, counters, failure.

use libc::{c_int, size_t};

use super::types::{self, value_of};
use super::*;
use crate::error::{Failure, Syscall, TLS_SPLICE_EARG, TLS_SPLICE_EBUSY, TLS_SPLICE_NOTHING};
use crate::handle::tls_splice;
use crate::stats::Stats;

/// Takes out cleartext that was decrypted and that the endpoint has not taken: moves at most
/// `len` bytes of it to `out`, in order, and sets `*count` to their number. To be called when
/// the decrypt direction has ended or stopped, before TLS_SPLICE_ON_RELEASE.
///
/// If `out` is NULL, nothing is taken, and `*count` is the number of bytes that there are;
/// `len` is 0. This is possible at any time.
///
/// TLS_SPLICE_EBUSY also during a transfer to the endpoint: how many of the bytes the
/// endpoint gets is not known then.
///
/// # Safety
/// `splice` is NULL or valid. `out` is NULL, or writable for `len` bytes. `count` is NULL or
/// writable.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_take_undelivered(
    splice: *mut tls_splice,
    out: *mut u8,
    len: size_t,
    count: *mut size_t,
) -> c_int {
    let take = |splice: &mut crate::splice::Splice| {
        if out.is_null() {
            return match len {
                0 => Ok(splice.undelivered()),
                _ => Err(TLS_SPLICE_EARG),
            };
        }
        let mut at = out;
        splice
            .take_undelivered(len, |bytes| {
                // SAFETY: `out` is not NULL, so it is writable for `len` bytes by the
                // contract above. The pieces come to at most `len` bytes, and are memory of
                // the splice's, so that they do not overlap.
                unsafe {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
                    at = at.add(bytes.len());
                }
            })
            .ok_or(TLS_SPLICE_EBUSY)
    };
    // SAFETY: passed on.
    unsafe { give(splice, count, 0, take) }
}

/// Copies the counters to `*out`. After a panic the result is TLS_SPLICE_EPANIC, and the last
/// counters are copied nevertheless. With any other result than these two, `*out` is left as
/// it is.
///
/// # Safety
/// `splice` is NULL or valid. `out` is NULL, or points to a struct that is writable for its
/// `struct_size`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_get_stats(splice: *mut tls_splice, out: *mut Stats) -> c_int {
    // SAFETY: `splice` is NULL or valid, `out` NULL or readable, by the contract above.
    let (splice, size) = unsafe { (splice.as_ref(), types::size_at(out)) };
    let size = match size {
        Ok(size) => size,
        Err(code) => return code,
    };
    let Some(splice) = splice else {
        return TLS_SPLICE_EARG;
    };
    let (code, stats) = splice.stats();
    if let Some(stats) = stats {
        // SAFETY: `out` is writable for `size`, by the contract above.
        unsafe { types::write(out, size, stats) };
    }
    code
}

/// Sets `*out` to why the splice has failed. TLS_SPLICE_NOTHING if neither the endpoint, nor
/// the framing, nor SSL_write(3) has failed.
///
/// # Safety
/// `splice` is NULL or valid. `out` is NULL, or points to a struct that is writable for its
/// `struct_size`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_get_failure(
    splice: *mut tls_splice,
    out: *mut tls_splice_failure,
) -> c_int {
    let nothing = tls_splice_failure::default();
    // SAFETY: passed on.
    unsafe {
        give_struct(splice, out, nothing, |splice| {
            splice.failure().map(failure_of).ok_or(TLS_SPLICE_NOTHING)
        })
    }
}

fn failure_of(failure: Failure) -> tls_splice_failure {
    let nothing = tls_splice_failure::default();
    match failure {
        Failure::Endpoint { syscall, errno } => tls_splice_failure {
            errnum: errno,
            is_write: syscall == Syscall::Write,
            ..nothing
        },
        Failure::Framing { direction, offset } => tls_splice_failure {
            framing: value_of(direction),
            offset,
            ..nothing
        },
        Failure::Tls(error) => tls_splice_failure {
            is_tls: true,
            tls_error: error,
            ..nothing
        },
    }
}
