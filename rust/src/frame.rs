//! Packets in a byte stream: where one ends and the next begins.
//!
//! TLS is a byte stream and keeps no boundaries. A packet device takes exactly one
//! packet per write and gives one per read, so the boundaries have to be in the
//! bytes: in the length fields of IP itself, or in front of each packet.

/// The longest IP packet: an IPv6 header and what its 16-bit length can say.
pub const MAX_PACKET: usize = 40 + u16::MAX as usize;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const LENGTH_FIELD: usize = 2;

/// How the stream says where a packet ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It does not: any piece is as good as any other.
    Raw,
    /// IPv4 and IPv6 packets, back to back (RFC 791, RFC 8200).
    Ip,
    /// A length of two bytes, big-endian, before each packet.
    U16be,
}

/// A packet at the start of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Bytes of framing before it.
    pub prefix: usize,
    /// Bytes of the packet itself.
    pub len: usize,
}

impl Packet {
    /// Bytes of the stream that it takes.
    pub fn total(self) -> usize {
        self.prefix + self.len
    }
}

/// No packet starts like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desync;

impl Framing {
    /// The packet at the start of `stream`, which may not be there whole; `None` if
    /// its length is not there yet. Never for [`Framing::Raw`].
    pub fn parse(self, stream: &[u8]) -> Result<Option<Packet>, Desync> {
        match self {
            Framing::Raw => Ok(None),
            Framing::Ip => parse_ip(stream),
            Framing::U16be => Ok(be16(stream, 0).map(|len| Packet {
                prefix: LENGTH_FIELD,
                len,
            })),
        }
    }

    /// Bytes of framing before each packet.
    pub fn prefix(self) -> usize {
        match self {
            Framing::Raw | Framing::Ip => 0,
            Framing::U16be => LENGTH_FIELD,
        }
    }

    /// Writes the framing of a packet into the [`Framing::prefix`] bytes before it,
    /// which are the start of `stream`. Its peer would not understand a packet that
    /// is refused here.
    pub fn frame(self, stream: &mut [u8]) -> Result<(), Desync> {
        match self {
            Framing::Raw => Ok(()),
            Framing::Ip => match parse_ip(stream)? {
                Some(packet) if packet.len == stream.len() => Ok(()),
                _ => Err(Desync),
            },
            Framing::U16be => {
                let len = u16::try_from(stream.len() - LENGTH_FIELD).map_err(|_| Desync)?;
                stream[..LENGTH_FIELD].copy_from_slice(&len.to_be_bytes());
                Ok(())
            }
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([field[0], field[1]]).into())
}

fn parse_ip(stream: &[u8]) -> Result<Option<Packet>, Desync> {
    let Some(&first) = stream.first() else {
        return Ok(None);
    };
    let len = match first >> 4 {
        4 => {
            let header = usize::from(first & 15) * 4;
            if header < IPV4_HEADER {
                return Err(Desync);
            }
            match be16(stream, 2) {
                Some(total) if total < header => return Err(Desync),
                total => total,
            }
        }
        6 => match (be16(stream, 4), stream.get(6)) {
            // A jumbogram (RFC 2675): its length is in a hop-by-hop option.
            (Some(0), Some(&0)) => return Err(Desync),
            (Some(payload), Some(_)) => Some(IPV6_HEADER + payload),
            _ => None,
        },
        _ => return Err(Desync),
    };
    Ok(len.map(|len| Packet { prefix: 0, len }))
}

/// What a device has before each packet that it is given or gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceHeader {
    /// Nothing.
    None,
    /// `struct tun_pi` of Linux, without IFF_NO_PI: 16 bits of flags, then the
    /// EtherType of an IP packet.
    PacketInfo,
    /// The same of a TAP device, where the EtherType is that of the frame.
    PacketInfoEthernet,
    /// The address family, 32 bits big-endian, of macOS's utun. Untested on a Mac.
    Utun,
}

/// Its length, where there is one.
pub const DEVICE_HEADER: usize = 4;

const ETHERTYPE_AT: usize = 12;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// `TUN_PKT_STRIP`: the buffer was too small for the packet.
const TUN_PKT_STRIP: u16 = 1;
const UTUN_INET: u32 = 2;
const UTUN_INET6: u32 = 30;

impl DeviceHeader {
    /// Its length in bytes.
    pub fn size(self) -> usize {
        match self {
            DeviceHeader::None => 0,
            _ => DEVICE_HEADER,
        }
    }

    /// What goes before `packet`.
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

    /// Which of [`DeviceHeader::None`] and [`DeviceHeader::PacketInfo`] a TUN device
    /// has that gave this, if it is an IP packet: the flags are no IP version.
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

    /// Whether the packet that came with this was cut off.
    pub fn is_truncated(self, header: [u8; DEVICE_HEADER]) -> bool {
        match self {
            DeviceHeader::PacketInfo | DeviceHeader::PacketInfoEthernet => {
                u16::from_ne_bytes([header[0], header[1]]) & TUN_PKT_STRIP != 0
            }
            DeviceHeader::None | DeviceHeader::Utun => false,
        }
    }
}

/// Follows a stream of packets without holding it: for byte-stream endpoints,
/// which take any piece.
#[derive(Debug, Default)]
pub struct Follower {
    /// The start of a packet whose length is not known yet.
    head: [u8; HEAD],
    head_len: usize,
    /// The present packet.
    packet: Packet,
    /// Bytes of it that are still to come.
    rest: usize,
}

/// Enough of a packet to tell its length.
const HEAD: usize = 8;

impl Follower {
    /// Takes in the next bytes of the stream. `on_packet` is called for each packet
    /// that ends in them. An error is where the packet
    /// begins that is none, in bytes from the start of `bytes`: before it, if that
    /// was passed on already.
    pub fn follow(
        &mut self,
        framing: Framing,
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
            match framing.parse(&self.head[..self.head_len]) {
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

    /// Bytes of the packet within which the stream so far ends; 0 if it ends with a
    /// whole one.
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
