//! A small world around the lifecycle of one TLS connection, or of two that are spliced
//! to each other: what the peer sends, the session, the stream below, the endpoint, the
//! pumps, and the shim that feeds the lifecycle and carries out its orders. What
//! JavaScript does is in javascript.rs.
//!
//! The world is as nasty as it can be in reality. Where the shim or the pumps leave the
//! lifecycle a way to go wrong, the world takes that way.

use std::hash::{Hash, Hasher};

use crate::ensure;
use crate::explore::{Events, Model, Pace};
use crate::javascript::{Handle, JsState, Settles, Socket, BOTH, IN, OUT};
use crate::machine::*;

/// Two codes of libuv's that differ.
const ECONNRESET: i32 = -104;
const EPIPE: i32 = -32;

/// What the peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    Record,
    CloseNotify,
    BadRecord,
}

/// What comes after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tail {
    /// The peer stays, until it ends the connection because nothing else happens.
    Nothing,
    /// The end of the connection.
    Eof,
    /// The end of the connection, within a packet.
    TornEof,
    Reset,
}

/// How much one run of a pump may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Budget {
    /// One record a turn, and one record of ciphertext is all that the stream below has
    /// room for.
    OneRecord,
    All,
}

/// Which handles a connection has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Handles {
    /// One for both directions.
    Duplex,
    /// One for each direction.
    Two,
    /// One for what the peer sends.
    OnlyIn,
    /// One for what is sent to the peer.
    OnlyOut,
}

/// What does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    pub handles: Handles,
    pub budget: Budget,
    pub script: &'static [Item],
    /// The stream below is one of libuv's, which takes a write at any time.
    pub is_direct: bool,
    /// The `end` option of the splices.
    pub ends_other: bool,
    pub rare: Rare,
}

/// Only a part of it, for speed: there are few.
impl Hash for Setup {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.script.as_ptr() as usize);
        state.write_u8(self.rare as u8 * 4 + self.budget as u8);
    }
}

/// What happens rarely. Each connection is explored with one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rare {
    Nothing,
    /// The peer may ask for a renegotiation.
    Handshake,
    /// `SSL_write` may fail for a reason of its own.
    WriteBreaks,
    /// Node may cycle at any time, and a pump may panic. A splice may start before what
    /// one before it has left is settled.
    CyclesAndPanic,
}

/// The sink as far as the kernel can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sink {
    HasRoom,
    Full,
    Broken,
}

/// The source, behind the records that it has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Open,
    Ended,
    Broken,
}

/// A renegotiation: the peer asks for one at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Handshake {
    Never,
    Pending,
    Done,
}

/// Why the pumps of a splice have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    No,
    Sink,
    Source,
    /// `SSL_write` has failed.
    Tls,
}

/// Why the connection has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    None,
    /// `SSL_read` has failed when JavaScript had called it: nobody has to tell JavaScript,
    /// which takes no notice any more of what it is told.
    ByJavaScript,
    /// `SSL_read` has failed.
    Read,
    /// `SSL_write` has failed, for a reason of its own.
    Write,
    LowerRead,
    LowerWrite,
    /// The session or the stream below is gone, or a pump has panicked.
    Gone,
}

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Side {
    pub life: Lifecycle,
    pub setup: Setup,
    /// How many items of the script the stream below has given.
    sent: u8,
    tail: Tail,
    is_tail_told: bool,
    /// How many items `SSL_read` has dealt with.
    decrypted: u8,
    /// What `SSL_read` has come to.
    pub read_end: Cleartext,
    handshake: Handshake,
    /// `SSL_write` will fail.
    is_write_broken: bool,
    /// `SSL_write` has failed: the session can not be used any more.
    is_session_dead: bool,
    /// Records that JavaScript had read before the splice, and nobody has taken.
    buffered: u8,
    /// Records that were decrypted, and are neither delivered nor given back.
    pub held: u8,
    /// Records that the sink or JavaScript has: the next one has this number.
    pub taken: u8,
    /// Records that the sink has, in a joined pair.
    passed: u8,
    sink: Sink,
    source: Source,
    /// Records that the source has yet to give.
    in_source: u8,
    /// Records that were read from the source.
    given: u8,
    /// Those of them that `SSL_write` has yet to accept.
    pub unsent: u8,
    /// `end()` was called, or the splice that feeds this one has ended.
    pub is_source_left: bool,
    /// The source has ended, and the socket with it.
    pub is_write_ended: bool,
    /// Ciphertext waits for the stream below.
    pub unwritten: bool,
    has_write_failed: bool,
    // The shim.
    pub turn_due: [bool; 2],
    /// Directions that were taken over in this turn of the event loop.
    pub starting: u8,
    pub resume_due: bool,
    /// `TLSWrap::eof_`: JavaScript knows of the end.
    pub eof: bool,
    /// The splice that has the inbound direction has told of the end.
    pub end_told: bool,
    waits_for_peer: bool,
    pub failure: [Failure; 2],
    pub is_gone: bool,
    // JavaScript.
    pub handles: [Handle; 2],
    pub socket: Socket,
    /// What JavaScript was told to be the reason why the connection has failed.
    pub told: Fault,
    /// What it is to be told.
    pub fault: Fault,
}

/// The world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct World<const N: usize> {
    pub sides: [Side; N],
    /// The two splices know each other.
    pub is_joined: bool,
}

/// What can happen to a connection. A number is that of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    // The event loop.
    Turn(usize),
    Update(usize),
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
    /// As `Start`, and what a splice before has left for later is not settled before.
    StartUnsettled(usize),
    NodeCycles,
    SinkBreaks,
    SourceBreaks,
    WriteFails,
    SslWriteBreaks,
    EndSource,
    Handshake,
    Stop(usize),
    /// The user stops the splice in a callback of the `SSL_read` of its pump.
    StopInside,
    StopTimer(usize),
    Destroy(bool),
    Gone,
    Panic,
}

/// An event, and the number of the connection that it happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub usize, pub What);

impl Side {
    pub fn new(setup: Setup, tail: Tail, in_source: u8, buffered: u8) -> Side {
        Side {
            life: Lifecycle::new(),
            setup,
            sent: buffered,
            tail,
            is_tail_told: false,
            decrypted: buffered,
            read_end: Cleartext::Open,
            handshake: Handshake::Never,
            is_write_broken: false,
            is_session_dead: false,
            buffered,
            held: 0,
            taken: 0,
            passed: 0,
            sink: Sink::HasRoom,
            source: Source::Open,
            in_source,
            given: 0,
            unsent: 0,
            is_source_left: false,
            is_write_ended: false,
            unwritten: false,
            has_write_failed: false,
            turn_due: [false; 2],
            starting: 0,
            resume_due: false,
            eof: false,
            end_told: false,
            waits_for_peer: false,
            failure: [Failure::No; 2],
            is_gone: false,
            handles: [Handle::IDLE; 2],
            socket: Socket::Alive,
            told: Fault::None,
            fault: Fault::None,
        }
    }

    /// A connection that is no more: nothing of it matters but a splice that waits for
    /// that of the other TLSSocket.
    pub fn dead(self) -> Side {
        let setup = Setup {
            script: &[],
            ..self.setup
        };
        Side {
            socket: Socket::Destroyed,
            is_gone: true,
            handles: self.handles,
            eof: self.eof && self.handles != [Handle::IDLE; 2],
            ..Side::new(setup, Tail::Nothing, 0, 0)
        }
    }

    /// What a handle is for.
    pub fn directions(&self, handle: usize) -> u8 {
        match (self.setup.handles, handle) {
            (Handles::Duplex, 0) => IN | OUT,
            (Handles::Two | Handles::OnlyIn, 0) => IN,
            (Handles::OnlyOut, 0) | (Handles::Two, 1) => OUT,
            _ => 0,
        }
    }

    /// The handle that has the direction now.
    fn handle_of(&self, direction: u8) -> Option<usize> {
        (0..2).find(|&handle| self.handles[handle].has & direction != 0)
    }

    /// The bits that JavaScript sees of a handle.
    pub fn bits(&self, handle: usize) -> u32 {
        let handle = &self.handles[handle];
        let mut bits = handle.kept;
        for (direction, bit) in BOTH {
            if handle.has & bit != 0 {
                bits |= self.life.outcome(direction);
            }
        }
        bits
    }

    /// Whether the end of the stream below is within a packet of the inbound splice.
    pub fn is_torn(&self) -> bool {
        self.tail == Tail::TornEof && self.is_tail_told
    }

    /// Whoever has the inbound direction next does not know where packets begin.
    pub fn forget_packets(&mut self) {
        if self.tail == Tail::TornEof {
            self.tail = Tail::Eof;
        }
    }

    pub fn handshake_is_pending(&self) -> bool {
        self.handshake == Handshake::Pending
    }

    pub fn has_write_failed(&self) -> bool {
        self.has_write_failed
    }

    /// Another splice has pumps and an endpoint of its own.
    pub fn use_new_endpoint(&mut self, h: usize) {
        let directions = self.directions(h);
        self.failure[h] = Failure::No;
        if directions & IN != 0 && self.sink == Sink::Broken {
            self.sink = Sink::HasRoom;
        }
        if directions & OUT != 0 && self.source == Source::Broken {
            self.source = Source::Open;
        }
    }

    /// What JavaScript had read goes to the sink first.
    pub fn take_buffered(&mut self) {
        self.held = std::mem::take(&mut self.buffered);
    }

    fn is_reading(&self) -> bool {
        let has_in = self.handle_of(IN).is_some();
        match has_in {
            true => self.life.reading() != Reading::Off,
            // JavaScript reads, once it has what was given back.
            false => !self.resume_due && !self.eof,
        }
    }

    fn undecrypted(&self) -> &'static [Item] {
        &self.setup.script[self.decrypted.into()..self.sent.into()]
    }

    /// Decrypts one item of the ciphertext, and returns how many records that was.
    fn decrypt_one(&mut self) -> u8 {
        if self.is_session_dead {
            self.read_end = Cleartext::Failed;
            return 0;
        }
        let item = self.undecrypted()[0];
        self.decrypted += 1;
        match item {
            Item::Record => return 1,
            Item::CloseNotify => self.read_end = Cleartext::CloseNotify,
            Item::BadRecord => self.read_end = Cleartext::Failed,
        }
        0
    }

    fn can_decrypt(&self) -> bool {
        let has_any = self.is_session_dead || !self.undecrypted().is_empty();
        self.read_end == Cleartext::Open && has_any
    }

    /// Whether `SSL_read` has given all that the stream below has.
    fn has_decrypted_all(&self) -> bool {
        !self.can_decrypt() || self.is_session_dead
    }

    /// One of the failures of the connection has been seen. The first one is the reason,
    /// except that what was received before it may say more.
    fn saw(&mut self, fault: Fault) {
        let is_of_session = matches!(fault, Fault::Read | Fault::Write);
        if self.told == Fault::None && (self.fault == Fault::None || is_of_session) {
            self.fault = fault;
        }
    }
}

impl<const N: usize> World<N> {
    pub fn feed(&mut self, s: usize, h: usize, input: Input) {
        let (life, orders) = self.sides[s].life.step(input);
        self.sides[s].life = life;
        self.carry_out(s, h, orders);
    }

    /// Carries out the orders that the splice `h` has got, in the order of the shim.
    fn carry_out(&mut self, s: usize, h: usize, orders: Orders) {
        if orders.encrypt {
            if self.sides[s].handles[h].has & OUT != 0 {
                self.encrypt(s, h);
            } else {
                self.sides[s].turn_due[1 - h] = self.sides[s].handles[1 - h].has != 0;
            }
        }
        if orders.cycle {
            self.cycle(s, h);
        }
        if let Some(what) = orders.hand_over {
            self.tell(s, what);
        }
        let has_any = self.sides[s].handles[h].has != 0;
        self.sides[s].turn_due[h] |= orders.next_turn && has_any;
        self.wake_peer_if_room(s);
    }

    /// TLSSplice::Cycle().
    fn cycle(&mut self, s: usize, h: usize) {
        if self.sides[s].is_gone || self.sides[s].handles[h].has == 0 {
            return;
        }
        self.node_cycle(s);
        let side = &self.sides[s];
        let has = side.handles[h].has;
        if has == 0 {
            return;
        }
        let is_at_eof = side.life.is_at_eof();
        if is_at_eof && has & IN == 0 {
            // Only the other splice knows whether that is within a packet.
            self.sides[s].turn_due[1 - h] = true;
            self.feed(s, h, Input::CycledBeforeEnd);
        } else if is_at_eof && side.is_torn() {
            self.sides[s].failure[h] = Failure::Sink;
            self.feed(s, h, Input::Delivered(Delivery::Failed, Cleartext::Open));
        } else {
            self.feed(s, h, Input::Cycled);
        }
    }

    /// TLSWrap::Cycle(): whoever has the inbound direction decrypts.
    fn node_cycle(&mut self, s: usize) {
        if self.sides[s].is_gone {
            return;
        }
        match self.sides[s].handle_of(IN) {
            Some(h) => self.decrypt(s, h),
            None if self.sides[s].resume_due && self.sides[s].life.holds_tls_error() => {
                self.resume(s);
            }
            None => self.javascript_decrypts(s),
        }
    }

    /// What TLSWrap::ClearOut() does without a splice.
    pub fn javascript_decrypts(&mut self, s: usize) {
        let side = &mut self.sides[s];
        ensure!(side.held == 0, "nothing overtakes bytes that are held");
        while side.can_decrypt() {
            side.taken += side.decrypt_one();
            match side.read_end {
                Cleartext::Open => {}
                Cleartext::CloseNotify => side.eof = true,
                Cleartext::Failed => {
                    if side.fault != Fault::Gone {
                        side.fault = Fault::ByJavaScript;
                    }
                    side.told = Fault::ByJavaScript;
                }
            }
        }
    }

    /// TLSSplice::Decrypt().
    fn decrypt(&mut self, s: usize, h: usize) {
        loop {
            if !self.sides[s].life.moves_inbound() {
                return;
            }
            let Some((delivery, cleartext)) = self.sides[s].run_inbound(h, N == 2) else {
                return;
            };
            if cleartext == Cleartext::Failed {
                self.sides[s].saw(Fault::Read);
            }
            self.feed(s, h, Input::Delivered(delivery, cleartext));
            let is_over = delivery == Delivery::Drained && cleartext != Cleartext::Open;
            self.sides[s].turn_due[h] |= is_over && self.sides[s].handles[h].has != 0;
            let is_for_peer = N == 2 && delivery == Delivery::Blocked;
            if !is_for_peer || !self.deliver_to_peer(s, h) {
                self.sides[s].waits_for_peer = is_for_peer;
                return;
            }
        }
    }
}

impl Side {
    /// The inbound pump, see rust/src/inbound.rs. `None` if it does nothing.
    fn run_inbound(&mut self, h: usize, is_joined: bool) -> Option<(Delivery, Cleartext)> {
        ensure!(
            self.starting & IN == 0,
            "nothing moves before the next turn"
        );
        ensure!(
            self.failure[h] != Failure::Sink,
            "a pump is not run after it has failed"
        );
        if self.handles[h].state == JsState::Stopping {
            return None;
        }
        if self.failure[h] != Failure::No {
            return Some((Delivery::Failed, self.read_end));
        }
        let mut filled = 0;
        loop {
            if self.held > 0 {
                if is_joined {
                    // The caller is to deliver.
                    return match self.sink {
                        Sink::Broken => self.fail_sink(h),
                        _ => Some((Delivery::Blocked, self.read_end)),
                    };
                }
                match self.sink {
                    Sink::Broken => return self.fail_sink(h),
                    Sink::Full => return Some((Delivery::Blocked, self.read_end)),
                    Sink::HasRoom => {
                        self.held -= 1;
                        self.taken += 1;
                        self.sink = Sink::Full;
                        continue;
                    }
                }
            }
            if !self.can_decrypt() {
                return Some((Delivery::Drained, self.read_end));
            }
            if self.setup.budget == Budget::OneRecord && filled == 1 {
                return Some((Delivery::Paused, self.read_end));
            }
            filled += 1;
            self.held += self.decrypt_one();
            while self.setup.budget == Budget::All && self.can_decrypt() {
                self.held += self.decrypt_one();
            }
        }
    }

    fn fail_sink(&mut self, h: usize) -> Option<(Delivery, Cleartext)> {
        self.failure[h] = Failure::Sink;
        Some((Delivery::Failed, self.read_end))
    }

    /// Whether the outbound pump has room for more ciphertext.
    fn has_room(&self) -> bool {
        !self.unwritten || self.setup.budget == Budget::All
    }

    /// The outbound pump, see rust/src/outbound.rs and rust/src/splice.rs.
    fn run_outbound(&mut self, h: usize, is_joined: bool) -> Sending {
        let is_stopping = self.handles[h].state == JsState::Stopping;
        ensure!(
            self.starting & OUT == 0 || is_stopping,
            "nothing moves before the next turn"
        );
        ensure!(
            self.failure[h] != Failure::Source || is_stopping,
            "a pump is not run after it has failed"
        );
        if self.failure[h] == Failure::Tls {
            return Sending::Stopped;
        }
        let is_shut = is_stopping || self.failure[h] != Failure::No;
        loop {
            if self.unsent > 0 {
                if !is_shut && !self.has_room() {
                    return Sending::Full;
                }
                if self.handshake == Handshake::Pending {
                    return Sending::WantsRead;
                }
                if self.read_end == Cleartext::Failed || self.is_write_broken {
                    return self.fail_write(h);
                }
                self.unsent = 0;
                self.unwritten = true;
            }
            if is_shut {
                return Sending::Stopped;
            }
            if self.is_source_left {
                return self.end_source();
            }
            if !self.has_room() {
                return Sending::Full;
            }
            match self.source {
                _ if is_joined => return Sending::Dry,
                _ if self.in_source > 0 => {
                    self.in_source -= 1;
                    self.given += 1;
                    self.unsent = 1;
                }
                Source::Open => return Sending::Dry,
                Source::Ended => return self.end_source(),
                Source::Broken => {
                    self.failure[h] = Failure::Source;
                    return Sending::SourceFailed;
                }
            }
        }
    }

    fn end_source(&self) -> Sending {
        match self.unwritten {
            true => Sending::Full,
            false => Sending::Ended,
        }
    }

    fn fail_write(&mut self, h: usize) -> Sending {
        // The pump of the other direction knows why.
        if self.handles[h].has & IN != 0 && self.read_end == Cleartext::Failed {
            return Sending::Stopped;
        }
        self.failure[h] = Failure::Tls;
        // Rule 5.
        if self.read_end != Cleartext::Failed {
            self.saw(Fault::Write);
            self.is_session_dead = true;
        }
        Sending::TlsFailed
    }
}

impl<const N: usize> World<N> {
    /// The inbound pump has decrypted what it can when it sees that it was cancelled.
    fn interrupt_inbound(&mut self, s: usize, h: usize) {
        let side = &mut self.sides[s];
        while side.can_decrypt() {
            side.held += side.decrypt_one();
        }
        if side.read_end == Cleartext::Failed {
            side.saw(Fault::Read);
        }
        let cleartext = side.read_end;
        self.feed(s, h, Input::Interrupted(cleartext));
    }

    fn encrypt(&mut self, s: usize, h: usize) {
        let side = &mut self.sides[s];
        if side.is_gone {
            return;
        }
        let sending = match !side.setup.is_direct && side.unwritten {
            // A stream of JavaScript's has yet to complete a write.
            true => Sending::Full,
            false => side.run_outbound(h, N == 2),
        };
        self.feed(s, h, Input::Sent(sending));
    }

    /// TLSSplice::Deliver(): whether the inbound pump is to be run again.
    fn deliver_to_peer(&mut self, s: usize, h: usize) -> bool {
        let p = 1 - s;
        if !self.is_joined || self.sides[p].bits(0) & outcome::OUTBOUND_OVER != 0 {
            self.sides[s].sink = Sink::Broken;
            return true;
        }
        let [from, to] = self.pair(s);
        let wants_source = to.handles[0].has & OUT != 0
            && !to.is_gone
            && !to.is_source_left
            && to.handles[0].state == JsState::Running
            && to.unsent == 0
            && to.has_room();
        if from.failure[h] != Failure::No || to.failure[0] != Failure::No || !wants_source {
            return false;
        }
        ensure!(to.given == from.passed, "records are passed in order");
        to.given += from.held;
        to.unsent += from.held;
        from.passed += from.held;
        from.taken += from.held;
        from.held = 0;
        let input = match to.setup.is_direct {
            true => Input::SourceReady,
            false => Input::SourceGave,
        };
        self.feed(p, 0, input);
        self.sides[s].handles[h].has & IN != 0
    }

    fn pair(&mut self, s: usize) -> [&mut Side; 2] {
        let (first, second) = self.sides.split_at_mut(1);
        match s {
            0 => [&mut first[0], &mut second[0]],
            _ => [&mut second[0], &mut first[0]],
        }
    }

    /// TLSSplice::UpdateInterest().
    fn wake_peer_if_room(&mut self, s: usize) {
        if N == 1 || !self.is_joined || self.sides[s].is_gone {
            return;
        }
        let side = &self.sides[s];
        let is_running = side.handles[0].state == JsState::Running;
        let wants_source = side.life.waits_for_source()
            && side.handles[0].has & OUT != 0
            && side.failure[0] == Failure::No
            && is_running
            && !side.is_source_left
            && side.unsent == 0
            && side.has_room();
        let is_over = side.handles[0].has != 0 && side.bits(0) & outcome::OUTBOUND_OVER != 0;
        if wants_source || is_over {
            self.wake_peer(s);
        }
    }

    pub fn wake_peer(&mut self, s: usize) {
        let peer = &mut self.sides[1 - s];
        if std::mem::take(&mut peer.waits_for_peer) {
            peer.turn_due[0] = peer.handles[0].has != 0;
        }
    }

    /// JavaScript is told by way of the TLSWrap, as if there were no splice. Nothing
    /// comes before the bytes that it follows, and nothing comes twice.
    fn tell(&mut self, s: usize, what: HandOver) {
        if let HandOver::LowerEnd(_) = what {
            if self.sides[s].handle_of(IN).is_none() {
                self.javascript_decrypts(s);
            }
        }
        let side = &mut self.sides[s];
        ensure!(side.held == 0, "nothing overtakes bytes that are held");
        if side.told == Fault::ByJavaScript {
            return;
        }
        let is_told = side.told != Fault::None;
        match what {
            HandOver::CloseNotify => {
                ensure!(!side.end_told && !is_told, "an end is told once");
                ensure!(
                    side.read_end == Cleartext::CloseNotify,
                    "what is told has happened"
                );
                side.end_told = true;
                side.eof = true;
                // What the stream below has come to was behind that (rule 4).
                if side.fault == Fault::LowerRead {
                    side.fault = match side.has_write_failed {
                        true => Fault::LowerWrite,
                        false => Fault::None,
                    };
                }
            }
            HandOver::LowerEnd(LowerEnd::Eof) => {
                ensure!(side.has_decrypted_all(), "nothing overtakes ciphertext");
                ensure!(!side.end_told && !is_told, "an end is told once");
                side.end_told = side.handle_of(IN).is_some();
                side.eof = true;
            }
            HandOver::TlsError => {
                ensure!(
                    side.read_end == Cleartext::Failed,
                    "what is told has happened"
                );
                self.report(s, Fault::Read);
            }
            HandOver::LowerEnd(LowerEnd::ReadFailed(_)) => {
                ensure!(side.has_decrypted_all(), "nothing overtakes ciphertext");
                ensure!(
                    !side.end_told || side.handle_of(IN).is_none(),
                    "an error after the end is not told"
                );
                self.report(s, Fault::LowerRead);
            }
            HandOver::LowerEnd(LowerEnd::WriteFailed(_)) => {
                ensure!(side.has_decrypted_all(), "nothing overtakes ciphertext");
                self.report(s, Fault::LowerWrite);
            }
        }
    }

    /// JavaScript learns why the connection has failed.
    pub fn report(&mut self, s: usize, fault: Fault) {
        let side = &mut self.sides[s];
        ensure!(side.told == Fault::None, "an error is reported once");
        ensure!(fault == side.fault, "the first failure is the one reported");
        side.told = fault;
    }

    /// TLSSplice::ResumeNow().
    pub fn resume(&mut self, s: usize) {
        if self.sides[s].handle_of(IN).is_none() && !self.sides[s].life.holds_tls_error() {
            self.javascript_decrypts(s);
        }
        self.sides[s].resume_due = false;
        let (life, orders) = self.sides[s].life.step(Input::Resume);
        self.sides[s].life = life;
        if let Some(what) = orders.hand_over {
            self.tell(s, what);
        }
        ensure!(
            !orders.cycle && !orders.encrypt && !orders.next_turn,
            "resume() asks for nothing"
        );
    }
}

/// What happens.
impl<const N: usize> World<N> {
    fn apply(&mut self, Event(s, what): Event) -> bool {
        match what {
            What::Update(h) => return self.update(s, h),
            What::Stop(h) => return self.user_stops(s, h),
            What::Destroy(has_error) => return self.user_destroys(s, has_error),
            What::DestroyForFault => return self.destroy_for_fault(s),
            What::BeginOut(h) => return self.begin_out(s, h),
            _ => {}
        }
        if self.sides[s].is_gone {
            return false;
        }
        match what {
            What::Start(h) => self.start(s, h, Settles::First),
            What::StartUnsettled(h) => {
                let is_rare = self.sides[s].setup.rare == Rare::CyclesAndPanic;
                is_rare && self.sides[s].resume_due && self.start(s, h, Settles::Never)
            }
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
            | What::StopInside
            | What::SslWriteBreaks => self.session(s, what),
            _ => self.endpoint(s, what),
        }
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
                if !is_reading || has_more || side.is_tail_told {
                    return false;
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
        // An error is not one any more if JavaScript knows of the end, and a splice reads
        // (rule 4).
        let is_after_end = side.eof && side.handle_of(IN).is_some();
        if end != LowerEnd::Eof && !is_after_end {
            side.saw(Fault::LowerRead);
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
            What::StopInside => {
                let Some(h) = side.handle_of(IN) else {
                    return false;
                };
                let runs = side.life.moves_inbound()
                    && side.can_decrypt()
                    && side.held == 0
                    && side.failure[h] == Failure::No;
                if rare != Rare::CyclesAndPanic || N == 2 || !runs {
                    return false;
                }
                self.interrupt_inbound(s, h);
                return self.user_stops(s, h);
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
            What::EndSource => {
                if side.is_source_left || side.directions_of_running() & OUT == 0 {
                    return false;
                }
                self.leave_source(s);
            }
            _ => unreachable!(),
        }
        true
    }

    /// TLSSplice::EndSource().
    pub fn leave_source(&mut self, s: usize) {
        self.sides[s].is_source_left = true;
        if let Some(h) = self.sides[s].handle_of(OUT) {
            if !self.sides[s].is_gone {
                self.feed(s, h, Input::EndSource);
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

impl Side {
    fn check(&self) {
        let has_in = self.handle_of(IN);
        if self.socket == Socket::Destroyed || self.is_gone {
            return;
        }
        let script = &self.setup.script[..self.decrypted.into()];
        let records = script.iter().filter(|&&item| item == Item::Record).count();
        ensure!(
            self.taken + self.held + self.buffered == records as u8,
            "no record is lost or delivered twice"
        );
        self.check_source();
        let Some(h) = has_in else {
            ensure!(self.held == 0, "what was held is given back");
            return;
        };
        let reading = self.life.reading();
        if self.held > 0 {
            ensure!(
                reading != Reading::On,
                "reading is off while bytes are blocked"
            );
            // Before the first turn JavaScript's last word holds.
            if self.life.moves_inbound() {
                ensure!(
                    reading == Reading::Off,
                    "reading is off while bytes are blocked"
                );
            }
        }
        self.check_outcome(Direction::Inbound);
        if self.life.waits_for_sink() {
            ensure!(
                self.held > 0,
                "the sink is waited for with something to deliver"
            );
        }
        let bits = self.life.outcome(Direction::Inbound);
        if bits & outcome::INBOUND_OVER != 0 {
            ensure!(self.held == 0, "over only when everything is delivered");
        }
        if self.failure[h] == Failure::Sink {
            ensure!(
                bits & (outcome::ENDPOINT_FAILED | outcome::TLS_FAILED | outcome::INBOUND_STOPPED)
                    != 0,
                "a failure of the endpoint stays visible until the stop"
            );
        }
    }

    /// A direction has come to one row of the table of all endings at most, and a
    /// failure of the connection may be in front of that.
    fn check_outcome(&self, direction: Direction) {
        let bits = self.life.outcome(direction);
        let (over, stopped) = match direction {
            Direction::Inbound => (outcome::INBOUND_OVER, outcome::INBOUND_STOPPED),
            Direction::Outbound => (outcome::OUTBOUND_OVER, outcome::OUTBOUND_STOPPED),
        };
        let failures = outcome::TLS_FAILED | outcome::TLS_FAILING;
        let own = bits & !failures;
        let rows = [
            0,
            over,
            stopped,
            outcome::ENDPOINT_FAILED,
            outcome::WANTS_HANDSHAKE,
        ];
        ensure!(rows.contains(&own), "an outcome is a row of the table");
        ensure!(
            bits & failures != failures,
            "an outcome is a row of the table"
        );
        if bits & failures != 0 {
            ensure!(self.fault != Fault::None, "what is told has happened");
        }
        if self.fault != Fault::Gone {
            let finished = match direction {
                Direction::Inbound => outcome::INBOUND_STOPPED,
                Direction::Outbound => outcome::OUTBOUND_OVER,
            };
            ensure!(
                own != finished || bits & failures == 0,
                "what was finished before a failure stays so"
            );
        }
    }

    fn check_source(&self) {
        let Some(h) = self.handle_of(OUT) else {
            return;
        };
        self.check_outcome(Direction::Outbound);
        let bits = self.life.outcome(Direction::Outbound);
        let is_running = self.handles[h].state == JsState::Running;
        if self.failure[h] == Failure::Source && is_running {
            ensure!(
                bits & (outcome::ENDPOINT_FAILED | outcome::TLS_FAILED) != 0,
                "a failure of the endpoint stays visible until the stop"
            );
        }
        let is_cut = outcome::TLS_FAILED | outcome::TLS_FAILING;
        if bits & (outcome::OUTBOUND_OVER | outcome::OUTBOUND_STOPPED) != 0 && bits & is_cut == 0 {
            ensure!(
                self.unsent == 0 || self.fault != Fault::None,
                "what was read from the source is sent"
            );
        }
        if bits & outcome::OUTBOUND_OVER != 0 {
            ensure!(!self.unwritten, "over only when everything is written");
        }
    }

    /// Everybody has done their part.
    fn check_that_all_has_ended(&self) {
        for handle in &self.handles {
            ensure!(handle.state == JsState::Idle, "every path ends");
        }
        if self.socket == Socket::Alive && !self.is_gone {
            ensure!(
                self.fault == Fault::None,
                "an error is reported or handed back"
            );
            ensure!(!self.life.owes(), "nothing is owed for ever");
            ensure!(!self.resume_due, "nothing is owed for ever");
        }
    }

    /// Nothing happens any more by itself.
    fn check_that_stops_have_ended(&self) {
        for h in 0..2 {
            if self.handles[h].state != JsState::Stopping {
                continue;
            }
            let waits_for_lower = !self.setup.is_direct && self.unwritten;
            ensure!(
                self.handshake == Handshake::Pending || waits_for_lower,
                "a stop ends by itself"
            );
        }
    }
}

impl<const N: usize> World<N> {
    fn check_pair(&self) {
        for s in 0..2 {
            let [from, to] = [&self.sides[s], &self.sides[1 - s]];
            let is_known = from.socket == Socket::Alive
                && to.socket == Socket::Alive
                && !from.is_gone
                && !to.is_gone;
            if is_known {
                ensure!(
                    from.passed == to.given,
                    "no record is lost or delivered twice"
                );
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
        StartUnsettled(0),
        NodeCycles,
        SinkBreaks,
        SourceBreaks,
        WriteFails,
        SslWriteBreaks,
        EndSource,
        Handshake,
        Stop(0),
        Stop(1),
        StopInside,
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
