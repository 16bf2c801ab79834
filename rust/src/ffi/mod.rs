//! The C ABI: exports only.
//!
//! What holds for every call is at the top of include/tls_splice.h, which is in
//! cbindgen.toml. A panic does not leave the library (see [`crate::panic`]).

use libc::{c_int, size_t};
use openssl_sys::SSL;

use crate::error::{TLS_SPLICE_EARG, TLS_SPLICE_OK};
use crate::handle::tls_splice;
use crate::splice::Splice;

// In the order of the header.
mod types;

mod life;

mod events;

mod ciphertext;

mod endpoint;

mod report;

pub use ciphertext::*;
pub use endpoint::*;
pub use events::*;
pub use life::*;
pub use report::*;
pub use types::*;

/// Runs `f`, which returns a code, on a splice.
///
/// # Safety
/// `splice` is NULL or valid.
unsafe fn with(splice: *const tls_splice, f: impl FnOnce(&mut Splice) -> c_int) -> c_int {
    // SAFETY: NULL or valid, by the contract above.
    match unsafe { splice.as_ref() } {
        Some(splice) => splice.with(f),
        None => TLS_SPLICE_EARG,
    }
}

/// Runs `f`, which always succeeds, on a splice.
///
/// # Safety
/// `splice` is NULL or valid.
unsafe fn run(splice: *const tls_splice, f: impl FnOnce(&mut Splice)) -> c_int {
    // SAFETY: passed on.
    unsafe {
        with(splice, |splice| {
            f(splice);
            TLS_SPLICE_OK
        })
    }
}

/// Runs `f` on a splice. Returns what `f` has returned and TLS_SPLICE_OK, or `nothing` and
/// another code.
///
/// # Safety
/// `splice` is NULL or valid.
unsafe fn ask<T: Copy>(
    splice: *const tls_splice,
    nothing: T,
    f: impl FnOnce(&mut Splice) -> Result<T, c_int>,
) -> (T, c_int) {
    let mut given = nothing;
    // SAFETY: passed on.
    let code = unsafe {
        with(splice, |splice| match f(splice) {
            Ok(result) => {
                given = result;
                TLS_SPLICE_OK
            }
            Err(code) => code,
        })
    };
    // A callback of a BIO may have panicked after `f` had its result.
    match code {
        TLS_SPLICE_OK => (given, code),
        _ => (nothing, code),
    }
}

/// Runs `f` on a splice and writes what it returns to `out`, or `nothing`.
///
/// # Safety
/// `splice` is NULL or valid, `out` NULL or writable.
unsafe fn give<T: Copy>(
    splice: *const tls_splice,
    out: *mut T,
    nothing: T,
    f: impl FnOnce(&mut Splice) -> Result<T, c_int>,
) -> c_int {
    if out.is_null() {
        return TLS_SPLICE_EARG;
    }
    // SAFETY: passed on; `out` is not NULL, so it is writable by the contract above.
    unsafe {
        let (given, code) = ask(splice, nothing, f);
        out.write(given);
        code
    }
}

/// As [`give`], to a struct that may be smaller than the library's.
///
/// # Safety
/// `splice` is NULL or valid; `out` is NULL, or points to a struct that is writable for its
/// `struct_size`.
unsafe fn give_struct<T: types::Grows>(
    splice: *const tls_splice,
    out: *mut T,
    nothing: T,
    f: impl FnOnce(&mut Splice) -> Result<T, c_int>,
) -> c_int {
    // SAFETY: passed on; `size` is that of the struct at `out`.
    unsafe {
        let size: size_t = match types::size_at(out) {
            Ok(size) => size,
            Err(code) => return code,
        };
        let (given, code) = ask(splice, nothing, f);
        types::write(out, size, given);
        code
    }
}

/// TLS_SPLICE_EARG if it is NULL.
fn check(ssl: *mut SSL) -> Result<*mut SSL, c_int> {
    match ssl.is_null() {
        true => Err(TLS_SPLICE_EARG),
        false => Ok(ssl),
    }
}
