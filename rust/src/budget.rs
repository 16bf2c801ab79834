//! Bounded work per turn of the event loop.
//!
//! A direction of a splice works until its [`Budget`] is spent, and goes on in the next
//! turn of the event loop. The busy directions of all splices on an event loop share
//! [`PER_TURN`], so that a turn does not become longer the more of them there are.
//!
//! Nobody keeps a list of the busy directions. Each of them has one share in a turn of the
//! event loop, so a direction learns how many others there are by counting how many
//! shares they have had since its own last one. The larger count of two turns is taken,
//! since a busy direction may have to wait for a turn: its bytes come in pieces. A direction
//! that was idle for some turns counts too many, and has a small share twice. A direction
//! whose bytes nobody asks for (those of a stream of JavaScript) is not told of each turn, so
//! its share may be one of some turns ago.

use std::cell::Cell;

use crate::splice::MAX_RECORD;

/// The work that the busy directions of one event loop do together in one turn, in bytes.
const PER_TURN: usize = 4 << 20;

/// The most work that one direction does in a turn, in bytes.
const MOST: usize = 256 * 1024;

/// The least work that one direction may do in a turn, however many directions are busy, in
/// bytes. A share is a multiple of this, since pieces of records cost as much as records.
const LEAST: usize = MAX_RECORD;

/// From this much work on, in bytes, a direction was busy in its turn. Directions that do
/// less, for instance those of interactive connections, do not make the shares smaller.
const BUSY: usize = LEAST / 2;

thread_local! {
    /// How many shares of busy directions were used on this thread, which is that of one
    /// event loop.
    static USED_SHARES: Cell<u64> = const { Cell::new(0) };
}

/// A kind of call that moves bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A system call.
    System,
    /// `SSL_read`, which may find the bytes decrypted already.
    SslRead,
}

impl Call {
    /// What one call counts as at least, in bytes: the call itself costs about as much as
    /// moving this many.
    const fn least_work(self) -> usize {
        match self {
            Call::System => 64,
            Call::SslRead => 16,
        }
    }
}

/// The work that one direction has done since the event loop last turned, and its share of
/// what a turn allows.
///
/// Work is counted in bytes, and each call that moves bytes counts as
/// [`Call::least_work`] of them at least. So a budget is spent after a bounded number of
/// calls, however little each of them moves.
#[derive(Clone, Debug)]
pub struct Budget {
    share: usize,
    spent: usize,
    /// [`USED_SHARES`] when the budget was renewed the last time, or when the direction began.
    used_shares: u64,
    /// How many shares other directions had used between the two last renewals.
    others: u64,
}

impl Default for Budget {
    /// The budget of a direction that begins now.
    fn default() -> Budget {
        Budget {
            share: MOST,
            spent: 0,
            used_shares: USED_SHARES.get(),
            others: 0,
        }
    }
}

impl Budget {
    /// Fixes the share. To be called before the direction works; nothing changes if it has
    /// worked since the budget was renewed.
    pub fn begin(&mut self) {
        if self.spent == 0 {
            self.share = share_beside(self.others_since_renewal().max(self.others));
        }
    }

    /// How many shares other directions have used since the budget was renewed.
    fn others_since_renewal(&self) -> u64 {
        // A splice that has been moved to another thread finds another count there.
        USED_SHARES.get().wrapping_sub(self.used_shares)
    }

    /// The most bytes to read with one call.
    pub fn share(&self) -> usize {
        self.share
    }

    /// Counts one call that brought `bytes` bytes into the splice.
    pub fn spend(&mut self, call: Call, bytes: usize) {
        self.spent += bytes.max(call.least_work());
    }

    /// Counts one more call, on `bytes` bytes that [`Budget::spend`] has counted when
    /// they came. Only what the call costs beyond its bytes is added.
    pub fn spend_again(&mut self, call: Call, bytes: usize) {
        self.spent += call.least_work().saturating_sub(bytes);
    }

    /// How many bytes more are work for this turn.
    pub fn left(&self) -> usize {
        self.share.saturating_sub(self.spent)
    }

    /// Whether it is time to let the event loop turn.
    pub fn is_spent(&self) -> bool {
        self.spent >= self.share
    }

    /// Whether the work is twice what the share allows. This limit is for input whose
    /// amount was bounded by [`Budget::is_spent`] before it was read, and of which no
    /// rest is to be left for the next turn if that can be helped.
    pub fn is_overdrawn(&self) -> bool {
        self.spent >= 2 * self.share
    }

    /// Begins again at zero, since the event loop turns, or has turned. In the first case the
    /// others have their shares after this, and in the second case they have had them before: so
    /// what they use is counted from one renewal to the next.
    pub fn renew(&mut self) {
        if self.spent == 0 {
            return;
        }
        self.others = self.others_since_renewal();
        if self.spent >= BUSY {
            USED_SHARES.set(USED_SHARES.get() + 1);
        }
        self.used_shares = USED_SHARES.get();
        self.spent = 0;
    }
}

/// The share of a direction in a turn in which `others` other directions are busy.
fn share_beside(others: u64) -> usize {
    let pieces = (PER_TURN / LEAST) as u64 / others.saturating_add(1);
    (pieces as usize * LEAST).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many calls of `spend` with that many bytes each fit into one turn.
    fn calls(mut spend: impl FnMut(&mut Budget)) -> usize {
        let mut budget = Budget::default();
        let mut calls = 0;
        budget.begin();
        while !budget.is_spent() {
            assert!(!budget.is_overdrawn());
            spend(&mut budget);
            calls += 1;
        }
        calls
    }

    #[test]
    fn large_pieces_count_as_their_bytes() {
        for call in [Call::System, Call::SslRead] {
            assert_eq!(calls(|budget| budget.spend(call, 16 * 1024)), 16);
            assert_eq!(calls(|budget| budget.spend(call, 1024)), 256);
        }
    }

    #[test]
    fn small_pieces_count_as_calls() {
        for bytes in [0, 1, 16] {
            assert_eq!(calls(|budget| budget.spend(Call::System, bytes)), 4096);
            assert_eq!(calls(|budget| budget.spend(Call::SslRead, bytes)), 16_384);
        }
    }

    #[test]
    fn bytes_count_once_and_calls_count_each_time() {
        let through = |bytes| {
            move |budget: &mut Budget| {
                budget.spend(Call::SslRead, bytes);
                budget.spend_again(Call::System, bytes);
            }
        };
        assert_eq!(calls(through(1024)), 256);
        assert_eq!(calls(through(64)), 4096);
        assert_eq!(calls(through(1)), 3319);
    }

    #[test]
    fn a_renewed_budget_is_whole() {
        let mut budget = Budget::default();
        budget.begin();
        budget.spend(Call::System, 2 * MOST);
        assert!(budget.is_spent() && budget.is_overdrawn());
        budget.renew();
        assert!(!budget.is_spent() && !budget.is_overdrawn());
    }

    #[test]
    fn the_busy_directions_share_what_a_turn_allows() {
        assert_eq!(share_beside(0), MOST);
        assert_eq!(share_beside(15), MOST);
        assert_eq!(share_beside(16), 240 * 1024);
        assert_eq!(share_beside(63), 64 * 1024);
        assert_eq!(share_beside(199), LEAST);
        assert_eq!(share_beside(255), LEAST);
        assert_eq!(share_beside(u64::MAX), LEAST);
    }

    /// Lets each direction have its share of one turn, of which it uses what it is given at
    /// most. Returns what all of them have used.
    fn turn(directions: &mut [Budget], given: usize) -> usize {
        let mut sum = 0;
        for budget in directions {
            budget.begin();
            let used = budget.share().min(given);
            budget.spend(Call::System, used);
            budget.renew();
            sum += used;
        }
        sum
    }

    fn directions(count: usize) -> Vec<Budget> {
        (0..count).map(|_| Budget::default()).collect()
    }

    #[test]
    fn a_turn_is_bounded_from_the_second_one_on() {
        for given in [BUSY, 64 * 1024, usize::MAX] {
            let mut all = directions(200);
            // In the first turn, each one only knows of those that have come before it.
            assert!(turn(&mut all, given) <= 4 * PER_TURN);
            for _ in 0..10 {
                let sum = turn(&mut all, given);
                assert!(sum <= PER_TURN, "{sum} for {given} each");
                assert!(sum >= 200 * given.min(LEAST));
            }
        }
    }

    /// As [`turn`], for directions that see only when their next turn has come that the last one
    /// has ended: they are renewed between the two calls of `begin` in a turn.
    fn turn_after_renewal(directions: &mut [Budget], given: usize) -> usize {
        let mut sum = 0;
        for budget in directions {
            budget.begin();
            budget.renew();
            budget.begin();
            let used = budget.share().min(given);
            budget.spend(Call::System, used);
            sum += used;
        }
        sum
    }

    #[test]
    fn a_turn_is_bounded_if_each_direction_is_renewed_before_it_works() {
        for given in [BUSY, 64 * 1024, usize::MAX] {
            let mut all = directions(200);
            for _ in 0..2 {
                turn_after_renewal(&mut all, given);
            }
            for _ in 0..10 {
                let sum = turn_after_renewal(&mut all, given);
                assert!(sum <= PER_TURN, "{sum} for {given} each");
                assert!(sum >= 200 * given.min(LEAST));
            }
        }
    }

    #[test]
    fn a_direction_alone_has_the_most_again_after_two_turns() {
        let mut all = directions(200);
        for _ in 0..3 {
            turn(&mut all, usize::MAX);
        }
        let one = &mut all[..1];
        // It has yet to learn that the others have stopped.
        assert_eq!(turn(one, usize::MAX), LEAST);
        assert_eq!(turn(one, usize::MAX), LEAST);
        assert_eq!(turn(one, usize::MAX), MOST);
        assert_eq!(turn(one, usize::MAX), MOST);
    }

    #[test]
    fn directions_that_wait_for_a_turn_now_and_then_count() {
        let mut all = directions(200);
        turn(&mut all, usize::MAX);
        for waiting in [150, 0, 0, 100, 0, 50, 0] {
            let sum = turn(&mut all[waiting..], usize::MAX);
            assert!(sum <= PER_TURN, "{sum}");
        }
    }

    #[test]
    fn directions_that_move_little_do_not_count() {
        let mut interactive = directions(1000);
        let mut bulk = directions(1);
        for _ in 0..3 {
            turn(&mut interactive, BUSY - 1);
            assert_eq!(turn(&mut bulk, usize::MAX), MOST);
        }
    }

    #[test]
    fn a_turn_in_which_nothing_was_done_is_none() {
        let mut all = directions(20);
        turn(&mut all, usize::MAX);
        let one = &mut all[0];
        one.begin();
        one.renew();
        one.begin();
        assert_eq!(one.share(), share_beside(19));
    }

    #[test]
    fn each_event_loop_has_a_count_of_its_own() {
        let mut here = directions(200);
        turn(&mut here, usize::MAX);
        std::thread::spawn(|| {
            let mut there = directions(1);
            turn(&mut there, usize::MAX);
            assert_eq!(turn(&mut there, usize::MAX), MOST);
        })
        .join()
        .unwrap();
        // And one that is moved to another loop works there, too.
        std::thread::spawn(move || {
            for _ in 0..2 {
                turn(&mut here[1..2], usize::MAX);
            }
            assert_eq!(turn(&mut here[1..2], usize::MAX), MOST);
        })
        .join()
        .unwrap();
    }
}
