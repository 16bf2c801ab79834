//! Super-packets that were read from a device: the packets that they stand for.

use super::checksum::{minus_word, word, Sum};
use super::header::{Gso, Header, Partial};
use super::ip::{self, Headers, Protocol, Version};
use super::Malformed;

const FIN: u8 = 1;
const PSH: u8 = 8;
const CWR: u8 = 0x80;

/// What was read from a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// One packet, whose checksum is complete.
    Packet,
    /// A super-packet.
    Super(Split),
}

/// Says what `packet` is, which was read behind `header`, and completes the checksum of one
/// packet.
pub fn open(header: &Header, packet: &mut [u8]) -> Result<Content, Malformed> {
    match header.gso {
        Some((gso, size)) => Split::new(gso, size, header.partial, packet).map(Content::Super),
        None => {
            if let Some(partial) = header.partial {
                complete(partial, packet)?;
            }
            Ok(Content::Packet)
        }
    }
}

/// Completes a checksum, which may be that of any protocol.
fn complete(partial: Partial, packet: &mut [u8]) -> Result<(), Malformed> {
    let summed = packet.get_mut(partial.start..).ok_or(Malformed)?;
    let checksum = Sum::of(summed).checksum_not_zero();
    let place = summed.get_mut(partial.offset..partial.offset + 2);
    place.ok_or(Malformed)?.copy_from_slice(&checksum);
    Ok(())
}

/// How far a super-packet has been split.
///
/// The kernel would make the same packets of the super-packet. Each packet has the headers of the
/// super-packet, but for lengths, checksums, the identification of IPv4, which goes up by one with
/// each packet, the sequence number of TCP, FIN and PSH, which only the last packet has, and CWR,
/// which only the first packet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    headers: Headers,
    /// Payload of each packet but the last, in bytes.
    size: usize,
    /// Length of the super-packet in bytes.
    len: usize,
    /// Sum of the pseudo header, but for the length of TCP or UDP.
    pseudo_header: Sum,
    /// Where the payload of the next packet begins.
    at: usize,
    /// How many packets were made.
    made: u16,
}

impl Split {
    fn new(
        gso: Gso,
        size: u16,
        partial: Option<Partial>,
        packet: &[u8],
    ) -> Result<Split, Malformed> {
        let headers = Headers::of(packet).map_err(|_| Malformed)?;
        let fits = match gso {
            Gso::TcpV4 => (headers.version, headers.protocol) == (Version::V4, Protocol::Tcp),
            Gso::TcpV6 => (headers.version, headers.protocol) == (Version::V6, Protocol::Tcp),
            Gso::Udp => headers.protocol == Protocol::Udp,
        };
        // The length fields of IP can express what is behind the header of IP.
        let len = u16::try_from(packet.len() - headers.transport).map_err(|_| Malformed)?;
        if size == 0 || !fits {
            return Err(Malformed);
        }
        let pseudo_header = match partial {
            None => headers.pseudo_header(packet),
            // The sum in the place of the checksum is that of the source and of the final
            // destination. With a routing header, the header of IP has another destination.
            Some(partial) => {
                let place = partial.start + partial.offset;
                if partial.start != headers.transport || place != headers.checksum_at() {
                    return Err(Malformed);
                }
                Sum::of(&packet[place..place + 2]).plus(minus_word(len))
            }
        };
        Ok(Split {
            headers,
            size: size.into(),
            len: packet.len(),
            pseudo_header,
            at: headers.payload,
            made: 0,
        })
    }

    /// Length of the next packet in bytes; `None` if all were made. There is one packet at
    /// least.
    pub fn next_len(&self) -> Option<usize> {
        let payload = self.size.min(self.len - self.at);
        (payload > 0 || self.made == 0).then_some(self.headers.payload + payload)
    }

    /// Makes the next packet of the super-packet `packet`, at the start of `out`, which has
    /// room for [`Split::next_len`]. Returns that length, or 0 if all packets were made.
    pub fn make_next(&mut self, packet: &[u8], out: &mut [u8]) -> usize {
        let Some(len) = self.next_len() else {
            return 0;
        };
        let headers = self.headers;
        let out = &mut out[..len];
        let (to, payload) = out.split_at_mut(headers.payload);
        to.copy_from_slice(&packet[..headers.payload]);
        payload.copy_from_slice(&packet[self.at..self.at + payload.len()]);
        let is_last = self.at + payload.len() == self.len;

        if headers.version == Version::V4 {
            ip::set(to, 4, ip::number(to, 4).wrapping_add(self.made));
        }
        headers.set_len(to, len);
        headers.complete_ip(to);
        if headers.protocol == Protocol::Tcp {
            self.adapt_tcp(&mut to[headers.transport..], is_last);
        }
        self.at += payload.len();
        self.made = self.made.wrapping_add(1);

        let place = headers.checksum_at();
        ip::set(out, place, 0);
        let transport = &out[headers.transport..];
        let sum = Sum::of(transport)
            .plus(word(transport.len() as u16))
            .plus(self.pseudo_header);
        let checksum = match headers.protocol {
            Protocol::Tcp => sum.checksum(),
            Protocol::Udp => sum.checksum_not_zero(),
        };
        out[place..place + 2].copy_from_slice(&checksum);
        len
    }

    fn adapt_tcp(&self, header: &mut [u8], is_last: bool) {
        let first = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let sequence = first.wrapping_add((self.at - self.headers.payload) as u32);
        header[4..8].copy_from_slice(&sequence.to_be_bytes());
        if self.made > 0 {
            header[13] &= !CWR;
        }
        if !is_last {
            header[13] &= !(FIN | PSH);
        }
    }

    /// How many bytes of payload are not in a packet yet.
    pub fn rest(&self) -> usize {
        self.len - self.at
    }
}
