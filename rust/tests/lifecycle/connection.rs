//! One connection, as data: the peer, the session, the stream below, the endpoint, and
//! what the shim and JavaScript remember.

use std::hash::{Hash, Hasher};

use crate::javascript::{Handle, Socket, BOTH, IN, OUT};
use crate::machine::*;

/// What the peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    Record,
    CloseNotify,
    /// A close_notify after a user_canceled: SSL_get_error() does not tell the TLSWrap of it.
    CanceledCloseNotify,
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
    /// Node may cycle at any time, a pump may panic, and OpenSSL may call back. JavaScript may
    /// leave what it was given back to the next splice.
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
    pub sent: u8,
    pub tail: Tail,
    pub is_tail_told: bool,
    /// The stream below was read behind its end, and has ended again.
    pub is_tail_repeated: bool,
    /// How many items `SSL_read` has dealt with.
    pub decrypted: u8,
    /// What `SSL_read` has come to.
    pub read_end: Cleartext,
    /// The pump that has the inbound direction has been told of `read_end`.
    pub has_seen_end: bool,
    /// A splice has decrypted a close_notify.
    pub is_close_notify_known: bool,
    pub handshake: Handshake,
    /// `SSL_write` will fail.
    pub is_write_broken: bool,
    /// `SSL_write` has failed: the session can not be used any more.
    pub is_session_dead: bool,
    /// Records that JavaScript had read before the splice, and nobody has taken.
    pub buffered: u8,
    /// Records that were decrypted, and are neither delivered nor given back.
    pub held: u8,
    /// Records that the sink or JavaScript has: the next one has this number.
    pub taken: u8,
    /// Records that the sink has, in a joined pair.
    pub passed: u8,
    pub sink: Sink,
    pub source: Source,
    /// Records that the source has yet to give.
    pub in_source: u8,
    /// Records that were read from the source.
    pub given: u8,
    /// Those of them that `SSL_write` has yet to accept.
    pub unsent: u8,
    /// `end()` was called, or the splice that feeds this one has ended.
    pub is_source_left: bool,
    /// The source has ended, and the socket with it.
    pub is_write_ended: bool,
    /// Ciphertext waits for the stream below.
    pub unwritten: bool,
    pub has_write_failed: bool,
    // The shim.
    pub turn_due: [bool; 2],
    /// Directions that were taken over in this turn of the event loop.
    pub starting: u8,
    pub resume_due: bool,
    /// `TLSWrap::eof_`: JavaScript knows of the end.
    pub eof: bool,
    /// The splice that has the inbound direction has told of the end.
    pub end_told: bool,
    pub waits_for_peer: bool,
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

impl Side {
    pub fn new(setup: Setup, tail: Tail, in_source: u8, buffered: u8) -> Side {
        Side {
            life: Lifecycle::new(),
            setup,
            sent: buffered,
            tail,
            is_tail_told: false,
            is_tail_repeated: false,
            decrypted: buffered,
            read_end: Cleartext::Open,
            has_seen_end: false,
            is_close_notify_known: false,
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
    pub fn handle_of(&self, direction: u8) -> Option<usize> {
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

    pub fn is_reading(&self) -> bool {
        let has_in = self.handle_of(IN).is_some();
        match has_in {
            true => self.life.reading() != Reading::Off,
            // JavaScript reads, once it has what was given back.
            false => !self.resume_due && !self.eof,
        }
    }

    pub fn undecrypted(&self) -> &'static [Item] {
        &self.setup.script[self.decrypted.into()..self.sent.into()]
    }

    /// Decrypts one item of the ciphertext, and returns how many records that was.
    pub fn decrypt_one(&mut self) -> u8 {
        if self.is_session_dead {
            self.read_end = Cleartext::Failed;
            return 0;
        }
        let item = self.undecrypted()[0];
        self.decrypted += 1;
        match item {
            Item::Record => return 1,
            Item::CloseNotify | Item::CanceledCloseNotify => {
                self.read_end = Cleartext::CloseNotify;
            }
            Item::BadRecord => self.read_end = Cleartext::Failed,
        }
        0
    }

    /// Whether the TLSWrap that decrypts a close_notify, or has it decrypted by a splice, knows.
    pub fn does_node_see_close_notify(&self) -> bool {
        self.read_end == Cleartext::CloseNotify
            && !self.setup.script.contains(&Item::CanceledCloseNotify)
    }

    pub fn can_decrypt(&self) -> bool {
        let has_any = self.is_session_dead || !self.undecrypted().is_empty();
        self.read_end == Cleartext::Open && has_any
    }

    /// What the stream below has come to was behind a close_notify (rule 4).
    pub fn forget_read_error(&mut self) {
        if self.fault == Fault::LowerRead {
            self.fault = match self.has_write_failed {
                true => Fault::LowerWrite,
                false => Fault::None,
            };
        }
    }

    /// Whether `SSL_read` has given all that the stream below has.
    pub fn has_decrypted_all(&self) -> bool {
        !self.can_decrypt() || self.is_session_dead
    }

    /// One of the failures of the connection has been seen. The first one is the reason,
    /// except that what was received before it may say more.
    pub fn saw(&mut self, fault: Fault) {
        let is_of_session = matches!(fault, Fault::Read | Fault::Write);
        if self.told == Fault::None && (self.fault == Fault::None || is_of_session) {
            self.fault = fault;
        }
    }
}
