//! All states of the lifecycle that can be reached, with every input in every order.
//!
//! The lifecycle under test is the real one. Around it is a small world: a peer that
//! sends at most two records and then an end, a sink that takes one record at a time and
//! may fail, a source of at most two records, and a stream below whose writes may fail.
//! The world keeps the orders of the lifecycle as the shim does. A breadth-first search
//! visits each state of the world and the lifecycle once, and checks the rules there.

use std::collections::{HashMap, VecDeque};

use tls_splice::lifecycle::*;
use tls_splice::splice::Direction;

/// libuv's codes, as far as the lifecycle is concerned any two that differ.
const ECONNRESET: i32 = -104;
const EPIPE: i32 = -32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Item {
    Record,
    CloseNotify,
    BadRecord,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Tail {
    /// The peer stays.
    Nothing,
    Eof,
    Reset,
}

/// How much one run of a pump may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Budget {
    OneRecord,
    All,
}

/// Which handles there are: it decides what is stopped together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Handles {
    Duplex,
    Two,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sink {
    Full,
    HasRoom,
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Dry,
    HasRecord,
    Ended,
    Broken,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    life: Lifecycle,
    handles: Handles,
    budget: Budget,
    /// What the peer has yet to send.
    wire: Vec<Item>,
    tail: Tail,
    tail_is_told: bool,
    /// What the stream below has given, and nobody has decrypted.
    ciphertext: Vec<Item>,
    /// What SSL_read has come to.
    cleartext: Cleartext,
    /// Records that were decrypted and not delivered.
    held: u8,
    sink: Sink,
    source: Source,
    /// Ciphertext waits for the stream below.
    unwritten: bool,
    /// The peer wants a handshake before it takes more.
    handshake: bool,
    taken: [bool; 2],
    stopped: [bool; 2],
    turn_is_due: bool,
    resume_is_due: bool,
    is_gone: bool,
    // What JavaScript and the splices were told.
    tls_errors: u8,
    lower_errors: u8,
    ends: u8,
    has_failed: bool,
    /// The directions whose endpoint has failed, until they are stopped or given back.
    endpoint_failed: [bool; 2],
    // What there was to be told.
    saw_write_error: bool,
}

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Event {
    Start(Direction),
    Turn,
    Read,
    End,
    Drained,
    WriteFails,
    SinkReady,
    SinkBreaks,
    SourceReady,
    SourceEnds,
    SourceBreaks,
    EndSource,
    Handshake,
    HandshakeDone,
    Stop(Direction),
    StopAll,
    Release(Direction),
    Resume,
    Gone,
    Panic,
}

const EVENTS: [Event; 23] = [
    Event::Start(Direction::Inbound),
    Event::Start(Direction::Outbound),
    Event::Turn,
    Event::Read,
    Event::End,
    Event::Drained,
    Event::WriteFails,
    Event::SinkReady,
    Event::SinkBreaks,
    Event::SourceReady,
    Event::SourceEnds,
    Event::SourceBreaks,
    Event::EndSource,
    Event::Handshake,
    Event::HandshakeDone,
    Event::Stop(Direction::Inbound),
    Event::Stop(Direction::Outbound),
    Event::StopAll,
    Event::Release(Direction::Inbound),
    Event::Release(Direction::Outbound),
    Event::Resume,
    Event::Gone,
    Event::Panic,
];

/// Events that nobody has to cause: the loop turns, and the kernel does its part.
const FAIR: [Event; 8] = [
    Event::Turn,
    Event::HandshakeDone,
    Event::Drained,
    Event::SinkReady,
    Event::Read,
    Event::End,
    Event::SourceReady,
    Event::Resume,
];

const BOTH: [Direction; 2] = [Direction::Inbound, Direction::Outbound];

fn index(direction: Direction) -> usize {
    match direction {
        Direction::Inbound => 0,
        Direction::Outbound => 1,
    }
}

impl World {
    fn new(handles: Handles, budget: Budget, wire: &[Item], tail: Tail, source: Source) -> World {
        World {
            life: Lifecycle::new(),
            handles,
            budget,
            wire: wire.to_vec(),
            tail,
            tail_is_told: false,
            ciphertext: Vec::new(),
            cleartext: Cleartext::Open,
            held: 0,
            sink: Sink::Full,
            source,
            unwritten: false,
            handshake: false,
            taken: [false; 2],
            stopped: [false; 2],
            turn_is_due: false,
            resume_is_due: false,
            is_gone: false,
            tls_errors: 0,
            lower_errors: 0,
            ends: 0,
            has_failed: false,
            endpoint_failed: [false; 2],
            saw_write_error: false,
        }
    }

    fn outcome(&self) -> u32 {
        BOTH.iter()
            .filter(|&&direction| self.taken[index(direction)])
            .fold(0, |bits, &direction| bits | self.life.outcome(direction))
    }

    /// Whether the direction is finished, so that JavaScript may take it back.
    fn is_finished(&self, direction: Direction) -> bool {
        let finished = match direction {
            Direction::Inbound => outcome::INBOUND_OVER | outcome::INBOUND_STOPPED,
            Direction::Outbound => outcome::OUTBOUND_OVER | outcome::OUTBOUND_STOPPED,
        };
        let bits = self.life.outcome(direction);
        bits & (finished | outcome::TLS_FAILED) != 0
    }

    fn feed(&mut self, input: Input) {
        let (life, orders) = self.life.step(input);
        self.life = life;
        // Event::needs_session of events.rs.
        let has_session = matches!(
            input,
            Input::LowerRead | Input::SourceReady | Input::Cycled | Input::Stop(_)
        );
        assert!(
            has_session || !orders.encrypt,
            "{input:?} runs a pump without a session"
        );
        self.carry_out(orders);
    }

    fn carry_out(&mut self, orders: Orders) {
        if let Some(what) = orders.hand_over {
            self.tell(what);
        }
        self.turn_is_due |= orders.next_turn;
        if orders.cycle {
            self.cycle();
            self.feed(Input::Cycled);
        }
        if orders.encrypt {
            self.encrypt();
        }
    }

    /// Rule 3: JavaScript is told of nothing before the bytes that come first.
    fn tell(&mut self, what: HandOver) {
        assert_eq!(self.held, 0, "{what:?} is told before bytes that are held");
        match what {
            HandOver::CloseNotify => self.ends += 1,
            HandOver::TlsError => self.tls_errors += 1,
            HandOver::LowerEnd(end) => {
                if !self.taken[0] {
                    self.javascript_decrypts();
                }
                let bytes = self.ciphertext.iter().filter(|&&i| i == Item::Record);
                assert!(
                    self.cleartext != Cleartext::Open || bytes.count() == 0,
                    "{end:?} is told before records that are not decrypted",
                );
                match end {
                    LowerEnd::Eof => self.ends += 1,
                    _ => self.lower_errors += 1,
                }
            }
        }
    }

    /// What TLSWrap::OnStreamRead does before it passes an end on.
    fn javascript_decrypts(&mut self) {
        while self.cleartext == Cleartext::Open && !self.ciphertext.is_empty() {
            match self.ciphertext.remove(0) {
                Item::Record => {}
                Item::CloseNotify => self.cleartext = Cleartext::CloseNotify,
                Item::BadRecord => {
                    self.cleartext = Cleartext::Failed;
                    self.tls_errors += 1;
                }
            }
        }
    }

    /// TLSWrap::Cycle: the inbound pump, or JavaScript, decrypts.
    fn cycle(&mut self) {
        if self.is_gone {
            return;
        }
        if !self.taken[0] {
            self.javascript_decrypts();
        } else if self.life.moves_inbound() {
            assert!(
                !self.endpoint_failed[0],
                "the inbound pump is run after its sink has failed"
            );
            let (delivery, cleartext) = self.deliver();
            self.endpoint_failed[0] = delivery == Delivery::Failed;
            self.feed(Input::Delivered(delivery, cleartext));
        }
    }

    fn deliver(&mut self) -> (Delivery, Cleartext) {
        let mut records = 0;
        while self.cleartext == Cleartext::Open && !self.ciphertext.is_empty() {
            if self.held > 0 && self.sink == Sink::Full
                || self.budget == Budget::OneRecord && records == 1
            {
                break;
            }
            records += 1;
            match self.ciphertext.remove(0) {
                Item::Record => self.held += 1,
                Item::CloseNotify => self.cleartext = Cleartext::CloseNotify,
                Item::BadRecord => {
                    self.cleartext = Cleartext::Failed;
                }
            }
        }
        if self.held > 0 && self.sink == Sink::Broken {
            return (Delivery::Failed, self.cleartext);
        }
        if self.held > 0 && self.sink == Sink::HasRoom {
            self.held -= 1;
            self.sink = Sink::Full;
        }
        let delivery = if self.held > 0 {
            Delivery::Blocked
        } else if self.cleartext == Cleartext::Open && !self.ciphertext.is_empty() {
            Delivery::Paused
        } else {
            Delivery::Drained
        };
        (delivery, self.cleartext)
    }

    fn encrypt(&mut self) {
        if self.is_gone || !self.life.can_send() {
            return;
        }
        assert!(
            !self.endpoint_failed[1],
            "the outbound pump is run after its source has failed"
        );
        let sending = self.send();
        self.endpoint_failed[1] = sending == Sending::SourceFailed;
        self.feed(Input::Sent(sending));
    }

    fn send(&mut self) -> Sending {
        let stopping = self.stopped[1];
        if self.cleartext == Cleartext::Failed {
            return Sending::TlsFailed;
        }
        if self.handshake {
            return Sending::WantsRead;
        }
        if stopping {
            return Sending::Stopped;
        }
        if self.unwritten {
            return Sending::Full;
        }
        match self.source {
            Source::Dry => Sending::Dry,
            Source::Ended => Sending::Ended,
            Source::Broken => Sending::SourceFailed,
            Source::HasRecord => {
                self.source = Source::Dry;
                self.unwritten = true;
                match self.budget {
                    Budget::OneRecord => Sending::Paused,
                    Budget::All => Sending::Full,
                }
            }
        }
    }

    /// What the world does with the event, or `None` if it cannot happen now.
    fn after(&self, event: Event) -> Option<World> {
        let mut next = self.clone();
        next.apply(event).then_some(next)
    }

    fn apply(&mut self, event: Event) -> bool {
        let is_reading = self.life.reading() != Reading::Off && !self.is_gone;
        let is_ours = self.taken[0] && !self.is_gone;
        match event {
            Event::Start(direction) => {
                let i = index(direction);
                // After an error that JavaScript was told of, JavaScript lets it fail.
                let has_failed = self.has_failed || self.tls_errors > 0 || self.lower_errors > 0;
                if self.taken[i] || self.is_gone || has_failed || self.ends > 0 && i == 0 {
                    return false;
                }
                self.taken[i] = true;
                self.stopped[i] = false;
                self.feed(Input::Start(direction));
            }
            Event::Turn => {
                if !self.turn_is_due || self.is_gone {
                    return false;
                }
                self.turn_is_due = false;
                self.feed(Input::Turn);
            }
            Event::Read => {
                if !is_reading || !is_ours || self.wire.is_empty() {
                    return false;
                }
                let item = self.wire.remove(0);
                self.ciphertext.push(item);
                self.feed(Input::LowerRead);
            }
            Event::End => {
                let can = is_reading && is_ours && self.wire.is_empty() && !self.tail_is_told;
                let end = match self.tail {
                    Tail::Eof if can => LowerEnd::Eof,
                    Tail::Reset if can => LowerEnd::ReadFailed(ECONNRESET),
                    _ => return false,
                };
                self.tail_is_told = true;
                self.feed(Input::LowerEnded(end));
            }
            Event::Drained => {
                if !self.unwritten || self.is_gone {
                    return false;
                }
                self.unwritten = false;
                self.feed(Input::LowerDrained);
            }
            Event::WriteFails => {
                if !self.unwritten || self.saw_write_error || !self.taken[1] || self.is_gone {
                    return false;
                }
                self.unwritten = false;
                self.saw_write_error = true;
                self.feed(Input::LowerEnded(LowerEnd::WriteFailed(EPIPE)));
            }
            Event::SinkReady => {
                if !self.life.waits_for_sink() || self.sink != Sink::Full {
                    return false;
                }
                self.sink = Sink::HasRoom;
                self.feed(Input::SinkReady);
            }
            Event::SinkBreaks => {
                if self.sink == Sink::Broken || !is_ours {
                    return false;
                }
                self.sink = Sink::Broken;
                self.feed(Input::SinkReady);
            }
            Event::SourceReady => {
                if !self.life.waits_for_source() || self.source == Source::Dry {
                    return false;
                }
                self.feed(Input::SourceReady);
            }
            Event::SourceEnds | Event::SourceBreaks => {
                if self.source != Source::Dry || !self.taken[1] {
                    return false;
                }
                self.source = match event {
                    Event::SourceEnds => Source::Ended,
                    _ => Source::Broken,
                };
            }
            Event::EndSource => {
                if self.source == Source::Ended || !self.taken[1] || self.is_gone {
                    return false;
                }
                self.source = Source::Ended;
                self.feed(Input::EndSource);
            }
            Event::Handshake => {
                if self.handshake || self.is_gone || !self.taken[1] || !self.wire.is_empty() {
                    return false;
                }
                self.handshake = true;
            }
            Event::HandshakeDone => {
                if !self.handshake || self.is_gone {
                    return false;
                }
                self.handshake = false;
                self.feed(Input::LowerRead);
            }
            Event::Stop(direction) => {
                let i = index(direction);
                let two = self.handles == Handles::Two;
                if !two || !self.taken[i] || self.stopped[i] || self.is_gone {
                    return false;
                }
                self.stopped[i] = true;
                self.endpoint_failed[i] = false;
                self.feed(Input::Stop(direction));
            }
            Event::StopAll => {
                let all = self.handles == Handles::Duplex && self.taken != [false; 2];
                if !all || self.is_gone || self.stopped != [false; 2] {
                    return false;
                }
                self.endpoint_failed = [false; 2];
                for direction in BOTH {
                    if self.taken[index(direction)] {
                        self.stopped[index(direction)] = true;
                        self.feed(Input::Stop(direction));
                    }
                }
            }
            Event::Release(direction) => {
                let i = index(direction);
                if !self.taken[i] || self.is_gone || !self.is_finished(direction) {
                    return false;
                }
                self.taken[i] = false;
                self.endpoint_failed[i] = false;
                if i == 0 {
                    self.held = 0;
                    self.resume_is_due = true;
                }
                self.feed(Input::Release(direction));
            }
            Event::Resume => {
                if !self.resume_is_due || self.is_gone {
                    return false;
                }
                self.resume_is_due = false;
                self.feed(Input::Resume);
            }
            Event::Gone => {
                if self.is_gone {
                    return false;
                }
                self.feed(Input::Gone);
                self.is_gone = true;
            }
            Event::Panic => {
                if self.is_gone || self.has_failed || self.taken == [false; 2] {
                    return false;
                }
                self.feed(Input::Panicked);
            }
        }
        let bits = BOTH.iter().map(|&direction| self.life.outcome(direction));
        self.has_failed |= bits.fold(0, |all, bits| all | bits) & outcome::TLS_FAILED != 0;
        true
    }

    /// What holds in every state.
    fn check(&self) {
        let reading = self.life.reading();
        if self.taken[0] && self.held > 0 {
            // Rule 2; before the first turn JavaScript holds the bytes.
            assert_eq!(reading, Reading::Off, "read while bytes wait for the sink");
        }
        // Rule 8.
        assert!(self.tls_errors <= 1, "an error of SSL_read is told twice");
        assert!(
            self.lower_errors <= 2,
            "an error of the stream below is told twice"
        );
        assert!(self.ends <= 2);
        if self.endpoint_failed != [false; 2] && !self.is_gone {
            let failed = outcome::ENDPOINT_FAILED | outcome::TLS_FAILED;
            assert!(
                self.outcome() & failed != 0,
                "a failure of the endpoint is lost"
            );
        }
        if self.life.waits_for_sink() {
            assert!(
                self.held > 0,
                "the sink is waited for with nothing to deliver"
            );
        }
        let bits = self.outcome();
        if self.taken[0] && bits & outcome::INBOUND_OVER != 0 {
            assert_eq!(self.held, 0, "over with bytes that are not delivered");
        }
    }

    /// Lets everything take its course, with a peer, a sink and a source that do their
    /// part. Then both directions are finished, unless they wait for something that
    /// nobody has done.
    fn check_that_it_ends(mut self) {
        for _ in 0..200 {
            if self.source == Source::Dry {
                self.source = Source::Ended;
            }
            if self.tail == Tail::Nothing && self.wire.is_empty() {
                self.tail = Tail::Eof;
                self.tail_is_told = false;
            }
            let Some(event) = FAIR.iter().find(|&&event| self.after(event).is_some()) else {
                break;
            };
            assert!(self.apply(*event));
            self.check();
        }
        if self.is_gone {
            return;
        }
        let bits = self.outcome();
        for direction in BOTH.iter().filter(|&&d| self.taken[index(d)]) {
            let failed = bits & outcome::ENDPOINT_FAILED != 0;
            assert!(
                self.is_finished(*direction) || failed,
                "{direction:?} does not end",
            );
        }
        // Rules 5 and 8: an error that was seen is known to somebody.
        if self.saw_write_error && self.taken[1] {
            assert!(
                self.has_failed || self.life.holds_lower_end() || self.stopped[0],
                "a failed write is lost",
            );
        }
        if self.cleartext == Cleartext::Failed && !self.has_failed {
            assert!(
                self.tls_errors == 1 || self.life.holds_tls_error(),
                "an error of SSL_read is lost",
            );
        }
    }

    /// After a stop the sink, the source and the peer do nothing any more: it ends
    /// within a few turns all the same.
    fn check_that_it_stops(mut self) {
        for _ in 0..10 {
            let events = [Event::Turn, Event::Resume];
            let Some(event) = events.iter().find(|&&event| self.after(event).is_some()) else {
                break;
            };
            assert!(self.apply(*event));
        }
        if self.is_gone {
            return;
        }
        for direction in BOTH {
            let i = index(direction);
            if self.taken[i] && self.stopped[i] {
                assert!(
                    self.is_finished(direction) || self.handshake,
                    "{direction:?} does not stop",
                );
            }
        }
    }
}

/// The events that lead to a state, for the message of a failure.
fn path(from: &HashMap<World, Option<(World, Event)>>, state: &World) -> Vec<Event> {
    let mut events = Vec::new();
    let mut at = state;
    while let Some(Some((before, event))) = from.get(at) {
        events.push(*event);
        at = before;
    }
    events.reverse();
    events
}

/// Visits everything that can be reached, and returns how many states and transitions
/// there are.
fn explore(starts: Vec<World>) -> (usize, usize) {
    let mut from: HashMap<World, Option<(World, Event)>> = HashMap::new();
    let mut queue = VecDeque::new();
    for start in starts {
        from.insert(start.clone(), None);
        queue.push_back(start);
    }
    let mut transitions = 0;
    while let Some(state) = queue.pop_front() {
        let checked = std::panic::catch_unwind(|| {
            state.check();
            state.clone().check_that_it_ends();
            state.clone().check_that_it_stops();
            EVENTS
                .iter()
                .filter_map(|&event| Some((event, state.after(event)?)))
                .collect::<Vec<_>>()
        });
        let Ok(next) = checked else {
            panic!("after {:?}: {state:#?}", path(&from, &state));
        };
        for (event, world) in next {
            transitions += 1;
            // Nothing happens after these.
            if event == Event::Gone || event == Event::Panic {
                world.check();
                world.check_that_it_ends();
            } else if !from.contains_key(&world) {
                from.insert(world.clone(), Some((state.clone(), event)));
                queue.push_back(world);
            }
        }
    }
    (from.len(), transitions)
}

fn starts(handles: Handles) -> Vec<World> {
    use Item::*;
    let wires: [&[Item]; 6] = [
        &[],
        &[Record, Record],
        &[Record, CloseNotify],
        &[Record, BadRecord],
        &[CloseNotify, BadRecord],
        &[BadRecord],
    ];
    let mut worlds = Vec::new();
    for budget in [Budget::OneRecord, Budget::All] {
        for wire in wires {
            for tail in [Tail::Nothing, Tail::Eof, Tail::Reset] {
                for source in [Source::Dry, Source::HasRecord] {
                    worlds.push(World::new(handles, budget, wire, tail, source));
                }
            }
        }
    }
    worlds
}

#[test]
fn one_splice_for_both_directions() {
    let (states, transitions) = explore(starts(Handles::Duplex));
    println!("one splice: {states} states, {transitions} transitions");
}

#[test]
fn two_splices_one_for_each_direction() {
    let (states, transitions) = explore(starts(Handles::Two));
    println!("two splices: {states} states, {transitions} transitions");
}
