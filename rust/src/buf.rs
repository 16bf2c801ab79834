//! Buffers that exist while there is something in them.

use std::cell::RefCell;
use std::collections::VecDeque;

use crate::packets::Unit;

/// Size of a lent buffer in bytes. Ciphertext and cleartext of one turn stay
/// within the L2 cache at this size; larger ones cost more CPU per byte.
pub const CHUNK_SIZE: usize = 64 * 1024;

/// Size in bytes of a lent buffer that a source is read into. Each read of a TCP socket
/// tells the sender how much room there is, so that few large reads are cheaper than many
/// small ones.
pub const LARGE_CHUNK_SIZE: usize = 256 * 1024;

/// Bytes that a lent buffer has beyond its size. With them the longest packet and its
/// framing fit behind the beginning of another packet, or behind a record's worth of other
/// packets.
const SLACK: usize = 16 * 1024 + 256;

/// One of the sizes of a lent buffer. Each has a pool of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Size {
    /// [`CHUNK_SIZE`].
    #[default]
    Small,
    /// [`LARGE_CHUNK_SIZE`].
    Large,
    /// [`LARGE_CHUNK_SIZE`], for what goes to a device with super-packets: packets are joined
    /// with those that are in the buffer.
    ForSuperPackets,
}

impl Size {
    /// The size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Size::Small => CHUNK_SIZE,
            Size::Large | Size::ForSuperPackets => LARGE_CHUNK_SIZE,
        }
    }

    /// How many buffers of this size a thread keeps for the next splice that needs one: as
    /// many as both directions of a splice hold at the default high-water mark. For
    /// super-packets these are one of cleartext and one of ciphertext, and a thread keeps none
    /// if it has no such device.
    const fn kept(self) -> usize {
        match self {
            Size::Small => 8,
            Size::Large => 1,
            Size::ForSuperPackets => 2,
        }
    }
}

thread_local! {
    // A pool is nothing but memory, so that a chunk may be lent by the pool of one thread and
    // go back to the pool of another thread.
    static POOLS: [RefCell<Vec<Box<[u8]>>>; 3] = const { [const { RefCell::new(Vec::new()) }; 3] };
}

#[cfg(test)]
thread_local! {
    static ALLOCATED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How many buffers this thread has allocated, since its pools had none.
#[cfg(test)]
pub(crate) fn allocated() -> usize {
    ALLOCATED.get()
}

fn allocate(size: Size) -> Box<[u8]> {
    #[cfg(test)]
    ALLOCATED.set(ALLOCATED.get() + 1);
    vec![0; size.bytes() + SLACK].into_boxed_slice()
}

/// A buffer of fixed length, lent from the pool of the thread. It is filled at its end and
/// consumed at its start.
///
/// Invariant: `start <= end <= data.len()`. The bytes from `start` to `end` are held.
pub struct Chunk {
    data: Box<[u8]>,
    size: Size,
    start: usize,
    end: usize,
}

impl Chunk {
    /// Takes a buffer from the pool, or allocates one.
    pub fn lend(size: Size) -> Chunk {
        let data = POOLS
            .try_with(|pools| pools[size as usize].borrow_mut().pop())
            .ok()
            .flatten()
            .unwrap_or_else(|| allocate(size));
        Chunk {
            data,
            size,
            start: 0,
            end: 0,
        }
    }

    /// A chunk that violates the invariant, so that whatever is done with it panics.
    #[cfg(test)]
    pub(crate) fn broken() -> Chunk {
        let mut chunk = Chunk::lend(Size::Small);
        chunk.start = usize::MAX;
        chunk.end = usize::MAX - 1;
        chunk
    }

    /// How many bytes are held.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether nothing more fits.
    pub fn is_full(&self) -> bool {
        self.end == self.data.len()
    }

    /// The bytes that are held.
    pub fn filled(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    /// The bytes that are held, to be changed.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.data[self.start..self.end]
    }

    /// The room at the end for more bytes of a byte stream.
    pub fn spare(&mut self) -> &mut [u8] {
        self.spare_for(Unit::Bytes)
    }

    /// The room at the end for more bytes of that unit. For packets, a chunk has enough room
    /// for the longest packet behind the beginning of another packet, or behind less than a
    /// record of other packets.
    pub fn spare_for(&mut self, unit: Unit) -> &mut [u8] {
        let limit = match unit {
            Unit::Packets => self.data.len(),
            Unit::Bytes => self.size.bytes(),
        };
        &mut self.data[self.end.min(limit)..limit]
    }

    /// Moves the bytes that are held to the start of the buffer.
    pub fn compact(&mut self) {
        self.data.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
    }

    /// Takes in `n` bytes that were written to the room at the end.
    pub fn commit(&mut self, n: usize) {
        assert!(n <= self.data.len() - self.end);
        self.end += n;
    }

    /// Drops `n` bytes from the start.
    pub fn consume(&mut self, n: usize) {
        assert!(n <= self.len());
        self.start += n;
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        // While a thread exits, its pool may be gone already. Then the buffer is freed.
        let _ = POOLS.try_with(|pools| {
            // A chunk may be dropped because of a panic, during which there must not be
            // another panic, as borrow_mut() could be.
            if let Ok(mut pool) = pools[self.size as usize].try_borrow_mut() {
                if pool.len() < self.size.kept() {
                    pool.push(data);
                }
            }
        });
    }
}

/// Bytes on their way through a splice: first those that JavaScript had read before the
/// splice, then those that a pump reads.
#[derive(Default)]
pub struct Held {
    before: VecDeque<Vec<u8>>,
    consumed: usize,
    size: Size,
    chunk: Option<Chunk>,
    /// The first of all bytes are in `chunk`, and not in `before`: see [`Held::gather`].
    gathered: bool,
}

impl Held {
    /// Holds nothing. Bytes that will be read go to a buffer of that size.
    pub fn new(size: Size) -> Held {
        Held {
            size,
            ..Held::default()
        }
    }

    /// Appends bytes that JavaScript had read before the splice. To be called before the
    /// first [`Held::chunk`] only.
    pub fn push_before(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            debug_assert!(self.chunk.is_none());
            self.before.push_back(bytes.to_vec());
        }
    }

    /// Whether [`Held::front`] is of the bytes that [`Held::push_before`] was given.
    pub fn has_before(&self) -> bool {
        !self.before.is_empty() && !self.gathered
    }

    /// How many bytes are held.
    pub fn len(&self) -> usize {
        let before: usize = self.before.iter().map(Vec::len).sum();
        before - self.consumed + self.chunk.as_ref().map_or(0, Chunk::len)
    }

    /// How many bytes are in the buffer that a pump reads into: without those that JavaScript
    /// had read before the splice, which no high-water mark bounds, unless
    /// [`Held::gather`] or [`Held::take`] has put them there.
    pub fn buffered(&self) -> usize {
        self.chunk.as_ref().map_or(0, Chunk::len)
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.chunk.as_ref().is_none_or(Chunk::is_empty)
    }

    /// The next bytes in order, at most as many as one buffer holds; empty when nothing is
    /// held. Invariant: as long as no byte is consumed, further calls return a slice that
    /// begins at this address, as SSL_write(3) requires of a retry.
    pub fn front(&self) -> &[u8] {
        if let Some(bytes) = self.before.front().filter(|_| !self.gathered) {
            let rest = &bytes[self.consumed..];
            return &rest[..rest.len().min(CHUNK_SIZE)];
        }
        self.chunk.as_ref().map_or(&[], Chunk::filled)
    }

    /// The bytes of [`Held::front`], to be changed.
    pub fn front_mut(&mut self) -> &mut [u8] {
        if self.has_before() {
            let rest = &mut self.before[0][self.consumed..];
            let n = rest.len().min(CHUNK_SIZE);
            return &mut rest[..n];
        }
        self.chunk.as_mut().map_or(&mut [], Chunk::filled_mut)
    }

    /// Drops `n` bytes of [`Held::front`].
    pub fn consume(&mut self, n: usize) {
        if let Some(bytes) = self.before.front().filter(|_| !self.gathered) {
            self.consumed += n;
            assert!(self.consumed <= bytes.len());
            if self.consumed == bytes.len() {
                self.before.pop_front();
                self.consumed = 0;
            }
            return;
        }
        let chunk = self.chunk.as_mut().expect("consume() of nothing");
        chunk.consume(n);
        if chunk.is_empty() {
            self.chunk = None;
            self.gathered = false;
        }
    }

    /// Takes the first `n` bytes out: all that is held, or no more than
    /// [`Held::front`].
    pub fn take(&mut self, n: usize) -> Held {
        let mut taken = Held::new(self.size);
        if n == self.len() {
            std::mem::swap(self, &mut taken);
            return taken;
        }
        let chunk = taken.chunk();
        chunk.spare_for(Unit::Packets)[..n].copy_from_slice(&self.front()[..n]);
        chunk.commit(n);
        self.consume(n);
        taken
    }

    /// Holds the bytes that `other` has held, in place of its own. Buffers that are lent
    /// later keep the size that this one was made with.
    pub fn replace(&mut self, other: Held) {
        *self = Held {
            size: self.size,
            ..other
        };
        self.release_if_empty();
    }

    /// Brings the bytes that are held together in one buffer, as many as fit, so that
    /// [`Held::front`] is all of these.
    pub fn gather(&mut self) {
        if self.before.is_empty() {
            if let Some(chunk) = &mut self.chunk {
                chunk.compact();
            }
            return;
        }
        // The buffer is empty, or has the first bytes from a call before.
        self.gathered = true;
        let chunk = self.chunk.get_or_insert_with(|| Chunk::lend(self.size));
        chunk.compact();
        while let Some(bytes) = self.before.front() {
            let spare = chunk.spare_for(Unit::Packets);
            let rest = &bytes[self.consumed..];
            let n = rest.len().min(spare.len());
            spare[..n].copy_from_slice(&rest[..n]);
            chunk.commit(n);
            self.consumed += n;
            if n < rest.len() {
                break;
            }
            self.before.pop_front();
            self.consumed = 0;
        }
    }

    /// The buffer to read into, behind all bytes that are held.
    pub fn chunk(&mut self) -> &mut Chunk {
        self.chunk.get_or_insert_with(|| Chunk::lend(self.size))
    }

    /// Gives the buffer back to the pool if it is empty.
    pub fn release_if_empty(&mut self) {
        if self.chunk.as_ref().is_some_and(Chunk::is_empty) {
            self.chunk = None;
            self.gathered = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_keeps_the_order_of_what_came_before_and_after() {
        let mut held = Held::default();
        held.push_before(b"abc");
        held.push_before(b"");
        held.push_before(b"def");
        held.chunk().spare()[..3].copy_from_slice(b"ghi");
        held.chunk().commit(3);
        let mut out = Vec::new();
        while !held.is_empty() {
            assert_eq!(held.len(), 9 - out.len());
            let step = held.front().len().min(2);
            out.extend_from_slice(&held.front()[..step]);
            held.consume(step);
        }
        assert_eq!(out, b"abcdefghi");
        assert!(
            held.chunk.is_none(),
            "an empty buffer goes back to the pool"
        );
    }

    #[test]
    fn what_is_taken_is_not_held_any_more() {
        let mut held = Held::default();
        held.push_before(b"abc");
        held.chunk().spare()[..3].copy_from_slice(b"def");
        held.chunk().commit(3);
        held.consume(1);
        let taken = held.take(1);
        assert_eq!((taken.front(), taken.len()), (&b"b"[..], 1));
        let mut taken = held.take(4);
        assert!(held.is_empty());
        assert_eq!((taken.front(), taken.len()), (&b"c"[..], 4));
        taken.consume(1);
        assert_eq!(taken.front(), b"def");
    }

    #[test]
    fn what_is_replaced_changes_no_sizes() {
        let mut small = Held::new(Size::Small);
        small.push_before(b"abc");
        small.chunk();
        let mut held = Held::new(Size::Large);
        held.replace(small);
        held.consume(3);
        assert_eq!(held.chunk().spare().len(), LARGE_CHUNK_SIZE);
    }

    #[test]
    fn front_never_exceeds_a_chunk() {
        let mut held = Held::default();
        held.push_before(&vec![7; CHUNK_SIZE * 2 + 5]);
        let mut total = 0;
        while !held.is_empty() {
            let n = held.front().len();
            assert!(n <= CHUNK_SIZE);
            held.consume(n);
            total += n;
        }
        assert_eq!(total, CHUNK_SIZE * 2 + 5);
    }

    #[test]
    fn the_pool_is_bounded() {
        // The last two are for devices with super-packets alone.
        for (size, kept) in [
            (Size::Small, 8),
            (Size::Large, 1),
            (Size::ForSuperPackets, 2),
        ] {
            let chunks: Vec<_> = (0..20).map(|_| Chunk::lend(size)).collect();
            drop(chunks);
            POOLS.with(|pools| assert_eq!(pools[size as usize].borrow().len(), kept));
        }
    }
}
