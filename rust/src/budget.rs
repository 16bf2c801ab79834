//! Bounded work per turn of the event loop.
//!
//! A direction of a splice works until its [`Budget`] is spent, and goes on in another turn of
//! the event loop. All busy directions on an event loop do about [`PER_TURN`] together in one
//! turn, so that a turn does not become longer the more of them there are. The caller says when
//! the event loop turns: [`begin_turn`].
//!
//! Each busy direction has a share of [`PER_TURN`]. No share is less than [`LEAST`]: the smaller
//! the pieces are, the more system calls and records they take, here and at both ends. So if there
//! are more busy directions than such shares, not all of them work in every turn. An event loop has
//! a clock, which tells how many bytes a direction would have moved that had its fair part of each
//! turn. A direction has a clock, too, which goes on by what the direction moves. The direction
//! works while its clock is not ahead of the clock of the event loop. There is no list of the busy
//! directions: they are counted as they ask.
//!
//! Directions that do little, such as the directions of an interactive connection, and new
//! directions always work.

use std::cell::Cell;

use crate::splice::MAX_RECORD;

/// The work that the busy directions of one event loop do together in one turn, in bytes.
const PER_TURN: usize = 1 << 21;

/// The most work that one direction does in a turn, in bytes.
const MOST: usize = 256 * 1024;

/// The least work that one direction may do when it works, in bytes: what a pipe holds, and what
/// Node.js reads at once. A share is a multiple of this.
const LEAST: usize = 4 * MAX_RECORD;

/// A direction that does at least this much work in a turn, in bytes, counts as busy. Directions
/// that do less do not make the shares smaller.
const BUSY: usize = MAX_RECORD / 2;

/// A direction that has not asked for more turns than this does not count as busy any more.
const LONG_PAUSE: u64 = 16;

/// What is known of one event loop.
#[derive(Clone, Copy)]
struct Loop {
    /// The number of the turn.
    turn: u64,
    /// How many busy directions have asked, or worked, in this turn.
    busy: usize,
    /// `busy` of the two turns before, the later one first.
    busy_before: [usize; 2],
    /// What busy directions have done in this turn, in bytes.
    work: usize,
    /// What the fair part of a direction has come to, in bytes.
    clock: u64,
}

thread_local! {
    /// What is known of the event loop of this thread.
    static LOOP: Cell<Loop> = const {
        Cell::new(Loop {
            turn: 0,
            busy: 0,
            busy_before: [0; 2],
            work: 0,
            clock: 0,
        })
    };
}

/// Takes note that the event loop of this thread is in the turn with that number, which is one
/// more for each turn.
///
/// A number that is one less than the one before changes nothing: libuv counts its turns in
/// the middle of one, so that callbacks from before and after that may come mixed.
pub fn begin_turn(number: u64) {
    let mut now = LOOP.get();
    if number == now.turn || number.checked_add(1) == Some(now.turn) {
        return;
    }
    now.begin(number);
    LOOP.set(now);
}

impl Loop {
    fn begin(&mut self, number: u64) {
        self.busy_before = match number.wrapping_sub(self.turn) {
            1 => [self.busy, self.busy_before[0]],
            2 => [0, self.busy],
            _ => [0, 0],
        };
        self.turn = number;
        self.busy = 0;
        self.work = 0;
        self.clock += (PER_TURN / self.busy_lately().max(1)).min(MOST) as u64;
    }

    /// How many directions are busy. The larger count of some turns is taken, since a busy
    /// direction may have to wait for a turn: its bytes come in pieces.
    fn busy_lately(&self) -> usize {
        let [last, before] = self.busy_before;
        self.busy.max(last).max(before)
    }

    /// Whether there are too many busy directions for all of them to work in each turn.
    fn is_crowded(&self) -> bool {
        self.busy_lately() > PER_TURN / LEAST
    }

    /// How far ahead of the event loop's clock the clock of a direction begins. If all clocks
    /// began at the same time, all directions would want to work in the same turn.
    fn stagger(&self) -> u64 {
        const STEPS: usize = PER_TURN / LEAST;
        (self.busy % STEPS * (LEAST / STEPS)) as u64
    }

    /// Whether the directions have done enough in this turn. What their clocks allow is
    /// `PER_TURN` on average.
    fn is_full(&self) -> bool {
        self.work >= PER_TURN + PER_TURN / 8
    }

    /// Whether a direction with that clock is to work. In a full turn only directions that have
    /// fallen behind do: a direction that is late in each turn would otherwise never work.
    fn admits(&self, clock: u64) -> bool {
        let behind = match self.is_full() {
            true => 2 * LEAST as u64,
            false => 0,
        };
        !self.is_crowded() || clock + behind <= self.clock
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
    /// It may not, or not any more: it has to ask again in the next turn.
    Wait,
}

/// The work that one direction has done in a turn, and its share of the work of the turn.
///
/// Work is counted in bytes, and each call that moves bytes counts as
/// [`Call::least_work`] of them at least. So a budget is spent after a bounded number of
/// calls, however little each of them moves. If more ciphertext was taken in than cleartext was
/// made of it, the ciphertext is the work: a peer may pad its records.
#[derive(Clone, Debug)]
pub struct Budget {
    /// The turn to which `share`, `spent` and so on belong; `None` before the first one.
    turn: Option<u64>,
    share: usize,
    spent: usize,
    /// How much of [`Budget::work`] the event loop knows of.
    settled: usize,
    /// How much ciphertext was read, in bytes, of which OpenSSL may make less cleartext.
    taken_in: usize,
    is_admitted: bool,
    /// The direction was busy when it worked the last time.
    is_busy: bool,
    /// The direction is among those that were counted in this turn.
    is_counted: bool,
    /// See the module's documentation, in bytes.
    clock: u64,
}

impl Default for Budget {
    /// The budget of a direction that begins now.
    fn default() -> Budget {
        Budget {
            turn: None,
            share: MOST,
            spent: 0,
            settled: 0,
            taken_in: 0,
            is_admitted: false,
            is_busy: false,
            is_counted: false,
            clock: 0,
        }
    }
}

impl Budget {
    /// Asks whether the direction may work in this turn. To be called when it could work.
    pub fn begin(&mut self) -> Admission {
        let now = self.enter();
        if !self.is_admitted {
            if self.is_busy && !now.admits(self.clock) {
                return Admission::Wait;
            }
            self.is_admitted = true;
            self.share = self.share_in(&now);
        }
        match self.is_spent() {
            true => Admission::Wait,
            false => Admission::Work,
        }
    }

    /// Lets the direction work in this turn without asking: it has something that it took in when
    /// it was admitted. It has to ask before it takes in more.
    pub fn go_on(&mut self) {
        let now = self.enter();
        if !self.is_admitted {
            self.share = self.share_in(&now);
        }
    }

    /// Begins a new budget if the event loop has turned since the last call.
    fn enter(&mut self) -> Loop {
        let mut now = LOOP.get();
        if self.turn == Some(now.turn) {
            return now;
        }
        if self.work() > 0 {
            self.is_busy = self.work() >= BUSY;
        }
        let paused = self
            .turn
            .map_or(u64::MAX, |turn| now.turn.wrapping_sub(turn));
        if paused > LONG_PAUSE {
            self.is_busy = false;
        }
        // A direction that has not asked for more than two turns had nothing to move, and does not
        // get these turns back.
        if paused > 2 || !self.is_busy || !now.is_crowded() {
            self.clock = now.clock + now.stagger();
        }
        // The clock stays within these bounds, so that a direction neither waits long for what it
        // moved while few others were busy, nor catches up on everything that a slow peer did not
        // take.
        let (slowest, fastest) = (3 * LEAST as u64, 2 * LEAST as u64);
        self.clock = self
            .clock
            .clamp(now.clock.saturating_sub(slowest), now.clock + fastest);
        self.turn = Some(now.turn);
        self.spent = 0;
        self.settled = 0;
        self.taken_in = 0;
        self.is_admitted = false;
        self.is_counted = self.is_busy;
        if self.is_counted {
            now.busy += 1;
            LOOP.set(now);
        }
        now
    }

    /// The share of this direction in the present turn. If not all directions can work in each
    /// turn, a direction that was not busy has a small share.
    fn share_in(&self, now: &Loop) -> usize {
        match self.is_busy || !(now.is_crowded() || now.is_full()) {
            true => share_of(now.busy_lately()),
            false => BUSY,
        }
    }

    /// Counts one call that brought `bytes` bytes into the splice.
    pub fn spend(&mut self, call: Call, bytes: usize) {
        self.spent += bytes.max(call.least_work());
    }

    /// Counts `bytes` bytes of ciphertext that were read. What is decrypted from them is counted
    /// by [`Budget::spend`].
    pub fn take_in(&mut self, bytes: usize) {
        self.taken_in += bytes;
    }

    /// Counts one more call, on `bytes` bytes that [`Budget::spend`] has counted when
    /// they came. Only what the call costs beyond its bytes is added.
    pub fn spend_again(&mut self, call: Call, bytes: usize) {
        self.spent += call.least_work().saturating_sub(bytes);
    }

    /// How many bytes more are work for this turn.
    pub fn left(&self) -> usize {
        self.share.saturating_sub(self.work())
    }

    /// The work that the direction has done in its turn, in bytes. Decrypting a record costs what
    /// its ciphertext is long, however little cleartext is in the record.
    fn work(&self) -> usize {
        self.spent.max(self.taken_in)
    }

    /// Whether it is time to let the event loop turn. What was taken in does not count here: the
    /// direction is to decrypt and to deliver that.
    pub fn is_spent(&self) -> bool {
        self.spent >= self.share
    }

    /// Whether so little is left that a stream is not worth a system call in this turn.
    pub fn is_nearly_spent(&self) -> bool {
        self.left() < MAX_RECORD / 2
    }

    /// Whether the work is twice what the share allows. This limit is for input whose
    /// amount was bounded by [`Budget::is_spent`] before it was read, and of which no
    /// rest is to be left for the next turn if that can be helped.
    pub fn is_overdrawn(&self) -> bool {
        self.spent >= 2 * self.share
    }

    /// Lets the event loop know of the work. To be called when the direction pauses.
    pub fn settle(&mut self) {
        if self.work() < BUSY || self.settled == self.work() {
            return;
        }
        let mut now = LOOP.get();
        if !self.is_counted {
            self.is_counted = true;
            now.busy += 1;
        }
        let work = self.work() - self.settled;
        self.settled = self.work();
        self.clock += work as u64;
        now.work += work;
        LOOP.set(now);
    }
}

/// The share of each direction if `busy` directions are busy.
fn share_of(busy: usize) -> usize {
    let pieces = PER_TURN / LEAST / busy.max(1);
    (pieces * LEAST).clamp(LEAST, MOST)
}

/// Lets the event loop of this thread turn.
#[cfg(test)]
pub(crate) fn next_turn() {
    begin_turn(LOOP.get().turn + 1);
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
    fn a_spent_budget_is_new_in_the_next_turn() {
        let mut budget = Budget::default();
        assert_eq!(budget.begin(), Admission::Work);
        budget.spend(Call::System, 2 * MOST);
        assert!(budget.is_spent() && budget.is_overdrawn());
        for _ in 0..3 {
            budget.settle();
            assert_eq!(budget.begin(), Admission::Wait);
        }
        next_turn();
        assert_eq!(budget.begin(), Admission::Work);
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

    #[test]
    fn a_number_of_the_turn_before_is_one_of_this_turn() {
        begin_turn(10);
        let mut budget = Budget::default();
        assert_eq!(budget.begin(), Admission::Work);
        budget.spend(Call::System, MOST);
        for number in [9, 10, 9] {
            begin_turn(number);
            assert_eq!(budget.begin(), Admission::Wait);
        }
        for number in [11, 9, u64::MAX, 0, 1 << 40] {
            begin_turn(number);
            assert_eq!(budget.begin(), Admission::Work);
            budget.spend(Call::System, MOST);
        }
    }

    /// A direction that has at most `given` bytes to move in each turn, and what it has moved.
    struct Mover {
        budget: Budget,
        given: usize,
        moved: usize,
    }

    impl Mover {
        /// Moves at most so many bytes if it may. Returns how many it has moved.
        fn work(&mut self, most: usize) -> usize {
            if self.budget.begin() == Admission::Wait {
                return 0;
            }
            let used = self.budget.left().min(most);
            self.budget.spend(Call::System, used);
            self.budget.settle();
            self.moved += used;
            used
        }
    }

    fn movers(count: usize, given: usize) -> Vec<Mover> {
        let mover = |_| Mover {
            budget: Budget::default(),
            given,
            moved: 0,
        };
        (0..count).map(mover).collect()
    }

    /// Lets each direction move what it may now. Returns how much all of them have moved.
    fn work(movers: &mut [Mover]) -> usize {
        movers.iter_mut().map(|mover| mover.work(mover.given)).sum()
    }

    /// Lets the event loop turn, and then each direction move what it may.
    fn turn(movers: &mut [Mover]) -> usize {
        next_turn();
        work(movers)
    }

    fn turns(count: usize, movers: &mut [Mover]) -> Vec<usize> {
        (0..count).map(|_| turn(movers)).collect()
    }

    /// The most work of a turn: a direction that has begun may use its whole share, and those that
    /// have fallen behind are admitted, too.
    const MOST_IN_A_TURN: usize = PER_TURN + PER_TURN / 4;

    #[test]
    fn a_turn_is_bounded_however_many_directions_are_busy() {
        for (count, given) in [
            (8, usize::MAX),
            (33, usize::MAX),
            (200, usize::MAX),
            (200, 20_000),
            (3000, 20_000),
        ] {
            let mut all = movers(count, given);
            for (i, sum) in turns(100, &mut all).into_iter().enumerate() {
                // In the first turn no direction is known to be busy, so that all are admitted.
                let most = MOST_IN_A_TURN + if i == 0 { count * BUSY } else { 0 };
                assert!(sum <= most, "{count}, turn {i}: {sum}");
            }
        }
    }

    #[test]
    fn a_turn_is_used_if_enough_directions_are_busy() {
        for (count, given) in [
            (8, usize::MAX),
            (9, usize::MAX),
            (10, usize::MAX),
            (31, usize::MAX),
            (32, usize::MAX),
            (33, usize::MAX),
            (63, usize::MAX),
            (65, usize::MAX),
            (200, usize::MAX),
            (200, 20_000),
            (1000, usize::MAX),
        ] {
            let mut all = movers(count, given);
            turns(50, &mut all);
            for sums in turns(1000, &mut all).chunks(20) {
                let mean = sums.iter().sum::<usize>() / sums.len();
                assert!(mean >= PER_TURN * 2 / 3, "{count}: {sums:?}");
            }
        }
    }

    #[test]
    fn all_have_the_same_share_in_the_long_run() {
        for count in [24, 33, 100, 200, 1000] {
            let mut all = movers(count, usize::MAX);
            turns(50, &mut all);
            all.iter_mut().for_each(|mover| mover.moved = 0);
            turns(1000, &mut all);
            let moved = all.iter().map(|mover| mover.moved);
            let (least, most) = (moved.clone().min().unwrap(), moved.max().unwrap());
            assert!(
                most <= least * 11 / 10 + LEAST,
                "{count}: {least} to {most}"
            );
        }
    }

    #[test]
    fn a_direction_that_asks_again_and_again_takes_nothing_from_the_others() {
        for count in [8, 60, 100, 200] {
            let mut all = movers(count, usize::MAX);
            let mut eager = movers(1, usize::MAX);
            for i in 0..250 {
                next_turn();
                let mut sum = 0;
                // It asks in between, too.
                for some in all.chunks_mut(7) {
                    sum += eager[0].work(LEAST / 4) + eager[0].work(usize::MAX) + work(some);
                }
                if i == 50 {
                    all.iter_mut().for_each(|mover| mover.moved = 0);
                    eager[0].moved = 0;
                }
                assert!(
                    sum <= MOST_IN_A_TURN + (count + 1) * BUSY,
                    "{count}, turn {i}: {sum}"
                );
            }
            let moved = || all.iter().chain(&eager).map(|mover| mover.moved);
            let (least, most) = (moved().min().unwrap(), moved().max().unwrap());
            assert!(most <= least * 5 / 4 + LEAST, "{count}: {least} to {most}");
        }
    }

    #[test]
    fn directions_of_which_some_do_little_at_a_time_all_get_their_turn() {
        let mut all = movers(200, usize::MAX);
        for mover in all.iter_mut().step_by(3) {
            mover.given = 20_000;
        }
        turns(50, &mut all);
        all.iter_mut().for_each(|mover| mover.moved = 0);
        for sums in turns(1000, &mut all).chunks(20) {
            let mean = sums.iter().sum::<usize>() / sums.len();
            let range = PER_TURN * 2 / 3..=PER_TURN * 11 / 10;
            assert!(range.contains(&mean), "{sums:?}");
        }
        let moved = all.iter().map(|mover| mover.moved);
        let (least, most) = (moved.clone().min().unwrap(), moved.max().unwrap());
        assert!(most <= least * 11 / 10, "{least} to {most}");
    }

    #[test]
    fn a_direction_alone_has_the_most_again_after_a_few_turns() {
        let mut all = movers(200, usize::MAX);
        turns(20, &mut all);
        // It has yet to learn that the others have stopped.
        turns(10, &mut all[..1]);
        assert_eq!(turns(3, &mut all[..1]), [MOST; 3]);
    }

    #[test]
    fn directions_that_have_something_to_move_now_and_then_count() {
        let mut all = movers(200, usize::MAX);
        turn(&mut all);
        for waiting in [0, 150, 0, 0, 100, 0, 50, 0].repeat(4) {
            let sum = turn(&mut all[waiting..]);
            assert!(sum <= MOST_IN_A_TURN, "{sum}");
        }
    }

    #[test]
    fn a_direction_that_was_slow_makes_up_for_little() {
        let mut all = movers(200, 9000);
        turns(5000, &mut all);
        for mover in &mut all {
            (mover.given, mover.moved) = (usize::MAX, 0);
        }
        let sums = turns(500, &mut all);
        let above = sums.iter().filter(|sum| **sum > MOST_IN_A_TURN).count();
        assert!(above <= 6, "{above} turns");

        let mut all = movers(200, usize::MAX);
        all[0].given = 9000;
        turns(1000, &mut all);
        all[0].given = usize::MAX;
        all.iter_mut().for_each(|mover| mover.moved = 0);
        turns(500, &mut all);
        assert!(all[0].moved <= all[1].moved + 4 * LEAST);
    }

    #[test]
    fn a_direction_that_was_quiet_for_long_does_not_wait() {
        let mut all = movers(1000, usize::MAX);
        turns(100, &mut all);
        turns(1000, &mut all[1..]);
        next_turn();
        work(&mut all[1..]);
        assert_eq!(all[0].work(100), 100);
    }

    #[test]
    fn a_direction_that_goes_on_has_to_ask_before_it_takes_in_more() {
        let mut all = movers(200, usize::MAX);
        turns(20, &mut all);
        while all[0].work(usize::MAX) == 0 {
            turn(&mut all[1..]);
        }
        turn(&mut all[1..]);
        all[0].budget.go_on();
        assert_eq!(all[0].budget.begin(), Admission::Wait);
    }

    #[test]
    fn ciphertext_without_cleartext_is_bounded_too() {
        let mut budget = Budget::default();
        assert_eq!(budget.begin(), Admission::Work);
        budget.take_in(MOST - 1);
        assert_eq!(budget.left(), 1);
        assert!(budget.is_nearly_spent());
        next_turn();
        assert_eq!(budget.begin(), Admission::Work);
        assert_eq!(budget.left(), MOST);
    }

    #[test]
    fn directions_that_move_little_do_not_count_and_do_not_wait() {
        let mut interactive = movers(1000, BUSY - 1);
        let mut bulk = movers(1, usize::MAX);
        for _ in 0..3 {
            turn(&mut interactive);
            assert_eq!(work(&mut bulk), MOST);
        }
        let mut bulk = movers(200, usize::MAX);
        for _ in 0..20 {
            let sum = turn(&mut interactive);
            assert_eq!(sum, 1000 * (BUSY - 1));
            work(&mut bulk);
        }
    }

    #[test]
    fn a_direction_that_begins_does_not_wait() {
        let mut all = movers(200, usize::MAX);
        turns(20, &mut all);
        let mut new = movers(100, usize::MAX);
        assert_eq!(turn(&mut new), 100 * BUSY);
        // From then on the new directions are treated like the others.
        let sum = turn(&mut new) + work(&mut all);
        assert!(sum <= MOST_IN_A_TURN, "{sum}");
    }

    #[test]
    fn a_direction_that_was_admitted_and_had_nothing_to_do_is_admitted() {
        let mut all = movers(1000, usize::MAX);
        turns(20, &mut all);
        let one = &mut all[0].budget;
        while one.begin() == Admission::Wait {
            next_turn();
        }
        one.settle();
        assert_eq!(one.begin(), Admission::Work);
    }

    #[test]
    fn each_event_loop_has_a_count_of_its_own() {
        let mut here = movers(200, usize::MAX);
        turns(20, &mut here);
        std::thread::spawn(|| {
            let mut there = movers(1, usize::MAX);
            assert_eq!(turn(&mut there), MOST);
        })
        .join()
        .unwrap();
        // A direction that is moved to another event loop works there, too.
        std::thread::spawn(move || {
            turns(2, &mut here[1..2]);
            assert_eq!(turn(&mut here[1..2]), MOST);
        })
        .join()
        .unwrap();
    }
}
