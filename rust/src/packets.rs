//! What only packets need: where they begin and end in a byte stream, and batches of
//! them.
//!
//! A byte-stream endpoint takes a stream of packets in any pieces, so there a [`Track`]
//! follows the stream. A packet endpoint takes and gives one packet per system call:
//! [`deliver_packets`] and [`read_batch`] do as many of these as fit into one turn.

use libc::c_int;

use crate::budget::{Budget, Call};
use crate::buf::{Chunk, Held};
use crate::endpoint::{Io, PacketIo, Packets};
use crate::frame::{Desync, Follower, Framing, Packet};
use crate::splice::MAX_RECORD;
use crate::stats::Stats;

/// What an endpoint takes and gives at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A byte stream, in any pieces.
    Bytes,
    /// One whole packet per system call.
    Packets,
}

/// Where the packets are in a byte stream whose pieces are not packets.
///
/// The stream passes by in two steps. First [`Track::good`] looks ahead: it finds the
/// packets in the bytes that are held. Later [`Track::pass`] or [`Track::skip`] takes
/// note of the bytes that have left the splice.
///
/// Invariant: the bytes that were looked at are those that have left, and the next
/// `seen` ones.
#[derive(Default)]
pub struct Track {
    /// Follows the bytes that were looked at.
    ahead: Follower,
    /// Follows the bytes that have left.
    gone: Follower,
    /// Bytes that have left.
    offset: u64,
    /// Bytes that were looked at and are still held.
    seen: usize,
    /// The offset in the stream at which a packet would have to begin, and none does.
    desync: Option<u64>,
}

impl Track {
    /// How many bytes at the start of `next` are packets, or the beginning of one.
    /// `next` is what is held: the same bytes as at the last call, but for those that
    /// have left since then, and more.
    pub fn good(&mut self, framing: Framing, next: &[u8]) -> usize {
        if framing != Framing::Raw && self.seen < next.len() && self.desync.is_none() {
            if let Err(at) = self.ahead.follow(framing, &next[self.seen..], |_| {}) {
                let seen = self.offset + self.seen as u64;
                self.desync = Some(seen.saturating_add_signed(at as i64));
            }
            self.seen = next.len();
        }
        match self.desync {
            Some(at) => at.saturating_sub(self.offset) as usize,
            None => next.len(),
        }
    }

    /// The offset in the stream, in bytes, at which something begins that is no packet,
    /// or of which only a part is there.
    pub fn out_of_step(&self) -> u64 {
        let seen = self.offset + self.seen as u64;
        self.desync.unwrap_or(seen - self.ahead.begun() as u64)
    }

    /// Whether the bytes that were looked at end with a whole packet.
    pub fn is_at_boundary(&self) -> bool {
        self.ahead.is_at_boundary()
    }

    /// Takes note that `bytes`, which are good ones, have left. `on_packet` is called
    /// for each packet whose last byte is among them.
    pub fn pass(&mut self, framing: Framing, bytes: &[u8], on_packet: impl FnMut(Packet)) {
        if framing != Framing::Raw {
            // There is no error in bytes that `good` has approved of.
            let _ = self.gone.follow(framing, bytes, on_packet);
        }
        self.skip(bytes.len());
    }

    /// Takes note that `n` bytes have left: whole packets that are counted elsewhere.
    pub fn skip(&mut self, n: usize) {
        self.offset += n as u64;
        self.seen = self.seen.saturating_sub(n);
    }
}

/// What delivering to the endpoint came to.
pub enum Delivery {
    /// Nothing is held any more, except perhaps for the beginning of a packet.
    All,
    /// The endpoint takes no more at present.
    Blocked,
    /// The caller is to write what is held, by a transfer.
    Transfer,
    /// The budget of this turn is spent.
    Spent,
    /// The stream is out of step: a packet would have to begin at [`Track::out_of_step`].
    OutOfStep,
    /// A write failed with this errno.
    Failed(c_int),
}

/// Writes the packets that are held to a packet endpoint. Packets that the endpoint
/// refuses are dropped and counted.
pub fn deliver_packets(
    held: &mut Held,
    track: &mut Track,
    budget: &mut Budget,
    endpoint: &Packets,
    framing: Framing,
    stats: &mut Stats,
) -> Delivery {
    if let Err(errno) = endpoint.prepare() {
        return Delivery::Failed(errno);
    }
    while !held.is_empty() {
        let front = held.front();
        match framing.parse(front) {
            Err(Desync) => return Delivery::OutOfStep,
            Ok(Some(packet)) if packet.total() <= front.len() => {
                match endpoint.write(&front[packet.prefix..packet.total()]) {
                    Io::Bytes(_) => {
                        stats.count_in(packet.len);
                        stats.bytes_in += packet.total() as u64;
                    }
                    Io::WouldBlock => return Delivery::Blocked,
                    Io::Failed(errno) if stats.count_drop(errno) => {}
                    Io::Failed(errno) => return Delivery::Failed(errno),
                }
                held.consume(packet.total());
                track.skip(packet.total());
                budget.spend_again(Call::System, packet.total());
                if budget.is_spent() {
                    return Delivery::Spent;
                }
            }
            Ok(_) => {
                // The rest of the packet may be in another buffer, or needs room in
                // this one.
                let len = front.len();
                held.gather();
                if held.front().len() == len {
                    return Delivery::All;
                }
            }
        }
    }
    Delivery::All
}

/// What [`read_batch`] has read.
pub struct Batch {
    /// Length of the packets that go into the next record, framing included, in bytes:
    /// all that the chunk holds, or all but the last packet.
    pub len: usize,
    /// Why no more was read.
    pub end: BatchEnd,
}

/// Why reading a batch has ended.
pub enum BatchEnd {
    /// The record is full, the limit is reached, or the budget is spent.
    Full,
    /// There is no other packet at present.
    WouldBlock,
    /// There will never be another packet.
    Eof,
    /// A read failed with this errno.
    Failed(c_int),
}

/// Reads packets that are there now from a packet endpoint to `chunk`, until they fill
/// a record or `limit` bytes, and puts the framing before each. Packets that the framing
/// cannot express are dropped and counted.
pub fn read_batch(
    chunk: &mut Chunk,
    limit: usize,
    budget: &mut Budget,
    endpoint: &Packets,
    framing: Framing,
    stats: &mut Stats,
) -> Batch {
    let limit = limit.min(MAX_RECORD);
    let prefix = framing.prefix();
    chunk.compact();
    let mut is_first = true;
    loop {
        let len = chunk.len();
        let ended = |end| Batch { len, end };
        if len >= limit || budget.is_spent() {
            return ended(BatchEnd::Full);
        }
        let spare = chunk.spare_for(Unit::Packets);
        let read = match len == 0 && is_first {
            true => endpoint.read_first(&mut spare[prefix..]),
            false => endpoint.read(&mut spare[prefix..]),
        };
        let counted = match read {
            PacketIo::Packet(n) => n,
            _ => 0,
        };
        match read {
            PacketIo::Packet(n) => {
                if framing.frame(&mut spare[..prefix + n]).is_err() {
                    stats.drops_out += 1;
                } else {
                    chunk.commit(prefix + n);
                    stats.count_out(n);
                }
            }
            PacketIo::Truncated => stats.drops_out += 1,
            PacketIo::Refused(errno) => {
                stats.count_drop(errno);
            }
            PacketIo::WouldBlock => return ended(BatchEnd::WouldBlock),
            PacketIo::Eof => return ended(BatchEnd::Eof),
            PacketIo::Failed(errno) => return ended(BatchEnd::Failed(errno)),
        }
        is_first = false;
        budget.spend(Call::System, counted);
        if len > 0 && chunk.len() > MAX_RECORD {
            // The last packet begins the next record.
            return ended(BatchEnd::Full);
        }
    }
}
