//! Packets in a byte stream: where each packet ends and the next packet begins.
//!
//! TLS is a byte stream and keeps no boundaries between packets. A packet device takes
//! exactly one packet per write and gives one packet per read. So the boundaries have to
//! be in the bytes of the stream: in the length fields of IP itself, or as a length in
//! front of each packet.

/// Length in bytes of the longest IP packet: an IPv6 header, and the longest payload that
/// the 16 bits of its length field can say.
pub const MAX_PACKET: usize = 40 + u16::MAX as usize;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const LENGTH_FIELD: usize = 2;

/// Length in bytes of the longest framing before a packet.
pub const MAX_PREFIX: usize = LENGTH_FIELD;

/// How the stream says where a packet ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The stream has no packets: it may be cut into any pieces.
    Raw,
    /// IPv4 and IPv6 packets, back to back (RFC 791, RFC 8200).
    Ip,
    /// IPv4 packets, back to back.
    Ipv4,
    /// IPv6 packets, back to back.
    Ipv6,
    /// A length of two bytes, big-endian, before each packet.
    U16be,
}

impl Framing {
    /// The framing that allows every version of IP, if this one allows one version; otherwise
    /// this one.
    pub fn with_any_version(self) -> Framing {
        match self {
            Framing::Ipv4 | Framing::Ipv6 => Framing::Ip,
            Framing::Raw | Framing::Ip | Framing::U16be => self,
        }
    }
}

/// What the packets of a stream are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketFormat {
    framing: Framing,
    /// Length of the longest packet in bytes, without its framing.
    max_len: usize,
}

/// Packets of any length that the framing can express.
impl From<Framing> for PacketFormat {
    fn from(framing: Framing) -> PacketFormat {
        PacketFormat::new(framing, usize::MAX)
    }
}

/// A packet at the start of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Length in bytes of the framing before the packet.
    pub prefix: usize,
    /// Length in bytes of the packet itself.
    pub len: usize,
}

impl Packet {
    /// Length in bytes of the framing and the packet together.
    pub fn total(self) -> usize {
        self.prefix + self.len
    }
}

/// The stream is out of step: no packet starts with these bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desync;

impl PacketFormat {
    /// Packets of at most `max_len` bytes each, framing not included.
    pub fn new(framing: Framing, max_len: usize) -> PacketFormat {
        PacketFormat { framing, max_len }
    }

    /// Whether the stream has packets.
    pub fn has_packets(self) -> bool {
        self.framing != Framing::Raw
    }

    /// The packet at the start of `stream`. The end of the packet may be missing. `None` if
    /// so little of it is there that its length is not known, and always for
    /// [`Framing::Raw`].
    pub fn parse(self, stream: &[u8]) -> Result<Option<Packet>, Desync> {
        let packet = match self.framing {
            Framing::Raw => None,
            Framing::Ip | Framing::Ipv4 | Framing::Ipv6 => parse_ip(self.framing, stream)?,
            Framing::U16be => be16(stream, 0).map(|len| Packet {
                prefix: LENGTH_FIELD,
                len,
            }),
        };
        match packet {
            Some(packet) if packet.len > self.max_len => Err(Desync),
            packet => Ok(packet),
        }
    }

    /// Length in bytes of the framing before each packet.
    pub fn prefix(self) -> usize {
        match self.framing {
            Framing::Raw | Framing::Ip | Framing::Ipv4 | Framing::Ipv6 => 0,
            Framing::U16be => LENGTH_FIELD,
        }
    }

    /// Writes the framing of a packet. `stream` is the [`PacketFormat::prefix`] bytes for the
    /// framing, and the packet behind them. An error says that the format does not allow the
    /// packet: the peer would not take it for one, or not find its end.
    pub fn frame(self, stream: &mut [u8]) -> Result<(), Desync> {
        if self.framing == Framing::U16be {
            let len = u16::try_from(stream.len() - LENGTH_FIELD).map_err(|_| Desync)?;
            stream[..LENGTH_FIELD].copy_from_slice(&len.to_be_bytes());
        }
        match self.parse(stream)? {
            Some(packet) if packet.total() != stream.len() => Err(Desync),
            None if self.has_packets() => Err(Desync),
            _ => Ok(()),
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([field[0], field[1]]).into())
}

fn parse_ip(framing: Framing, stream: &[u8]) -> Result<Option<Packet>, Desync> {
    let Some(&first) = stream.first() else {
        return Ok(None);
    };
    let len = match (framing, first >> 4) {
        (Framing::Ip | Framing::Ipv4, 4) => {
            let header = usize::from(first & 15) * 4;
            if header < IPV4_HEADER {
                return Err(Desync);
            }
            match be16(stream, 2) {
                Some(total) if total < header => return Err(Desync),
                total => total,
            }
        }
        (Framing::Ip | Framing::Ipv6, 6) => match (be16(stream, 4), stream.get(6)) {
            // A jumbogram (RFC 2675), which has its length in a hop-by-hop option.
            (Some(0), Some(&0)) => return Err(Desync),
            (Some(payload), Some(_)) => Some(IPV6_HEADER + payload),
            _ => None,
        },
        _ => return Err(Desync),
    };
    Ok(len.map(|len| Packet { prefix: 0, len }))
}

/// The header that a device has before each packet that is written to it or read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceHeader {
    /// There is no header.
    None,
    /// `struct tun_pi` of Linux, without IFF_NO_PI: 16 bits of flags, then the
    /// EtherType of an IP packet.
    PacketInfo,
    /// `struct tun_pi` of a TAP device of Linux, without IFF_NO_PI: 16 bits of flags, then
    /// the EtherType that the Ethernet frame has, too.
    PacketInfoEthernet,
    /// The header of utun of macOS: the address family, as 32 bits, the high byte first. This
    /// was never tried on a Mac.
    Utun,
}

/// Length in bytes of each [`DeviceHeader`] but [`DeviceHeader::None`].
pub const DEVICE_HEADER: usize = 4;

const ETHERTYPE_AT: usize = 12;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// `TUN_PKT_STRIP`: the buffer was too small for the packet.
const TUN_PKT_STRIP: u16 = 1;
const UTUN_INET: u32 = 2;
const UTUN_INET6: u32 = 30;

impl DeviceHeader {
    /// Length of the header in bytes.
    pub fn size(self) -> usize {
        match self {
            DeviceHeader::None => 0,
            _ => DEVICE_HEADER,
        }
    }

    /// The header that goes before `packet`. Its first [`DeviceHeader::size`] bytes count.
    pub fn for_packet(self, packet: &[u8]) -> [u8; DEVICE_HEADER] {
        let is_ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
        let ethertype = match self {
            DeviceHeader::None => 0,
            DeviceHeader::Utun => {
                return if is_ipv6 { UTUN_INET6 } else { UTUN_INET }.to_be_bytes();
            }
            DeviceHeader::PacketInfoEthernet => be16(packet, ETHERTYPE_AT).unwrap_or(0) as u16,
            DeviceHeader::PacketInfo if is_ipv6 => ETHERTYPE_IPV6,
            DeviceHeader::PacketInfo => ETHERTYPE_IPV4,
        };
        let [high, low] = ethertype.to_be_bytes();
        [0, 0, high, low]
    }

    /// The header of a TUN device from which the bytes `read` were read:
    /// [`DeviceHeader::None`] or [`DeviceHeader::PacketInfo`]. The two can be told apart,
    /// since the flags at the start of a header are 0, which is no version of IP. `None` if
    /// the bytes are no IP packet with or without a header.
    pub fn of_tun(read: &[u8]) -> Option<DeviceHeader> {
        const IPV4: usize = ETHERTYPE_IPV4 as usize;
        const IPV6: usize = ETHERTYPE_IPV6 as usize;
        let version = |at| read.get(at).map(|first: &u8| first >> 4);
        match (version(0)?, be16(read, 2)?, version(DEVICE_HEADER)?) {
            (4 | 6, ..) => Some(DeviceHeader::None),
            (0, IPV4, 4) | (0, IPV6, 6) => Some(DeviceHeader::PacketInfo),
            _ => None,
        }
    }

    /// Whether the packet behind `header` was cut off by the device.
    pub fn is_truncated(self, header: [u8; DEVICE_HEADER]) -> bool {
        match self {
            DeviceHeader::PacketInfo | DeviceHeader::PacketInfoEthernet => {
                u16::from_ne_bytes([header[0], header[1]]) & TUN_PKT_STRIP != 0
            }
            DeviceHeader::None | DeviceHeader::Utun => false,
        }
    }
}

/// Follows a stream of packets without holding its bytes, for endpoints that take a byte
/// stream in any pieces.
#[derive(Debug, Default)]
pub struct Follower {
    /// The start of a packet whose length is not known yet.
    head: [u8; HEAD],
    head_len: usize,
    /// The packet within which the stream so far ends.
    packet: Packet,
    /// How many bytes of `packet` are still to come.
    rest: usize,
}

/// This many bytes at the start of a packet, framing included, are enough to tell its length.
const HEAD: usize = 8;

impl Follower {
    /// Takes in the next bytes of the stream. `on_packet` is called for each packet that
    /// ends in them. An error is the place at which a packet would have to begin and none
    /// does, in bytes from the start of `bytes`. The place is negative if it is in bytes
    /// that were taken in before.
    pub fn follow(
        &mut self,
        format: PacketFormat,
        bytes: &[u8],
        mut on_packet: impl FnMut(Packet),
    ) -> Result<(), isize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.rest > 0 {
                let n = self.rest.min(bytes.len() - at);
                self.rest -= n;
                at += n;
                if self.rest == 0 {
                    on_packet(self.packet);
                }
                continue;
            }
            self.head[self.head_len] = bytes[at];
            self.head_len += 1;
            match format.parse(&self.head[..self.head_len]) {
                Err(Desync) => return Err(at as isize + 1 - self.head_len as isize),
                Ok(None) => at += 1,
                Ok(Some(packet)) => {
                    at += 1;
                    self.packet = packet;
                    self.rest = packet.total() - self.head_len;
                    self.head_len = 0;
                    if self.rest == 0 {
                        on_packet(packet);
                    }
                }
            }
        }
        Ok(())
    }

    /// How many bytes of the packet are there within which the stream so far ends; 0 if the
    /// stream so far ends with a whole packet.
    pub fn begun(&self) -> usize {
        match self.rest {
            0 => self.head_len,
            rest => self.packet.total() - rest,
        }
    }

    /// Whether the stream so far ends with a whole packet.
    pub fn is_at_boundary(&self) -> bool {
        self.begun() == 0
    }
}
