//! Faults that are put into the lifecycle one at a time: the exploration finds each.
//!
//! A fault is a change of the text of rust/src/lifecycle.rs. For each one a program is
//! made of the changed file and of the modules of this test, in a package of its own
//! below the target folder. The library that is shipped knows nothing of that.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const LIFECYCLE: &str = include_str!("../../src/lifecycle.rs");

/// A change that makes the lifecycle wrong.
struct Fault {
    /// What is wrong then.
    what: &'static str,
    /// The text to be replaced, which is there exactly once.
    text: &'static str,
    with: &'static str,
    /// Which worlds are explored, a function of setups.rs: the other ones are not compiled.
    worlds: &'static str,
}

const FAULTS: [Fault; 16] = [
    Fault {
        what: "A close_notify that JavaScript has not seen is not told to it after a stop().",
        text: "            self.untold_end = Some(LowerEnd::Eof);\n        }\n        match (self.untold_end",
        with: "            self.untold_end = None;\n        }\n        match (self.untold_end",
        worlds: "singles",
    },
    Fault {
        what: "A direction moves bytes in the turn in which it was taken over.",
        text: "Direction::Inbound => self.inbound = Inbound::Starting,",
        with: "Direction::Inbound => self.inbound = Inbound::Running,",
        worlds: "singles",
    },
    Fault {
        what: "The stream below is read while bytes wait for the sink.",
        text: "            Inbound::Running | Inbound::Over\n                if self.untold_end.is_none()",
        with: "            Inbound::Running | Inbound::Blocked | Inbound::Over\n                if self.untold_end.is_none()",
        worlds: "singles",
    },
    Fault {
        what: "The stream below is read on when it has ended.",
        text: "        self.has_lower_ended |= self.inbound != Inbound::Starting;\n",
        with: "",
        worlds: "singles",
    },
    Fault {
        what: "What SSL_read has come to is forgotten when the next splice runs its own pump.",
        text: "        if self.cleartext == Cleartext::Open {\n            self.cleartext = cleartext;\n        }",
        with: "        self.cleartext = cleartext;",
        worlds: "singles",
    },
    Fault {
        what: "A failed write is reported before the sink has every byte.",
        text: "Inbound::Running if self.write_failure.is_some() => {",
        with: "Inbound::Running | Inbound::Blocked if self.write_failure.is_some() => {",
        worlds: "singles",
    },
    Fault {
        what: "An end of the stream below that is held is told behind a close_notify.",
        text: "                self.untold_end = None;\n                Orders::hand_over(HandOver::CloseNotify)",
        with: "                Orders::hand_over(HandOver::CloseNotify)",
        worlds: "singles",
    },
    Fault {
        what: "A read error takes the place of the failed write that came first.",
        text: "let is_later_failure = self.write_failure.is_some() && end != LowerEnd::Eof;",
        with: "let is_later_failure = false;",
        worlds: "singles",
    },
    Fault {
        what: "An error of SSL_write takes the place of the error of SSL_read that explains it.",
        text: "        if self.holds_tls_error() {\n            self.outbound",
        with: "        if false {\n            self.outbound",
        worlds: "singles",
    },
    Fault {
        what: "An end takes the place of the failed write when both are handed back.",
        text: "(Some(LowerEnd::ReadFailed(_)), _) | (_, None) =>",
        with: "(Some(_), _) | (_, None) =>",
        worlds: "singles",
    },
    Fault {
        what: "A failed write takes the place of the failure of the source.",
        text: "Outbound::JavaScript | Outbound::Over | Outbound::Failed\n        );",
        with: "Outbound::JavaScript | Outbound::Over\n        );",
        worlds: "singles",
    },
    Fault {
        what: "A failure of the connection takes the place of an end that came before it.",
        text: "            _ if is_finished => own,\n            Connection::Failed | Connection::Gone => own | outcome::TLS_FAILED,",
        with: "            Connection::Failed | Connection::Gone => own | outcome::TLS_FAILED,\n            _ if is_finished => own,",
        worlds: "singles",
    },
    Fault {
        what: "A stop does not go on when the stream below has written.",
        text: "            Outbound::Stopping => Orders::NEXT_TURN,",
        with: "            Outbound::Stopping => Orders::NONE,",
        worlds: "singles",
    },
    Fault {
        what: "What waits for a handshake is not tried again when ciphertext arrives.",
        text: "        match self.waits_for_handshake() {\n            true => Orders::ENCRYPT,",
        with: "        match self.waits_for_handshake() {\n            true => Orders::NONE,",
        worlds: "singles",
    },
    Fault {
        what: "A call that was cancelled inside of SSL_write is not made again.",
        text: "            Sending::Paused => Orders::NEXT_TURN,\n            _ => Orders::NONE,",
        with: "            _ => Orders::NONE,",
        worlds: "singles",
    },
    Fault {
        what: "What another splice gives while the source is waited for stays where it is.",
        text: "        if self.outbound == Outbound::Waiting {\n            self.outbound = Outbound::Paused;\n        }",
        with: "",
        worlds: "pairs",
    },
];

/// The program that explores a changed lifecycle. It ends with 0 if it finds nothing.
const PROGRAM: &str = r#"
#![allow(warnings)]
extern crate self as libc;
pub type c_int = i32;
pub mod splice {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Direction { Inbound, Outbound }
}
#[path = "FAULT"]
pub mod lifecycle;
pub mod machine {
    pub use crate::lifecycle::*;
    pub use crate::splice::Direction;
}
#[path = "MODULES/checks.rs"]
mod checks;
#[path = "MODULES/connection.rs"]
mod connection;
#[path = "MODULES/explore.rs"]
mod explore;
#[path = "MODULES/javascript.rs"]
mod javascript;
#[path = "MODULES/pumps.rs"]
mod pumps;
#[path = "MODULES/setups.rs"]
mod setups;
#[path = "MODULES/shim.rs"]
mod shim;
#[path = "MODULES/world.rs"]
mod world;
fn main() {
    setups::WORLDS();
}
"#;

const MANIFEST: &str = r#"
[package]
name = "faults"
version = "0.1.0"
edition = "2021"
[profile.dev]
opt-level = 1
debug = 0
incremental = false
[workspace]
"#;

/// Writes the file if it is not there with that text, so that nothing is compiled twice.
fn write(path: &Path, text: &str) {
    if fs::read_to_string(path).ok().as_deref() != Some(text) {
        fs::write(path, text).unwrap();
    }
}

/// Makes the package with a program for each fault.
fn make_package(folder: &Path) {
    let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/rust/tests/lifecycle");
    let programs = folder.join("src/bin");
    fs::create_dir_all(&programs).unwrap();
    write(&folder.join("Cargo.toml"), MANIFEST);
    for (number, fault) in FAULTS.iter().enumerate() {
        let places = LIFECYCLE.matches(fault.text).count();
        assert_eq!(
            places, 1,
            "the text of a fault is there once: {}",
            fault.what
        );
        let name = format!("lifecycle-{number}.rs");
        let lifecycle = LIFECYCLE.replace(fault.text, fault.with);
        write(&folder.join(&name), &lifecycle);
        let program = PROGRAM
            .replace("FAULT", &format!("../../{name}"))
            .replace("MODULES", modules)
            .replace("WORLDS", fault.worlds);
        write(&programs.join(format!("fault-{number}.rs")), &program);
    }
}

/// The name of the check by which the program has found the fault.
fn check_that_finds(folder: &Path, number: usize) -> Option<String> {
    let program = folder.join(format!("target/debug/fault-{number}"));
    let output = Command::new(program).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let check = said
        .lines()
        .find_map(|line| line.strip_prefix("violated: "));
    check
        .filter(|_| !output.status.success())
        .map(str::to_owned)
}

/// Each fault is found.
pub fn find_all() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    make_package(&folder);
    let begin = Instant::now();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--offline", "--quiet", "--target-dir"])
        .arg(folder.join("target"))
        .current_dir(&folder)
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTFLAGS")
        .status()
        .unwrap();
    assert!(built.success(), "the programs are built");
    println!("faults: built in {:.1} s", begin.elapsed().as_secs_f64());
    let begin = Instant::now();
    let mut missed = Vec::new();
    for (number, fault) in FAULTS.iter().enumerate() {
        match check_that_finds(&folder, number) {
            Some(check) => println!("found: {} By: {check}.", fault.what),
            None => missed.push(fault.what),
        }
    }
    println!("faults: {:.1} s", begin.elapsed().as_secs_f64());
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
