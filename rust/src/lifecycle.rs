//! The life of the splices of one TLS connection: a pure state machine.
//!
//! A TLS connection has two directions. JavaScript moves the cleartext of each, unless
//! a splice has taken it over: one splice both, two splices one each. The lifecycle
//! knows both directions, the TLS session, and the stream below the session, because
//! what ends one of them concerns the others. It is told facts ([`Input`]) and answers
//! with orders ([`Orders`]). It does no I/O and calls nothing, so that a test can go
//! through all of its states (rust/tests/lifecycle/main.rs).
//!
//! # Rules
//!
//! Each rule is decided here and nowhere else.
//!
//! 1. A direction that was taken over moves nothing before the next turn of the event
//!    loop, so that whoever listens to the event in which `start()` was called can still
//!    destroy the socket.
//! 2. While bytes wait for the sink, the stream below is not read, whatever kind of
//!    stream it is.
//! 3. Bytes come before the end that follows them. An end or an error of the stream
//!    below, a failed write to it, and an error of `SSL_read` are held until the sink has
//!    every byte that was decrypted before.
//! 4. The peer's close_notify is the end of what it sends: an end or error of the
//!    stream below that is read later is not reported.
//! 5. Of several failures the first one is reported. An error of `SSL_read` is the reason
//!    why a later `SSL_write` fails, and is reported in its place.
//!    Any other error of `SSL_write` ends the connection at once: the session cannot
//!    decrypt any more, so there is nothing to wait for.
//! 6. A failure of TLS or of the stream below is one of the connection: both directions
//!    end with it. A failure of the endpoint is one of its splice: the connection goes
//!    back to JavaScript.
//! 7. `stop()` moves nothing more to the sink. What was read from the source is still
//!    sent, because OpenSSL may have begun with it and the source cannot take it back.
//! 8. An error that was observed is reported exactly once: by the splice, or, if the
//!    direction was given back before, to JavaScript behind the bytes that were given
//!    back with it.
//!
//! # Outcomes
//!
//! The documentation of `tls.TLSSplice` has a table of all endings. The middle column names
//! the bits of [`outcome`] with which a row is reached; a dash says that JavaScript knows
//! without the lifecycle. If a splice has several of the bits, JavaScript looks at `TLS_FAILED`
//! first, then at `IN_STOPPED` and `OUT_STOPPED` if it has asked for a stop,
//! at `ENDPOINT_FAILED`, and at the others last. It asks for a stop with `ENDPOINT_FAILED` as
//! the reason if that is set already. If somebody destroys the socket with an error,
//! `TLS_FAILING` decides whether the error is the reason. `WANTS_HANDSHAKE` decides with which
//! error a stop ends that has taken too long.
//!
//! | Event | Outcome | Splice |
//! | --- | --- | --- |
//! | `close_notify` from the peer | `IN_OVER` | `'in'` is over, `closeNotify: true`, `reason: 'end'` |
//! | End of the TCP connection without `close_notify` | `IN_OVER` | The same, `closeNotify: false` |
//! | End of the endpoint | `OUT_OVER` | `'out'` is over, `reason: 'end'` |
//! | Connection reset, bad record, other TLS error | `TLS_FAILED`, `TLS_FAILING` | `'error'`, then `'close'` with `reason: 'error'` |
//! | Read or write error of the endpoint (`EPIPE`, `ENOSPC`, and so on) | `ENDPOINT_FAILED` | `'error'` with `code` and `syscall`, then `'close'` |
//! | `stream` is closed before the end | — | `'error'` (that of the `stream`, or `ERR_STREAM_PREMATURE_CLOSE`), then `'close'` |
//! | `tlsSocket.destroy([error])` | — | `'error'` if there is one, `'close'` with `reason: 'destroyed'`; before the handshake is done an error is the `reason` |
//! | `splice.stop()`, abort of `signal` | `IN_STOPPED`, `OUT_STOPPED`, `WANTS_HANDSHAKE` | `'close'` with `reason: 'stopped'` or `'aborted'` |
//! | End of the `Worker` or process | — | Emits nothing |

use libc::c_int;

use crate::splice::Direction;

/// How the stream below the TLS session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LowerEnd {
    /// The other side will not send any more (UV_EOF).
    Eof,
    /// Reading has failed with this libuv error code.
    ReadFailed(c_int),
    /// A write of the outbound pump's ciphertext has failed with this libuv error code.
    /// JavaScript does not wait for that write, so that only the splice hears of the failure.
    WriteFailed(c_int),
}

/// What `SSL_read` has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cleartext {
    /// There may be more.
    Open,
    /// The peer has sent close_notify.
    CloseNotify,
    /// A fatal error, which OpenSSL does not report twice.
    Failed,
}

/// What came of running the inbound pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// The sink has every byte that has been decrypted, and there is no more
    /// ciphertext. The beginning of a packet may be held.
    Drained,
    /// The sink is full.
    Blocked,
    /// The budget of this turn is used up.
    Paused,
    /// The sink has failed, or what was decrypted is no sequence of packets.
    Failed,
}

/// What came of running the outbound pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sending {
    /// The source has nothing to read now.
    Dry,
    /// Ciphertext waits for the stream below.
    Full,
    /// There is more to read in the next turn.
    Paused,
    /// `SSL_write` waits for a handshake, which the inbound side has to read.
    WantsRead,
    /// The source has ended, and everything is written.
    Ended,
    /// Everything that was read from the source is written, after `stop()`.
    Stopped,
    /// The source has failed, or what was read is no sequence of packets.
    SourceFailed,
    /// `SSL_write` has failed.
    TlsFailed,
}

/// A fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// A splice takes the direction over.
    Start(Direction),
    /// The turn of the event loop that [`Orders::next_turn`] has asked for.
    Turn,
    /// The stream below has given ciphertext.
    LowerRead,
    /// The stream below has ended.
    LowerEnded(LowerEnd),
    /// The stream below has written all ciphertext.
    LowerDrained,
    /// The sink has room again.
    SinkReady,
    /// The source can be read.
    SourceReady,
    /// The source, which is another splice, has given bytes that are to be sent later.
    SourceGave,
    /// The source is not to be read any more: by `end()` of the socket, or by the end of
    /// the splice that feeds this one.
    LeaveSource,
    /// The inbound pump has run, as [`Orders::cycle`] has asked for, or because Node has
    /// something to decrypt.
    Delivered(Delivery, Cleartext),
    /// The call that [`Orders::cycle`] has asked for has returned, and no other call into
    /// the session or the stream below is under way.
    Cycled,
    /// As [`Input::Cycled`], but the end of the stream below is left to the splice that
    /// has the inbound direction: only that one knows whether the end is within a packet.
    CycledBeforeEnd,
    /// The outbound pump has run.
    Sent(Sending),
    /// The direction is to stop.
    Stop(Direction),
    /// The direction goes back to JavaScript, which has been given the bytes that were
    /// not delivered.
    Release(Direction),
    /// JavaScript has what it was given back, and has had a turn of the loop for it unless it
    /// has read it at once.
    Resume {
        /// JavaScript has been told of the end of what the peer sends.
        has_ended: bool,
    },
    /// The `SSL` or the stream below is about to be freed.
    Gone,
    /// A pump has panicked.
    Panicked,
}

/// What JavaScript is told by way of the `TLSWrap`, as if there were no splice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandOver {
    /// The peer's close_notify.
    CloseNotify,
    /// The error of `SSL_read`.
    TlsError,
    /// The end of the stream below.
    LowerEnd(LowerEnd),
}

/// What to do now. The outbound pump runs first; what else is ordered becomes
/// [`crate::events::Actions`], which the caller carries out in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Orders {
    /// Tell JavaScript.
    pub hand_over: Option<HandOver>,
    /// Let the `TLSWrap` decrypt and flush (TLSWrap::Cycle), which runs the inbound pump
    /// ([`Input::Delivered`]), and then say so ([`Input::Cycled`]).
    pub cycle: bool,
    /// Run the outbound pump, and say what came of it ([`Input::Sent`]).
    pub encrypt: bool,
    /// Ask the event loop for a turn ([`Input::Turn`]).
    pub next_turn: bool,
}

impl Orders {
    const NONE: Orders = Orders {
        hand_over: None,
        cycle: false,
        encrypt: false,
        next_turn: false,
    };
    const CYCLE: Orders = Orders {
        cycle: true,
        ..Orders::NONE
    };
    const ENCRYPT: Orders = Orders {
        encrypt: true,
        ..Orders::NONE
    };
    const NEXT_TURN: Orders = Orders {
        next_turn: true,
        ..Orders::NONE
    };

    fn hand_over(what: HandOver) -> Orders {
        Orders {
            hand_over: Some(what),
            ..Orders::NONE
        }
    }
}

/// What is to become of reading the stream below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reading {
    /// JavaScript decides, or nobody has decided yet: it stays as it is.
    AsItIs,
    /// The stream is read.
    On,
    /// The stream is not read.
    Off,
}

/// The directions of a splice, and what has become of them: bits for JavaScript.
pub mod outcome {
    /// Everything is delivered, and JavaScript has been told of the end.
    pub const IN_OVER: u32 = 1 << 0;
    /// The source has ended, and everything is flushed.
    pub const OUT_OVER: u32 = 1 << 1;
    /// Nothing moves to the sink any more, as asked.
    pub const IN_STOPPED: u32 = 1 << 2;
    /// What was read from the source is flushed, as asked.
    pub const OUT_STOPPED: u32 = 1 << 3;
    /// The endpoint has failed.
    pub const ENDPOINT_FAILED: u32 = 1 << 4;
    /// TLS or the stream below has failed.
    pub const TLS_FAILED: u32 = 1 << 5;
    /// TLS or the stream below has failed, which is to be reported once the sink has what
    /// was decrypted before.
    pub const TLS_FAILING: u32 = 1 << 6;
    /// What was read from the source waits for the peer's handshake.
    pub const WANTS_HANDSHAKE: u32 = 1 << 7;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Inbound {
    /// JavaScript moves the bytes.
    JavaScript,
    /// Taken over, before the first turn.
    Starting,
    /// The sink has all that was decrypted.
    Running,
    /// Bytes wait for the sink.
    Blocked,
    /// Bytes, or more ciphertext, wait for the next turn.
    Paused,
    /// Asked to stop.
    Stopped,
    /// Every byte is delivered, and JavaScript has been told of the end.
    Over,
    /// Every byte is delivered, and then the connection has failed.
    Cut,
    /// The endpoint has failed.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outbound {
    /// JavaScript moves the bytes.
    JavaScript,
    /// Taken over, before the first turn.
    Starting,
    /// The source is waited for.
    Waiting,
    /// The stream below is waited for.
    Full,
    /// The next turn is waited for.
    Paused,
    /// A handshake is waited for.
    WantsRead,
    /// Asked to stop: what was read from the source is being sent.
    Stopping,
    /// Asked to stop, and a handshake is waited for.
    StoppingWantsRead,
    /// What was read from the source is sent.
    Stopped,
    /// Nothing can be sent any more: the connection has failed, or is about to.
    Cut,
    /// The source has ended, and everything is written.
    Over,
    /// The endpoint has failed.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Connection {
    Alive,
    /// TLS or the stream below has failed: both directions have ended with that.
    Failed,
    /// A pump has panicked, and nothing can be said of its direction.
    Panicked,
    /// The `SSL` is not to be used any more.
    Gone,
}

/// The state, see the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lifecycle {
    inbound: Inbound,
    outbound: Outbound,
    /// The end of what the stream below gives, as long as nobody has been told of it.
    untold_end: Option<LowerEnd>,
    /// The stream below has ended. If it were read on, it would report its end again in each
    /// turn of the event loop.
    has_lower_ended: bool,
    /// The failure of a write to the stream below, whether it has been reported or not.
    write_failure: Option<LowerEnd>,
    /// What `SSL_read` has come to. It is `Failed` only as long as nobody has been told of that.
    cleartext: Cleartext,
    connection: Connection,
}

impl Default for Lifecycle {
    fn default() -> Lifecycle {
        Lifecycle::new()
    }
}

impl Lifecycle {
    /// A connection of which nothing is spliced.
    pub const fn new() -> Lifecycle {
        Lifecycle {
            inbound: Inbound::JavaScript,
            outbound: Outbound::JavaScript,
            untold_end: None,
            has_lower_ended: false,
            write_failure: None,
            cleartext: Cleartext::Open,
            connection: Connection::Alive,
        }
    }

    /// The state after `input`, and what to do.
    #[must_use]
    pub fn step(mut self, input: Input) -> (Lifecycle, Orders) {
        let orders = match input {
            Input::Start(direction) => self.start(direction),
            Input::Turn => self.turn(),
            Input::LowerRead => self.lower_read(),
            Input::LowerEnded(end) => self.lower_ended(end),
            Input::LowerDrained => self.lower_drained(),
            Input::SinkReady => self.sink_ready(),
            Input::SourceReady => self.source_ready(),
            Input::SourceGave | Input::LeaveSource => self.send_later(),
            Input::Delivered(delivery, cleartext) => self.delivered(delivery, cleartext),
            Input::Cycled => self.cycled(),
            Input::CycledBeforeEnd => self.send_more(),
            Input::Sent(sending) => self.sent(sending),
            Input::Stop(direction) => self.stop(direction),
            Input::Release(direction) => self.release(direction),
            Input::Resume { has_ended } => self.resume(has_ended),
            Input::Gone => self.gone(),
            Input::Panicked => self.panicked(),
        };
        (self, orders)
    }

    fn start(&mut self, direction: Direction) -> Orders {
        match direction {
            Direction::Inbound => self.inbound = Inbound::Starting,
            Direction::Outbound => self.outbound = Outbound::Starting,
        }
        match self.write_failure {
            // JavaScript, or the next inbound splice, is told of the failure behind the bytes
            // that were given back.
            Some(_) if direction == Direction::Outbound && self.owes() => {
                self.cut_outbound();
                Orders::NEXT_TURN
            }
            // The splice that starts to send fails with that write, too.
            Some(end) if direction == Direction::Outbound => {
                let orders = self.write_failed(end);
                Orders {
                    next_turn: true,
                    ..orders
                }
            }
            _ => Orders::NEXT_TURN,
        }
    }

    fn turn(&mut self) -> Orders {
        if self.inbound == Inbound::Starting || self.inbound == Inbound::Paused {
            self.inbound = Inbound::Running;
        }
        if self.outbound == Outbound::Starting {
            self.outbound = Outbound::Paused;
        }
        match self.connection {
            Connection::Alive => Orders::CYCLE,
            _ => Orders::NONE,
        }
    }

    fn lower_read(&mut self) -> Orders {
        match self.waits_for_handshake() {
            true => Orders::ENCRYPT,
            false => Orders::NONE,
        }
    }

    fn lower_ended(&mut self, end: LowerEnd) -> Orders {
        if self.connection != Connection::Alive {
            return Orders::NONE;
        }
        if matches!(end, LowerEnd::WriteFailed(_)) {
            return self.write_failed(end);
        }
        // Before the first turn this may be an end that JavaScript knows of, such as a
        // close_notify, and the stream below goes on.
        self.has_lower_ended |= self.inbound != Inbound::Starting;
        match self.inbound {
            // What was given back with the direction comes first.
            Inbound::JavaScript if self.owes() => self.hold(end),
            Inbound::JavaScript => {
                self.untold_end = Some(end);
                self.hand_over_lower_end()
            }
            // Rule 4.
            Inbound::Over | Inbound::Cut => Orders::NONE,
            // JavaScript knows of the end. If an error is held, the end was a close_notify
            // (rule 4).
            Inbound::Starting if end == LowerEnd::Eof => {
                self.untold_end = Some(end);
                Orders::NONE
            }
            // Rule 3.
            Inbound::Starting | Inbound::Stopped | Inbound::Failed => self.hold(end),
            Inbound::Running | Inbound::Blocked | Inbound::Paused => {
                self.hold(end);
                Orders::CYCLE
            }
        }
    }

    /// Nothing can be sent any more.
    fn write_failed(&mut self, end: LowerEnd) -> Orders {
        self.write_failure.get_or_insert(end);
        self.cut_outbound();
        match self.inbound {
            Inbound::JavaScript if self.untold_end.is_some() || self.holds_tls_error() => {
                Orders::NONE
            }
            Inbound::JavaScript | Inbound::Over | Inbound::Cut => self.fail(),
            Inbound::Starting | Inbound::Stopped | Inbound::Failed => Orders::NONE,
            Inbound::Running | Inbound::Blocked | Inbound::Paused => Orders::CYCLE,
        }
    }

    fn hold(&mut self, end: LowerEnd) -> Orders {
        // Rule 5.
        let is_later_failure = self.write_failure.is_some() && end != LowerEnd::Eof;
        if !is_later_failure {
            self.untold_end.get_or_insert(end);
        }
        Orders::NONE
    }

    fn lower_drained(&mut self) -> Orders {
        match self.outbound {
            Outbound::Full => {
                self.outbound = Outbound::Paused;
                Orders::NEXT_TURN
            }
            Outbound::Stopping => Orders::NEXT_TURN,
            _ => Orders::NONE,
        }
    }

    fn sink_ready(&mut self) -> Orders {
        match self.inbound {
            Inbound::Blocked => Orders::CYCLE,
            _ => Orders::NONE,
        }
    }

    fn source_ready(&mut self) -> Orders {
        match self.outbound {
            Outbound::Waiting | Outbound::Stopping if self.can_send() => Orders::ENCRYPT,
            _ => Orders::NONE,
        }
    }

    fn send_later(&mut self) -> Orders {
        if self.outbound == Outbound::Waiting {
            self.outbound = Outbound::Paused;
        }
        match self.outbound {
            Outbound::Paused => Orders::NEXT_TURN,
            _ => Orders::NONE,
        }
    }

    fn delivered(&mut self, delivery: Delivery, cleartext: Cleartext) -> Orders {
        if !self.moves_inbound() {
            return Orders::NONE;
        }
        // A new inbound pump reports `Open` even if SSL_read had failed for the pump of the
        // previous splice. What is known stays.
        if self.cleartext == Cleartext::Open {
            self.cleartext = cleartext;
        }
        match delivery {
            Delivery::Blocked => self.inbound_is(Inbound::Blocked),
            Delivery::Failed => self.inbound_is(Inbound::Failed),
            Delivery::Paused => {
                self.inbound = Inbound::Paused;
                Orders::NEXT_TURN
            }
            Delivery::Drained => {
                let orders = self.drained();
                // Node may have decrypted of its own accord, and then reports no `Cycled`.
                let next_turn = self.has_untold_lower_end();
                Orders {
                    next_turn,
                    ..orders
                }
            }
        }
    }

    /// The sink has every byte that `SSL_read` has given.
    fn drained(&mut self) -> Orders {
        match self.cleartext {
            Cleartext::Open => self.inbound_is(Inbound::Running),
            Cleartext::CloseNotify => {
                self.inbound = Inbound::Over;
                // Rule 4.
                self.untold_end = None;
                Orders::hand_over(HandOver::CloseNotify)
            }
            Cleartext::Failed => {
                self.inbound = Inbound::Cut;
                self.hand_over_tls_error()
            }
        }
    }

    /// What was decrypted has been delivered, as far as that is possible now. Only then
    /// more is sent: SSL_read says better than SSL_write why the session has failed.
    fn cycled(&mut self) -> Orders {
        let hand_over = self.end_inbound().hand_over;
        Orders {
            hand_over,
            ..self.send_more()
        }
    }

    fn send_more(&self) -> Orders {
        let waits = matches!(self.outbound, Outbound::Waiting | Outbound::Full);
        match self.can_send() && !waits {
            true => Orders::ENCRYPT,
            false => Orders::NONE,
        }
    }

    fn end_inbound(&mut self) -> Orders {
        if self.connection != Connection::Alive {
            return Orders::NONE;
        }
        match self.inbound {
            Inbound::Running if self.write_failure.is_some() => {
                self.inbound = Inbound::Cut;
                let orders = self.hand_over_lower_end();
                self.fail();
                orders
            }
            Inbound::Running => {
                self.inbound = match self.untold_end {
                    None => Inbound::Running,
                    Some(LowerEnd::Eof) => Inbound::Over,
                    Some(_) => Inbound::Cut,
                };
                self.hand_over_lower_end()
            }
            Inbound::Over | Inbound::Cut => match self.write_failure {
                Some(end) if matches!(self.outbound, Outbound::JavaScript | Outbound::Stopped) => {
                    // No splice has what was to be sent: it is JavaScript that is told.
                    self.fail();
                    Orders::hand_over(HandOver::LowerEnd(end))
                }
                Some(_) => self.fail(),
                None => Orders::NONE,
            },
            _ => Orders::NONE,
        }
    }

    fn sent(&mut self, sending: Sending) -> Orders {
        let is_stopping = matches!(
            self.outbound,
            Outbound::Stopping | Outbound::StoppingWantsRead
        );
        if !self.can_send() {
            return Orders::NONE;
        }
        self.outbound = match sending {
            Sending::WantsRead if is_stopping => Outbound::StoppingWantsRead,
            Sending::WantsRead => Outbound::WantsRead,
            Sending::Ended => Outbound::Over,
            Sending::Stopped => Outbound::Stopped,
            Sending::SourceFailed => Outbound::Failed,
            Sending::TlsFailed => return self.tls_write_failed(),
            Sending::Dry | Sending::Full | Sending::Paused if is_stopping => Outbound::Stopping,
            Sending::Dry => Outbound::Waiting,
            Sending::Full => Outbound::Full,
            Sending::Paused => Outbound::Paused,
        };
        match sending {
            Sending::Paused => Orders::NEXT_TURN,
            _ => Orders::NONE,
        }
    }

    /// `SSL_write` has failed, which it does not explain if `SSL_read` has failed before
    /// (rule 5).
    fn tls_write_failed(&mut self) -> Orders {
        if self.holds_tls_error() {
            self.outbound = Outbound::Cut;
            return Orders::NONE;
        }
        self.fail()
    }

    fn stop(&mut self, direction: Direction) -> Orders {
        match direction {
            Direction::Inbound => {
                if !matches!(
                    self.inbound,
                    Inbound::JavaScript | Inbound::Over | Inbound::Cut
                ) {
                    self.inbound = Inbound::Stopped;
                }
                Orders::NONE
            }
            Direction::Outbound => {
                self.outbound = match self.outbound {
                    finished @ (Outbound::JavaScript | Outbound::Over | Outbound::Stopped) => {
                        finished
                    }
                    // The connection has failed, which this splice has to report.
                    _ if self.connection != Connection::Alive => Outbound::Cut,
                    // Nothing can be sent any more. JavaScript is to hear of that later.
                    Outbound::Cut => Outbound::Stopped,
                    _ if self.write_failure.is_some() => Outbound::Stopped,
                    Outbound::StoppingWantsRead | Outbound::WantsRead => {
                        Outbound::StoppingWantsRead
                    }
                    _ => Outbound::Stopping,
                };
                match self.outbound {
                    Outbound::Stopping | Outbound::StoppingWantsRead => Orders::ENCRYPT,
                    _ => Orders::NONE,
                }
            }
        }
    }

    fn release(&mut self, direction: Direction) -> Orders {
        match direction {
            Direction::Inbound => self.inbound = Inbound::JavaScript,
            Direction::Outbound => self.outbound = Outbound::JavaScript,
        }
        Orders::NONE
    }

    fn resume(&mut self, has_ended: bool) -> Orders {
        // Another splice has taken the direction over, and what is owed with it.
        if self.inbound != Inbound::JavaScript || self.connection != Connection::Alive {
            return Orders::NONE;
        }
        if self.cleartext == Cleartext::Failed {
            return self.hand_over_tls_error();
        }
        // Rule 4. It does not hide that a write has failed.
        if has_ended {
            self.untold_end = None;
        } else if self.cleartext == Cleartext::CloseNotify {
            // JavaScript has not seen the close_notify: it follows a user_canceled.
            self.untold_end = Some(LowerEnd::Eof);
        }
        match (self.untold_end, self.write_failure) {
            // Rule 5: a read error that is held came first.
            (Some(LowerEnd::ReadFailed(_)), _) | (_, None) => self.hand_over_lower_end(),
            (_, Some(end)) => {
                self.untold_end = None;
                self.fail();
                match self.outbound {
                    // The splice whose bytes could not be sent reports it.
                    Outbound::Cut => Orders::NONE,
                    _ => Orders::hand_over(HandOver::LowerEnd(end)),
                }
            }
        }
    }

    fn gone(&mut self) -> Orders {
        if self.connection != Connection::Panicked {
            self.connection = Connection::Gone;
        }
        Orders::NONE
    }

    fn panicked(&mut self) -> Orders {
        self.connection = Connection::Panicked;
        Orders::NONE
    }

    /// The connection has failed, unless it has failed before: the first failure is the one that
    /// is reported.
    fn fail(&mut self) -> Orders {
        if self.connection == Connection::Alive {
            self.connection = Connection::Failed;
        }
        Orders::NONE
    }

    fn hand_over_tls_error(&mut self) -> Orders {
        self.cleartext = Cleartext::Open;
        self.fail();
        Orders::hand_over(HandOver::TlsError)
    }

    fn hand_over_lower_end(&mut self) -> Orders {
        let Some(end) = self.untold_end.take() else {
            return Orders::NONE;
        };
        if end != LowerEnd::Eof {
            self.fail();
        }
        Orders::hand_over(HandOver::LowerEnd(end))
    }

    fn inbound_is(&mut self, state: Inbound) -> Orders {
        self.inbound = state;
        Orders::NONE
    }

    /// Takes note that nothing can be sent any more. The reason is reported now or later, unless the
    /// endpoint has failed before: then the failure of the endpoint is reported (rule 5).
    fn cut_outbound(&mut self) {
        let is_finished = matches!(
            self.outbound,
            Outbound::JavaScript | Outbound::Over | Outbound::Failed
        );
        if !is_finished {
            self.outbound = Outbound::Cut;
        }
    }

    /// Whether the inbound pump may be run.
    pub fn moves_inbound(&self) -> bool {
        self.connection == Connection::Alive
            && matches!(
                self.inbound,
                Inbound::Running | Inbound::Blocked | Inbound::Paused
            )
    }

    /// Whether the outbound pump may be run.
    pub fn can_send(&self) -> bool {
        self.connection == Connection::Alive
            && !matches!(
                self.outbound,
                Outbound::JavaScript
                    | Outbound::Starting
                    | Outbound::Stopped
                    | Outbound::Cut
                    | Outbound::Over
                    | Outbound::Failed
            )
    }

    /// Whether a splice has the outbound direction, so that JavaScript writes nothing to the
    /// session, also in callbacks of OpenSSL's.
    pub fn has_outbound(&self) -> bool {
        self.outbound != Outbound::JavaScript
    }

    fn waits_for_handshake(&self) -> bool {
        self.connection == Connection::Alive
            && matches!(
                self.outbound,
                Outbound::WantsRead | Outbound::StoppingWantsRead
            )
    }

    /// Whether JavaScript, which has the inbound direction again, has yet to be told of
    /// an error or an end.
    pub fn owes(&self) -> bool {
        self.inbound == Inbound::JavaScript
            && self.connection == Connection::Alive
            && (self.untold_end.is_some() || self.write_failure.is_some() || self.holds_tls_error())
    }

    /// Whether an error of `SSL_read` is known and nobody has been told of it.
    pub fn holds_tls_error(&self) -> bool {
        self.cleartext == Cleartext::Failed
    }

    /// What is to become of reading the stream below (rule 2).
    pub fn reading(&self) -> Reading {
        match self.inbound {
            Inbound::JavaScript => Reading::AsItIs,
            _ if self.connection != Connection::Alive => Reading::Off,
            Inbound::Starting => Reading::AsItIs,
            // When it is over, the stream below is read on for its own end, as without a
            // splice.
            Inbound::Running | Inbound::Over
                if self.untold_end.is_none()
                    && !self.has_lower_ended
                    && self.write_failure.is_none() =>
            {
                Reading::On
            }
            _ => Reading::Off,
        }
    }

    /// Whether the sink is waited for.
    pub fn waits_for_sink(&self) -> bool {
        self.connection == Connection::Alive && self.inbound == Inbound::Blocked
    }

    /// Whether the source is waited for.
    pub fn waits_for_source(&self) -> bool {
        self.connection == Connection::Alive && self.outbound == Outbound::Waiting
    }

    /// Whether [`Input::Cycled`] will make the end of the stream below the end of what
    /// the peer sends.
    pub fn is_at_eof(&self) -> bool {
        let is_alive = self.connection == Connection::Alive;
        is_alive && self.inbound == Inbound::Running && self.untold_end == Some(LowerEnd::Eof)
    }

    /// Whether an end of the stream below is known and nobody has been told of it.
    pub fn has_untold_lower_end(&self) -> bool {
        let is_known = self.untold_end.is_some() || self.write_failure.is_some();
        is_known && self.connection == Connection::Alive
    }

    /// Whether a write to the stream below has failed, or the connection has failed otherwise: a
    /// failed write need not be reported any more.
    pub fn has_write_failed(&self) -> bool {
        self.write_failure.is_some() || self.connection != Connection::Alive
    }

    /// The libuv error code of the write with which the connection has failed.
    pub fn write_error(&self) -> Option<c_int> {
        match (self.connection, self.write_failure) {
            (Connection::Failed, Some(LowerEnd::WriteFailed(status))) => Some(status),
            _ => None,
        }
    }

    /// What has become of the direction, as bits of [`outcome`].
    pub fn outcome(&self, direction: Direction) -> u32 {
        let (own, is_finished) = match direction {
            Direction::Inbound => match self.inbound {
                Inbound::JavaScript => (0, true),
                Inbound::Over => (outcome::IN_OVER, true),
                Inbound::Cut => (outcome::IN_OVER, false),
                Inbound::Stopped => (outcome::IN_STOPPED, true),
                Inbound::Failed => (outcome::ENDPOINT_FAILED, false),
                _ => (0, false),
            },
            Direction::Outbound => match self.outbound {
                Outbound::JavaScript => (0, true),
                Outbound::Over => (outcome::OUT_OVER, true),
                Outbound::Stopped => (outcome::OUT_STOPPED, true),
                Outbound::Cut => (outcome::OUT_STOPPED, false),
                Outbound::Failed => (outcome::ENDPOINT_FAILED, false),
                Outbound::WantsRead | Outbound::StoppingWantsRead => {
                    (outcome::WANTS_HANDSHAKE, false)
                }
                _ => (0, false),
            },
        };
        match self.connection {
            Connection::Panicked => own | outcome::TLS_FAILED,
            // A direction that was finished before the connection has failed is not concerned.
            _ if is_finished => own,
            Connection::Failed | Connection::Gone => own | outcome::TLS_FAILED,
            Connection::Alive if self.is_failing() => own | outcome::TLS_FAILING,
            Connection::Alive => own,
        }
    }

    fn is_failing(&self) -> bool {
        let has_failed_below = self.write_failure.is_some()
            || matches!(self.untold_end, Some(LowerEnd::ReadFailed(_)));
        has_failed_below || self.cleartext == Cleartext::Failed
    }
}
