//! How much the splices of one event loop move in one turn of it.
//!
//! A turn lets each splice do what it can until it has to wait for the event loop. Nothing
//! here depends on time: bytes are counted.

#![allow(clippy::undocumented_unsafe_blocks, clippy::incompatible_msrv)]

mod common;

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use common::{connect, Tls, TLS1_3};
use libc::c_int;
use openssl_sys::SSL;
use tls_splice::endpoint::{Access, Endpoint};
use tls_splice::inbound::InboundStep;
use tls_splice::splice::{Direction, Splice};

// What openssl-sys lacks.
extern "C" {
    fn SSL_set_block_padding(ssl: *mut SSL, block_size: usize) -> c_int;
}

/// What the busy splices may move together in one turn.
const PER_TURN: usize = 1 << 21;
/// What a turn may come to: of what was decrypted, some may be left that an endpoint had no room
/// for before.
const MOST_IN_A_TURN: usize = 2 * PER_TURN;
/// What each of them may move when it is its turn, however many there are.
const LEAST: usize = 64 * 1024;
const HIGH_WATER_MARK: usize = 256 * 1024;
/// The longest record, in bytes of cleartext.
const MAX_RECORD: usize = 16 * 1024;
/// Length of a packet: many of them fit neither into a share nor into a socket.
const PACKET: usize = 8000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Pipe,
    Socket,
    Datagrams,
}

const KINDS: [Kind; 3] = [Kind::Pipe, Kind::Socket, Kind::Datagrams];

/// The splice's end of an endpoint, and the other end, which does not block.
fn ends(kind: Kind, direction: Direction) -> (OwnedFd, File) {
    let (near, far): (OwnedFd, OwnedFd) = match (kind, direction) {
        (Kind::Pipe, Direction::Inbound) => {
            let (reader, writer) = io::pipe().unwrap();
            (writer.into(), reader.into())
        }
        (Kind::Pipe, Direction::Outbound) => {
            let (reader, writer) = io::pipe().unwrap();
            (reader.into(), writer.into())
        }
        (Kind::Socket, _) => {
            let (near, far) = UnixStream::pair().unwrap();
            (near.into(), far.into())
        }
        (Kind::Datagrams, _) => {
            let (near, far) = UnixDatagram::pair().unwrap();
            (near.into(), far.into())
        }
    };
    let flags = unsafe { libc::fcntl(far.as_raw_fd(), libc::F_GETFL) };
    let set = unsafe { libc::fcntl(far.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    assert_eq!(set, 0);
    (near, far.into())
}

/// A splice that always has something to move, and room for it.
struct Busy {
    direction: Direction,
    splice: Splice,
    ours: Tls,
    peer: Tls,
    far: File,
    /// What the peer writes at once, for the inbound direction.
    cleartext: Vec<u8>,
    /// How many bytes the stream below has given.
    taken_in: usize,
    /// Ciphertext that the stream below has, for the inbound direction.
    wire: VecDeque<u8>,
    /// How many bytes of `wire` the stream below gives in one turn at most, as a TCP connection
    /// does whose peer has no larger window.
    window: usize,
    /// The pump is to run before the stream below is read again.
    is_paused: bool,
}

impl Busy {
    fn new(kind: Kind, direction: Direction) -> Busy {
        let (near, far) = ends(kind, direction);
        let (ours, peer) = connect(TLS1_3, true);
        let access = match direction {
            Direction::Inbound => Access::Write,
            Direction::Outbound => Access::Read,
        };
        let endpoint = Endpoint::open(near.as_raw_fd(), access).unwrap();
        let framing = endpoint.framing(None).unwrap();
        let mut splice = Splice::new(endpoint, framing.into(), HIGH_WATER_MARK);
        splice.start(direction);
        if direction == Direction::Inbound {
            assert!(unsafe { splice.attach(direction, ours.0) });
        }
        Busy {
            direction,
            splice,
            ours,
            peer,
            far,
            cleartext: match kind {
                Kind::Datagrams => {
                    let len = (PACKET as u16).to_be_bytes();
                    [&len[..], &vec![7; PACKET]].concat().repeat(8)
                }
                Kind::Pipe | Kind::Socket => vec![7; PACKET * 8],
            },
            taken_in: 0,
            wire: VecDeque::new(),
            window: 2 * HIGH_WATER_MARK,
            is_paused: false,
        }
    }

    /// Lets the peer send records that are as long as can be, each with one byte of cleartext.
    fn pad_records(&mut self) {
        self.cleartext = vec![7];
        let set = unsafe { SSL_set_block_padding(self.peer.0, MAX_RECORD) };
        assert_eq!(set, 1);
    }

    /// Fills what the splice reads from, and empties what it writes to.
    fn prepare(&mut self) {
        match self.direction {
            Direction::Inbound => {
                while self.wire.len() < self.window {
                    assert!(self.peer.write(&self.cleartext));
                    self.wire.extend(self.peer.take(usize::MAX));
                }
                self.until_it_would_block(|far| far.read(&mut [0; 65536]));
            }
            Direction::Outbound => {
                self.ours.take(usize::MAX);
                self.until_it_would_block(|far| far.write(&[7; PACKET]));
            }
        }
    }

    fn until_it_would_block(&mut self, mut call: impl FnMut(&mut File) -> io::Result<usize>) {
        loop {
            match call(&mut self.far) {
                Ok(n) => assert!(n > 0),
                Err(err) => return assert_eq!(err.kind(), ErrorKind::WouldBlock),
            }
        }
    }

    fn moved(&self) -> usize {
        let stats = self.splice.stats();
        (stats.bytes_in + stats.bytes_out) as usize
    }

    /// What the event loop lets the splice do in one turn. Returns how many bytes it has
    /// moved.
    fn turn(&mut self) -> usize {
        self.prepare();
        let before = self.moved();
        match self.direction {
            Direction::Inbound => self.read_lower(),
            Direction::Outbound => {
                unsafe { self.splice.run_outbound(self.ours.0, &Cell::new(false)) };
            }
        }
        self.moved() - before
    }

    /// As libuv reads a stream: until the splice lends no memory, the stream gives less than there
    /// is memory for, or the splice has it stop.
    fn read_lower(&mut self) {
        if self.is_paused && self.decrypt() {
            return;
        }
        let mut window = self.window;
        loop {
            let spare = self.splice.alloc();
            let lent = spare.len();
            if lent == 0 {
                return;
            }
            let n = lent.min(window);
            for (byte, from) in spare.iter_mut().zip(self.wire.drain(..n)) {
                *byte = from;
            }
            window -= n;
            self.taken_in += n;
            self.splice.commit(n);
            if n == 0 || self.decrypt() || n < lent {
                return;
            }
        }
    }

    /// Returns whether the stream below is not to be read in this turn any more.
    fn decrypt(&mut self) -> bool {
        let step = unsafe { self.splice.run_inbound(self.ours.0, &Cell::new(false)) }.step;
        self.is_paused = step != InboundStep::WantCiphertext;
        assert!(matches!(
            step,
            InboundStep::WantCiphertext | InboundStep::Blocked | InboundStep::Spent
        ));
        self.is_paused
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        unsafe { self.splice.detach(self.direction, self.ours.0) };
    }
}

fn turn(splices: &mut [Busy]) -> usize {
    common::abi::next_turn();
    splices.iter_mut().map(Busy::turn).sum()
}

#[test]
fn with_200_busy_splices_a_turn_moves_what_all_may_move_together() {
    for kind in KINDS {
        for direction in [Direction::Inbound, Direction::Outbound] {
            let mut splices: Vec<_> = (0..200).map(|_| Busy::new(kind, direction)).collect();
            // In the first turns, each splice knows only of those that have come before it, and
            // what an endpoint has no room for is left for the next ones.
            for _ in 0..16 {
                turn(&mut splices);
            }
            let before: Vec<_> = splices.iter().map(Busy::moved).collect();
            let mut sum = 0;
            for _ in 0..32 {
                let moved = turn(&mut splices);
                let what = format!("{kind:?} {direction:?}: {moved} bytes");
                assert!(moved <= MOST_IN_A_TURN, "{what}");
                sum += moved;
            }
            let what = format!("{kind:?} {direction:?}: {sum} bytes in 32 turns");
            assert!(sum >= 32 * PER_TURN / 2, "{what}");
            // Nobody gets nothing, and nobody gets much more than others.
            for (splice, before) in splices.iter().zip(before) {
                let moved = splice.moved() - before;
                let range = sum / 200 / 2..=sum / 200 * 2;
                assert!(range.contains(&moved), "{what}, of which one has {moved}");
            }
            // The others have nothing more to do.
            splices.truncate(1);
            for _ in 0..16 {
                turn(&mut splices);
            }
            // Its endpoint may hold less than it could move.
            let alone: usize = (0..4).map(|_| turn(&mut splices)).sum();
            assert!(alone > 3 * LEAST, "{kind:?} {direction:?}: {alone} bytes");
        }
    }
}

#[test]
fn reads_that_are_short_count_as_others_do() {
    for kind in KINDS {
        for window in [20_000, 30_000, 60_000, 100_000, 127_000] {
            let mut splices: Vec<_> = (0..200)
                .map(|_| Busy::new(kind, Direction::Inbound))
                .collect();
            for splice in &mut splices {
                splice.window = window;
            }
            // The splices before these have left tickets behind.
            for _ in 0..16 {
                turn(&mut splices);
            }
            let moved: Vec<_> = (0..8).map(|_| turn(&mut splices)).collect();
            let what = format!("{kind:?}, {window} bytes per turn: {moved:?} bytes");
            let most = moved.iter().max().unwrap();
            // All of them have some of a record that is decrypted once the rest is there.
            assert!(*most <= MOST_IN_A_TURN + 200 * MAX_RECORD, "{what}");
            let mean = moved.iter().sum::<usize>() / moved.len();
            assert!((PER_TURN / 3..=MOST_IN_A_TURN).contains(&mean), "{what}");
        }
    }
}

#[test]
fn a_peer_that_pads_its_records_gets_no_more_than_others() {
    for every in [1, 2] {
        let mut splices: Vec<_> = (0..200)
            .map(|_| Busy::new(Kind::Pipe, Direction::Inbound))
            .collect();
        for splice in splices.iter_mut().step_by(every) {
            splice.pad_records();
        }
        // As with other records, in the first turns each splice knows only of some.
        for _ in 0..16 {
            turn(&mut splices);
        }
        let mut all = vec![0; splices.len()];
        for _ in 0..32 {
            splices.iter_mut().for_each(|splice| splice.taken_in = 0);
            turn(&mut splices);
            let taken_in: usize = splices.iter().map(|splice| splice.taken_in).sum();
            assert!(taken_in <= MOST_IN_A_TURN, "1 of {every}: {taken_in} bytes");
            for (sum, splice) in all.iter_mut().zip(&splices) {
                *sum += splice.taken_in;
            }
        }
        let mean = all.iter().sum::<usize>() / all.len();
        assert!(
            mean >= 32 * PER_TURN / 2 / all.len(),
            "1 of {every}: {mean}"
        );
        for taken_in in all {
            let range = mean / 2..=mean * 2;
            assert!(
                range.contains(&taken_in),
                "1 of {every}: {taken_in}, {mean}"
            );
        }
    }
}
