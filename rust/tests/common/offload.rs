//! Splitting and joining as slowly and plainly as can be, for the tests and the fuzz
//! targets: a packet is taken apart to a [`Spec`], and made again from one.

#![allow(dead_code)]

/// The sum of RFC 1071, word by word, the high byte first.
pub fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u16;
    for pair in bytes.chunks(2) {
        let word = u16::from(pair[0]) * 256 + pair.get(1).map_or(0, |low| u16::from(*low));
        let (added, carry) = sum.overflowing_add(word);
        sum = added + u16::from(carry);
    }
    sum
}

/// What a TCP or UDP packet says, but for lengths and checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub is_v6: bool,
    pub is_udp: bool,
    /// TOS, or the traffic class.
    pub tos: u8,
    pub flow_label: u32,
    pub id: u16,
    /// The three flags and the offset of a fragment.
    pub fragment: u16,
    pub ttl: u8,
    pub addresses: Vec<u8>,
    /// Options of IPv4; or extension headers of IPv6, each with its own length, and the type
    /// of the first.
    pub between: Vec<u8>,
    pub next_header: u8,
    pub ports: [u8; 4],
    pub seq: u32,
    pub ack: u32,
    pub reserved: u8,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Spec {
    pub fn of_flow(flow: u8) -> Spec {
        let is_v6 = flow & 1 != 0;
        let is_udp = flow & 2 != 0;
        let mut addresses = vec![10; if is_v6 { 32 } else { 8 }];
        addresses[3] = flow >> 3;
        Spec {
            is_v6,
            is_udp,
            tos: 0,
            flow_label: u32::from(flow) << 9,
            id: 0xfff0 | u16::from(flow),
            fragment: 0x4000,
            ttl: 64,
            addresses,
            between: Vec::new(),
            next_header: if is_udp { 17 } else { 6 },
            ports: [flow & 4, 80, 0x12, 0x34],
            seq: 0xffff_ff00,
            ack: 7,
            reserved: 0,
            flags: 0x10,
            window: 500,
            urgent: 0,
            options: if flow & 4 != 0 {
                vec![1; 12]
            } else {
                Vec::new()
            },
            payload: Vec::new(),
        }
    }

    /// The same, with another payload.
    pub fn with_payload(&self, len: usize, seed: u8) -> Spec {
        let byte = |i: usize| (i as u8).wrapping_mul(31) ^ seed ^ (i >> 8) as u8;
        Spec {
            payload: (0..len).map(byte).collect(),
            ..self.clone()
        }
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = self.ports.to_vec();
        if self.is_udp {
            bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            bytes.extend([0, 0]);
        } else {
            bytes.extend(self.seq.to_be_bytes());
            bytes.extend(self.ack.to_be_bytes());
            let offset = (20 + self.options.len()) as u8 / 4;
            bytes.extend([offset << 4 | self.reserved, self.flags]);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(self.urgent.to_be_bytes());
            bytes.extend(&self.options);
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn checksum_at(&self) -> usize {
        if self.is_udp {
            6
        } else {
            16
        }
    }

    /// The sum of the pseudo header for `len` bytes of TCP or UDP.
    pub fn pseudo_header(&self, len: usize) -> u16 {
        let mut bytes = self.addresses.clone();
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend([0, if self.is_udp { 17 } else { 6 }]);
        slow_sum(&bytes)
    }

    fn behind_ip(&self, transport: &[u8]) -> Vec<u8> {
        let len = (self.between.len() + transport.len()) as u16;
        let mut bytes = Vec::new();
        if self.is_v6 {
            let first = 6 << 28 | u32::from(self.tos) << 20 | self.flow_label;
            bytes.extend(first.to_be_bytes());
            bytes.extend(len.to_be_bytes());
            bytes.extend([self.next_header, self.ttl]);
            bytes.extend(&self.addresses);
            bytes.extend(&self.between);
        } else {
            let words = (20 + self.between.len()) as u8 / 4;
            bytes.extend([4 << 4 | words, self.tos]);
            bytes.extend((20 + len).to_be_bytes());
            bytes.extend(self.id.to_be_bytes());
            bytes.extend(self.fragment.to_be_bytes());
            bytes.extend([self.ttl, if self.is_udp { 17 } else { 6 }, 0, 0]);
            bytes.extend(&self.addresses);
            bytes.extend(&self.between);
            let checksum = !slow_sum(&bytes);
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        bytes.extend(transport);
        bytes
    }

    /// The packet, with its checksums.
    pub fn packet(&self) -> Vec<u8> {
        let mut transport = self.transport();
        let pseudo = self.pseudo_header(transport.len());
        let mut summed = transport.clone();
        summed.resize(summed.len().next_multiple_of(2), 0);
        summed.extend(pseudo.to_be_bytes());
        let checksum = match !slow_sum(&summed) {
            0 if self.is_udp => 0xffff,
            checksum => checksum,
        };
        let at = self.checksum_at();
        transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        self.behind_ip(&transport)
    }

    /// The packet as the kernel hands it over, with the sum of the pseudo header in place of
    /// the checksum.
    pub fn partial_packet(&self) -> Vec<u8> {
        let mut transport = self.transport();
        let pseudo = self.pseudo_header(transport.len());
        let at = self.checksum_at();
        transport[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        self.behind_ip(&transport)
    }

    /// Where TCP or UDP begins.
    pub fn transport_at(&self) -> usize {
        (if self.is_v6 { 40 } else { 20 }) + self.between.len()
    }

    /// Takes a packet apart, which must have been made by a [`Spec`] or be like that: `None`
    /// if it is not. Its lengths and checksums are not looked at.
    pub fn parse(packet: &[u8]) -> Option<Spec> {
        let number = |at: usize| -> Option<u16> {
            Some(u16::from(*packet.get(at)?) << 8 | u16::from(*packet.get(at + 1)?))
        };
        let long = |at: usize| -> Option<u32> {
            Some(u32::from(number(at)?) << 16 | u32::from(number(at + 2)?))
        };
        let mut spec = Spec::of_flow(0);
        let mut at;
        let protocol;
        match packet.first()? >> 4 {
            4 => {
                at = usize::from(packet[0] & 15) * 4;
                if at < 20 || packet.len() < at {
                    return None;
                }
                spec.tos = packet[1];
                spec.flow_label = 0;
                spec.id = number(4)?;
                spec.fragment = number(6)?;
                spec.ttl = packet[8];
                protocol = packet[9];
                spec.next_header = protocol;
                spec.addresses = packet[12..20].to_vec();
                spec.between = packet[20..at].to_vec();
                if spec.fragment & 0x3fff != 0 {
                    return None;
                }
            }
            6 => {
                spec.is_v6 = true;
                spec.tos = (number(0)? >> 4) as u8;
                spec.flow_label = long(0)? & 0xf_ffff;
                spec.next_header = *packet.get(6)?;
                spec.ttl = *packet.get(7)?;
                spec.addresses = packet.get(8..40)?.to_vec();
                at = 40;
                let mut next = spec.next_header;
                while [0, 43, 60].contains(&next) {
                    next = *packet.get(at)?;
                    at += 8 + 8 * usize::from(*packet.get(at + 1)?);
                }
                protocol = next;
                spec.between = packet.get(40..at)?.to_vec();
            }
            _ => return None,
        }
        spec.ports = packet.get(at..at + 4)?.try_into().unwrap();
        match protocol {
            17 => {
                spec.is_udp = true;
                spec.payload = packet.get(at + 8..)?.to_vec();
            }
            6 => {
                spec.is_udp = false;
                spec.seq = long(at + 4)?;
                spec.ack = long(at + 8)?;
                let offset = *packet.get(at + 12)?;
                spec.reserved = offset & 15;
                spec.flags = *packet.get(at + 13)?;
                spec.window = number(at + 14)?;
                spec.urgent = number(at + 18)?;
                let payload = at + usize::from(offset >> 4) * 4;
                if payload < at + 20 {
                    return None;
                }
                spec.options = packet.get(at + 20..payload)?.to_vec();
                spec.payload = packet.get(payload..)?.to_vec();
            }
            _ => return None,
        }
        Some(spec)
    }

    /// The flow that the packet is of.
    pub fn flow(&self) -> (bool, bool, Vec<u8>, [u8; 4]) {
        (self.is_v6, self.is_udp, self.addresses.clone(), self.ports)
    }

    /// The `i`th packet of a super-packet that begins like this one, `sent` bytes behind the
    /// first.
    fn segment(&self, i: usize, sent: usize, payload: &[u8], is_last: bool) -> Spec {
        let mut flags = self.flags;
        if i > 0 {
            flags &= !0x80;
        }
        if !is_last {
            flags &= !0x09;
        }
        Spec {
            id: self.id.wrapping_add(i as u16),
            seq: self.seq.wrapping_add(sent as u32),
            flags,
            payload: payload.to_vec(),
            ..self.clone()
        }
    }
}

/// Whether the checksums of a packet are right, and its lengths.
pub fn is_intact(packet: &[u8]) -> bool {
    let Some(spec) = Spec::parse(packet) else {
        return false;
    };
    let transport = &packet[spec.transport_at()..];
    let mut summed = transport.to_vec();
    summed.resize(summed.len().next_multiple_of(2), 0);
    summed.extend(spec.pseudo_header(transport.len()).to_be_bytes());
    let len = u16::from_be_bytes([packet[4], packet[5]]);
    let has_intact_ip = match spec.is_v6 {
        true => usize::from(len) + 40 == packet.len(),
        false => {
            let len = u16::from_be_bytes([packet[2], packet[3]]);
            usize::from(len) == packet.len() && slow_sum(&packet[..spec.transport_at()]) == 0xffff
        }
    };
    let has_udp_len = !spec.is_udp || {
        let len = u16::from_be_bytes([transport[4], transport[5]]);
        usize::from(len) == transport.len()
    };
    has_intact_ip && has_udp_len && slow_sum(&summed) == 0xffff
}

/// The packets of a super-packet.
pub fn slow_split(spec: &Spec, size: usize) -> Vec<Vec<u8>> {
    let pieces: Vec<&[u8]> = match spec.payload.is_empty() {
        true => vec![&[]],
        false => spec.payload.chunks(size).collect(),
    };
    let last = pieces.len() - 1;
    pieces
        .iter()
        .enumerate()
        .map(|(i, piece)| spec.segment(i, i * size, piece, i == last).packet())
        .collect()
}

/// A group of packets that are written as one, by their numbers.
struct Run {
    spec: Spec,
    sent: usize,
    group: usize,
    /// All packets have the identification of the first.
    is_id_constant: bool,
}

/// Whether the second packet of a run says that all have the identification of the first.
fn begins_constant_id(first: &Spec, second: &Spec) -> bool {
    !first.is_v6 && first.fragment == 0x4000 && first.id == second.id
}

/// What packets that were written as one are split into again: the same packets, but for an
/// identification that stays the same. It then goes up from the first packet on.
pub fn restored(group: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let specs: Vec<Option<Spec>> = group.iter().map(|packet| Spec::parse(packet)).collect();
    let is_constant = match &specs[..] {
        [Some(first), Some(second), ..] => begins_constant_id(first, second),
        _ => false,
    };
    if !is_constant {
        return group.to_vec();
    }
    let with_id = |(i, spec): (usize, Option<Spec>)| {
        let spec = spec.expect("what is joined can be taken apart");
        let id = spec.id.wrapping_add(i as u16);
        Spec { id, ..spec }.packet()
    };
    specs.into_iter().enumerate().map(with_id).collect()
}

/// A packet without what nobody may look at (RFC 6864): the identification of IPv4 in a packet
/// with DF. The checksum that covers it is left out, too.
pub fn without_atomic_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if Spec::parse(&packet).is_some_and(|spec| !spec.is_v6 && spec.fragment & 0x4000 != 0) {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// The groups of packets, each of which is written as one, of up to 16 flows.
///
/// A packet joins the run of its flow if it is, byte for byte, the one that
/// [`slow_split`] would make. Packets with DF may all have the identification of the first
/// instead: the second packet of a run decides.
pub fn slow_join(packets: &[Vec<u8>], tcp: bool, udp: bool) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut runs: Vec<Run> = Vec::new();
    for (i, packet) in packets.iter().enumerate() {
        let alone = groups.len();
        let spec = match Spec::parse(packet) {
            Some(spec) if has_right_len(packet) => spec,
            _ => {
                if !is_other(packet) {
                    runs.clear();
                }
                groups.push(vec![i]);
                continue;
            }
        };
        let at = runs.iter().position(|run| run.spec.flow() == spec.flow());
        let is_joined = if spec.is_udp { udp } else { tcp };
        let size = at.map_or(0, |at| runs[at].spec.payload.len());
        let is_end = !spec.is_udp && spec.flags & 0x09 != 0;
        if let Some(at) = at {
            let run = &mut runs[at];
            let group = &mut groups[run.group];
            let count = group.len();
            let header = packet.len() - spec.payload.len();
            let mut expected = run.spec.segment(count, run.sent, &spec.payload, false);
            expected.flags |= spec.flags & 0x09;
            if count == 1 {
                run.is_id_constant = begins_constant_id(&run.spec, &spec);
            }
            if run.is_id_constant {
                expected.id = run.spec.id;
            }
            let fits = is_joined
                && is_intact(&packets[group[0]])
                && expected.packet() == *packet
                && (1..=size).contains(&spec.payload.len())
                && header + run.sent + spec.payload.len() <= 65535
                && (!spec.is_udp || count < 64);
            if fits {
                group.push(i);
                run.sent += spec.payload.len();
                let run = runs.remove(at);
                if !is_end && spec.payload.len() == size {
                    runs.push(run);
                }
                continue;
            }
            runs.remove(at);
        }
        groups.push(vec![i]);
        let may_begin = is_joined
            && spec.between.is_empty()
            && (spec.is_v6 || spec.fragment & !0x4000 == 0)
            && (spec.is_udp || spec.flags & 0xa6 == 0)
            && !is_end
            && !spec.payload.is_empty()
            && has_ordinary_checksum(&spec, packet);
        if may_begin {
            // Runs are in the order of their last packets.
            if runs.len() == 16 {
                runs.remove(0);
            }
            runs.push(Run {
                sent: spec.payload.len(),
                group: alone,
                is_id_constant: false,
                spec,
            });
        }
    }
    groups
}

/// Whether no other packet has equal checksums, and UDP says its length.
fn has_ordinary_checksum(spec: &Spec, packet: &[u8]) -> bool {
    let number = |at: usize| u16::from(packet[at]) << 8 | u16::from(packet[at + 1]);
    let at = spec.transport_at();
    let has_ordinary_ip = spec.is_v6 || number(10) != 0xffff;
    has_ordinary_ip
        && match spec.is_udp {
            true => number(at + 6) != 0 && usize::from(number(at + 4)) == packet.len() - at,
            false => number(at + 16) != 0xffff,
        }
}

fn has_right_len(packet: &[u8]) -> bool {
    let number = |at: usize| {
        packet
            .get(at..at + 2)
            .map(|b| usize::from(b[0]) << 8 | usize::from(b[1]))
    };
    match packet.first().map(|first| first >> 4) {
        Some(4) => number(2) == Some(packet.len()),
        Some(6) => number(4).map(|len| len + 40) == Some(packet.len()),
        _ => false,
    }
}

/// Whether a packet is of a protocol that is neither TCP nor UDP, and no fragment.
fn is_other(packet: &[u8]) -> bool {
    if !has_right_len(packet) {
        return false;
    }
    match packet[0] >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            let is_fragment = (u16::from(packet[6]) << 8 | u16::from(packet[7])) & 0x3fff != 0;
            header >= 20 && header <= packet.len() && !is_fragment && ![6, 17].contains(&packet[9])
        }
        _ => {
            let mut next = packet[6];
            let mut at = 40;
            while [0, 43, 60].contains(&next) {
                let Some(header) = packet.get(at..at + 2) else {
                    return false;
                };
                next = header[0];
                at += 8 + 8 * usize::from(header[1]);
            }
            ![6, 17, 44].contains(&next)
        }
    }
}

/// Decisions, one after the other; zeros come when they are used up.
pub struct Script<'a>(pub &'a [u8]);

impl Script<'_> {
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    pub fn number(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    /// Packets of a few flows, most of which follow each other, and what comes between them.
    pub fn packets(&mut self, most: usize) -> Vec<Vec<u8>> {
        let mut flows: Vec<Spec> = (0..24).map(Spec::of_flow).collect();
        let mut size = 100 + self.number() % 1400;
        // One bit for each of the first flows: all its packets have one identification.
        let constant_ids = self.byte();
        // How many flows there are beside the first ones.
        let more = self.byte() % 17;
        let mut packets = Vec::new();
        while !self.is_over() && packets.len() < most {
            let flow = usize::from(self.byte() % (8 + more));
            let op = self.byte();
            let spec = &mut flows[flow];
            let mut next = spec.with_payload(size, op);
            let mut corrupt = None;
            match op {
                // An ordinary one.
                0..=159 => {}
                160..=175 => next.flags |= 8,
                176..=183 => next = spec.with_payload(self.number() % (size + 50), op),
                184..=191 => next.flags = self.byte(),
                192..=195 => next.seq = next.seq.wrapping_add(self.number() as u32),
                196..=199 => next.id = next.id.wrapping_add(self.number() as u16),
                200..=203 => spec.ack = spec.ack.wrapping_add(1),
                204..=206 => spec.fragment ^= 0x4000,
                207 => next.fragment = self.number() as u16,
                208..=210 => next.payload.clear(),
                211..=213 if !next.is_v6 => next.between = vec![1; 4],
                211..=213 => {
                    next.between = vec![next.next_header, 0, 1, 4, 0, 0, 0, 0];
                    next.next_header = [0, 43, 60, 44][usize::from(op) % 4];
                }
                214..=216 => next.options = vec![self.byte(); usize::from(self.byte() % 11) * 4],
                217..=219 => next.tos = self.byte(),
                220..=222 => next.ttl = self.byte(),
                223..=224 => size = 1 + self.number() % 9000,
                // Any byte is another one: with or without the checksums being right.
                225..=239 => corrupt = Some((self.number(), self.byte() | 1, false)),
                _ => corrupt = Some((self.number() % 60, self.byte() | 1, true)),
            }
            let mut packet = next.packet();
            spec.seq = next.seq.wrapping_add(next.payload.len() as u32);
            let is_id_constant = flow < 8 && constant_ids >> flow & 1 != 0;
            spec.id = next.id.wrapping_add(u16::from(!is_id_constant));
            if let Some((at, bits, is_repaired)) = corrupt {
                let at = at % packet.len();
                packet[at] ^= bits;
                if let Some(spec) = Spec::parse(&packet).filter(|_| is_repaired) {
                    packet = spec.packet();
                }
            }
            packets.push(packet);
        }
        packets
    }
}
