//! What JavaScript makes of the outcome of a splice: a small copy of the life of a
//! `tls.TLSSplice`, see node-patches/lib/internal/tls/splice.js. The names are the same.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::connection::*;
use crate::ensure;
use crate::machine::*;
use crate::world::{Callback, World};

/// Directions, as bits.
pub const IN: u8 = 1;
pub const OUT: u8 = 2;
pub const BOTH: [(Direction, u8); 2] = [(Direction::Inbound, IN), (Direction::Outbound, OUT)];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JsState {
    /// There is no splice, or it is over: another one may be started.
    Idle,
    Running,
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Socket {
    Alive,
    Destroyed,
}
/// How a splice ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    End,
    Stopped,
    Destroyed,
    TlsError,
    EndpointError,
    /// The other TLSSocket is gone.
    Premature,
}

/// A row of the table of all endings in doc/api/tls.md, in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    CloseNotify,
    Eof,
    EndOfEndpoint,
    TlsError,
    EndpointError,
    Premature,
    Destroyed,
    Stopped,
    /// The end of the Worker or process, in which nothing of this runs.
    Exit,
}

/// How many rows there are.
pub const ROWS: usize = Row::Exit as usize + 1;

/// Set in [`REACHED`] for a row that was reached, beside the outcome that decided it.
pub const IS_REACHED: u32 = 1 << 31;

/// For each row the bits of the outcome that have made JavaScript come to it.
pub static REACHED: [AtomicU32; ROWS] = [const { AtomicU32::new(0) }; ROWS];

fn reach(row: Row, bits: u32) {
    REACHED[row as usize].fetch_or(IS_REACHED | bits, Ordering::Relaxed);
}

/// A `tls.TLSSplice`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    pub state: JsState,
    /// The reason, once it stops.
    reason: Reason,
    /// The directions that the native side has.
    pub has: u8,
    /// The outcome of those that were given back.
    pub kept: u32,
    begun: u8,
    ended: u8,
}

impl Handle {
    pub const IDLE: Handle = Handle {
        state: JsState::Idle,
        reason: Reason::End,
        has: 0,
        kept: 0,
        begun: 0,
        ended: 0,
    };
}

/// The directions of which the outcome has one of the bits.
fn directions_of(bits: u32, inbound: u32, outbound: u32) -> u8 {
    let is = |bit, direction| if bits & bit != 0 { direction } else { 0 };
    is(inbound, IN) | is(outbound, OUT)
}

/// The directions that do not move anything any more, when the splice has been stopped.
fn stopped(bits: u32) -> u8 {
    directions_of(
        bits,
        outcome::IN_STOPPED | outcome::IN_OVER,
        outcome::OUT_STOPPED | outcome::OUT_OVER,
    )
}

impl Side {
    /// The directions of the splices that run.
    pub fn directions_of_running(&self) -> u8 {
        (0..2)
            .filter(|&h| self.handles[h].state == JsState::Running)
            .fold(0, |all, h| all | self.directions(h))
    }

    fn can_start(&self, h: usize) -> bool {
        let directions = self.directions(h);
        let is_idle = self.handles[h].state == JsState::Idle;
        let is_alive = self.socket == Socket::Alive && !self.is_gone && self.told == Fault::None;
        let can_write = !self.is_source_left && !self.is_write_ended;
        directions != 0 && is_idle && is_alive && (directions & OUT == 0 || can_write)
    }
}

impl<const N: usize> World<N> {
    /// `splice.start()`.
    pub fn start(&mut self, s: usize, h: usize) -> bool {
        let starts_both = N == 2;
        if !self.sides[s].can_start(h) {
            return false;
        }
        if starts_both && (s == 1 || !self.is_joined || !self.sides[1].can_start(h)) {
            return false;
        }
        self.take(s, h);
        if starts_both {
            self.take(1, h);
        }
        true
    }

    fn take(&mut self, s: usize, h: usize) {
        self.sides[s].handles[h].state = JsState::Running;
        if self.sides[s].directions(h) & IN != 0 {
            self.begin_in(s, h);
        } else {
            self.begin_out(s, h);
        }
    }

    fn begin_in(&mut self, s: usize, h: usize) {
        if self.sides[s].told != Fault::None {
            self.sides[s].handles[h] = Handle::IDLE;
            return;
        }
        self.begin(s, h, Direction::Inbound, IN);
        let side = &mut self.sides[s];
        side.take_buffered();
        side.end_told = false;
        side.has_seen_end = false;
        if side.eof {
            if side.read_end == Cleartext::CloseNotify {
                side.forget_read_error();
            }
            side.life = side.life.step(Input::LowerEnded(LowerEnd::Eof)).0;
        }
    }

    pub fn begin_out(&mut self, s: usize, h: usize) -> bool {
        let side = &self.sides[s];
        let handle = &side.handles[h];
        let is_due = side.directions(h) & OUT != 0 && handle.begun & OUT == 0;
        if handle.state != JsState::Running || !is_due {
            return false;
        }
        if side.is_gone {
            reach(Row::TlsError, 0);
            self.close(s, h, Reason::TlsError);
            return true;
        }
        self.begin(s, h, Direction::Outbound, OUT);
        if self.sides[s].is_source_left {
            self.feed(s, h, Input::LeaveSource);
        }
        true
    }

    fn begin(&mut self, s: usize, h: usize, direction: Direction, bit: u8) {
        let side = &mut self.sides[s];
        if side.handles[h].begun == 0 {
            side.use_new_endpoint(h);
        }
        side.handles[h].has |= bit;
        side.handles[h].begun |= bit;
        side.life = side.life.step(Input::Start(direction)).0;
        side.turn_due[h] = true;
        side.starting |= bit;
    }

    /// The native side has changed its state.
    pub fn update(&mut self, s: usize, h: usize) -> bool {
        let handle = self.sides[s].handles[h];
        if handle.state == JsState::Idle {
            return false;
        }
        let bits = self.sides[s].bits(h);
        if bits & outcome::TLS_FAILED != 0 {
            self.fail_tls(s);
        } else if handle.state == JsState::Stopping {
            self.give_back_stopped(s, h, bits);
        } else if bits & outcome::ENDPOINT_FAILED != 0 {
            self.stop_with_failure(s, h);
        } else {
            if bits & outcome::IN_OVER != 0 {
                self.on_in_ended(s, h);
            }
            if bits & outcome::OUT_OVER != 0 {
                self.on_out_ended(s, h);
            }
        }
        true
    }

    fn on_in_ended(&mut self, s: usize, h: usize) {
        let handle = &mut self.sides[s].handles[h];
        if handle.state != JsState::Running || handle.ended & IN != 0 {
            return;
        }
        handle.ended |= IN;
        let side = &self.sides[s];
        // A connection that has failed as well is not over.
        if side.bits(h) & outcome::TLS_FAILING == 0 {
            ensure!(side.eof, "JavaScript is told of the end");
            let is_torn = side.read_end == Cleartext::Open && side.is_torn();
            ensure!(!is_torn, "an end within a packet is a failure");
            reach(
                match side.read_end {
                    Cleartext::CloseNotify => Row::CloseNotify,
                    _ => Row::Eof,
                },
                outcome::IN_OVER,
            );
        }
        if N == 2 && self.is_joined {
            self.leave_source(1 - s);
        }
        self.give_back_if_ended(s, h);
    }

    fn on_out_ended(&mut self, s: usize, h: usize) {
        let side = &mut self.sides[s];
        let handle = &mut side.handles[h];
        if handle.state != JsState::Running || handle.ended & OUT != 0 {
            return;
        }
        handle.ended |= OUT;
        reach(Row::EndOfEndpoint, outcome::OUT_OVER);
        let ends_other = side.setup.ends_other || side.is_source_left;
        side.is_write_ended |= ends_other;
        if !ends_other {
            self.give_back_out(s, h);
        }
        self.give_back_if_ended(s, h);
        if N == 2 && s == 1 && self.sides[0].handles[h].state == JsState::Running {
            self.give_back_if_ended(0, h);
        }
    }

    fn give_back_if_ended(&mut self, s: usize, h: usize) {
        let side = &self.sides[s];
        let handle = &side.handles[h];
        // The other TLSSocket may still have to send what it got.
        let is_sending = N == 2 && s == 0 && {
            let second = &self.sides[1].handles[h];
            let rest = self.sides[1].directions(h) & !second.ended & OUT;
            second.state != JsState::Idle && rest != 0
        };
        let is_running = handle.state == JsState::Running;
        if is_running && side.directions(h) & !handle.ended == 0 && !is_sending {
            self.close(s, h, Reason::End);
        }
    }

    /// The user stops a splice.
    pub fn user_stops(&mut self, s: usize, h: usize) -> bool {
        // Nobody has the second one of a joined pair.
        if self.sides[s].handles[h].state != JsState::Running || N == 2 && s == 1 {
            return false;
        }
        let bits = self.sides[s].bits(h);
        let has_failed = bits & outcome::ENDPOINT_FAILED != 0 && bits & outcome::TLS_FAILED == 0;
        match has_failed {
            true => self.stop_with_failure(s, h),
            false => self.stop(s, h, Reason::Stopped),
        }
        true
    }

    /// Whether JavaScript can do this in a callback of OpenSSL, in a call of a pump of the splice
    /// `h`. `other` is the direction that this pump does not move.
    pub fn can_call(&self, callback: Callback, s: usize, h: usize, other: u8) -> bool {
        let side = &self.sides[s];
        let handle = &side.handles[h];
        if side.setup.rare != Rare::CyclesAndPanic {
            return false;
        }
        match (callback, handle.state) {
            // Nobody has the second one of a joined pair.
            (Callback::Stop, _) if N == 2 => self.sides[0].handles[h].state == JsState::Running,
            (Callback::Stop, state) => state == JsState::Running,
            (Callback::GiveBackOther, JsState::Stopping) => {
                handle.has & stopped(side.bits(h)) & other != 0
            }
            (Callback::GiveBackOther, _) => handle.has & handle.ended & other != 0,
        }
    }

    /// OpenSSL calls back, and JavaScript does this: see [`World::can_call`].
    pub fn call(&mut self, callback: Callback, s: usize, h: usize, other: u8) {
        match callback {
            Callback::Stop if N == 2 => {
                self.user_stops(0, h);
                // JavaScript may run its ticks in the callback, which ends the first splice, and
                // that stops the second one.
                if s == 1 {
                    self.update(0, h);
                }
            }
            Callback::Stop => {
                self.user_stops(s, h);
            }
            Callback::GiveBackOther if other == IN => self.give_back_in(s, h),
            Callback::GiveBackOther => self.give_back_out(s, h),
        }
    }

    fn stop_with_failure(&mut self, s: usize, h: usize) {
        reach(Row::EndpointError, outcome::ENDPOINT_FAILED);
        ensure!(
            self.sides[s].failure[h] != Failure::No,
            "what is told has happened"
        );
        self.stop(s, h, Reason::EndpointError);
    }

    fn stop(&mut self, s: usize, h: usize, reason: Reason) {
        let handle = &mut self.sides[s].handles[h];
        if handle.state != JsState::Running {
            return;
        }
        handle.state = JsState::Stopping;
        handle.reason = reason;
        if handle.begun == 0 {
            return self.close(s, h, reason);
        }
        for (direction, bit) in BOTH {
            let side = &self.sides[s];
            if !side.is_gone && side.handles[h].has & bit != 0 {
                self.feed(s, h, Input::Stop(direction));
            }
        }
    }

    fn give_back_stopped(&mut self, s: usize, h: usize, bits: u32) {
        let stopped = stopped(bits);
        if self.sides[s].handles[h].reason == Reason::Stopped {
            reach(
                Row::Stopped,
                bits & (outcome::IN_STOPPED | outcome::OUT_STOPPED),
            );
        }
        if stopped & IN != 0 {
            self.give_back_in(s, h);
        }
        // A write has failed with bytes that the splice had read, so that the splice reports it.
        if self.sides[s].bits(h) & outcome::TLS_FAILED != 0 {
            return self.fail_tls(s);
        }
        let handle = self.sides[s].handles[h];
        let is_destroyed = self.sides[s].socket == Socket::Destroyed;
        if is_destroyed || handle.begun & !stopped == 0 {
            self.close(s, h, handle.reason);
        }
    }

    fn give_back_in(&mut self, s: usize, h: usize) {
        if self.sides[s].handles[h].has & IN == 0 {
            return;
        }
        self.release(s, h, Direction::Inbound, IN);
        let side = &mut self.sides[s];
        // JavaScript may leave the records for the next splice.
        match side.setup.rare == Rare::CyclesAndPanic {
            true => side.buffered += std::mem::take(&mut side.held),
            false => side.taken += std::mem::take(&mut side.held),
        }
        side.forget_packets();
        side.resume_due = !side.is_gone;
        if side.resume_due && self.resumes_at_once {
            self.resume(s);
        }
    }

    fn give_back_out(&mut self, s: usize, h: usize) {
        let side = &mut self.sides[s];
        if side.handles[h].has & OUT == 0 {
            return;
        }
        let is_cut = outcome::TLS_FAILED | outcome::TLS_FAILING;
        let is_cut = side.life.outcome(Direction::Outbound) & is_cut != 0;
        ensure!(
            side.unsent == 0 || is_cut || side.fault != Fault::None,
            "what was read from the source is sent"
        );
        side.unsent = 0;
        self.release(s, h, Direction::Outbound, OUT);
    }

    fn release(&mut self, s: usize, h: usize, direction: Direction, bit: u8) {
        let side = &mut self.sides[s];
        let finished = side.life.outcome(direction)
            & (outcome::IN_OVER | outcome::IN_STOPPED | outcome::OUT_OVER | outcome::OUT_STOPPED);
        side.handles[h].kept |= finished;
        side.handles[h].has &= !bit;
        side.starting &= !bit;
        let (life, orders) = side.life.step(Input::Release(direction));
        side.life = life;
        ensure!(orders == Orders::default(), "release() asks for nothing");
    }

    /// TLS, or the stream below, has failed.
    fn fail_tls(&mut self, s: usize) {
        let side = &self.sides[s];
        reach(Row::TlsError, outcome::TLS_FAILED);
        if side.told == Fault::None {
            let fault = match side.fault {
                Fault::Gone => Fault::Gone,
                _ if side.failure.contains(&Failure::Tls) => Fault::Write,
                _ if side.has_write_failed() => Fault::LowerWrite,
                _ => Fault::None,
            };
            ensure!(fault != Fault::None, "what is told has happened");
            self.report(s, fault);
        }
        self.destroy(s, true);
    }

    /// JavaScript destroys the socket with the error that it was told of.
    pub fn destroy_for_fault(&mut self, s: usize) -> bool {
        let side = &self.sides[s];
        let is_due = side.socket == Socket::Alive && side.told != Fault::None;
        if is_due {
            self.destroy(s, true);
        }
        is_due
    }

    /// The user destroys the socket.
    pub fn user_destroys(&mut self, s: usize, has_error: bool) -> bool {
        let is_alive = self.sides[s].socket == Socket::Alive;
        let has_any = is_alive && self.sides[s].handles != [Handle::IDLE; 2];
        if has_any {
            self.destroy(s, has_error);
        }
        has_any
    }

    fn destroy(&mut self, s: usize, has_error: bool) {
        self.sides[s].socket = Socket::Destroyed;
        for h in 0..2 {
            self.on_destroy(s, h, has_error);
        }
        self.sides[s] = self.sides[s].dead();
    }

    fn on_destroy(&mut self, s: usize, h: usize, has_error: bool) {
        let side = &self.sides[s];
        let handle = side.handles[h];
        match handle.state {
            JsState::Idle => return,
            JsState::Stopping => return self.close(s, h, handle.reason),
            JsState::Running => {}
        }
        let bits = side.bits(h);
        let is_failing = bits & outcome::TLS_FAILING != 0 || handle.begun == 0;
        let has_failed = bits & outcome::TLS_FAILED != 0 || side.told != Fault::None;
        if has_failed || has_error && is_failing {
            reach(
                Row::TlsError,
                bits & (outcome::TLS_FAILED | outcome::TLS_FAILING),
            );
            return self.close(s, h, Reason::TlsError);
        }
        let ended = directions_of(bits, outcome::IN_OVER, outcome::OUT_OVER);
        if has_error || side.directions(h) & !ended != 0 {
            return self.close(s, h, Reason::Destroyed);
        }
        for (direction, bit) in BOTH {
            if self.sides[s].handles[h].has & bit != 0 {
                self.release(s, h, direction, bit);
            }
        }
        self.sides[s].handles[h].ended |= OUT;
        if self.sides[s].directions(h) & IN != 0 {
            self.on_in_ended(s, h);
        }
        self.give_back_if_ended(s, h);
    }

    /// The splice has waited for something that may never come.
    pub fn stop_timer(&mut self, s: usize, h: usize) -> bool {
        let side = &self.sides[s];
        let handle = side.handles[h];
        let waits_for_lower = !side.setup.is_direct && side.unwritten;
        let waits_for_handshake = side.handshake_is_pending() && side.unsent > 0;
        if handle.state != JsState::Stopping || handle.has & OUT == 0 {
            return false;
        }
        if !waits_for_handshake && !waits_for_lower {
            return false;
        }
        let bits = side.bits(h);
        if handle.reason == Reason::Stopped {
            reach(Row::Stopped, bits & outcome::WANTS_HANDSHAKE);
        }
        self.destroy(s, true);
        true
    }

    /// Gives everything back.
    fn close(&mut self, s: usize, h: usize, reason: Reason) {
        self.check_ending(s, h, reason);
        if self.sides[s].socket == Socket::Alive {
            self.give_back_in(s, h);
            self.give_back_out(s, h);
        }
        if !self.sides[s].is_gone {
            for (direction, bit) in BOTH {
                if self.sides[s].handles[h].has & bit != 0 {
                    self.release(s, h, direction, bit);
                }
            }
        }
        let side = &mut self.sides[s];
        side.handles[h] = Handle::IDLE;
        side.turn_due[h] = false;
        side.failure[h] = Failure::No;
        if N == 2 {
            self.unjoin(s);
            match s {
                0 => self.stop(1, h, Reason::Stopped),
                _ => self.on_second_given_back(h, reason),
            }
        }
        let side = &mut self.sides[s];
        if side.is_gone && side.handles == [Handle::IDLE; 2] {
            *side = side.dead();
        }
    }

    fn unjoin(&mut self, s: usize) {
        if self.is_joined {
            self.wake_peer(s);
            self.is_joined = false;
        }
    }

    fn on_second_given_back(&mut self, h: usize, reason: Reason) {
        if self.sides[0].handles[h].state != JsState::Running {
            return;
        }
        self.give_back_if_ended(0, h);
        if self.sides[0].handles[h].state == JsState::Running && reason != Reason::End {
            reach(Row::Premature, 0);
            self.stop(0, h, Reason::Premature);
        }
    }

    /// Nothing is hidden by the reason that a splice ends for.
    fn check_ending(&self, s: usize, h: usize, reason: Reason) {
        let side = &self.sides[s];
        match reason {
            Reason::End => {
                let is_known = side.directions(h) & IN == 0 || side.eof || side.is_gone;
                ensure!(is_known, "JavaScript is told of the end");
                ensure!(
                    side.failure[h] == Failure::No,
                    "a failure of the endpoint is not an end"
                );
                // A direction that was finished before is not concerned.
                let has_both = side.directions(h) == IN | OUT;
                ensure!(
                    !has_both || side.fault == side.told || side.fault == Fault::Gone,
                    "a failure of the connection is not an end"
                );
            }
            Reason::TlsError => {
                ensure!(side.fault != Fault::None, "what is told has happened");
            }
            Reason::Destroyed => reach(Row::Destroyed, 0),
            Reason::Stopped | Reason::EndpointError | Reason::Premature => {}
        }
    }
}
