//! A small world around the lifecycle of one TLS connection, or of two that are spliced
//! to each other: what can happen, and what comes of it.
//!
//! The world is as nasty as it can be in reality. Where the shim or the pumps leave the
//! lifecycle a way to go wrong, the world takes that way.

use crate::connection::*;
use crate::ensure;
use crate::explore::{Events, Model, Pace};
use crate::javascript::{Handle, IN, OUT};
use crate::machine::*;

/// Two codes of libuv's that differ.
const ECONNRESET: i32 = -104;
const EPIPE: i32 = -32;

/// The world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct World<const N: usize> {
    pub sides: [Side; N],
    /// The two splices know each other.
    pub is_joined: bool,
    /// Within an event: JavaScript takes what it is given back at once, so that the socket
    /// is read again before anything else is given back. Between events this is `false`.
    pub resumes_at_once: bool,
    /// Within an event: OpenSSL will call back in the next `SSL_write` of a pump. Between events
    /// this is `None`.
    pub callback: Option<Callback>,
}

/// What JavaScript does in a callback of OpenSSL, which is in the middle of a call of a pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Callback {
    /// The user stops the splice.
    Stop,
    /// JavaScript gives back the other direction of the splice, which has ended or stopped. The
    /// direction of the pump goes on.
    GiveBackOther,
}

/// An event in which the outbound pump runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    Turn(usize),
    SourceReady,
    /// The stream below has given ciphertext: the pump of the other one of a joined pair runs.
    Read,
}

impl Trigger {
    fn what(self) -> What {
        match self {
            Trigger::Turn(h) => What::Turn(h),
            Trigger::SourceReady => What::SourceReady,
            Trigger::Read => What::Read,
        }
    }
}

/// What can happen to a connection. A number is that of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    // The event loop.
    Turn(usize),
    /// The splice looks at its state. What it gives back is taken later.
    Update(usize),
    /// As `Update`, and what it gives back is taken at once.
    UpdateAndResume(usize),
    Resume,
    /// JavaScript destroys the socket because of what it was told.
    DestroyForFault,
    // Everybody else who does their part.
    BeginOut(usize),
    Read,
    End,
    PeerEnds,
    Drained,
    SinkDrains,
    SinkReady,
    SourceReady,
    SourceEnds,
    HandshakeDone,
    // What nobody can count on.
    Start(usize),
    NodeCycles,
    SinkBreaks,
    SourceBreaks,
    WriteFails,
    SslWriteBreaks,
    LeaveSource,
    Handshake,
    Stop(usize),
    /// OpenSSL calls back in an `SSL_read` of the inbound pump.
    InsideRead(Callback),
    /// OpenSSL calls back in the first `SSL_write` of the event.
    InsideWrite(Callback, Trigger),
    StopTimer(usize),
    Destroy(bool),
    Gone,
    Panic,
}

/// An event, and the number of the connection that it happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub usize, pub What);

/// What happens.
impl<const N: usize> World<N> {
    fn apply(&mut self, Event(s, what): Event) -> bool {
        match what {
            What::Update(h) => return self.update(s, h),
            What::UpdateAndResume(h) => {
                self.resumes_at_once = true;
                let has_updated = self.update(s, h);
                self.resumes_at_once = false;
                return has_updated;
            }
            What::Stop(h) => return self.user_stops(s, h),
            What::Destroy(has_error) => return self.user_destroys(s, has_error),
            What::DestroyForFault => return self.destroy_for_fault(s),
            What::BeginOut(h) => return self.begin_out(s, h),
            What::InsideWrite(callback, trigger) => {
                return self.inside_write(callback, Event(s, trigger.what()));
            }
            _ => {}
        }
        if self.sides[s].is_gone {
            return false;
        }
        match what {
            What::Start(h) => self.start(s, h),
            What::StopTimer(h) => self.stop_timer(s, h),
            What::Turn(h) => {
                let is_due = std::mem::take(&mut self.sides[s].turn_due[h]);
                if is_due {
                    self.sides[s].starting = 0;
                    self.feed(s, h, Input::Turn);
                }
                is_due
            }
            What::Resume => {
                let is_due = self.sides[s].resume_due;
                if is_due {
                    self.resume(s);
                }
                is_due
            }
            What::Gone => {
                self.lose_session(s);
                true
            }
            What::Panic => {
                let side = &mut self.sides[s];
                let is_rare = side.setup.rare == Rare::CyclesAndPanic;
                let runs = side.life.moves_inbound() || side.life.can_send();
                if !is_rare || !runs || side.told != Fault::None {
                    return false;
                }
                side.fault = Fault::Gone;
                self.feed(s, 0, Input::Panicked);
                true
            }
            What::Read | What::End | What::PeerEnds | What::Drained | What::WriteFails => {
                self.lower(s, what)
            }
            What::Handshake
            | What::HandshakeDone
            | What::NodeCycles
            | What::InsideRead(_)
            | What::SslWriteBreaks => self.session(s, what),
            _ => self.endpoint(s, what),
        }
    }

    /// The event, if a callback of OpenSSL's is called in it.
    fn inside_write(&mut self, callback: Callback, event: Event) -> bool {
        let is_rare = |side: &Side| side.setup.rare == Rare::CyclesAndPanic;
        if !self.sides.iter().any(is_rare) {
            return false;
        }
        self.callback = Some(callback);
        let has_happened = self.apply(event);
        has_happened && self.callback.take().is_none()
    }

    /// The stream below.
    fn lower(&mut self, s: usize, what: What) -> bool {
        let side = &mut self.sides[s];
        let is_reading = side.is_reading();
        let has_more = usize::from(side.sent) < side.setup.script.len();
        let is_quiet = side.handshake != Handshake::Pending;
        match what {
            What::Read => {
                if !is_reading || !has_more || !is_quiet {
                    return false;
                }
                side.sent += 1;
                self.node_cycle(s);
                self.lower_read(s);
            }
            What::End => {
                if !is_reading || has_more {
                    return false;
                }
                if side.is_tail_told {
                    // JavaScript does not read behind the end.
                    if side.handle_of(IN).is_none() || side.life.reading() != Reading::On {
                        return false;
                    }
                    ensure!(
                        !side.is_tail_repeated,
                        "the stream below is not read behind its end over and over"
                    );
                    side.is_tail_repeated = true;
                }
                let end = match side.tail {
                    Tail::Nothing => return false,
                    Tail::Eof | Tail::TornEof if !is_quiet => return false,
                    Tail::Eof | Tail::TornEof => LowerEnd::Eof,
                    Tail::Reset => LowerEnd::ReadFailed(ECONNRESET),
                };
                side.is_tail_told = true;
                self.lower_ends(s, end);
            }
            What::PeerEnds => {
                if side.tail != Tail::Nothing || has_more || !is_quiet {
                    return false;
                }
                side.tail = Tail::Eof;
            }
            What::Drained => {
                if !side.unwritten {
                    return false;
                }
                side.unwritten = false;
                if let Some(h) = side.handle_of(OUT) {
                    self.feed(s, h, Input::LowerDrained);
                }
            }
            _ => {
                let Some(h) = side.handle_of(OUT) else {
                    return false;
                };
                if !side.unwritten || side.has_write_failed {
                    return false;
                }
                side.unwritten = false;
                side.has_write_failed = true;
                side.saw(Fault::LowerWrite);
                self.feed(s, h, Input::LowerEnded(LowerEnd::WriteFailed(EPIPE)));
            }
        }
        true
    }

    fn lower_read(&mut self, s: usize) {
        if let Some(h) = self.top_listener(s) {
            self.feed(s, h, Input::LowerRead);
        }
    }

    /// The splice that hears the stream below.
    fn top_listener(&self, s: usize) -> Option<usize> {
        self.sides[s].handle_of(IN).or(self.sides[s].handle_of(OUT))
    }

    fn lower_ends(&mut self, s: usize, end: LowerEnd) {
        let side = &mut self.sides[s];
        // An error is not one any more if JavaScript knows of the end (rule 4).
        if end != LowerEnd::Eof && !side.eof {
            side.saw(Fault::LowerRead);
        }
        if side.eof && side.handle_of(IN).is_none() {
            return;
        }
        if side.handle_of(IN).is_none() {
            side.forget_packets();
        }
        if let Some(h) = self.top_listener(s) {
            return self.feed(s, h, Input::LowerEnded(end));
        }
        self.javascript_decrypts(s);
        match end {
            LowerEnd::Eof => self.sides[s].eof = true,
            _ if self.sides[s].told == Fault::None => self.sides[s].told = self.sides[s].fault,
            _ => {}
        }
    }

    /// The session.
    fn session(&mut self, s: usize, what: What) -> bool {
        let side = &mut self.sides[s];
        let rare = side.setup.rare;
        match what {
            What::Handshake => {
                let can = side.handshake == Handshake::Never
                    && side.read_end == Cleartext::Open
                    && side.undecrypted().is_empty()
                    && !side.is_tail_told;
                if rare != Rare::Handshake || !can || side.handle_of(OUT).is_none() {
                    return false;
                }
                side.handshake = Handshake::Pending;
            }
            What::HandshakeDone => {
                if side.handshake != Handshake::Pending || !side.is_reading() {
                    return false;
                }
                side.handshake = Handshake::Done;
                self.node_cycle(s);
                self.lower_read(s);
            }
            What::InsideRead(callback) => {
                let Some(h) = side.handle_of(IN) else {
                    return false;
                };
                let runs = side.life.moves_inbound()
                    && side.can_decrypt()
                    && side.held == 0
                    && side.failure[h] == Failure::No;
                if !runs || !self.can_call(callback, s, h, OUT) {
                    return false;
                }
                self.cancel_inbound(s, h);
                self.call(callback, s, h, OUT);
            }
            What::NodeCycles => {
                if rare != Rare::CyclesAndPanic {
                    return false;
                }
                self.node_cycle(s);
            }
            _ => {
                let can = rare == Rare::WriteBreaks && !side.is_write_broken;
                if !can || side.handle_of(OUT).is_none() {
                    return false;
                }
                side.is_write_broken = true;
            }
        }
        true
    }

    /// The endpoint.
    fn endpoint(&mut self, s: usize, what: What) -> bool {
        let is_joined = N == 2;
        let side = &mut self.sides[s];
        let sink = side.handle_of(IN);
        let source = side.handle_of(OUT);
        match what {
            What::SinkDrains | What::SinkBreaks => {
                let is_full = side.sink == Sink::Full;
                let can = match what {
                    What::SinkDrains => is_full,
                    _ => sink.is_some() && side.sink != Sink::Broken,
                };
                if is_joined || !can {
                    return false;
                }
                side.sink = match what {
                    What::SinkDrains => Sink::HasRoom,
                    _ => Sink::Broken,
                };
            }
            What::SinkReady => {
                let Some(h) = sink else {
                    return false;
                };
                let waits = side.life.waits_for_sink() && side.failure[h] == Failure::No;
                if is_joined || !waits || side.sink == Sink::Full {
                    return false;
                }
                self.feed(s, h, Input::SinkReady);
            }
            What::SourceReady => {
                let Some(h) = source else {
                    return false;
                };
                let has_any = side.in_source > 0 || side.source != Source::Open;
                let waits = side.life.waits_for_source()
                    && side.failure[h] == Failure::No
                    && side.has_room();
                if is_joined || !has_any || !waits {
                    return false;
                }
                self.feed(s, h, Input::SourceReady);
            }
            What::SourceEnds | What::SourceBreaks => {
                if is_joined || side.source != Source::Open || side.in_source > 0 {
                    return false;
                }
                if what == What::SourceBreaks && source.is_none() {
                    return false;
                }
                side.source = match what {
                    What::SourceEnds => Source::Ended,
                    _ => Source::Broken,
                };
            }
            What::LeaveSource => {
                if side.is_source_left || side.directions_of_running() & OUT == 0 {
                    return false;
                }
                self.leave_source(s);
            }
            _ => unreachable!(),
        }
        true
    }

    /// TLSSplice::LeaveSource().
    pub fn leave_source(&mut self, s: usize) {
        self.sides[s].is_source_left = true;
        if let Some(h) = self.sides[s].handle_of(OUT) {
            if !self.sides[s].is_gone {
                self.feed(s, h, Input::LeaveSource);
            }
        }
    }

    /// TLSSplice::OnDestroySSL(), or OnStreamDestroy().
    fn lose_session(&mut self, s: usize) {
        let side = &mut self.sides[s];
        if side.told == Fault::None {
            side.fault = Fault::Gone;
        }
        side.life = side.life.step(Input::Gone).0;
        side.is_gone = true;
        if side.handles == [Handle::IDLE; 2] {
            *side = side.dead();
            return;
        }
        // Nothing of this matters any more.
        *side = Side {
            life: side.life,
            handles: side.handles,
            is_gone: true,
            eof: side.eof,
            told: side.told,
            fault: side.fault,
            ..Side::new(side.setup, Tail::Nothing, 0, 0)
        };
        side.setup.script = &[];
    }
}

impl<const N: usize> Model for World<N> {
    type Event = Event;

    fn after(&self, event: Event) -> Option<World<N>> {
        let mut next = *self;
        next.apply(event).then_some(next)
    }

    fn check(&self) {
        for side in &self.sides {
            side.check();
        }
        if N == 2 {
            self.check_pair();
        }
    }

    fn check_at_rest(&self, pace: Pace) {
        for side in &self.sides {
            match pace {
                Pace::Fair => side.check_that_all_has_ended(),
                Pace::Alone => side.check_that_stops_have_ended(),
            }
        }
    }
}

/// What can happen to so many connections.
pub fn events(sides: usize) -> Events<Event> {
    use What::*;
    let alone = [
        Turn(0),
        Turn(1),
        Update(0),
        Update(1),
        UpdateAndResume(0),
        UpdateAndResume(1),
        Resume,
        DestroyForFault,
    ];
    let fair = [
        BeginOut(0),
        Read,
        End,
        PeerEnds,
        Drained,
        SinkDrains,
        SinkReady,
        SourceReady,
        SourceEnds,
        HandshakeDone,
    ];
    let others = [
        Start(0),
        Start(1),
        NodeCycles,
        SinkBreaks,
        SourceBreaks,
        WriteFails,
        SslWriteBreaks,
        LeaveSource,
        Handshake,
        Stop(0),
        Stop(1),
        InsideRead(Callback::Stop),
        InsideRead(Callback::GiveBackOther),
        InsideWrite(Callback::Stop, Trigger::Turn(0)),
        InsideWrite(Callback::Stop, Trigger::Turn(1)),
        InsideWrite(Callback::Stop, Trigger::SourceReady),
        InsideWrite(Callback::Stop, Trigger::Read),
        InsideWrite(Callback::GiveBackOther, Trigger::Turn(0)),
        InsideWrite(Callback::GiveBackOther, Trigger::SourceReady),
        InsideWrite(Callback::GiveBackOther, Trigger::Read),
        StopTimer(0),
        StopTimer(1),
        Destroy(false),
        Destroy(true),
        Gone,
        Panic,
    ];
    let of = |all: &[What]| {
        let each = |s| all.iter().map(move |&what| Event(s, what));
        (0..sides).flat_map(each).collect()
    };
    Events {
        alone: of(&alone),
        fair: of(&fair),
        others: of(&others),
    }
}
