//! C ABI: what happens to a splice, and what the caller has to do.

use libc::c_int;
use openssl_sys::SSL;

use super::types::{self, direction_of};
use super::*;
use crate::budget;
use crate::error::{TLS_SPLICE_EARG, TLS_SPLICE_OK};
use crate::events::{Actions, Event, Lower};
use crate::handle::tls_splice;
use crate::lifecycle::{outcome, LowerEnd, Reading};
use crate::splice::Flush;

/// Event: a turn of the event loop, which TLS_SPLICE_ACTION_NEXT_TURN or `tls_splice_start`
/// has asked for.
pub const TLS_SPLICE_ON_TURN: u32 = 0;
/// Event: the stream below has given ciphertext, and TLSWrap::Cycle has handed it to the
/// session. `value` is 1 if the stream below takes no write now, else 0. Needs the session.
pub const TLS_SPLICE_ON_LOWER_READ: u32 = 1;
/// Event: the stream below has ended (UV_EOF).
pub const TLS_SPLICE_ON_LOWER_EOF: u32 = 2;
/// Event: a read of the stream below has failed. `value` is the libuv error code.
pub const TLS_SPLICE_ON_LOWER_READ_FAILED: u32 = 3;
/// Event: a write of ciphertext of the splice's to the stream below has failed. `value` is
/// the libuv error code.
pub const TLS_SPLICE_ON_LOWER_WRITE_FAILED: u32 = 4;
/// Event: the stream below has written all ciphertext that the session had for it.
pub const TLS_SPLICE_ON_LOWER_DRAINED: u32 = 5;
/// Event: the endpoint can be written, or has taken a transfer.
pub const TLS_SPLICE_ON_SINK_READY: u32 = 6;
/// Event: the endpoint can be read, has given a transfer, or is another splice that has
/// passed bytes on (`tls_splice_pass`). `value` is 1 if the stream below takes no write now,
/// else 0. Needs the session.
pub const TLS_SPLICE_ON_SOURCE_READY: u32 = 7;
/// Event: the endpoint is not to be read any more, as if it had ended. What was read from it
/// is still sent. The event may come before the encrypt direction is started.
pub const TLS_SPLICE_ON_LEAVE_SOURCE: u32 = 8;
/// Event: Node asks for cleartext (TLSWrap::ClearOut), or what TLS_SPLICE_ACTION_DELIVER has
/// asked for is done. Needs the session.
pub const TLS_SPLICE_ON_DECRYPT: u32 = 9;
/// Event: the TLSWrap::Cycle that TLS_SPLICE_ACTION_CYCLE has asked for has returned. `value`
/// is 1 if the stream below takes no write now, else 0. Needs the session.
pub const TLS_SPLICE_ON_CYCLED: u32 = 10;
/// Event: all directions of the splice are to stop. `value` is 1 if the stream below takes no
/// write now, else 0. Needs the session.
pub const TLS_SPLICE_ON_STOP: u32 = 11;
/// Event: a direction goes back to JavaScript. `value` is TLS_SPLICE_DECRYPT or
/// TLS_SPLICE_ENCRYPT. For TLS_SPLICE_DECRYPT, `tls_splice_take_undelivered` comes before.
pub const TLS_SPLICE_ON_RELEASE: u32 = 12;
/// Event: JavaScript has the bytes that it was given with TLS_SPLICE_ON_RELEASE, and has had a
/// turn of the event loop for them unless it has read them at once. `value` is not 0 if
/// JavaScript has been told of the end of what the peer sends.
pub const TLS_SPLICE_ON_RESUME: u32 = 13;
/// Event: the `SSL` or the stream below is about to be freed. No later call uses the session.
pub const TLS_SPLICE_ON_GONE: u32 = 14;
/// Event: the endpoint is another splice that has passed bytes on, at a time at which this
/// splice must not send. It sends in the next turn.
pub const TLS_SPLICE_ON_SOURCE_GAVE: u32 = 15;

/// Action: write what is held to the endpoint by transfers (`tls_splice_begin_transfer`), or
/// pass it on (`tls_splice_pass`). If some of it was moved, report TLS_SPLICE_ON_DECRYPT.
pub const TLS_SPLICE_ACTION_DELIVER: u32 = 1;
/// Action: write what is in the write BIO of the session, and what `tls_splice_collected`
/// gives, to the stream below (TLSWrap::EncOut).
pub const TLS_SPLICE_ACTION_FLUSH: u32 = 2;
/// Action: call TLSWrap::Cycle, and report TLS_SPLICE_ON_CYCLED when it has returned.
pub const TLS_SPLICE_ACTION_CYCLE: u32 = 4;
/// Action: tell JavaScript of the peer's close_notify. SSL_get_error(3) does not always say
/// so: not if a warning alert came before the close_notify (RFC 8446, section 6.1).
pub const TLS_SPLICE_ACTION_CLOSE_NOTIFY: u32 = 8;
/// Action: tell JavaScript of the end of the stream below.
pub const TLS_SPLICE_ACTION_LOWER_EOF: u32 = 16;
/// Action: tell JavaScript that a write to the stream below has failed with `lower_error`.
pub const TLS_SPLICE_ACTION_LOWER_WRITE_FAILED: u32 = 32;
/// Action: report TLS_SPLICE_ON_TURN in the next turn of the event loop.
pub const TLS_SPLICE_ACTION_NEXT_TURN: u32 = 64;
/// Action: the other direction belongs to another splice. Report TLS_SPLICE_ON_TURN to that
/// splice in the next turn of the event loop.
pub const TLS_SPLICE_ACTION_WAKE_OTHER: u32 = 128;

/// Reading: the stream below stays as it is, read or not. JavaScript decides.
pub const TLS_SPLICE_READING_AS_IT_IS: u32 = 0;
/// Reading: the stream below is to be read.
pub const TLS_SPLICE_READING_ON: u32 = 1;
/// Reading: the stream below is not to be read.
pub const TLS_SPLICE_READING_OFF: u32 = 2;

/// Outcome: the decrypt direction is over. The endpoint has every byte, and JavaScript has
/// been told of the end.
pub const TLS_SPLICE_OUTCOME_IN_OVER: u32 = 1;
/// Outcome: the encrypt direction is over. The endpoint has ended, and all that it gave is
/// with the stream below.
pub const TLS_SPLICE_OUTCOME_OUT_OVER: u32 = 2;
/// Outcome: the decrypt direction has stopped, as asked. Nothing more moves to the endpoint.
pub const TLS_SPLICE_OUTCOME_IN_STOPPED: u32 = 4;
/// Outcome: the encrypt direction has stopped, as asked, or since nothing can be sent any
/// more. What was read from the endpoint is encrypted, as far as that is possible.
pub const TLS_SPLICE_OUTCOME_OUT_STOPPED: u32 = 8;
/// Outcome: the endpoint has failed, or its packets are out of step:
/// `tls_splice_get_failure` says why. The caller reports TLS_SPLICE_ON_STOP for the other
/// direction.
pub const TLS_SPLICE_OUTCOME_ENDPOINT_FAILED: u32 = 16;
/// Outcome: the TLS session or the stream below has failed, is gone, or the library has
/// panicked. `tls_splice_get_failure` says why if SSL_write(3) has failed.
pub const TLS_SPLICE_OUTCOME_TLS_FAILED: u32 = 32;
/// Outcome: the TLS session or the stream below has failed, which becomes
/// TLS_SPLICE_OUTCOME_TLS_FAILED once the endpoint has what was decrypted before.
pub const TLS_SPLICE_OUTCOME_TLS_FAILING: u32 = 64;
/// Outcome: what was read from the endpoint waits until the peer has answered a handshake.
pub const TLS_SPLICE_OUTCOME_WANTS_HANDSHAKE: u32 = 128;

const _: () = assert!(
    TLS_SPLICE_OUTCOME_IN_OVER == outcome::IN_OVER
        && TLS_SPLICE_OUTCOME_OUT_OVER == outcome::OUT_OVER
        && TLS_SPLICE_OUTCOME_IN_STOPPED == outcome::IN_STOPPED
        && TLS_SPLICE_OUTCOME_OUT_STOPPED == outcome::OUT_STOPPED
        && TLS_SPLICE_OUTCOME_ENDPOINT_FAILED == outcome::ENDPOINT_FAILED
        && TLS_SPLICE_OUTCOME_TLS_FAILED == outcome::TLS_FAILED
        && TLS_SPLICE_OUTCOME_TLS_FAILING == outcome::TLS_FAILING
        && TLS_SPLICE_OUTCOME_WANTS_HANDSHAKE == outcome::WANTS_HANDSHAKE
);

/// The event that the values of the C ABI mean, and whether the stream below takes a write.
fn event_of(event: u32, value: c_int) -> Result<(Event, Lower), c_int> {
    let event = match event {
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
        TLS_SPLICE_ON_RELEASE => Event::Release(direction_of(value as u32)?),
        TLS_SPLICE_ON_RESUME => Event::Resume {
            has_ended: value != 0,
        },
        TLS_SPLICE_ON_GONE => Event::Gone,
        _ => return Err(TLS_SPLICE_EARG),
    };
    let lower = match event {
        Event::Cycled | Event::SourceReady | Event::LowerRead | Event::Stop if value != 0 => {
            Lower::Busy
        }
        _ => Lower::Ready,
    };
    Ok((event, lower))
}

/// What the actions are in the C ABI.
fn actions_of(given: &Actions) -> tls_splice_actions {
    let mut orders = 0;
    for (is_ordered, bit) in [
        (given.deliver, TLS_SPLICE_ACTION_DELIVER),
        (given.flush == Flush::Yes, TLS_SPLICE_ACTION_FLUSH),
        (given.cycle, TLS_SPLICE_ACTION_CYCLE),
        (given.is_close_notify, TLS_SPLICE_ACTION_CLOSE_NOTIFY),
        (
            given.lower_end == Some(LowerEnd::Eof),
            TLS_SPLICE_ACTION_LOWER_EOF,
        ),
        (
            matches!(given.lower_end, Some(LowerEnd::WriteFailed(_))),
            TLS_SPLICE_ACTION_LOWER_WRITE_FAILED,
        ),
        (given.next_turn, TLS_SPLICE_ACTION_NEXT_TURN),
        (given.wake_other, TLS_SPLICE_ACTION_WAKE_OTHER),
    ] {
        if is_ordered {
            orders |= bit;
        }
    }
    tls_splice_actions {
        struct_size: size_of::<tls_splice_actions>(),
        orders,
        ssl_ret: given.ssl_ret,
        lower_error: match given.lower_end {
            Some(LowerEnd::ReadFailed(status) | LowerEnd::WriteFailed(status)) => status,
            Some(LowerEnd::Eof) | None => 0,
        },
    }
}

/// Says in which turn the event loop of the calling thread is. `number` is one more in each turn;
/// the `loop_count` of uv_metrics_info is such a number. Nothing happens if it is the one of the
/// last call, or the one before that.
///
/// What a splice does in one turn is bounded, and depends on how many splices of the event loop
/// are busy. A splice that has done its share goes on in the next turn, and waits for ever if the
/// library is not told of that turn. To be called in each turn before `tls_splice_on`,
/// `tls_splice_alloc` and `tls_splice_begin_transfer`.
#[no_mangle]
pub extern "C" fn tls_splice_begin_turn(number: u64) -> c_int {
    budget::begin_turn(number);
    TLS_SPLICE_OK
}

/// Tells the splice what has happened, which is one of TLS_SPLICE_ON_*. The splice moves
/// what can be moved, and says in `*actions` what the caller has to do. The comment of an event
/// says what `value` is; otherwise it is 0.
///
/// Events that need the session say so: `ssl` is the session then, and may be NULL with
/// every other event. TLS_SPLICE_EARG if it is NULL and needed.
///
/// A callback of OpenSSL may call this inside another call on `splice`. The event is queued
/// then: it is handled when OpenSSL has returned, and its actions are those of the call that
/// was under way. `*actions` of the inner call orders nothing.
///
/// With another result than TLS_SPLICE_OK nothing is ordered.
///
/// # Safety
/// `splice` is NULL or valid. `ssl` is NULL or valid; the caller keeps it alive for the whole
/// call (SSL_up_ref(3)), whatever the callbacks of OpenSSL do. `actions` is NULL, or points to
/// a struct that is writable for its `struct_size`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_on(
    splice: *mut tls_splice,
    event: u32,
    value: c_int,
    ssl: *mut SSL,
    actions: *mut tls_splice_actions,
) -> c_int {
    // SAFETY: `actions` is NULL or readable, by the contract above.
    let size = match unsafe { types::size_at(actions) } {
        Ok(size) => size,
        Err(code) => return code,
    };
    let mut given = Actions::default();
    // SAFETY: `splice` is NULL or valid, by the contract above.
    let code = match (unsafe { splice.as_ref() }, event_of(event, value)) {
        (Some(splice), Ok((event, lower))) if !(ssl.is_null() && event.needs_session()) => {
            // SAFETY: by the contract above; `ssl` is not NULL if the event needs it.
            unsafe { splice.on(event, lower, ssl, &mut given) }
        }
        _ => TLS_SPLICE_EARG,
    };
    if code != TLS_SPLICE_OK {
        given = Actions::default();
    }
    // SAFETY: `actions` is writable for `size`, by the contract above.
    unsafe { types::write(actions, size, actions_of(&given)) };
    code
}

/// Sets `*state` to what has become of the splice. This changes nothing. It is also allowed
/// inside a call on `splice`, and after a panic.
///
/// # Safety
/// `splice` is NULL or valid. `state` is NULL, or points to a struct that is writable for its
/// `struct_size`.
#[no_mangle]
pub unsafe extern "C" fn tls_splice_get_state(
    splice: *const tls_splice,
    state: *mut tls_splice_state,
) -> c_int {
    // SAFETY: `splice` is NULL or valid, `state` NULL or readable, by the contract above.
    let (splice, size) = unsafe { (splice.as_ref(), types::size_at(state)) };
    let size = match size {
        Ok(size) => size,
        Err(code) => return code,
    };
    let (given, code) = match splice {
        Some(splice) => (state_of(splice), TLS_SPLICE_OK),
        None => (tls_splice_state::default(), TLS_SPLICE_EARG),
    };
    // SAFETY: `state` is writable for `size`, by the contract above.
    unsafe { types::write(state, size, given) };
    code
}

fn state_of(splice: &tls_splice) -> tls_splice_state {
    let state = splice.state();
    tls_splice_state {
        struct_size: size_of::<tls_splice_state>(),
        outcome: state.outcome,
        reading: match state.reading {
            Reading::AsItIs => TLS_SPLICE_READING_AS_IT_IS,
            Reading::On => TLS_SPLICE_READING_ON,
            Reading::Off => TLS_SPLICE_READING_OFF,
        },
        holds_tls_error: state.holds_tls_error,
        has_untold_lower_end: state.has_untold_lower_end,
        owes: state.owes,
        has_write_failed: state.has_write_failed,
        write_error: state.write_error,
    }
}
