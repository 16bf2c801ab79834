//! Bounded work per turn of the event loop.
//!
//! A direction of a splice works until its [`Budget`] is spent, and goes on in another turn of
//! the event loop. All busy directions on an event loop do about [`PER_TURN`] together in one
//! turn, so that a turn does not become longer the more of them there are.
//!
//! While they are few, each of them works in every turn and has a share of [`PER_TURN`]. No share
//! is less than [`LEAST`]: the smaller the pieces are, the more system calls and records they take,
//! here and at both ends. So if there are too many directions for that they take turns. A direction
//! that finds a turn full takes a ticket, as people do at a counter, and works once its ticket is
//! called. In each turn as many tickets are called as will fill it.
//!
//! Nobody says when the event loop turns. [`Budget::begin`] is called for a direction when it could
//! work, which is once in a turn: so a direction that asks for the second time shows that the
//! event loop has turned. Nobody keeps a list of the busy directions, either: how many have worked
//! in the last turns is counted.

use std::cell::Cell;

use crate::splice::MAX_RECORD;

/// The work that the busy directions of one event loop do together in one turn, in bytes.
const PER_TURN: usize = 1 << 21;

/// The most work that one direction does in a turn, in bytes.
const MOST: usize = 256 * 1024;

/// The least work that one direction may do when it works, in bytes: what a pipe holds, and what
/// Node.js reads at once. A share is a multiple of this.
const LEAST: usize = 4 * MAX_RECORD;

/// From this much work on, in bytes, a direction was busy in its turn. Directions that do
/// less, for instance those of interactive connections, do not make the shares smaller, and do
/// not wait.
const BUSY: usize = MAX_RECORD / 2;

/// What is known of one event loop.
#[derive(Clone, Copy)]
struct Loop {
    /// The number of the turn.
    turn: u64,
    /// What busy directions have done in the turn.
    busy: Busy,
    /// How many directions were busy in the two turns before.
    busy_before: [usize; 2],
    /// What a busy direction does when it works, in bytes.
    expected: usize,
    /// The last turn had no room for one more direction.
    was_full: bool,
    /// The ticket that is taken next.
    next_ticket: u64,
    /// The first ticket that was called in this turn: all before it are void.
    first_call: u64,
    /// The ticket that is called next.
    next_call: u64,
    /// How many of the tickets that were called in this turn have not been used.
    called: usize,
}

/// What busy directions have done in a turn.
#[derive(Clone, Copy)]
struct Busy {
    directions: usize,
    /// In bytes.
    work: usize,
}

impl Busy {
    const NONE: Busy = Busy {
        directions: 0,
        work: 0,
    };
}

thread_local! {
    /// What is known of the event loop of this thread.
    static LOOP: Cell<Loop> = const {
        Cell::new(Loop {
            turn: 0,
            busy: Busy::NONE,
            busy_before: [0; 2],
            expected: LEAST,
            was_full: false,
            next_ticket: 0,
            first_call: 0,
            next_call: 0,
            called: 0,
        })
    };
}

impl Loop {
    /// The event loop has turned.
    fn turn(&mut self) {
        let busy = std::mem::replace(&mut self.busy, Busy::NONE);
        if let Some(mean) = busy.work.checked_div(busy.directions) {
            self.expected = mean;
        }
        self.was_full = busy.directions > 0 && busy.work + self.expected >= PER_TURN;
        self.busy_before = [busy.directions, self.busy_before[0]];
        self.turn += 1;
        let room = (PER_TURN / self.expected).max(1);
        self.called = room.min(self.waiting());
        self.first_call = self.next_call;
        self.next_call += self.called as u64;
    }

    /// How many tickets are yet to be called.
    fn waiting(&self) -> usize {
        (self.next_ticket - self.next_call) as usize
    }

    /// Whether the turn has no room for a direction without a ticket.
    fn is_full(&self) -> bool {
        self.waiting() > 0 || self.busy.work + self.called * self.expected >= PER_TURN
    }

    /// The share of each direction. The larger count of some turns is taken, since a busy
    /// direction may have to wait for a turn: its bytes come in pieces.
    fn share(&self) -> usize {
        let [last, before] = self.busy_before;
        share_of(self.busy.directions.max(last).max(before) + self.waiting())
    }
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

/// Whether a direction may work in this turn of the event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// It may, until its budget is spent.
    Work,
    /// It may not: it has to ask again in the next turn.
    Wait,
}

/// The work that one direction has done since it was admitted, and its share of what a turn
/// allows.
///
/// Work is counted in bytes, and each call that moves bytes counts as
/// [`Call::least_work`] of them at least. So a budget is spent after a bounded number of
/// calls, however little each of them moves.
#[derive(Clone, Debug)]
pub struct Budget {
    share: usize,
    spent: usize,
    is_admitted: bool,
    /// The turn in which the direction asked the last time.
    asked_in: Option<u64>,
    /// The turn in which the direction worked the last time.
    worked_in: Option<u64>,
    ticket: Option<u64>,
    /// Whether the direction takes a ticket if a turn is full. One that did little the last time
    /// does not.
    is_patient: bool,
}

impl Default for Budget {
    /// The budget of a direction that begins now.
    fn default() -> Budget {
        Budget {
            share: MOST,
            spent: 0,
            is_admitted: false,
            asked_in: None,
            worked_in: None,
            ticket: None,
            is_patient: true,
        }
    }
}

impl Budget {
    /// Asks whether the direction may work in this turn, and fixes its share. To be called when
    /// it could work. A direction that works already goes on: nothing changes.
    pub fn begin(&mut self) -> Admission {
        if self.is_admitted || self.spent > 0 {
            return Admission::Work;
        }
        let mut now = LOOP.get();
        if self.asked_in == Some(now.turn) {
            now.turn();
        }
        self.asked_in = Some(now.turn);
        self.share = now.share();
        let admission = match self.is_patient {
            true => self.queue(&mut now),
            false => Admission::Work,
        };
        LOOP.set(now);
        if admission == Admission::Work {
            self.ticket = None;
            self.is_admitted = true;
        }
        admission
    }

    fn queue(&mut self, now: &mut Loop) -> Admission {
        // A ticket of another thread, from which the splice has been moved, may be none here.
        let ticket = self.ticket.filter(|ticket| *ticket < now.next_ticket);
        match ticket {
            Some(ticket) if ticket >= now.next_call => return Admission::Wait,
            Some(ticket) if ticket >= now.first_call => {
                now.called = now.called.saturating_sub(1);
                return Admission::Work;
            }
            // The direction had nothing to do when its ticket was called.
            _ => {}
        }
        // In a turn that follows a full one, those come first who had no room in that one.
        let was_first = now.was_full && self.worked_in == now.turn.checked_sub(1);
        if was_first || now.is_full() {
            self.ticket = Some(now.next_ticket);
            now.next_ticket += 1;
            return Admission::Wait;
        }
        Admission::Work
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

    /// Begins again at zero, since the event loop turns, or has turned. Nothing changes if the
    /// direction has not worked.
    pub fn renew(&mut self) {
        if self.spent == 0 {
            return;
        }
        let mut now = LOOP.get();
        self.is_patient = self.spent >= BUSY;
        if self.is_patient {
            now.busy.directions += 1;
            now.busy.work += self.spent;
        }
        LOOP.set(now);
        self.worked_in = Some(now.turn);
        self.spent = 0;
        self.is_admitted = false;
    }
}

/// The share of each direction if so many are busy.
fn share_of(busy: usize) -> usize {
    let pieces = PER_TURN / LEAST / busy.max(1);
    (pieces * LEAST).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many calls of `spend` with that many bytes each fit into one turn.
    fn calls(mut spend: impl FnMut(&mut Budget)) -> usize {
        let mut budget = Budget::default();
        let mut calls = 0;
        assert_eq!(budget.begin(), Admission::Work);
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
        assert_eq!(budget.begin(), Admission::Work);
        budget.spend(Call::System, 2 * MOST);
        assert!(budget.is_spent() && budget.is_overdrawn());
        budget.renew();
        assert!(!budget.is_spent() && !budget.is_overdrawn());
    }

    #[test]
    fn the_busy_directions_share_what_a_turn_allows() {
        assert_eq!(share_of(0), MOST);
        assert_eq!(share_of(1), MOST);
        assert_eq!(share_of(8), MOST);
        assert_eq!(share_of(16), 128 * 1024);
        assert_eq!(share_of(32), LEAST);
        assert_eq!(share_of(usize::MAX), LEAST);
    }

    /// A direction that has at most `given` bytes to move in each turn, and what it has moved.
    struct Mover {
        budget: Budget,
        given: usize,
        moved: usize,
    }

    fn movers(count: usize, given: usize) -> Vec<Mover> {
        let mover = |_| Mover {
            budget: Budget::default(),
            given,
            moved: 0,
        };
        (0..count).map(mover).collect()
    }

    /// Lets each direction move what it may in one turn. Returns how much all of them have moved.
    fn turn(movers: &mut [Mover]) -> usize {
        let mut sum = 0;
        for mover in movers {
            if mover.budget.begin() == Admission::Wait {
                continue;
            }
            let used = mover.budget.share().min(mover.given);
            mover.budget.spend(Call::System, used);
            mover.budget.renew();
            mover.moved += used;
            sum += used;
        }
        sum
    }

    /// What a turn may come to: how many directions are busy is not known exactly.
    const MOST_IN_A_TURN: usize = PER_TURN + PER_TURN / 4;

    #[test]
    fn a_turn_is_bounded_however_many_directions_are_busy() {
        for (count, given) in [
            (33, usize::MAX),
            (200, usize::MAX),
            (200, 20_000),
            (3000, 20_000),
        ] {
            let mut all = movers(count, given);
            for i in 0..100 {
                let sum = turn(&mut all);
                // In the first turns, each one only knows of those that have come before it.
                let most = if i < 3 { 2 * PER_TURN } else { MOST_IN_A_TURN };
                assert!(sum <= most, "{count}, turn {i}: {sum}");
            }
        }
    }

    #[test]
    fn a_turn_is_used_if_enough_directions_are_busy() {
        for count in [8, 33, 63, 65, 200, 1000] {
            let mut all = movers(count, usize::MAX);
            for _ in 0..50 {
                turn(&mut all);
            }
            let turns = 100;
            let sum: usize = (0..turns).map(|_| turn(&mut all)).sum();
            // With a few too many, every other turn is for those few.
            assert!(sum / turns >= PER_TURN / 2, "{count}: {}", sum / turns);
        }
    }

    #[test]
    fn all_have_the_same_share_in_the_long_run() {
        for count in [24, 33, 100, 200, 1000] {
            let mut all = movers(count, usize::MAX);
            for _ in 0..50 {
                turn(&mut all);
            }
            all.iter_mut().for_each(|mover| mover.moved = 0);
            for _ in 0..1000 {
                turn(&mut all);
            }
            let moved = all.iter().map(|mover| mover.moved);
            let (least, most) = (moved.clone().min().unwrap(), moved.max().unwrap());
            // Who works each second and who each third turn is as the event loop asks them.
            assert!(most <= least * 3 / 2 + LEAST, "{count}: {least} to {most}");
        }
    }

    #[test]
    fn a_direction_alone_has_the_most_again_after_a_few_turns() {
        let mut all = movers(200, usize::MAX);
        for _ in 0..20 {
            turn(&mut all);
        }
        let one = &mut all[..1];
        // It has yet to learn that the others have stopped.
        for _ in 0..20 {
            turn(one);
        }
        assert_eq!(turn(one), MOST);
        assert_eq!(turn(one), MOST);
    }

    #[test]
    fn directions_that_have_something_to_move_now_and_then_count() {
        let mut all = movers(200, usize::MAX);
        turn(&mut all);
        for waiting in [0, 150, 0, 0, 100, 0, 50, 0].repeat(4) {
            let sum = turn(&mut all[waiting..]);
            assert!(sum <= 2 * PER_TURN, "{sum}");
        }
    }

    #[test]
    fn directions_that_move_little_do_not_count_and_do_not_wait() {
        let mut interactive = movers(1000, BUSY - 1);
        let mut bulk = movers(1, usize::MAX);
        for _ in 0..3 {
            turn(&mut interactive);
            assert_eq!(turn(&mut bulk), MOST);
        }
        let mut bulk = movers(200, usize::MAX);
        for _ in 0..20 {
            let sum = turn(&mut interactive);
            assert_eq!(sum, 1000 * (BUSY - 1));
            turn(&mut bulk);
        }
    }

    #[test]
    fn a_direction_that_was_admitted_and_had_nothing_to_do_is_admitted() {
        let mut all = movers(1000, usize::MAX);
        for _ in 0..20 {
            turn(&mut all);
        }
        let one = &mut all[0].budget;
        while one.begin() == Admission::Wait {}
        one.renew();
        assert_eq!(one.begin(), Admission::Work);
        assert_eq!(one.share(), LEAST);
    }

    #[test]
    fn each_event_loop_has_a_count_of_its_own() {
        let mut here = movers(200, usize::MAX);
        for _ in 0..20 {
            turn(&mut here);
        }
        std::thread::spawn(|| {
            let mut there = movers(1, usize::MAX);
            assert_eq!(turn(&mut there), MOST);
        })
        .join()
        .unwrap();
        // And one that is moved to another loop works there, too.
        std::thread::spawn(move || {
            for _ in 0..2 {
                turn(&mut here[1..2]);
            }
            assert_eq!(turn(&mut here[1..2]), MOST);
        })
        .join()
        .unwrap();
    }
}
