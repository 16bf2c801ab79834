//! Packets for a device: which of them are written as one, and how.
//!
//! A [`Plan`] is made of packets that are all there, and waits for none. It joins what the
//! kernel's GRO would join, and nothing else: packets of one flow whose headers differ in
//! nothing but what [`super::split`] restores.
//!
//! There is one exception, which the kernel makes as well. Packets with DF may all have the
//! same IPv4 identification, as many systems send them. The header of a device cannot express
//! that: whoever splits the joined packets counts the identification up. In a packet that must
//! not be fragmented the identification has no meaning, and nobody may look at it (RFC 6864).
//!
//! Packets with CWR are not joined. With the ECN of RFC 3168 one packet has CWR, and the packets
//! behind it do not. With AccECN (RFC 9768) CWR is one bit of a number in each packet. The
//! header of a device cannot express which of the two is meant.

use super::checksum::{word, Sum};
use super::header::{Gso, Joined, Layout, MAX_HEADER};
use super::ip::{self, Headers, Protocol, Unknown, Version, MAX_JOINED};

/// The most packets in one plan. In one turn, about a hundred packets of an ordinary size come.
pub const WINDOW: usize = 128;

/// How many flows may alternate in a plan, so that packets of each are still joined. The kernel's
/// GRO has eight flows in each of the eight buckets of its hash table.
const FLOWS: usize = 16;

/// The longest packet that the length field of IPv4 can express.
const MAX_LEN: usize = u16::MAX as usize;
/// The most UDP datagrams in one super-packet, as in the kernel's GRO.
const MAX_DATAGRAMS: usize = 64;

/// "Do not fragment", in the field with the offset of a fragment.
const DF: u16 = 0x4000;

/// 0xffff, which equals 0 in ones' complement. Splitting would restore 0, so that the bytes would
/// differ: a packet with this checksum is not joined.
const NEGATIVE_ZERO: u16 = 0xffff;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;

/// Which packets the device takes as super-packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joinable {
    /// Packets of TCP.
    pub tcp: bool,
    /// Packets of UDP.
    pub udp: bool,
}

impl Joinable {
    /// Whether the device takes super-packets of that protocol.
    pub fn takes(self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => self.tcp,
            Protocol::Udp => self.udp,
        }
    }
}

/// Packets of one flow that are written as one, as long as more may join them.
#[derive(Clone, Copy)]
struct Run {
    /// The number of the first packet.
    head: u8,
    /// The number of the last packet so far.
    tail: u8,
    /// How many packets there are.
    count: u8,
    /// The checksums of the first packet are right. They are verified when the second comes.
    is_verified: bool,
    headers: Headers,
    /// Payload of the first packet in bytes.
    size: usize,
    /// Length in bytes of all as one packet.
    len: usize,
}

/// Which packets at the start of a stream are written as one, and in which order.
///
/// Invariant: in each flow, the packets are written in the order in which they come in the
/// stream.
pub struct Plan {
    joinable: Joinable,
    /// Length of the framing before each packet.
    prefix: usize,
    /// Where each packet begins in the stream, with its framing, and where the last one ends.
    bounds: [u32; WINDOW + 1],
    count: usize,
    /// For each packet the number of the packet that is joined to its end; its own number if no
    /// packet is.
    next: [u8; WINDOW],
    /// The first packet of each group, in the order in which the groups are written.
    heads: [u8; WINDOW],
    groups: usize,
    runs: [Option<Run>; FLOWS],
}

const _: () = assert!(WINDOW <= u8::MAX as usize);

impl Plan {
    /// A plan of no packets yet, each of which has `prefix` bytes of framing before it.
    pub fn new(joinable: Joinable, prefix: usize) -> Plan {
        Plan {
            joinable,
            prefix,
            bounds: [0; WINDOW + 1],
            count: 0,
            next: [0; WINDOW],
            heads: [0; WINDOW],
            groups: 0,
            runs: [None; FLOWS],
        }
    }

    /// Whether no other packet can be added.
    pub fn is_full(&self) -> bool {
        self.count == WINDOW
    }

    /// How many packets there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length of all packets with their framing, in bytes.
    pub fn len(&self) -> usize {
        self.bounds[self.count] as usize
    }

    /// Whether there are no packets.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The `i`th packet, without its framing.
    pub fn packet<'a>(&self, stream: &'a [u8], i: usize) -> &'a [u8] {
        &stream[self.bounds[i] as usize + self.prefix..self.bounds[i + 1] as usize]
    }

    /// Length of the `i`th packet with its framing, in bytes.
    pub fn total(&self, i: usize) -> usize {
        (self.bounds[i + 1] - self.bounds[i]) as usize
    }

    /// The groups of packets that are written as one each, in the order in which they are to
    /// be written.
    pub fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        let heads = self.heads[..self.groups].iter();
        heads.map(|head| Group {
            plan: self,
            head: *head,
        })
    }

    /// Adds the next packet of `stream`, which has `total` bytes with its framing. The stream
    /// is the same at each call.
    pub fn add(&mut self, stream: &[u8], total: usize) {
        let i = self.count;
        self.bounds[i + 1] = self.bounds[i] + total as u32;
        self.count += 1;
        self.next[i] = i as u8;
        let packet = self.packet(stream, i);
        match Headers::of(packet) {
            Ok(headers) => self.add_to_flow(stream, i as u8, headers),
            Err(Unknown::OtherProtocol) => self.begin_group(i as u8),
            // The packet may belong to any flow, so that no later packet may be joined to one before
            // it.
            Err(Unknown::Fragment | Unknown::Malformed) => {
                self.runs = [None; FLOWS];
                self.begin_group(i as u8);
            }
        }
    }

    fn begin_group(&mut self, head: u8) {
        self.heads[self.groups] = head;
        self.groups += 1;
    }

    fn add_to_flow(&mut self, stream: &[u8], i: u8, headers: Headers) {
        let packet = self.packet(stream, i.into());
        let may_join = self.joinable.takes(headers.protocol) && may_join(packet, &headers);
        let is_of_flow = |run: &Run| {
            let head = self.packet(stream, run.head.into());
            is_same_flow(head, &run.headers, packet, &headers)
        };
        let slot = self
            .runs
            .iter()
            .position(|run| run.as_ref().is_some_and(is_of_flow));
        if let Some(slot) = slot {
            let run = self.runs[slot].take();
            let taken = run
                .filter(|_| may_join)
                .and_then(|run| self.join(run, stream, i, &headers));
            if let Some(run) = taken {
                self.next[usize::from(run.tail)] = i;
                let is_shorter = packet.len() - headers.payload < run.size;
                let is_last = is_shorter || ends_run(packet, &headers);
                self.runs[slot] = (!is_last).then_some(Run { tail: i, ..run });
                return;
            }
        }
        self.begin_group(i);
        let run = Run {
            head: i,
            tail: i,
            count: 1,
            is_verified: false,
            headers,
            size: packet.len() - headers.payload,
            len: packet.len(),
        };
        if may_join && !ends_run(packet, &headers) {
            let slot = slot.unwrap_or_else(|| self.free_slot());
            self.runs[slot] = Some(run);
        }
    }

    /// An unused slot, or the slot of the run to which no packet was added for the longest time.
    fn free_slot(&self) -> usize {
        let last = |slot: &usize| self.runs[*slot].map_or(-1, |run| i32::from(run.tail));
        (0..FLOWS).min_by_key(last).unwrap_or(0)
    }

    /// The run with the `i`th packet, which is of its flow, at its end, if the packet may be
    /// joined to it.
    fn join(&self, run: Run, stream: &[u8], i: u8, headers: &Headers) -> Option<Run> {
        let head = self.packet(stream, run.head.into());
        let tail = self.packet(stream, run.tail.into());
        let packet = self.packet(stream, i.into());
        let payload = packet.len() - headers.payload;
        let len = run.len + payload;
        let most = match headers.protocol {
            Protocol::Tcp => WINDOW,
            Protocol::Udp => MAX_DATAGRAMS,
        };
        let fits = *headers == run.headers
            && payload <= run.size
            && len <= MAX_LEN
            && usize::from(run.count) < most
            && continues([head, tail], packet, &run);
        let is_intact =
            fits && (run.is_verified || is_intact(head, headers)) && is_intact(packet, headers);
        is_intact.then_some(Run {
            count: run.count + 1,
            is_verified: true,
            len,
            ..run
        })
    }

    /// Moves the packets that are not `delivered` to the end of those of the plan, without
    /// changing their order. Returns how many bytes are before them.
    pub fn keep_undelivered(&self, stream: &mut [u8], delivered: &[bool; WINDOW]) -> usize {
        let mut to = self.len();
        for i in (0..self.count).rev().filter(|i| !delivered[*i]) {
            let from = self.bounds[i] as usize..self.bounds[i + 1] as usize;
            to -= from.len();
            stream.copy_within(from, to);
        }
        to
    }
}

/// Packets that are written as one, or one packet.
#[derive(Clone, Copy)]
pub struct Group<'a> {
    plan: &'a Plan,
    head: u8,
}

impl Group<'_> {
    /// The numbers of the packets, in order.
    pub fn packets(&self) -> impl Iterator<Item = usize> + '_ {
        let follow = |i: &u8| Some(self.plan.next[usize::from(*i)]).filter(|next| next != i);
        std::iter::successors(Some(self.head), follow).map(usize::from)
    }

    /// Whether there is more than one packet.
    pub fn is_joined(&self) -> bool {
        self.plan.next[usize::from(self.head)] != self.head
    }

    /// How the packets are written as one; `None` if there is one packet.
    pub fn joined(&self, layout: Layout, stream: &[u8]) -> Option<Super> {
        if !self.is_joined() {
            return None;
        }
        let first = self.plan.packet(stream, self.head.into());
        let headers = Headers::of(first).ok()?;
        let mut len = headers.payload;
        let mut last = first;
        for i in self.packets() {
            last = self.plan.packet(stream, i);
            len += last.len() - headers.payload;
        }
        let mut written = Super {
            headers,
            header: [0; MAX_HEADER + MAX_JOINED],
            header_len: layout.size() + headers.payload,
        };
        let (vnet, rest) = written.header.split_at_mut(layout.size());
        let to = &mut rest[..headers.payload];
        to.copy_from_slice(&first[..headers.payload]);
        join_headers(to, &headers, last, len);
        let size = first.len() - headers.payload;
        layout.encode(&vnet_header(&headers, size), vnet);
        Some(written)
    }
}

/// Packets as they are written to a device as one: first [`Super::header`], then
/// [`Super::payload`] of each.
pub struct Super {
    headers: Headers,
    header: [u8; MAX_HEADER + MAX_JOINED],
    header_len: usize,
}

impl Super {
    /// The protocol above IP.
    pub fn protocol(&self) -> Protocol {
        self.headers.protocol
    }

    /// The header of the device, and those of all packets as one.
    pub fn header(&self) -> &[u8] {
        &self.header[..self.header_len]
    }

    /// The part of one of the packets that is written behind the header: its payload.
    pub fn payload<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        &packet[self.headers.payload..]
    }
}

/// Changes the headers of the first packet, which are in `to`, to those of a super-packet of `len`
/// bytes whose last packet is `last`.
fn join_headers(to: &mut [u8], headers: &Headers, last: &[u8], len: usize) {
    headers.set_len(to, len);
    headers.complete_ip(to);
    if headers.protocol == Protocol::Tcp {
        let flags = headers.transport + 13;
        to[flags] |= last[flags] & (FIN | PSH);
    }
    // The kernel adds the rest of the packet to this sum, and negates it.
    let sum = headers
        .pseudo_header(to)
        .plus(word((len - headers.transport) as u16));
    let place = headers.checksum_at();
    to[place..place + 2].copy_from_slice(&sum.folded().to_ne_bytes());
}

fn vnet_header(headers: &Headers, size: usize) -> Joined {
    Joined {
        gso: match (headers.protocol, headers.version) {
            (Protocol::Udp, _) => Gso::Udp,
            (Protocol::Tcp, Version::V4) => Gso::TcpV4,
            (Protocol::Tcp, Version::V6) => Gso::TcpV6,
        },
        gso_size: size as u16,
        header_len: headers.payload as u16,
        csum_start: headers.transport as u16,
        csum_offset: headers.protocol.checksum_at() as u16,
    }
}

/// Whether two packets are of one flow.
fn is_same_flow(a: &[u8], of_a: &Headers, b: &[u8], of_b: &Headers) -> bool {
    let ports = |packet, headers: &Headers| -> [u8; 4] {
        let packet: &[u8] = packet;
        let at = headers.transport;
        [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]
    };
    (of_a.version, of_a.protocol) == (of_b.version, of_b.protocol)
        && ports(a, of_a) == ports(b, of_b)
        && of_a.addresses(a) == of_b.addresses(b)
}

/// Whether a packet may be joined to others at all.
fn may_join(packet: &[u8], headers: &Headers) -> bool {
    let transport = &packet[headers.transport..];
    let is_whole = match headers.version {
        Version::V4 => ip::number(packet, 6) & !DF == 0 && ip::number(packet, 10) != NEGATIVE_ZERO,
        Version::V6 => true,
    };
    let is_ordinary = match headers.protocol {
        Protocol::Tcp => {
            let has_checksum = ip::number(transport, 16) != NEGATIVE_ZERO;
            has_checksum && transport[13] & (SYN | RST | URG | CWR) == 0
        }
        // There may be no checksum, and something behind the datagram.
        Protocol::Udp => {
            let len = usize::from(ip::number(transport, 4));
            ip::number(transport, 6) != 0 && len == transport.len()
        }
    };
    headers.are_plain() && is_whole && is_ordinary && packet.len() > headers.payload
}

/// Whether no packet may follow this one in a run.
fn ends_run(packet: &[u8], headers: &Headers) -> bool {
    headers.protocol == Protocol::Tcp && packet[headers.transport + 13] & (FIN | PSH) != 0
}

/// Whether the headers of `packet` are those that [`super::split`] would give the next packet
/// of the run, whose first and last packets so far are given.
fn continues([head, tail]: [&[u8]; 2], packet: &[u8], run: &Run) -> bool {
    let headers = &run.headers;
    let is_same = |range: std::ops::Range<usize>| head[range.clone()] == packet[range];
    let ip = match headers.version {
        Version::V4 => {
            let is_next = identification_continues([head, tail], packet, run.count.into());
            is_same(0..2) && is_same(6..10) && is_next
        }
        Version::V6 => is_same(0..4) && is_same(6..8),
    };
    let at = headers.transport;
    ip && match headers.protocol {
        Protocol::Udp => true,
        Protocol::Tcp => {
            let number = |packet: &[u8]| {
                let bytes = [
                    packet[at + 4],
                    packet[at + 5],
                    packet[at + 6],
                    packet[at + 7],
                ];
                u32::from_be_bytes(bytes)
            };
            let sent = (run.len - headers.payload) as u32;
            let (before, flags) = (head[at + 13], packet[at + 13]);
            number(packet) == number(head).wrapping_add(sent)
                && (before ^ flags) & !(FIN | PSH) == 0
                && is_same(at + 8..at + 13)
                && is_same(at + 14..at + 16)
                && is_same(at + 18..headers.payload)
        }
    }
}

/// Whether the identification of `packet` continues that of the `count` packets of a run: it
/// goes up by one with each packet, or stays the same if they have DF. The second packet of a
/// run decides which.
fn identification_continues([head, tail]: [&[u8]; 2], packet: &[u8], count: u16) -> bool {
    let from_head = |packet: &[u8]| ip::number(packet, 4).wrapping_sub(ip::number(head, 4));
    let has_df = ip::number(head, 6) & DF != 0;
    let is_counted = from_head(tail) == count - 1 && from_head(packet) == count;
    let is_constant = from_head(tail) == 0 && from_head(packet) == 0;
    is_counted || has_df && is_constant
}

/// Whether the checksums of a packet are right.
fn is_intact(packet: &[u8], headers: &Headers) -> bool {
    let transport = &packet[headers.transport..];
    let has_intact_header = match headers.version {
        Version::V4 => Sum::of(&packet[..headers.transport]).is_intact(),
        Version::V6 => true,
    };
    has_intact_header
        && Sum::of(transport)
            .plus(word(transport.len() as u16))
            .plus(headers.pseudo_header(packet))
            .is_intact()
}
