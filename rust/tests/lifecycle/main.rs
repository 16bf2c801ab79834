//! All states of the lifecycle that can be reached, with every input in every order.
//!
//! The lifecycle under test is the real one. explore.rs is a breadth-first search,
//! world.rs is what the lifecycle has to do with, and javascript.rs is what JavaScript
//! makes of it.

mod explore;
mod faults;
mod javascript;
mod setups;
mod table;
mod world;

/// What is explored.
mod machine {
    pub use tls_splice::lifecycle::*;
    pub use tls_splice::splice::Direction;
}

#[test]
fn one_splice_for_both_directions() {
    setups::duplex();
}

#[test]
fn two_splices_one_for_each_direction() {
    setups::two();
}

#[test]
fn a_joined_pair() {
    setups::pair();
}

#[test]
fn the_table_of_all_endings_is_that_of_the_documentation() {
    table::compare_with_documentation();
}

#[test]
fn each_ending_is_a_row_of_the_table_and_each_row_is_reached() {
    setups::pair();
    setups::duplex();
    setups::two();
    table::compare_with_exploration();
}

#[test]
fn faults_in_the_lifecycle_are_found() {
    faults::find_all();
}
