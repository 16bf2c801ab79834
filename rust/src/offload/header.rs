//! `struct virtio_net_hdr`, which a device with IFF_VNET_HDR has before each packet: see
//! linux/virtio_net.h.

use super::Malformed;

/// Length in bytes of the longest header.
pub const MAX_HEADER: usize = 12;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Added to the type if the super-packet has CWR.
const GSO_ECN: u8 = 0x80;

/// The header of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    size: Size,
    order: ByteOrder,
}

/// The length of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Short = 10,
    /// With `num_buffers`, which a device does not use.
    Long = 12,
}

/// The byte order of the numbers in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// The low byte first.
    Little,
    /// The high byte first.
    Big,
}

impl ByteOrder {
    /// The byte order of this machine.
    pub const NATIVE: ByteOrder = match cfg!(target_endian = "big") {
        true => ByteOrder::Big,
        false => ByteOrder::Little,
    };
}

/// The kind of a super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP, over either.
    Udp,
}

/// Where a packet lacks its checksum: the sum of the pseudo header is in that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Where the bytes begin of which the checksum is made. They go to the end of the packet.
    pub start: usize,
    /// Where the checksum belongs, in bytes from `start`.
    pub offset: usize,
}

/// What the header says of the packet behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the packet lacks its checksum; `None` if its checksum is complete.
    pub partial: Option<Partial>,
    /// For a super-packet: its kind, and how many bytes of its payload go into each packet.
    pub gso: Option<(Gso, u16)>,
}

/// What is written before joined packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The kind.
    pub gso: Gso,
    /// Payload of each packet but the last, in bytes.
    pub gso_size: u16,
    /// Length of all headers of the packet, in bytes.
    pub header_len: u16,
    /// Where the TCP or UDP header begins.
    pub csum_start: u16,
    /// Where the checksum is in the TCP or UDP header.
    pub csum_offset: u16,
}

impl Layout {
    /// A header of `size` bytes; `None` if no device has a header of that size.
    pub fn new(size: usize, order: ByteOrder) -> Option<Layout> {
        let size = match size {
            10 => Size::Short,
            12 => Size::Long,
            _ => return None,
        };
        Some(Layout { size, order })
    }

    /// Length of the header in bytes.
    pub fn size(self) -> usize {
        self.size as usize
    }

    /// The header at the start of what was read from the device.
    pub fn decode(self, read: &[u8]) -> Result<Header, Malformed> {
        let header = read.get(..self.size()).ok_or(Malformed)?;
        let number = |at: usize| {
            let bytes = [header[at], header[at + 1]];
            match self.order {
                ByteOrder::Little => u16::from_le_bytes(bytes),
                ByteOrder::Big => u16::from_be_bytes(bytes),
            }
        };
        let gso = match header[1] & !GSO_ECN {
            0 => None,
            GSO_TCPV4 => Some(Gso::TcpV4),
            GSO_TCPV6 => Some(Gso::TcpV6),
            GSO_UDP_L4 => Some(Gso::Udp),
            _ => return Err(Malformed),
        };
        Ok(Header {
            partial: (header[0] & NEEDS_CSUM != 0).then(|| Partial {
                start: number(6).into(),
                offset: number(8).into(),
            }),
            gso: gso.map(|gso| (gso, number(4))),
        })
    }

    /// Writes the header of joined packets to the start of `out`.
    pub fn encode(self, joined: &Joined, out: &mut [u8]) {
        let out = &mut out[..self.size()];
        out.fill(0);
        out[0] = NEEDS_CSUM;
        out[1] = match joined.gso {
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        let numbers = [
            joined.header_len,
            joined.gso_size,
            joined.csum_start,
            joined.csum_offset,
        ];
        for (out, number) in out[2..].chunks_exact_mut(2).zip(numbers) {
            out.copy_from_slice(&match self.order {
                ByteOrder::Little => number.to_le_bytes(),
                ByteOrder::Big => number.to_be_bytes(),
            });
        }
    }
}
