//! What feeds the lifecycle and carries out its orders: rust/src/events.rs and
//! node-patches/src/crypto/crypto_tls_splice.cc.

use crate::connection::*;
use crate::ensure;
use crate::javascript::{JsState, IN, OUT};
use crate::machine::*;
use crate::pumps::Writing;
use crate::world::World;

impl<const N: usize> World<N> {
    pub fn feed(&mut self, s: usize, h: usize, input: Input) {
        let (life, orders) = self.sides[s].life.step(input);
        self.sides[s].life = life;
        self.carry_out(s, h, orders);
    }

    /// Carries out the orders that the splice `h` has got, in the order of the shim.
    pub fn carry_out(&mut self, s: usize, h: usize, orders: Orders) {
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
    pub fn cycle(&mut self, s: usize, h: usize) {
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
    pub fn node_cycle(&mut self, s: usize) {
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
                Cleartext::CloseNotify => side.eof |= side.does_node_see_close_notify(),
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
    pub fn decrypt(&mut self, s: usize, h: usize) {
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
            self.sides[s].is_close_notify_known |= cleartext == Cleartext::CloseNotify;
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

impl<const N: usize> World<N> {
    /// The inbound pump has decrypted what it can when it sees that it was cancelled.
    pub fn cancel_inbound(&mut self, s: usize, h: usize) {
        let side = &mut self.sides[s];
        while side.can_decrypt() {
            side.held += side.decrypt_one();
        }
        if side.read_end == Cleartext::Failed {
            side.saw(Fault::Read);
        }
        let cleartext = side.read_end;
        self.sides[s].is_close_notify_known |= cleartext == Cleartext::CloseNotify;
        self.feed(s, h, Input::Delivered(Delivery::Paused, cleartext));
    }

    pub fn encrypt(&mut self, s: usize, h: usize) {
        let side = &self.sides[s];
        if side.is_gone {
            return;
        }
        if !side.setup.is_direct && side.unwritten {
            // A stream of JavaScript's has yet to complete a write.
            return self.feed(s, h, Input::Sent(Sending::Full));
        }
        let callback = self.callback.filter(|&call| self.can_call(call, s, h, IN));
        let writing = match callback {
            Some(_) => Writing::Cancelled,
            None => Writing::Finished,
        };
        let sending = self.sides[s].run_outbound(h, N == 2, writing);
        // The events of the callback are queued until the pump has returned.
        self.feed(s, h, Input::Sent(sending));
        if let (Some(callback), Sending::Paused) = (callback, sending) {
            self.callback = None;
            self.call(callback, s, h, IN);
        }
    }

    /// TLSSplice::Deliver(): whether the inbound pump is to be run again.
    pub fn deliver_to_peer(&mut self, s: usize, h: usize) -> bool {
        let p = 1 - s;
        if !self.is_joined || self.sides[p].bits(0) & outcome::OUT_OVER != 0 {
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

    pub fn pair(&mut self, s: usize) -> [&mut Side; 2] {
        let (first, second) = self.sides.split_at_mut(1);
        match s {
            0 => [&mut first[0], &mut second[0]],
            _ => [&mut second[0], &mut first[0]],
        }
    }

    /// TLSSplice::UpdateInterest().
    pub fn wake_peer_if_room(&mut self, s: usize) {
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
        let is_over = side.handles[0].has != 0 && side.bits(0) & outcome::OUT_OVER != 0;
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
    pub fn tell(&mut self, s: usize, what: HandOver) {
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
                side.forget_read_error();
            }
            HandOver::LowerEnd(LowerEnd::Eof) => {
                ensure!(side.has_decrypted_all(), "nothing overtakes ciphertext");
                ensure!(!side.end_told && !is_told, "an end is told once");
                side.end_told = side.handle_of(IN).is_some();
                side.eof = true;
                if side.read_end == Cleartext::CloseNotify {
                    side.forget_read_error();
                }
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
        let side = &mut self.sides[s];
        side.resume_due = false;
        side.taken += std::mem::take(&mut side.buffered);
        if side.handle_of(IN).is_none() {
            side.eof |= side.does_node_see_close_notify();
            if side.eof || side.is_close_notify_known {
                side.forget_read_error();
            }
        }
        let has_ended = side.eof;
        let (life, orders) = side.life.step(Input::Resume { has_ended });
        self.sides[s].life = life;
        if let Some(what) = orders.hand_over {
            self.tell(s, what);
        }
        let side = &self.sides[s];
        let is_end_due = side.is_close_notify_known && side.handle_of(IN).is_none();
        // A failure of the connection is reported in the place of the end.
        ensure!(
            !is_end_due || side.eof || side.fault != Fault::None,
            "JavaScript sees the end that a splice has seen"
        );
        ensure!(
            !orders.cycle && !orders.encrypt && !orders.next_turn,
            "resume() asks for nothing"
        );
    }
}
