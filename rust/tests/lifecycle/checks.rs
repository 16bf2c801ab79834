//! What holds in every state, and when nothing happens any more.

use crate::connection::*;
use crate::ensure;
use crate::javascript::{JsState, Socket, IN, OUT};
use crate::machine::*;
use crate::world::World;

impl Side {
    pub fn check(&self) {
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
        if bits & outcome::IN_OVER != 0 {
            ensure!(self.held == 0, "over only when everything is delivered");
        }
        if self.failure[h] == Failure::Sink {
            ensure!(
                bits & (outcome::ENDPOINT_FAILED | outcome::TLS_FAILED | outcome::IN_STOPPED) != 0,
                "a failure of the endpoint stays visible until the stop"
            );
        }
    }

    /// A direction has come to one row of the table of all endings at most, and a
    /// failure of the connection may be in front of that.
    pub fn check_outcome(&self, direction: Direction) {
        let bits = self.life.outcome(direction);
        let (over, stopped) = match direction {
            Direction::Inbound => (outcome::IN_OVER, outcome::IN_STOPPED),
            Direction::Outbound => (outcome::OUT_OVER, outcome::OUT_STOPPED),
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
                Direction::Inbound => outcome::IN_STOPPED,
                Direction::Outbound => outcome::OUT_OVER,
            };
            ensure!(
                own != finished || bits & failures == 0,
                "what was finished before a failure stays so"
            );
        }
    }

    pub fn check_source(&self) {
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
        if bits & (outcome::OUT_OVER | outcome::OUT_STOPPED) != 0 && bits & is_cut == 0 {
            ensure!(
                self.unsent == 0 || self.fault != Fault::None,
                "what was read from the source is sent"
            );
        }
        if bits & outcome::OUT_OVER != 0 {
            ensure!(!self.unwritten, "over only when everything is written");
        }
    }

    /// Everybody has done their part.
    pub fn check_that_all_has_ended(&self) {
        for handle in &self.handles {
            ensure!(handle.state == JsState::Idle, "every path ends");
        }
        if self.socket == Socket::Alive && !self.is_gone {
            ensure!(
                self.eof || !self.is_close_notify_known,
                "JavaScript sees the end that a splice has seen"
            );
            ensure!(
                self.fault == Fault::None,
                "an error is reported or handed back"
            );
            ensure!(!self.life.owes(), "nothing is owed for ever");
            ensure!(!self.resume_due, "nothing is owed for ever");
        }
    }

    /// Nothing happens any more by itself.
    pub fn check_that_stops_have_ended(&self) {
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
    pub fn check_pair(&self) {
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
