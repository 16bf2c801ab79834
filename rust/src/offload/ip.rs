//! Where the headers of a TCP or UDP packet are.

use super::checksum::{word, Sum};

/// The longest headers of a packet that may be joined: IPv6, and TCP with all its options.
pub const MAX_JOINED: usize = 40 + 60;

/// The version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its number in the header of IP.
    const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }

    /// Where the checksum is in its header.
    pub const fn checksum_at(self) -> usize {
        match self {
            Protocol::Tcp => 16,
            Protocol::Udp => 6,
        }
    }
}

/// Why the headers of a packet are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The packet is neither TCP nor UDP.
    OtherProtocol,
    /// The packet is a fragment, of which only the first has the ports.
    Fragment,
    /// The headers do not fit the packet.
    Malformed,
}

/// Where the headers of a TCP or UDP packet are, which is no fragment.
///
/// Invariant: the packet has all these bytes, `transport` is at least 20 and even, and the
/// TCP or UDP header has at least 20 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The version of IP.
    pub version: Version,
    /// The protocol above IP.
    pub protocol: Protocol,
    /// Where the TCP or UDP header begins.
    pub transport: usize,
    /// Where the payload begins.
    pub payload: usize,
}

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// The offset of a fragment, and MF.
const IPV4_FRAGMENT: u16 = 0x3fff;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// The number of two bytes at `at`, which must be inside of the packet.
pub(super) fn number(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

/// Writes a number of two bytes at `at`, which must be inside of the packet.
pub(super) fn set(packet: &mut [u8], at: usize, number: u16) {
    packet[at..at + 2].copy_from_slice(&number.to_be_bytes());
}

impl Headers {
    /// Finds the headers of `packet`. An error if the length in its IP header is not the length
    /// of `packet`.
    pub fn of(packet: &[u8]) -> Result<Headers, Unknown> {
        let (version, protocol, transport) = match packet.first().map(|first| first >> 4) {
            Some(4) => ipv4(packet)?,
            Some(6) => ipv6(packet)?,
            _ => return Err(Unknown::Malformed),
        };
        let header = packet.get(transport..).ok_or(Unknown::Malformed)?;
        let len = match protocol {
            Protocol::Tcp if header.len() >= TCP_HEADER => usize::from(header[12] >> 4) * 4,
            Protocol::Udp => UDP_HEADER,
            Protocol::Tcp => return Err(Unknown::Malformed),
        };
        let is_short = protocol == Protocol::Tcp && len < TCP_HEADER;
        if is_short || len > header.len() {
            return Err(Unknown::Malformed);
        }
        Ok(Headers {
            version,
            protocol,
            transport,
            payload: transport + len,
        })
    }

    /// Whether nothing is between the fixed header of IP and the header of TCP or UDP.
    pub fn are_plain(&self) -> bool {
        self.transport == self.fixed()
    }

    /// Length of the fixed header of IP in bytes.
    pub fn fixed(&self) -> usize {
        match self.version {
            Version::V4 => IPV4_HEADER,
            Version::V6 => IPV6_HEADER,
        }
    }

    /// Both addresses.
    pub fn addresses<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        match self.version {
            Version::V4 => &packet[12..IPV4_HEADER],
            Version::V6 => &packet[8..IPV6_HEADER],
        }
    }

    /// The sum of the pseudo header of a packet to the address in the header of IP, but for
    /// the length of TCP or UDP.
    pub fn pseudo_header(&self, packet: &[u8]) -> Sum {
        Sum::of(self.addresses(packet)).plus(word(self.protocol.number().into()))
    }

    /// Where the checksum of TCP or UDP is.
    pub fn checksum_at(&self) -> usize {
        self.transport + self.protocol.checksum_at()
    }

    /// Sets the length fields of IP and of UDP for a packet of `len` bytes, which they must be
    /// able to express.
    pub(super) fn set_len(&self, headers: &mut [u8], len: usize) {
        match self.version {
            Version::V4 => set(headers, 2, len as u16),
            Version::V6 => set(headers, 4, (len - IPV6_HEADER) as u16),
        }
        if self.protocol == Protocol::Udp {
            set(headers, self.transport + 4, (len - self.transport) as u16);
        }
    }

    /// Computes the checksum in the header of IPv4. IPv6 has none.
    pub(super) fn complete_ip(&self, headers: &mut [u8]) {
        if self.version == Version::V4 {
            set(headers, 10, 0);
            let checksum = Sum::of(&headers[..self.transport]).checksum();
            headers[10..12].copy_from_slice(&checksum);
        }
    }
}

fn protocol_of(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| protocol.number() == number)
}

fn ipv4(packet: &[u8]) -> Result<(Version, Protocol, usize), Unknown> {
    if packet.len() < IPV4_HEADER {
        return Err(Unknown::Malformed);
    }
    let transport = usize::from(packet[0] & 15) * 4;
    let len = usize::from(number(packet, 2));
    if transport < IPV4_HEADER || transport > len || len != packet.len() {
        return Err(Unknown::Malformed);
    }
    if number(packet, 6) & IPV4_FRAGMENT != 0 {
        return Err(Unknown::Fragment);
    }
    let protocol = protocol_of(packet[9]).ok_or(Unknown::OtherProtocol)?;
    Ok((Version::V4, protocol, transport))
}

fn ipv6(packet: &[u8]) -> Result<(Version, Protocol, usize), Unknown> {
    if packet.len() < IPV6_HEADER || usize::from(number(packet, 4)) + IPV6_HEADER != packet.len() {
        return Err(Unknown::Malformed);
    }
    let mut next = packet[6];
    let mut at = IPV6_HEADER;
    loop {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let header = packet.get(at..at + 2).ok_or(Unknown::Malformed)?;
                next = header[0];
                at += (usize::from(header[1]) + 1) * 8;
            }
            FRAGMENT => return Err(Unknown::Fragment),
            _ => {
                let protocol = protocol_of(next).ok_or(Unknown::OtherProtocol)?;
                return Ok((Version::V6, protocol, at));
            }
        }
    }
}
