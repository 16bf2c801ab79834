//! How the targets make decisions of an input.

use std::cell::Cell;

/// An input, taken from the front, so that a change to its end changes the end of
/// what is done. Zeros come when it is used up.
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        *first
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// The next `n` bytes, or what is left.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(n.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// 0 to `most`: by one byte where it is small, by three where it is large.
    pub fn size(&mut self, most: usize) -> usize {
        let first = usize::from(self.byte());
        let n = if first < 0xc0 {
            first
        } else {
            (first & 0x3f) << 16 | usize::from(self.byte()) << 8 | usize::from(self.byte())
        };
        n % (most + 1)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }
}

/// Bytes of which no two neighbours are alike, of one endless stream.
pub struct Counter {
    next: Cell<u64>,
}

impl Default for Counter {
    fn default() -> Counter {
        Counter { next: Cell::new(1) }
    }
}

impl Counter {
    pub fn fill(&self, out: &mut [u8]) {
        for byte in out {
            let n = self.next.get();
            self.next.set(n + 1);
            *byte = (n ^ (n >> 8).wrapping_mul(31)) as u8;
        }
    }

    pub fn take(&self, n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        self.fill(&mut out);
        out
    }
}
