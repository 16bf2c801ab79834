//! What only packets need: where they begin and end in a byte stream, and batches of
//! them.
//!
//! A byte-stream endpoint takes a stream of packets in any pieces, so there a [`Track`]
//! follows the stream. A packet endpoint takes and gives whole packets:
//! [`deliver_packets`] and [`read_batch`] move as many of these as fit into one turn.

use std::io::IoSlice;

use libc::c_int;

use crate::budget::{Budget, Call};
use crate::buf::{Chunk, Held};
use crate::endpoint::{PacketIo, Packets, WrittenEnd, MOST_WRITTEN};
use crate::frame::{Desync, Follower, Packet, PacketFormat};
use crate::splice::MAX_RECORD;
use crate::stats::Stats;

/// What an endpoint takes and gives at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A byte stream, in any pieces.
    Bytes,
    /// Whole packets.
    Packets,
}

/// Where the packets are in a byte stream whose pieces are not packets.
///
/// The stream passes by in two steps. First [`Track::look_ahead`] finds the packets in the
/// bytes that are held. Later [`Track::pass`] or [`Track::skip`] takes
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
    /// Looks at the bytes of `next` that are new, and returns how many bytes at the start of
    /// `next` are packets, or the beginning of one. `next` is what is held: the same bytes as at
    /// the last call, but for those that have left since then, and more.
    pub fn look_ahead(&mut self, format: PacketFormat, next: &[u8]) -> usize {
        if format.has_packets() && self.seen < next.len() && self.desync.is_none() {
            if let Err(at) = self.ahead.follow(format, &next[self.seen..], |_| {}) {
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

    /// Takes note that `bytes` have left, in which [`Track::look_ahead`] has found nothing wrong.
    /// `on_packet` is called for each packet whose last byte is among them.
    pub fn pass(&mut self, format: PacketFormat, bytes: &[u8], on_packet: impl FnMut(Packet)) {
        if format.has_packets() {
            // This cannot fail, since `look_ahead` has followed the same bytes.
            let _ = self.gone.follow(format, bytes, on_packet);
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
    endpoint: &mut Packets,
    format: PacketFormat,
    stats: &mut Stats,
) -> Delivery {
    if let Err(errno) = endpoint.prepare() {
        return Delivery::Failed(errno);
    }
    while !held.is_empty() {
        let front = held.front();
        let mut packets = [IoSlice::new(&[]); MOST_WRITTEN];
        let Ok(count) = whole_packets(front, format, budget.clone(), &mut packets) else {
            return Delivery::OutOfStep;
        };
        if count == 0 {
            // The rest of the packet may be in another buffer, or needs room in
            // this one.
            let len = front.len();
            held.gather();
            if held.front().len() == len {
                return Delivery::All;
            }
            continue;
        }
        let written = endpoint.write(&packets[..count]);
        let (mut done, mut outcome) = (written.packets, None);
        for packet in &packets[..done] {
            stats.count_in(packet.len());
            stats.bytes_in += (format.prefix() + packet.len()) as u64;
        }
        match written.end {
            WrittenEnd::All => {}
            WrittenEnd::WouldBlock => outcome = Some(Delivery::Blocked),
            WrittenEnd::Failed(errno) if stats.count_drop(errno) => done += 1,
            WrittenEnd::Failed(errno) => outcome = Some(Delivery::Failed(errno)),
            WrittenEnd::Reported(errno) => {
                stats.count_drop(errno);
                budget.spend(Call::System, 0);
            }
        }
        let mut total = 0;
        for packet in &packets[..done] {
            let len = format.prefix() + packet.len();
            total += len;
            budget.spend_again(Call::System, len);
        }
        if total > 0 {
            held.consume(total);
            track.skip(total);
        }
        if let Some(delivery) = outcome {
            return delivery;
        }
        if budget.is_spent() {
            return Delivery::Spent;
        }
    }
    Delivery::All
}

/// Fills `packets` with those at the start of `stream` that are there whole, without their
/// framing: as many as fit, or as `budget` allows, but the first one in any case. Returns how
/// many they are, which is 0 if the first one is not there whole. An error says that no packet
/// starts with these bytes.
fn whole_packets<'a>(
    stream: &'a [u8],
    format: PacketFormat,
    mut budget: Budget,
    packets: &mut [IoSlice<'a>],
) -> Result<usize, Desync> {
    let mut at = 0;
    for (count, slice) in packets.iter_mut().enumerate() {
        let rest = &stream[at..];
        if count > 0 && budget.is_spent() {
            return Ok(count);
        }
        match format.parse(rest) {
            Ok(Some(packet)) if packet.total() <= rest.len() => {
                *slice = IoSlice::new(&rest[packet.prefix..packet.total()]);
                budget.spend_again(Call::System, packet.total());
                at += packet.total();
            }
            Err(Desync) if count == 0 => return Err(Desync),
            _ => return Ok(count),
        }
    }
    Ok(packets.len())
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
/// a record or `limit` bytes, and puts the framing before each. Packets that the format does
/// not allow are dropped and counted.
pub fn read_batch(
    chunk: &mut Chunk,
    limit: usize,
    budget: &mut Budget,
    endpoint: &mut Packets,
    format: PacketFormat,
    stats: &mut Stats,
) -> Batch {
    let prefix = format.prefix();
    chunk.compact();
    let mut is_first = true;
    loop {
        let len = chunk.len();
        let ended = |end| Batch { len, end };
        if len >= limit.min(MAX_RECORD) || budget.is_spent() {
            return ended(BatchEnd::Full);
        }
        // What is received now is to be read in this run.
        let room = (limit - len).min(budget.left());
        let spare = &mut chunk.spare_for(Unit::Packets)[prefix..];
        let read = match len == 0 && is_first {
            true => endpoint.read_first(spare, room),
            false => endpoint.read(spare, room),
        };
        match read {
            PacketIo::Packet(n) | PacketIo::Last(n) => {
                take_in(chunk, n, format, stats);
                budget.spend(Call::System, n);
            }
            PacketIo::Truncated => {
                stats.drops_out += 1;
                budget.spend(Call::System, 0);
            }
            PacketIo::Refused(errno) => {
                stats.count_drop(errno);
                budget.spend(Call::System, 0);
            }
            PacketIo::WouldBlock => return ended(BatchEnd::WouldBlock),
            PacketIo::Eof => return ended(BatchEnd::Eof),
            PacketIo::Failed(errno) => return ended(BatchEnd::Failed(errno)),
        }
        is_first = false;
        if len > 0 && chunk.len() > MAX_RECORD {
            // The last packet begins the next record.
            return ended(BatchEnd::Full);
        }
        if let PacketIo::Last(_) = read {
            return Batch {
                len: chunk.len(),
                end: BatchEnd::WouldBlock,
            };
        }
    }
}

/// Reads packets that the endpoint has received already to `chunk`, as many as fill a record.
/// For an endpoint that is not to be read any more.
pub fn read_received(
    chunk: &mut Chunk,
    endpoint: &mut Packets,
    format: PacketFormat,
    stats: &mut Stats,
) {
    let prefix = format.prefix();
    chunk.compact();
    while chunk.len() < MAX_RECORD {
        let spare = &mut chunk.spare_for(Unit::Packets)[prefix..];
        match endpoint.read_received(spare) {
            Some(PacketIo::Packet(n) | PacketIo::Last(n)) => take_in(chunk, n, format, stats),
            Some(_) => stats.drops_out += 1,
            None => return,
        }
    }
}

/// Takes in a packet of `n` bytes, which was read to the room at the end of `chunk`, behind
/// room for the framing.
fn take_in(chunk: &mut Chunk, n: usize, format: PacketFormat, stats: &mut Stats) {
    let prefix = format.prefix();
    let framed = &mut chunk.spare_for(Unit::Packets)[..prefix + n];
    match format.frame(framed) {
        Ok(()) => {
            chunk.commit(prefix + n);
            stats.count_out(n);
        }
        Err(Desync) => stats.drops_out += 1,
    }
}
