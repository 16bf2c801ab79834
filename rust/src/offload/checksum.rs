//! The Internet checksum (RFC 1071): the ones' complement of the ones' complement sum of
//! 16-bit words.
//!
//! Sums are of words in the byte order of the machine: the carries go round, so a sum whose
//! bytes are swapped is the sum of swapped words. What comes from a sum is stored with
//! `to_ne_bytes`, and a number is added as [`word`], the word that it is in a packet.

/// A sum whose carries are still to go round. Each word adds less than 2^32, so that a sum
/// of any packet fits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum of `bytes`. An odd last byte is the first byte of a word.
    pub fn of(bytes: &[u8]) -> Sum {
        let (pairs, rest) = bytes.split_at(bytes.len() & !3);
        // Words in pairs: the compiler makes vectors of this loop.
        let sum: u64 = pairs
            .chunks_exact(4)
            .map(|pair| u64::from(u32::from_ne_bytes([pair[0], pair[1], pair[2], pair[3]])))
            .sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Sum(sum + u64::from(u32::from_ne_bytes(last)))
    }

    /// The sum of both. The bytes that were summed first are an even number.
    pub fn plus(self, other: Sum) -> Sum {
        Sum(self.0 + other.0)
    }

    /// The sum as one word.
    pub fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > u64::from(u16::MAX) {
            sum = (sum & u64::from(u16::MAX)) + (sum >> 16);
        }
        sum as u16
    }

    /// The checksum of what was summed with zeros in place of the checksum, as the bytes to
    /// store.
    pub fn checksum(self) -> [u8; 2] {
        (!self.folded()).to_ne_bytes()
    }

    /// The checksum as UDP has it: zero would say that there is none.
    pub fn checksum_not_zero(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            checksum => checksum,
        }
    }

    /// Whether what was summed, with its checksum, is intact.
    pub fn is_intact(self) -> bool {
        self.folded() == u16::MAX
    }
}

/// A number as the word that it is in a packet.
pub fn word(number: u16) -> Sum {
    Sum(number.to_be().into())
}

/// Added to a sum, this takes [`word`] of `number` out of the sum again.
pub fn minus_word(number: u16) -> Sum {
    Sum((!number.to_be()).into())
}
