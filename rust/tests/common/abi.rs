//! The C ABI for tests in which every call succeeds: each returns what it gives.

use std::cell::Cell;
use std::mem::MaybeUninit;

use libc::c_int;
use openssl_sys::SSL;

use tls_splice::error::{TLS_SPLICE_EARG, TLS_SPLICE_EBUSY, TLS_SPLICE_NOTHING, TLS_SPLICE_OK};
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

/// A struct in which nothing is but its size.
pub fn no_actions() -> tls_splice_actions {
    tls_splice_actions {
        struct_size: size_of::<tls_splice_actions>(),
        orders: 77,
        ssl_ret: 77,
        lower_error: 77,
    }
}

pub fn no_transfer() -> tls_splice_transfer {
    tls_splice_transfer {
        struct_size: size_of::<tls_splice_transfer>(),
        fd: 77,
        buf: tls_splice_buf {
            base: std::ptr::null_mut(),
            len: 77,
        },
    }
}

pub fn no_state() -> tls_splice_state {
    tls_splice_state {
        struct_size: size_of::<tls_splice_state>(),
        outcome: 77,
        ..Default::default()
    }
}

pub fn no_failure() -> tls_splice_failure {
    tls_splice_failure {
        struct_size: size_of::<tls_splice_failure>(),
        errnum: 77,
        ..Default::default()
    }
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
pub unsafe fn begin_wait(splice: *mut Splice, ssl: *mut SSL) -> u32 {
    given(|out| unsafe { tls_splice_begin_wait(splice, ssl, out) })
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
    let mut transfer = no_transfer();
    ok(unsafe { tls_splice_begin_transfer(splice, ssl, event, &mut transfer) });
    transfer
}

#[track_caller]
pub unsafe fn end_transfer(splice: *mut Splice, event: u32, result: isize) {
    ok(unsafe { tls_splice_end_transfer(splice, event, result) });
}

#[track_caller]
pub unsafe fn pass(from: *mut Splice, to: *mut Splice, ssl: *mut SSL) -> bool {
    found(unsafe { tls_splice_pass(from, to, ssl) })
}

/// Starts each of the directions, on a connection that no other splice has a direction of.
#[track_caller]
pub unsafe fn start(splice: *mut Splice, directions: u32) {
    for direction in [TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT] {
        if directions & direction != 0 {
            ok(unsafe { tls_splice_start(splice, direction, std::ptr::null()) });
        }
    }
}

/// Lets the event loop of this thread turn.
pub fn next_turn() {
    thread_local!(static TURNS: Cell<u64> = const { Cell::new(0) });
    TURNS.set(TURNS.get() + 1);
    ok(tls_splice_begin_turn(TURNS.get()));
}

/// Reports an event. Those that a splice waits for come in a later turn of the event loop.
#[track_caller]
pub unsafe fn on(
    splice: *mut Splice,
    event: u32,
    value: c_int,
    ssl: *mut SSL,
) -> tls_splice_actions {
    let mut actions = no_actions();
    if matches!(event, TLS_SPLICE_ON_TURN | TLS_SPLICE_ON_SINK_READY) {
        next_turn();
    }
    ok(unsafe { tls_splice_on(splice, event, value, ssl, &mut actions) });
    assert_eq!(actions.struct_size, size_of::<tls_splice_actions>());
    actions
}

#[track_caller]
pub unsafe fn state(splice: *const Splice) -> tls_splice_state {
    let mut state = no_state();
    ok(unsafe { tls_splice_get_state(splice, &mut state) });
    state
}

#[track_caller]
pub unsafe fn push_before(splice: *mut Splice, direction: u32, bytes: *const u8, len: usize) {
    ok(unsafe { tls_splice_push_before(splice, direction, bytes, len) });
}

#[track_caller]
pub unsafe fn attach(splice: *mut Splice, direction: u32, ssl: *mut SSL) {
    ok(unsafe { tls_splice_attach(splice, direction, ssl) });
}

/// Detaches both directions, whichever are attached.
#[track_caller]
pub unsafe fn detach(splice: *mut Splice, ssl: *mut SSL) {
    for direction in [TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT] {
        ok(unsafe { tls_splice_detach(splice, direction, ssl) });
    }
}

#[track_caller]
pub unsafe fn collected(splice: *mut Splice, pieces: *mut tls_splice_buf, len: usize) -> usize {
    given(|out| unsafe { tls_splice_collected(splice, pieces, len, out) })
}

#[track_caller]
pub unsafe fn written(splice: *mut Splice, n: usize) {
    ok(unsafe { tls_splice_written(splice, n) });
}

#[track_caller]
pub unsafe fn write_later(splice: *mut Splice) {
    ok(unsafe { tls_splice_write_later(splice) });
}

/// If the splice has done enough in this turn, the event loop turns.
#[track_caller]
pub unsafe fn alloc(splice: *mut Splice) -> tls_splice_buf {
    let buf: tls_splice_buf = given(|out| unsafe { tls_splice_alloc(splice, out) });
    if buf.len == 0 {
        next_turn();
    }
    buf
}

#[track_caller]
pub unsafe fn commit(splice: *mut Splice, n: usize) {
    ok(unsafe { tls_splice_commit(splice, n) });
}

#[track_caller]
pub unsafe fn shutdown_write(splice: *mut Splice) {
    ok(unsafe { tls_splice_shutdown_write(splice) });
}

/// How many bytes there are to take.
#[track_caller]
pub unsafe fn undelivered(splice: *mut Splice) -> usize {
    given(|out| unsafe { tls_splice_take_undelivered(splice, std::ptr::null_mut(), 0, out) })
}

#[track_caller]
pub unsafe fn take_undelivered(splice: *mut Splice, bytes: *mut u8, len: usize) -> usize {
    given(|out| unsafe { tls_splice_take_undelivered(splice, bytes, len, out) })
}

#[track_caller]
pub unsafe fn stats(splice: *mut Splice) -> Stats {
    let mut stats = Stats::default();
    ok(unsafe { tls_splice_get_stats(splice, &mut stats) });
    stats
}

#[track_caller]
pub unsafe fn failure(splice: *mut Splice) -> Option<tls_splice_failure> {
    let mut failure = no_failure();
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
    let mut readiness = [7u32; 2];
    let mut counts = [7usize; 3];
    let mut transfer = no_transfer();
    let mut buf = no_transfer().buf;
    let mut failure = no_failure();
    unsafe {
        let codes = [
            tls_splice_adopt_fd(splice, -1),
            tls_splice_poll_fd(splice, &mut fd),
            tls_splice_begin_wait(splice, ssl, &mut readiness[0]),
            tls_splice_ready(splice, 3, &mut readiness[1]),
            tls_splice_begin_transfer(splice, ssl, 1, &mut transfer),
            tls_splice_end_transfer(splice, 1, 1),
            tls_splice_start(splice, 1, std::ptr::null()),
            tls_splice_push_before(splice, 2, bytes.as_ptr(), bytes.len()),
            tls_splice_attach(splice, TLS_SPLICE_DECRYPT, ssl),
            tls_splice_detach(splice, TLS_SPLICE_DECRYPT, ssl),
            tls_splice_attach(splice, TLS_SPLICE_ENCRYPT, ssl),
            tls_splice_detach(splice, TLS_SPLICE_ENCRYPT, ssl),
            tls_splice_collected(splice, &mut piece, 1, &mut counts[0]),
            tls_splice_written(splice, 1),
            tls_splice_write_later(splice),
            tls_splice_alloc(splice, &mut buf),
            tls_splice_commit(splice, 1),
            tls_splice_shutdown_write(splice),
            tls_splice_take_undelivered(splice, std::ptr::null_mut(), 0, &mut counts[1]),
            tls_splice_take_undelivered(splice, bytes.as_mut_ptr(), 4, &mut counts[2]),
            tls_splice_get_failure(splice, &mut failure),
            tls_splice_pass(splice, splice, ssl),
        ];
        assert_eq!(codes, [code; 22]);
        let mut stats = Stats::default();
        assert_eq!(tls_splice_get_stats(splice, &mut stats), code);
        assert_eq!(tls_splice_pass(splice, other, ssl), TLS_SPLICE_EARG);
        assert_eq!(tls_splice_pass(other, splice, ssl), TLS_SPLICE_EARG);
        if code != TLS_SPLICE_EBUSY {
            no_event(splice, ssl, code);
        }
    }
    assert_eq!((readiness, counts), ([0; 2], [0; 3]));
    assert_eq!((fd, transfer.fd), (-1, -1));
    assert_eq!((transfer.buf.len, buf.len, piece.len), (0, 0, 4));
    assert_eq!((failure.errnum, bytes), (0, [7; 4]));
}

/// Each event is answered with `code`, and orders nothing.
#[track_caller]
unsafe fn no_event(splice: *mut Splice, ssl: *mut SSL, code: c_int) {
    for event in 0..=TLS_SPLICE_ON_SOURCE_GAVE {
        let mut actions = no_actions();
        let value = TLS_SPLICE_DECRYPT as c_int;
        let answer = unsafe { tls_splice_on(splice, event, value, ssl, &mut actions) };
        assert_eq!(answer, code);
        assert_eq!(
            (actions.orders, actions.ssl_ret, actions.lower_error),
            (0, 1, 0)
        );
    }
}
