//! A breadth-first search through all states of a model, and the checks that need more
//! than one state: that every path ends.

use std::fmt::Debug;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};

/// States and what can happen in them.
pub trait Model: Copy + Eq + Hash + Debug {
    /// What can happen.
    type Event: Copy + Debug;

    /// The state after the event, or `None` if the event cannot happen now.
    fn after(&self, event: Self::Event) -> Option<Self>;

    /// Panics if something does not hold that has to hold in every state.
    fn check(&self);

    /// Panics if something does not hold that has to hold when none of the events of
    /// `Pace` can happen.
    fn check_at_rest(&self, pace: Pace);
}

/// Which events are followed to the end, to see that there is an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Everybody does their part: the loop turns, JavaScript does what it has been asked
    /// for, the sink takes, the source gives and ends, the peer sends and ends, and the
    /// stream below writes.
    Fair,
    /// Only the event loop turns: nobody outside of the process does anything.
    Alone,
}

/// The events of a model.
pub struct Events<E: 'static> {
    /// Those of [`Pace::Alone`].
    pub alone: Vec<E>,
    /// What [`Pace::Fair`] has beside those.
    pub fair: Vec<E>,
    /// Those that nobody can count on.
    pub others: Vec<E>,
}

/// What a search has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// States.
    pub states: usize,
    /// Transitions from one of them to another one.
    pub transitions: usize,
    /// The most steps from any state to the end of all splices, if everybody does their
    /// part.
    pub steps_to_end: u32,
    /// The most steps from any state until nothing happens any more by itself.
    pub steps_to_rest: u32,
}

/// Panics with the name of the check that has found something, and what it has found.
/// The name is what a seeded fault is found by.
#[macro_export]
macro_rules! ensure {
    ($holds:expr, $name:expr) => {
        if !$holds {
            panic!("violated: {}", $name);
        }
    };
}

/// The hash function of rustc: fast, and good enough for states.
#[derive(Default)]
pub struct FxHasher(u64);

impl FxHasher {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for FxHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.add(byte.into()));
    }
    fn write_u8(&mut self, n: u8) {
        self.add(n.into());
    }
    fn write_u32(&mut self, n: u32) {
        self.add(n.into());
    }
    fn write_i32(&mut self, n: i32) {
        self.add(n as u32 as u64);
    }
    fn write_u64(&mut self, n: u64) {
        self.add(n);
    }
    fn write_isize(&mut self, n: isize) {
        self.add(n as u64);
    }
    fn write_usize(&mut self, n: usize) {
        self.add(n as u64);
    }
    fn finish(&self) -> u64 {
        // The table takes the low bits, and the multiplication mixes upwards.
        self.0 ^ (self.0 >> 32)
    }
}

/// The states by number, each once.
struct States<S> {
    all: Vec<S>,
    /// The number of a state, plus one, at the first free place after its hash.
    places: Vec<u32>,
}

impl<S: Copy + Eq + Hash> States<S> {
    fn new() -> States<S> {
        States {
            all: Vec::new(),
            places: vec![0; 1 << 16],
        }
    }

    fn place(&self, state: &S) -> usize {
        let mask = self.places.len() - 1;
        let hash = BuildHasherDefault::<FxHasher>::default().hash_one(state);
        let mut place = hash as usize & mask;
        while self.places[place] != 0 && self.all[self.places[place] as usize - 1] != *state {
            place = (place + 1) & mask;
        }
        place
    }

    /// The number of the state, and whether it is new.
    fn number(&mut self, state: &S) -> (u32, bool) {
        let place = self.place(state);
        if self.places[place] != 0 {
            return (self.places[place] - 1, false);
        }
        self.all.push(*state);
        self.places[place] = self.all.len() as u32;
        if self.all.len() * 2 > self.places.len() {
            self.grow();
        }
        (self.all.len() as u32 - 1, true)
    }

    fn grow(&mut self) {
        self.places = vec![0; self.places.len() * 2];
        for number in 0..self.all.len() {
            let place = self.place(&self.all[number]);
            self.places[place] = number as u32 + 1;
        }
    }
}

/// The transitions that some events make, by the number of the state that they leave.
#[derive(Default)]
struct Edges {
    ends: Vec<u32>,
    to: Vec<u32>,
}

impl Edges {
    fn of(&self, state: usize) -> &[u32] {
        let begin = match state {
            0 => 0,
            _ => self.ends[state - 1],
        };
        &self.to[begin as usize..self.ends[state] as usize]
    }

    /// How many steps the longest path takes from each state, or a state from which a
    /// path goes round in a circle.
    fn longest_paths(&self) -> Result<Vec<u32>, u32> {
        const UNKNOWN: u32 = u32::MAX;
        const OPEN: u32 = u32::MAX - 1;
        let mut steps = vec![UNKNOWN; self.ends.len()];
        let mut stack = Vec::new();
        for start in 0..self.ends.len() as u32 {
            stack.push(start);
            while let Some(&state) = stack.last() {
                let next = self.of(state as usize);
                match steps[state as usize] {
                    UNKNOWN => {
                        steps[state as usize] = OPEN;
                        for &to in next {
                            match steps[to as usize] {
                                UNKNOWN => stack.push(to),
                                OPEN => return Err(to),
                                _ => {}
                            }
                        }
                    }
                    OPEN => {
                        let longest = next.iter().map(|&to| steps[to as usize] + 1).max();
                        steps[state as usize] = longest.unwrap_or(0);
                        stack.pop();
                    }
                    _ => {
                        stack.pop();
                    }
                }
            }
        }
        Ok(steps)
    }
}

/// A search: the states that it has found, and how.
struct Search<M: Model> {
    states: States<M>,
    /// The state before and the event, by which a state was found first.
    from: Vec<Option<(u32, M::Event)>>,
    /// What has been tried last.
    tried: Option<M::Event>,
    alone: Edges,
    fair: Edges,
    transitions: usize,
}

/// Visits everything that can be reached from `starts`, checks it, and panics with the
/// events that lead there if something does not hold.
pub fn explore<M: Model>(starts: &[M], events: &Events<M::Event>) -> Found {
    let mut search = Search {
        states: States::new(),
        from: Vec::new(),
        tried: None,
        alone: Edges::default(),
        fair: Edges::default(),
        transitions: 0,
    };
    for start in starts {
        if search.states.number(start).1 {
            search.from.push(None);
        }
    }
    let mut number = 0;
    while number < search.states.all.len() {
        let state = search.states.all[number];
        let visited = catch_unwind(AssertUnwindSafe(|| {
            search.visit(number as u32, state, events)
        }));
        if let Err(panic) = visited {
            search.tell_path(number as u32);
            eprintln!("at {:?}", search.tried);
            resume_unwind(panic);
        }
        number += 1;
    }
    Found {
        states: search.states.all.len(),
        transitions: search.transitions,
        steps_to_end: search.check_that_it_ends(Pace::Fair),
        steps_to_rest: search.check_that_it_ends(Pace::Alone),
    }
}

impl<M: Model> Search<M> {
    fn visit(&mut self, number: u32, state: M, events: &Events<M::Event>) {
        self.tried = None;
        state.check();
        let is_at_rest = !self.follow(number, state, &events.alone, Some(Pace::Alone));
        self.alone.ends.push(self.alone.to.len() as u32);
        if is_at_rest {
            state.check_at_rest(Pace::Alone);
        }
        let has_ended = !self.follow(number, state, &events.fair, Some(Pace::Fair)) && is_at_rest;
        self.fair.ends.push(self.fair.to.len() as u32);
        if has_ended {
            state.check_at_rest(Pace::Fair);
        }
        self.follow(number, state, &events.others, None);
    }

    /// Whether one of the events can happen.
    fn follow(&mut self, from: u32, state: M, events: &[M::Event], pace: Option<Pace>) -> bool {
        let mut can_happen = false;
        for &event in events {
            self.tried = Some(event);
            let Some(next) = state.after(event) else {
                continue;
            };
            if next == state {
                continue;
            }
            can_happen = true;
            self.transitions += 1;
            let (number, is_new) = self.states.number(&next);
            if is_new {
                self.from.push(Some((from, event)));
            }
            if pace == Some(Pace::Alone) {
                self.alone.to.push(number);
            }
            if pace.is_some() {
                self.fair.to.push(number);
            }
        }
        can_happen
    }

    fn check_that_it_ends(&self, pace: Pace) -> u32 {
        let edges = match pace {
            Pace::Fair => &self.fair,
            Pace::Alone => &self.alone,
        };
        match edges.longest_paths() {
            Ok(steps) => steps.into_iter().max().unwrap_or(0),
            Err(state) => {
                self.tell_path(state);
                panic!("violated: every path ends, {pace:?}");
            }
        }
    }

    fn tell_path(&self, state: u32) {
        let mut events = Vec::new();
        let mut at = state;
        while let Some((before, event)) = self.from[at as usize] {
            events.push(event);
            at = before;
        }
        events.reverse();
        eprintln!("from {:?}", self.states.all[at as usize]);
        eprintln!("after {events:?}");
        eprintln!("in {:?}", self.states.all[state as usize]);
    }
}
