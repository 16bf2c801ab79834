//! Which worlds are explored.

use std::sync::Once;
use std::time::Instant;

use crate::connection::*;
use crate::explore::explore;
use crate::world::*;

const NONE: &[Item] = &[];
const RECORDS: &[Item] = &[Item::Record, Item::Record];
const CLOSED: &[Item] = &[Item::Record, Item::CloseNotify];
const CANCELED: &[Item] = &[Item::Record, Item::CanceledCloseNotify];
const BROKEN: &[Item] = &[Item::Record, Item::BadRecord];
const ONE: &[Item] = &[Item::Record];

/// What the peer does, and what happens rarely meanwhile.
type Course = (Rare, &'static [Item], Tail);

const COURSES: [Course; 13] = [
    (Rare::CyclesAndPanic, NONE, Tail::Reset),
    (Rare::CyclesAndPanic, ONE, Tail::TornEof),
    (Rare::CyclesAndPanic, RECORDS, Tail::Eof),
    (Rare::CyclesAndPanic, CLOSED, Tail::Reset),
    (Rare::CyclesAndPanic, BROKEN, Tail::Eof),
    (Rare::Nothing, CANCELED, Tail::Reset),
    (Rare::Nothing, CANCELED, Tail::Eof),
    (Rare::Handshake, ONE, Tail::Reset),
    (Rare::Handshake, CLOSED, Tail::Nothing),
    (Rare::WriteBreaks, RECORDS, Tail::Eof),
    (Rare::WriteBreaks, CLOSED, Tail::Reset),
    (Rare::WriteBreaks, BROKEN, Tail::Nothing),
    (Rare::Nothing, RECORDS, Tail::Reset),
];

fn worlds(handles: Handles) -> Vec<World<1>> {
    let mut worlds = Vec::new();
    for budget in [Budget::OneRecord, Budget::All] {
        for (rare, script, tail) in COURSES {
            let setup = Setup {
                handles,
                budget,
                script,
                is_direct: budget == Budget::All,
                ends_other: budget == Budget::All,
                rare,
            };
            // JavaScript has read the first record, and nobody has taken it.
            let buffered = u8::from(rare == Rare::Handshake);
            worlds.push(World {
                sides: [Side::new(setup, tail, 1, buffered)],
                is_joined: false,
                resumes_at_once: false,
                callback: None,
            });
        }
    }
    worlds
}

/// What the peers of the two sides of a joined pair do, of which one only receives.
const ONE_WAY: [[Course; 2]; 6] = [
    [
        (Rare::Nothing, RECORDS, Tail::Reset),
        (Rare::Nothing, NONE, Tail::Reset),
    ],
    [
        (Rare::CyclesAndPanic, RECORDS, Tail::TornEof),
        (Rare::Nothing, NONE, Tail::Nothing),
    ],
    [
        (Rare::Nothing, CLOSED, Tail::Reset),
        (Rare::CyclesAndPanic, NONE, Tail::Nothing),
    ],
    [
        (Rare::Nothing, CLOSED, Tail::Nothing),
        (Rare::Handshake, NONE, Tail::Nothing),
    ],
    [
        (Rare::Nothing, BROKEN, Tail::Nothing),
        (Rare::Nothing, NONE, Tail::Eof),
    ],
    [
        (Rare::Nothing, RECORDS, Tail::Eof),
        (Rare::WriteBreaks, NONE, Tail::Nothing),
    ],
];

/// What they do if both send and receive.
const BOTH_WAYS: [[Course; 2]; 3] = [
    [
        (Rare::Nothing, ONE, Tail::Eof),
        (Rare::Nothing, ONE, Tail::Reset),
    ],
    [
        (Rare::Nothing, CLOSED, Tail::Nothing),
        (Rare::Nothing, NONE, Tail::Reset),
    ],
    [
        (Rare::Nothing, BROKEN, Tail::Nothing),
        (Rare::Nothing, NONE, Tail::Eof),
    ],
];

fn side(handles: Handles, budget: Budget, (rare, script, tail): Course) -> Side {
    let setup = Setup {
        handles,
        budget,
        script,
        is_direct: budget == Budget::All,
        ends_other: true,
        rare,
    };
    Side::new(setup, tail, 0, 0)
}

/// Joined pairs of which one side sends and the other one receives.
fn one_way() -> Vec<World<2>> {
    let mut worlds = Vec::new();
    for budget in [Budget::OneRecord, Budget::All] {
        for [busy, quiet] in ONE_WAY {
            let from = side(Handles::OnlyIn, budget, busy);
            let to = side(Handles::OnlyOut, budget, quiet);
            for sides in [[from, to], [to, from]] {
                worlds.push(World {
                    sides,
                    is_joined: true,
                    resumes_at_once: false,
                    callback: None,
                });
            }
        }
    }
    worlds
}

/// Joined pairs of which both sides send and receive.
fn both_ways() -> Vec<World<2>> {
    let mut worlds = Vec::new();
    for budget in [Budget::OneRecord, Budget::All] {
        for courses in BOTH_WAYS {
            worlds.push(World {
                sides: courses.map(|course| side(Handles::Duplex, budget, course)),
                is_joined: true,
                resumes_at_once: false,
                callback: None,
            });
        }
    }
    worlds
}

fn run<const N: usize>(name: &str, starts: &[World<N>]) {
    let begin = Instant::now();
    let found = explore(starts, &events(N));
    println!(
        "{name}: {} states, {} transitions; at most {} steps to the end, {} to rest ({:.1} s)",
        found.states,
        found.transitions,
        found.steps_to_end,
        found.steps_to_rest,
        begin.elapsed().as_secs_f64(),
    );
}

/// One splice for both directions.
pub fn duplex() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| run("one splice", &worlds(Handles::Duplex)));
}

/// Two splices, one for each direction.
pub fn two() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| run("two splices", &worlds(Handles::Two)));
}

/// Two connections, each of which sends what the other one receives.
pub fn pair() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        run("a joined pair, one way", &one_way());
        run("a joined pair, both ways", &both_ways());
    });
}

/// All worlds of one connection, one by one, which is the fastest way to something that
/// is wrong.
#[allow(dead_code)] // For seeded faults only.
pub fn singles() {
    for handles in [Handles::Duplex, Handles::Two] {
        for world in worlds(handles) {
            explore(&[world], &events(1));
        }
    }
}

/// All joined pairs, one by one.
#[allow(dead_code)] // For seeded faults only.
pub fn pairs() {
    for world in one_way().into_iter().chain(both_ways()) {
        explore(&[world], &events(2));
    }
}
