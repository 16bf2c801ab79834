//! The C ABI for tests in which every call succeeds: each returns what it gives.

use std::mem::MaybeUninit;

use libc::c_int;
use openssl_sys::SSL;

use tls_splice::error::{TLS_SPLICE_EARG, TLS_SPLICE_NOTHING, TLS_SPLICE_OK};
use tls_splice::ffi::*;
use tls_splice::handle::tls_splice as Splice;
use tls_splice::stats::Stats;

#[track_caller]
fn ok(code: c_int) {
    assert_eq!(code, TLS_SPLICE_OK);
}

/// Whether there is what was asked for.
#[track_caller]
fn found(code: c_int) -> bool {
    if code == TLS_SPLICE_NOTHING {
        return false;
    }
    ok(code);
    true
}

#[track_caller]
fn given<T>(call: impl FnOnce(*mut T) -> c_int) -> T {
    let mut out = MaybeUninit::uninit();
    ok(call(out.as_mut_ptr()));
    unsafe { out.assume_init() }
}

#[track_caller]
pub unsafe fn free(splice: *mut Splice) {
    ok(unsafe { tls_splice_free(splice) });
}

#[track_caller]
pub unsafe fn adopt_fd(splice: *mut Splice, fd: c_int) {
    ok(unsafe { tls_splice_adopt_fd(splice, fd) });
}

#[track_caller]
pub unsafe fn poll_fd(splice: *mut Splice) -> c_int {
    given(|out| unsafe { tls_splice_poll_fd(splice, out) })
}

#[track_caller]
pub unsafe fn interest(splice: *mut Splice, ssl: *mut SSL) -> u32 {
    given(|out| unsafe { tls_splice_interest(splice, ssl, out) })
}

#[track_caller]
pub unsafe fn ready(splice: *mut Splice, polled: u32) -> u32 {
    given(|out| unsafe { tls_splice_ready(splice, polled, out) })
}

#[track_caller]
pub unsafe fn begin_transfer(
    splice: *mut Splice,
    ssl: *mut SSL,
    event: u32,
) -> tls_splice_transfer {
    given(|out| unsafe { tls_splice_begin_transfer(splice, ssl, event, out) })
}

#[track_caller]
pub unsafe fn end_transfer(splice: *mut Splice, event: u32, result: isize) {
    ok(unsafe { tls_splice_end_transfer(splice, event, result) });
}

#[track_caller]
pub unsafe fn pass(from: *mut Splice, to: *mut Splice, ssl: *mut SSL) -> bool {
    found(unsafe { tls_splice_pass(from, to, ssl) })
}

#[track_caller]
pub unsafe fn start(splice: *mut Splice, direction: u32) {
    ok(unsafe { tls_splice_start(splice, direction) });
}

#[track_caller]
pub unsafe fn push_before(splice: *mut Splice, direction: u32, bytes: *const u8, len: usize) {
    ok(unsafe { tls_splice_push_before(splice, direction, bytes, len) });
}

#[track_caller]
pub unsafe fn stop(splice: *mut Splice) {
    ok(unsafe { tls_splice_stop(splice) });
}

#[track_caller]
pub unsafe fn end_encrypt(splice: *mut Splice) {
    ok(unsafe { tls_splice_end_encrypt(splice) });
}

#[track_caller]
pub unsafe fn cancel(splice: *mut Splice) {
    ok(unsafe { tls_splice_cancel(splice) });
}

#[track_caller]
pub unsafe fn detach_rbio(splice: *mut Splice, ssl: *mut SSL) {
    ok(unsafe { tls_splice_detach_rbio(splice, ssl) });
}

#[track_caller]
pub unsafe fn detach_wbio(splice: *mut Splice, ssl: *mut SSL) {
    ok(unsafe { tls_splice_detach_wbio(splice, ssl) });
}

#[track_caller]
pub unsafe fn collected(splice: *mut Splice, pieces: *mut tls_splice_buf, len: usize) -> usize {
    given(|out| unsafe { tls_splice_collected(splice, pieces, len, out) })
}

#[track_caller]
pub unsafe fn written(splice: *mut Splice, n: usize, is_all: bool) {
    ok(unsafe { tls_splice_written(splice, n, is_all) });
}

#[track_caller]
pub unsafe fn alloc(splice: *mut Splice) -> tls_splice_buf {
    given(|out| unsafe { tls_splice_alloc(splice, out) })
}

#[track_caller]
pub unsafe fn commit(splice: *mut Splice, n: usize) {
    ok(unsafe { tls_splice_commit(splice, n) });
}

/// Returns the steps.
#[track_caller]
pub unsafe fn decrypt(splice: *mut Splice, ssl: *mut SSL, ssl_ret: &mut c_int) -> u32 {
    given(|out| unsafe { tls_splice_decrypt(splice, ssl, out, ssl_ret) })
}

/// Returns the steps.
#[track_caller]
pub unsafe fn encrypt(splice: *mut Splice, ssl: *mut SSL) -> u32 {
    given(|out| unsafe { tls_splice_encrypt(splice, ssl, out) })
}

#[track_caller]
pub unsafe fn shutdown_write(splice: *mut Splice) {
    ok(unsafe { tls_splice_shutdown_write(splice) });
}

#[track_caller]
pub unsafe fn is_blocked(splice: *mut Splice) -> bool {
    given(|out| unsafe { tls_splice_is_blocked(splice, out) })
}

#[track_caller]
pub unsafe fn end_decrypt(splice: *mut Splice) -> bool {
    given(|out| unsafe { tls_splice_end_decrypt(splice, out) })
}

#[track_caller]
pub unsafe fn undelivered(splice: *mut Splice) -> usize {
    given(|out| unsafe { tls_splice_undelivered(splice, out) })
}

#[track_caller]
pub unsafe fn take_undelivered(splice: *mut Splice, bytes: *mut u8, len: usize) -> usize {
    given(|out| unsafe { tls_splice_take_undelivered(splice, bytes, len, out) })
}

#[track_caller]
pub unsafe fn stats(splice: *mut Splice) -> Stats {
    given(|out| unsafe { tls_splice_get_stats(splice, out) })
}

#[track_caller]
pub unsafe fn failure(splice: *mut Splice) -> Option<tls_splice_failure> {
    let mut failure = tls_splice_failure::default();
    found(unsafe { tls_splice_get_failure(splice, &mut failure) }).then_some(failure)
}

/// Every call on `splice` answers `code` and gives nothing, but for those that a
/// callback of OpenSSL may make, and the counters after a panic.
#[track_caller]
pub unsafe fn refused(splice: *mut Splice, ssl: *mut SSL, code: c_int) {
    let other = std::ptr::null_mut();
    let mut bytes = [7u8; 4];
    let mut piece = tls_splice_buf {
        base: bytes.as_mut_ptr(),
        len: 4,
    };
    let mut fd = 7;
    let mut ret = 7;
    let mut is_true = true;
    let mut numbers = [7u32; 4];
    let mut sizes = [7usize; 3];
    let mut error = 7;
    let mut transfer = tls_splice_transfer { fd: 7, buf: piece };
    let mut failure = tls_splice_failure {
        errnum: 7,
        ..Default::default()
    };
    unsafe {
        let codes = [
            tls_splice_adopt_fd(splice, -1),
            tls_splice_poll_fd(splice, &mut fd),
            tls_splice_interest(splice, ssl, &mut numbers[0]),
            tls_splice_ready(splice, 3, &mut numbers[1]),
            tls_splice_begin_transfer(splice, ssl, 1, &mut transfer),
            tls_splice_end_transfer(splice, 1, 1),
            tls_splice_start(splice, 3),
            tls_splice_push_before(splice, 2, bytes.as_ptr(), bytes.len()),
            tls_splice_stop(splice),
            tls_splice_attach_rbio(splice, ssl),
            tls_splice_detach_rbio(splice, ssl),
            tls_splice_attach_wbio(splice, ssl),
            tls_splice_detach_wbio(splice, ssl),
            tls_splice_collected(splice, &mut piece, 1, &mut sizes[0]),
            tls_splice_written(splice, 1, false),
            tls_splice_alloc(splice, &mut transfer.buf),
            tls_splice_commit(splice, 1),
            tls_splice_decrypt(splice, ssl, &mut numbers[2], &mut ret),
            tls_splice_encrypt(splice, ssl, &mut numbers[3]),
            tls_splice_shutdown_write(splice),
            tls_splice_end_decrypt(splice, &mut is_true),
            tls_splice_undelivered(splice, &mut sizes[1]),
            tls_splice_take_undelivered(splice, bytes.as_mut_ptr(), 4, &mut sizes[2]),
            tls_splice_get_failure(splice, &mut failure),
        ];
        assert_eq!(codes, [code; 24]);
        assert!(!is_true);
        is_true = true;
        assert_eq!(tls_splice_is_blocked(splice, &mut is_true), code);
        assert_eq!(tls_splice_pass(splice, splice, ssl), code);
        let (mut end, mut stats) = (7, Stats::default());
        assert_eq!(tls_splice_take_end(splice, &mut end, &mut error), code);
        assert_eq!(tls_splice_get_stats(splice, &mut stats), code);
        assert_eq!((fd, ret, end, error, is_true), (-1, 1, 0, 0, false));
        assert_eq!(tls_splice_pass(splice, other, ssl), TLS_SPLICE_EARG);
        assert_eq!(tls_splice_pass(other, splice, ssl), TLS_SPLICE_EARG);
    }
    assert_eq!((numbers, sizes), ([0; 4], [0; 3]));
    assert_eq!((transfer.fd, transfer.buf.len, piece.len), (-1, 0, 4));
    assert_eq!((failure.errnum, bytes), (0, [7; 4]));
}
