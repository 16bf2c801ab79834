//! The table of all endings: in the documentation, in the module comment of the
//! lifecycle, and as far as the exploration has come.

use std::sync::atomic::Ordering;

use crate::javascript::{Row, IS_REACHED, REACHED, ROWS};
use crate::machine::outcome;

const LIFECYCLE: &str = include_str!("../../src/lifecycle.rs");
const DOCUMENTATION: &str = include_str!("../../../node-patches/doc-add-tlssocket-spliceto.patch");

/// The name of each bit, as the table has it.
const BITS: [(&str, u32); 8] = [
    ("IN_OVER", outcome::IN_OVER),
    ("OUT_OVER", outcome::OUT_OVER),
    ("IN_STOPPED", outcome::IN_STOPPED),
    ("OUT_STOPPED", outcome::OUT_STOPPED),
    ("ENDPOINT_FAILED", outcome::ENDPOINT_FAILED),
    ("TLS_FAILED", outcome::TLS_FAILED),
    ("TLS_FAILING", outcome::TLS_FAILING),
    ("WANTS_HANDSHAKE", outcome::WANTS_HANDSHAKE),
];

/// The rows of the first table below the heading, without its head. Each line of the
/// text begins with `prefix`, or is none of it.
fn rows(text: &str, prefix: &str, heading: &str) -> Vec<Vec<String>> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let mut table = lines
        .map(str::trim)
        .skip_while(|&line| line != heading)
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
        });
    let head = table.next().expect("there is a table");
    assert_eq!(head.first().map(String::as_str), Some("Event"));
    assert_eq!(head.last().map(String::as_str), Some("Splice"));
    let rule = table.next().expect("a table has a line below its head");
    assert!(rule.iter().all(|cell| cell.chars().all(|c| c == '-')));
    table.collect()
}

/// The bits that a cell of the table names; none for a dash.
fn bits(cell: &str) -> u32 {
    if cell == "—" {
        return 0;
    }
    let bit = |name: &str| {
        let name = name.trim().trim_matches('`');
        let found = BITS.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("{name} is a bit")).1
    };
    cell.split(',').map(bit).fold(0, |all, bit| all | bit)
}

/// The table in the module comment has the rows of the table in doc/api/tls.md.
pub fn compare_with_documentation() {
    let of_lifecycle = rows(LIFECYCLE, "//!", "# Outcomes");
    let documented = rows(DOCUMENTATION, "+", "### How a splice ends");
    for (row, documented) in of_lifecycle.iter().zip(&documented) {
        assert_eq!(row.first(), documented.first());
        assert_eq!(row.last(), documented.last(), "in the row of {}", row[0]);
        assert_eq!(row.len(), 3);
    }
    assert_eq!(of_lifecycle.len(), documented.len());
    assert_eq!(of_lifecycle.len(), ROWS);
}

/// The exploration, which has ended, has reached each row with each bit that the table
/// has for the row, and with no other bit.
pub fn compare_with_exploration() {
    let mut named = 0;
    for (index, row) in rows(LIFECYCLE, "//!", "# Outcomes").iter().enumerate() {
        let reached = REACHED[index].load(Ordering::Relaxed);
        assert_eq!(
            reached & !IS_REACHED,
            bits(&row[1]),
            "in the row of {}",
            row[0]
        );
        let is_reached = reached & IS_REACHED != 0;
        assert_eq!(
            is_reached,
            index != Row::Exit as usize,
            "the row of {}",
            row[0]
        );
        named |= bits(&row[1]);
    }
    let all = BITS.iter().fold(0, |all, (_, bit)| all | bit);
    assert_eq!(named, all, "each bit has a row");
}
