//! All states of the lifecycle that can be reached, with every input in every order.
//!
//! The lifecycle under test is the real one. Around it is a small world, which keeps the
//! orders of the lifecycle as the real one does:
//!
//! - world.rs: what can happen; connection.rs: what there is of a connection
//! - pumps.rs, shim.rs, javascript.rs: small copies of what has to do with the lifecycle
//! - checks.rs: what holds in every state; explore.rs: the search, and that it ends
//! - setups.rs: which worlds are explored
//! - table.rs: the table of all endings; faults.rs: faults that have to be found

mod checks;
mod connection;
mod explore;
mod faults;
mod javascript;
mod pumps;
mod setups;
mod shim;
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
