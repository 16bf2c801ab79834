//! What happens to a splice, and what it orders: here the lifecycle meets the pumps.
//!
//! The caller reports an [`Event`] and carries out the [`Actions`] that it gets. In
//! between, the lifecycle is told, and the pumps run as it says. An event that arrives
//! while OpenSSL is on the stack, whose callbacks run JavaScript, is queued until that
//! call into OpenSSL has returned, so that nothing re-enters.

use std::cell::Cell;

use libc::{c_int, c_ulong};
use openssl_sys::SSL;

use crate::endpoint::{READABLE, WRITABLE};
use crate::error::Failure;
use crate::inbound::InboundStep;
use crate::lifecycle::{
    Cleartext, Delivery, HandOver, Input, Lifecycle, LowerEnd, Orders, Sending,
};
use crate::outbound::OutboundStep;
use crate::splice::{Direction, Flush, Outcome, Splice};
use crate::ssl::session;

/// What the splices of one TLS connection share.
#[derive(Default)]
pub struct Connection {
    lifecycle: Cell<Lifecycle>,
    /// The error of `SSL_read` that nobody has been told of, because the direction was given
    /// back first: what `SSL_read` returned, and the packed OpenSSL error.
    untold_tls_error: Cell<Option<(c_int, c_ulong)>>,
    /// A splice of the connection is inside of a call, which may be inside of OpenSSL.
    is_in_call: Cell<bool>,
    unsent: Cell<Unsent>,
}

/// How many bytes of OpenSSL's answers, to KeyUpdates or to HelloRequests, may wait for the stream
/// below: the answers to some 2,400 KeyUpdates. BoringSSL allows 32 in a row (kMaxKeyUpdates).
const MOST_ANSWERS: usize = 64 * 1024;

/// The ciphertext that waited for the stream below when a pump had run, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Unsent {
    pending: usize,
    /// How many of the `pending` bytes OpenSSL has written of its own accord inside of `SSL_read`,
    /// handshakes excluded.
    answers: usize,
}

impl Unsent {
    /// What waits after the stream below has taken some ciphertext, so that `pending` bytes are
    /// left. Where the answers are among these bytes is not known; they are assumed to be spread
    /// evenly.
    fn after_flush(self, pending: usize) -> Unsent {
        let answers = match self.pending {
            all if all > pending => (self.answers as u64 * pending as u64 / all as u64) as usize,
            _ => self.answers,
        };
        Unsent { pending, answers }
    }
}

impl Connection {
    /// The state.
    pub fn lifecycle(&self) -> Lifecycle {
        self.lifecycle.get()
    }

    /// Takes a direction over for a splice.
    pub fn start(&self, direction: Direction, splice: &mut Splice) -> Orders {
        if direction == Direction::Inbound {
            // Nobody has been told of the error, and OpenSSL does not repeat an error.
            if let Some(error) = self.untold_tls_error.take() {
                splice.inherit_error(error);
            }
        }
        self.step(Input::Start(direction))
    }

    /// A pump has panicked.
    pub fn panicked(&self) {
        self.step(Input::Panicked);
    }

    /// A splice of the connection begins a call, which ends when the guard is dropped.
    pub fn enter(&self) -> InCall<'_> {
        InCall {
            connection: self,
            is_nested: self.is_in_call.replace(true),
        }
    }

    fn step(&self, input: Input) -> Orders {
        let (lifecycle, orders) = self.lifecycle.get().step(input);
        self.lifecycle.set(lifecycle);
        orders
    }
}

/// A call on a splice.
pub struct InCall<'a> {
    connection: &'a Connection,
    /// The other splice of the connection is inside of a call, so that this one, in a
    /// callback of OpenSSL, must not use the session.
    pub is_nested: bool,
}

impl Drop for InCall<'_> {
    fn drop(&mut self) {
        self.connection.is_in_call.set(self.is_nested);
    }
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The turn of the event loop that was asked for.
    Turn,
    /// The stream below has given ciphertext, which is with the session.
    LowerRead,
    /// The stream below has ended.
    LowerEnded(LowerEnd),
    /// The stream below has written all ciphertext.
    LowerDrained,
    /// The endpoint can be written.
    SinkReady,
    /// The endpoint can be read.
    SourceReady,
    /// The splice that is the source has given bytes, which are to be sent later.
    SourceGave,
    /// The source is not to be read any more.
    LeaveSource,
    /// Node asks for cleartext (TLSWrap::ClearOut).
    Decrypt,
    /// TLSWrap::Cycle, which was ordered, has returned.
    Cycled,
    /// JavaScript asks for the end of the splice.
    Stop,
    /// The direction goes back to JavaScript.
    Release(Direction),
    /// JavaScript has what it was given back, and has had a turn of the event loop for it
    /// unless it has read it at once.
    Resume {
        /// JavaScript has been told of the end of what the peer sends.
        has_ended: bool,
    },
    /// The session or the stream below is about to be freed.
    Gone,
}

impl Event {
    /// Whether a pump may run because of the event, and with it OpenSSL. Invariant: the
    /// lifecycle orders no pump to run because of any other event.
    pub fn needs_session(self) -> bool {
        matches!(
            self,
            Event::LowerRead | Event::SourceReady | Event::Decrypt | Event::Cycled | Event::Stop
        )
    }
}

/// Whether the stream below takes a write now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lower {
    /// The stream below takes a write.
    Ready,
    /// The stream below takes no write: this is inside of a write to it, or another write has to
    /// complete first.
    Busy,
}

/// What the caller has to do, in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actions {
    /// What SSL_read(3) returned, if JavaScript is to be told of it, and else 1. The
    /// thread's error queue is as `SSL_read` left it.
    pub ssl_ret: c_int,
    /// The caller is to write what is held, or to pass it on, and then to report
    /// [`Event::Decrypt`].
    pub deliver: bool,
    /// The session may have ciphertext for the stream below.
    pub flush: Flush,
    /// Let the `TLSWrap` decrypt and flush, and then report [`Event::Cycled`].
    pub cycle: bool,
    /// The end of the cleartext is the peer's close_notify.
    pub is_close_notify: bool,
    /// An end of the stream below that JavaScript is to be told of.
    pub lower_end: Option<LowerEnd>,
    /// Ask the event loop for a turn.
    pub next_turn: bool,
    /// The splice of the other direction has something to do in the next turn.
    pub wake_other: bool,
}

impl Default for Actions {
    fn default() -> Actions {
        Actions {
            ssl_ret: 1,
            deliver: false,
            flush: Flush::No,
            cycle: false,
            is_close_notify: false,
            lower_end: None,
            next_turn: false,
            wake_other: false,
        }
    }
}

/// One event on one splice.
pub struct Call<'a> {
    /// The splice.
    pub splice: &'a mut Splice,
    /// The connection that it has to do with.
    pub connection: &'a Connection,
    /// The session. It may be NULL for an event without [`Event::needs_session`].
    pub ssl: *mut SSL,
    /// Whether what the outbound pump encrypts could be written.
    pub lower: Lower,
    /// Set by what cancels the call from inside of a callback of OpenSSL.
    pub cancelled: &'a Cell<bool>,
    /// The other splice of the connection is inside of a call: nothing may be decrypted or
    /// encrypted before the next turn.
    pub is_nested: bool,
    /// What to do.
    pub actions: &'a mut Actions,
}

impl Call<'_> {
    /// Handles the event.
    ///
    /// # Safety
    /// `ssl` must be valid if [`Event::needs_session`], and stay so while its callbacks
    /// run. Those may set `cancelled`, after which `ssl` is not used any more.
    pub unsafe fn handle(&mut self, event: Event) {
        let orders = match event {
            // SAFETY: by the contract above.
            Event::Decrypt => return unsafe { self.decrypt() },
            // The connection may have another splice in that direction.
            Event::Release(direction) if !self.splice.has(direction) => return,
            Event::Release(direction) => {
                if direction == Direction::Inbound {
                    let error = self.splice.take_error();
                    let untold = &self.connection.untold_tls_error;
                    untold.set(untold.get().or(error));
                }
                self.splice.release(direction);
                self.connection.step(Input::Release(direction))
            }
            Event::Stop => {
                self.splice.stop();
                // SAFETY: by the contract above.
                return unsafe { self.stop() };
            }
            Event::LeaveSource => {
                self.splice.leave_source();
                match self.splice.has(Direction::Outbound) {
                    true => self.connection.step(Input::LeaveSource),
                    // The connection may have another splice in that direction.
                    false => return,
                }
            }
            Event::Turn => self.connection.step(Input::Turn),
            // SAFETY: by the contract above.
            Event::LowerRead => return unsafe { self.lower_read() },
            Event::LowerEnded(end) => self.connection.step(Input::LowerEnded(end)),
            Event::LowerDrained => self.connection.step(Input::LowerDrained),
            Event::SinkReady => self.connection.step(Input::SinkReady),
            Event::SourceReady => self.connection.step(Input::SourceReady),
            Event::SourceGave => self.connection.step(Input::SourceGave),
            Event::Cycled => self.cycled(),
            Event::Resume { has_ended } => self.connection.step(Input::Resume { has_ended }),
            Event::Gone => self.connection.step(Input::Gone),
        };
        // SAFETY: by the contract above.
        unsafe { self.carry_out(orders) };
    }

    /// The kernel may have answered the packets that were decrypted from the ciphertext. These
    /// answers do not wait for the event loop to turn.
    ///
    /// # Safety
    /// As for [`Call::handle`].
    unsafe fn lower_read(&mut self) {
        let orders = self.connection.step(Input::LowerRead);
        // SAFETY: passed on.
        unsafe { self.carry_out(orders) };
        if self.splice.may_be_answered() && !self.cancelled.get() {
            let orders = self.connection.step(Input::SourceReady);
            // SAFETY: passed on; the session was not cancelled.
            unsafe { self.carry_out(orders) };
        }
    }

    /// # Safety
    /// As for [`Call::handle`].
    unsafe fn stop(&mut self) {
        for direction in [Direction::Inbound, Direction::Outbound] {
            if self.splice.has(direction) {
                let orders = self.connection.step(Input::Stop(direction));
                // SAFETY: passed on.
                unsafe { self.carry_out(orders) };
            }
        }
    }

    /// The end of the stream below may be within a packet, which only the splice of the
    /// inbound direction knows.
    fn cycled(&mut self) -> Orders {
        let is_at_eof = self.connection.lifecycle().is_at_eof();
        if is_at_eof && !self.splice.has(Direction::Inbound) {
            self.actions.wake_other = true;
            return self.connection.step(Input::CycledBeforeEnd);
        }
        if is_at_eof && !self.splice.end_inbound() {
            let cut_off = Input::Delivered(Delivery::Failed, Cleartext::Open);
            return self.connection.step(cut_off);
        }
        self.connection.step(Input::Cycled)
    }

    /// # Safety
    /// As for [`Call::handle`].
    unsafe fn decrypt(&mut self) {
        if self.is_nested {
            self.actions.next_turn = true;
            return;
        }
        let lifecycle = self.connection.lifecycle();
        if lifecycle.owes() && lifecycle.holds_tls_error() {
            let orders = self.connection.step(Input::Resume { has_ended: false });
            // SAFETY: passed on.
            return unsafe { self.carry_out(orders) };
        }
        if !lifecycle.moves_inbound() {
            return;
        }
        // SAFETY: passed on.
        let outcome = unsafe { self.run_inbound(lifecycle) };
        self.flush(outcome.flush);
        let cleartext = match self.splice.cleartext_end() {
            None => Cleartext::Open,
            Some(session::Cause::CloseNotify) => Cleartext::CloseNotify,
            Some(session::Cause::Error(_)) => Cleartext::Failed,
        };
        let delivery = match outcome.step {
            InboundStep::WantCiphertext => Delivery::Drained,
            InboundStep::Blocked => Delivery::Blocked,
            InboundStep::Spent => Delivery::Paused,
            InboundStep::Ended { ssl_ret } => {
                self.actions.ssl_ret = ssl_ret;
                Delivery::Drained
            }
            // With `Stopped`, the endpoint may have failed as the source of the other direction.
            // Nothing more is decrypted then, and the end of the stream below must not be told before
            // the bytes that are not decrypted.
            InboundStep::Failed(_) | InboundStep::Stopped => Delivery::Failed,
            // Paused, and not stopped: if the queued event concerns the other direction alone,
            // this direction goes on in the next turn.
            InboundStep::Cancelled => Delivery::Paused,
        };
        self.actions.deliver =
            delivery == Delivery::Blocked && self.splice.endpoint().transfers_at_once();
        let orders = self.connection.step(Input::Delivered(delivery, cleartext));
        // SAFETY: passed on.
        unsafe { self.carry_out(orders) };
    }

    /// Runs the inbound pump. While the outbound direction is spliced, too, this bounds what waits
    /// of the messages that OpenSSL writes by itself, inside of `SSL_read`. There is no such bound
    /// while JavaScript has one of the directions: if it writes, what waits is not known to be
    /// answers, and if it reads, `SSL_read` is called by TLSWrap, as without a splice. In the
    /// latter case a full stream below makes the outbound pump pause, as it does for other
    /// ciphertext.
    ///
    /// # Safety
    /// As for [`Call::handle`].
    unsafe fn run_inbound(&mut self, lifecycle: Lifecycle) -> Outcome<InboundStep> {
        // A callback of OpenSSL's may call JavaScript, which may then write.
        if !lifecycle.has_outbound() {
            self.connection.unsent.set(Unsent::default());
            // SAFETY: passed on.
            return unsafe { self.splice.run_inbound(self.ssl, self.cancelled) };
        }
        let unsent = &self.connection.unsent;
        // SAFETY: by the contract above.
        let before = unsent
            .get()
            .after_flush(unsafe { session::pending_ciphertext(self.ssl) });
        if before.answers > MOST_ANSWERS {
            // SAFETY: by the contract above.
            let end = unsafe { session::too_many_answers(self.ssl) };
            self.splice.give_up(end);
        }
        // SAFETY: passed on.
        let outcome = unsafe { self.splice.run_inbound(self.ssl, self.cancelled) };
        if !self.cancelled.get() {
            // SAFETY: by the contract above; the call was not cancelled.
            let pending = unsafe { session::pending_ciphertext(self.ssl) };
            // SAFETY: as above.
            let written = match unsafe { session::is_answering_handshake(self.ssl) } {
                true => 0,
                false => pending.saturating_sub(before.pending),
            };
            let answers = before.answers + written;
            unsent.set(Unsent { pending, answers });
        }
        outcome
    }

    /// # Safety
    /// As for [`Call::handle`].
    unsafe fn carry_out(&mut self, orders: Orders) {
        match orders.hand_over {
            None => {}
            Some(HandOver::CloseNotify) => self.actions.is_close_notify = true,
            Some(HandOver::TlsError) => self.raise(),
            Some(HandOver::LowerEnd(end)) => self.actions.lower_end = Some(end),
        }
        self.actions.cycle |= orders.cycle;
        self.actions.next_turn |= orders.next_turn;
        if !orders.encrypt {
            return;
        }
        if !self.splice.has(Direction::Outbound) {
            self.actions.wake_other = true;
        } else if self.is_nested {
            self.actions.next_turn = true;
        } else if self.lower == Lower::Busy {
            self.connection.step(Input::Sent(Sending::Full));
        } else {
            // A bug in the lifecycle is to be a panic, and no use of NULL.
            assert!(!self.ssl.is_null(), "a pump is run without a session");
            // SAFETY: passed on.
            unsafe { self.encrypt() };
        }
    }

    /// JavaScript is told of the error that `SSL_read` reported first.
    fn raise(&mut self) {
        if let Some((ssl_ret, error)) = self.connection.untold_tls_error.take() {
            session::raise(error);
            self.actions.ssl_ret = ssl_ret;
        }
    }

    /// # Safety
    /// As for [`Call::handle`].
    unsafe fn encrypt(&mut self) {
        let unsent = &self.connection.unsent;
        // SAFETY: by the contract above.
        let before = unsent
            .get()
            .after_flush(unsafe { session::pending_ciphertext(self.ssl) });
        // SAFETY: passed on.
        let outcome = unsafe { self.splice.run_outbound(self.ssl, self.cancelled) };
        if !self.cancelled.get() {
            // SAFETY: by the contract above; the call was not cancelled.
            let pending = unsafe { session::pending_ciphertext(self.ssl) };
            unsent.set(Unsent { pending, ..before });
        }
        self.flush(outcome.flush);
        let sending = match outcome.step {
            OutboundStep::Idle => return,
            // Paused, and not stopped: if the queued event concerns the other direction alone,
            // this direction goes on in the next turn.
            OutboundStep::Cancelled => Sending::Paused,
            OutboundStep::WantSource => Sending::Dry,
            OutboundStep::AfterDrain => Sending::Full,
            OutboundStep::WantCiphertext => Sending::WantsRead,
            OutboundStep::Ended => Sending::Ended,
            OutboundStep::Stopped | OutboundStep::SessionFailed => Sending::Stopped,
            OutboundStep::Failed(Failure::Tls(_)) => Sending::TlsFailed,
            OutboundStep::Failed(_) => Sending::SourceFailed,
        };
        let orders = self.connection.step(Input::Sent(sending));
        self.actions.next_turn |= orders.next_turn;
    }

    fn flush(&mut self, flush: Flush) {
        if flush == Flush::Yes {
            self.actions.flush = Flush::Yes;
        }
    }
}

/// Prepares to wait for the endpoint: see [`Splice::begin_wait`]. Returns what the endpoint
/// is to be polled for, or to be asked for by a transfer.
///
/// # Safety
/// `ssl` must be valid.
pub unsafe fn begin_wait(splice: &mut Splice, connection: &Connection, ssl: *mut SSL) -> u32 {
    let lifecycle = connection.lifecycle();
    let mut waits = 0;
    if splice.has(Direction::Inbound) && lifecycle.waits_for_sink() {
        waits |= WRITABLE;
    }
    if splice.has(Direction::Outbound) && lifecycle.waits_for_source() {
        waits |= READABLE;
    }
    // SAFETY: passed on.
    unsafe { splice.begin_wait(ssl, waits) }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::undocumented_unsafe_blocks)]
mod tests {
    use std::ffi::CStr;
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::budget;
    use crate::common::{connect, Tls, TLS1_2, TLS1_3};
    use crate::endpoint::{Endpoint, Packets};
    use crate::frame::{Framing, PacketFormat};

    /// A splice of both directions, and the TLS peer.
    struct Rig {
        ours: Tls,
        peer: Tls,
        splice: Splice,
        connection: Connection,
    }

    impl Rig {
        /// A splice whose endpoint gives nothing.
        fn new(sessions: (Tls, Tls)) -> Rig {
            Rig::over(Endpoint::of_caller(), Framing::Raw.into(), sessions)
        }

        fn over(endpoint: Endpoint, format: PacketFormat, (ours, peer): (Tls, Tls)) -> Rig {
            let mut rig = Rig {
                ours,
                peer,
                splice: Splice::new(endpoint, format, 1 << 20),
                connection: Connection::default(),
            };
            for direction in [Direction::Inbound, Direction::Outbound] {
                rig.splice.start(direction);
                rig.connection.start(direction, &mut rig.splice);
            }
            rig.on(Event::Turn);
            rig
        }

        /// Handles the event, and what is ordered because of it.
        fn on(&mut self, event: Event) {
            if matches!(event, Event::Turn | Event::SourceReady) {
                budget::next_turn();
            }
            let mut actions = Actions::default();
            let mut call = Call {
                splice: &mut self.splice,
                connection: &self.connection,
                ssl: self.ours.0,
                lower: Lower::Ready,
                cancelled: &Cell::new(false),
                is_nested: false,
                actions: &mut actions,
            };
            unsafe { call.handle(event) };
            if actions.cycle {
                self.on(Event::Decrypt);
                self.on(Event::Cycled);
            }
        }

        /// Reports ciphertext, after it was decrypted, as the shim does.
        fn on_ciphertext(&mut self) {
            self.on(Event::Decrypt);
            self.on(Event::LowerRead);
        }

        /// What was encrypted, as the peer reads it.
        fn sent(&mut self) -> Vec<u8> {
            self.peer.give(&self.ours.take(usize::MAX));
            self.peer.read_all().0
        }
    }

    /// An IP packet without payload, which tells which one it is.
    fn packet(number: u8) -> Vec<u8> {
        let mut packet = vec![0; 20];
        (packet[0], packet[3], packet[5]) = (0x45, 20, number);
        packet
    }

    #[test]
    fn the_answer_of_a_device_does_not_wait_for_the_event_loop_to_turn() {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let device = Endpoint::Packets(Packets::device_over(near.into()));
        let mut rig = Rig::over(device, Framing::Ip.into(), connect(TLS1_3, true));
        far.send(&packet(1)).unwrap();

        // The device was given nothing that could have been answered: the event loop says when
        // it can be read.
        rig.on_ciphertext();
        assert_eq!(rig.sent(), []);

        assert!(rig.peer.write(&packet(2)));
        rig.ours.give(&rig.peer.take(usize::MAX));
        rig.on_ciphertext();
        assert_eq!(rig.sent(), packet(1));

        // Once for each packet, or for some that came at once.
        far.send(&packet(1)).unwrap();
        rig.on_ciphertext();
        assert_eq!(rig.sent(), []);
        rig.on(Event::SourceReady);
        assert_eq!(rig.sent(), packet(1));
    }

    /// Reads so many KeyUpdates of the peer, which all ask for an answer.
    fn read_key_updates(rig: &mut Rig, count: usize) {
        for _ in 0..count {
            rig.peer.update_keys(true);
        }
        rig.ours.give(&rig.peer.take(usize::MAX));
        rig.on(Event::Turn);
    }

    /// OpenSSL's text for the error that has ended what the peer sends.
    fn error_text(rig: &Rig) -> &CStr {
        match rig.splice.cleartext_end() {
            Some(session::Cause::Error(error)) => unsafe {
                CStr::from_ptr(openssl_sys::ERR_reason_error_string(error))
            },
            end => panic!("{end:?}"),
        }
    }

    #[test]
    fn answers_to_key_updates_that_the_peer_does_not_read_end_the_connection() {
        let mut rig = Rig::new(connect(TLS1_3, true));
        let mut count = 0;
        while rig.splice.cleartext_end().is_none() {
            assert!(rig.ours.pending() <= MOST_ANSWERS + 1000 * 30);
            read_key_updates(&mut rig, 1000);
            count += 1;
        }
        assert!((3..=5).contains(&count));
        assert_eq!(error_text(&rig), c"too many key updates");
        assert_eq!(
            rig.splice.stats().peak_buffered_out,
            rig.ours.pending() as u64
        );
    }

    #[test]
    fn answers_that_the_peer_reads_do_not_count_although_other_bytes_always_wait() {
        let mut rig = Rig::new(connect(TLS1_3, true));
        for _ in 0..400 {
            assert!(rig.ours.write(&[7; 64 * 1024]));
            read_key_updates(&mut rig, 30);
            rig.on(Event::LowerDrained);
            let half = rig.ours.pending() / 2;
            rig.peer.give(&rig.ours.take(half));
            rig.peer.read_all();
            rig.on(Event::SourceReady);
            assert_eq!(rig.splice.cleartext_end(), None);
        }
    }

    #[test]
    fn answers_do_not_count_if_javascript_writes_too() {
        let mut rig = Rig::new(connect(TLS1_3, true));
        rig.on(Event::Release(Direction::Outbound));
        for _ in 0..10 {
            read_key_updates(&mut rig, 1000);
        }
        assert_eq!(rig.splice.cleartext_end(), None);
    }

    /// Reads so many requests of the peer to renegotiate: HelloRequests, or a ClientHello.
    fn read_renegotiations(rig: &mut Rig, count: usize) {
        for _ in 0..count {
            rig.peer.renegotiate();
        }
        rig.ours.give(&rig.peer.take(usize::MAX));
        rig.on(Event::Turn);
    }

    #[test]
    fn refusals_to_renegotiate_that_the_peer_does_not_read_end_the_connection() {
        let mut rig = Rig::new(connect(TLS1_2, false));
        rig.ours.refuse_renegotiation();
        let mut count = 0;
        while rig.splice.cleartext_end().is_none() {
            assert!(rig.ours.pending() <= MOST_ANSWERS + 1000 * 40);
            read_renegotiations(&mut rig, 1000);
            count += 1;
        }
        assert!((3..=5).contains(&count));
        assert_eq!(error_text(&rig), c"no renegotiation");
    }

    #[test]
    fn what_belongs_to_a_renegotiation_does_not_count() {
        for ours_is_server in [false, true] {
            let mut rig = Rig::new(connect(TLS1_2, ours_is_server));
            read_renegotiations(&mut rig, 1);
            assert!(rig.ours.pending() > 0);
            assert_eq!(rig.connection.unsent.get().answers, 0);
        }
    }
}
