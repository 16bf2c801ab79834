//! The two byte pumps, see rust/src/inbound.rs, rust/src/outbound.rs and
//! rust/src/splice.rs.

use crate::connection::*;
use crate::ensure;
use crate::javascript::{JsState, IN, OUT};
use crate::machine::*;

/// What becomes of the next `SSL_write`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// It comes to its end.
    Finished,
    /// A callback of OpenSSL's cancels the call of the pump.
    Cancelled,
}

impl Side {
    /// The inbound pump, see rust/src/inbound.rs. `None` if it does nothing.
    pub fn run_inbound(&mut self, h: usize, is_joined: bool) -> Option<(Delivery, Cleartext)> {
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
            return Some((Delivery::Failed, self.seen_end()));
        }
        let mut filled = 0;
        loop {
            if self.held > 0 {
                if is_joined {
                    // The caller is to deliver.
                    return match self.sink {
                        Sink::Broken => self.fail_sink(h),
                        _ => Some((Delivery::Blocked, self.seen_end())),
                    };
                }
                match self.sink {
                    Sink::Broken => return self.fail_sink(h),
                    Sink::Full => return Some((Delivery::Blocked, self.seen_end())),
                    Sink::HasRoom => {
                        self.held -= 1;
                        self.taken += 1;
                        self.sink = Sink::Full;
                        continue;
                    }
                }
            }
            if !self.can_decrypt() {
                self.has_seen_end = self.read_end != Cleartext::Open;
                return Some((Delivery::Drained, self.seen_end()));
            }
            if self.setup.budget == Budget::OneRecord && filled == 1 {
                return Some((Delivery::Paused, self.seen_end()));
            }
            filled += 1;
            self.held += self.decrypt_one();
            while self.setup.budget == Budget::All && self.can_decrypt() {
                self.held += self.decrypt_one();
            }
            self.has_seen_end |= self.read_end != Cleartext::Open;
        }
    }

    /// What the pump knows of `SSL_read`: another pump of the direction may have been told
    /// of an end before.
    fn seen_end(&self) -> Cleartext {
        match self.has_seen_end {
            true => self.read_end,
            false => Cleartext::Open,
        }
    }

    pub fn fail_sink(&mut self, h: usize) -> Option<(Delivery, Cleartext)> {
        self.failure[h] = Failure::Sink;
        Some((Delivery::Failed, self.seen_end()))
    }

    /// Whether the outbound pump has room for more ciphertext.
    pub fn has_room(&self) -> bool {
        !self.unwritten || self.setup.budget == Budget::All
    }

    /// The outbound pump, see rust/src/outbound.rs and rust/src/splice.rs.
    pub fn run_outbound(&mut self, h: usize, is_joined: bool, writing: Writing) -> Sending {
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
                if writing == Writing::Cancelled {
                    // OpenSSL may accept the bytes all the same.
                    if self.setup.budget == Budget::All {
                        self.unsent = 0;
                        self.unwritten = true;
                    }
                    return Sending::Paused;
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

    pub fn end_source(&self) -> Sending {
        match self.unwritten {
            true => Sending::Full,
            false => Sending::Ended,
        }
    }

    pub fn fail_write(&mut self, h: usize) -> Sending {
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
