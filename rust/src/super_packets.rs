//! Like [`crate::packets`], for TUN devices with super-packets: one read or write can carry
//! many packets.

use std::io::IoSlice;

use libc::c_int;

use crate::budget::{Budget, Call};
use crate::buf::{Chunk, Held, Size, CHUNK_SIZE};
use crate::endpoint::{Io, VnetDevice};
use crate::frame::PacketFormat;
use crate::offload::header::MAX_HEADER;
use crate::offload::join::{Group, Plan, Super, WINDOW};
use crate::offload::split::{self, Content, Split};
use crate::packets::{Delivery, Track, Unit};
use crate::splice::MAX_RECORD;
use crate::stats::Stats;

/// How many bytes of packets are gathered before they are encrypted: several records, and about
/// as much as a super-packet has.
const GATHERED: usize = CHUNK_SIZE;

/// Writes the packets that are held to the device, those that belong together as one.
/// Packets that the device refuses are dropped and counted. Nothing waits for other packets
/// to come.
pub fn deliver(
    held: &mut Held,
    track: &mut Track,
    budget: &mut Budget,
    device: &VnetDevice,
    format: PacketFormat,
    stats: &mut Stats,
) -> Delivery {
    if let Err(errno) = device.prepare() {
        return Delivery::Failed(errno);
    }
    while !held.is_empty() {
        let front = held.front();
        let plan = plan(front, device, format);
        if plan.is_empty() {
            if format.parse(front).is_err() {
                return Delivery::OutOfStep;
            }
            // The rest of the packet may be in another buffer, or needs room in this one.
            let len = front.len();
            held.gather();
            if held.front().len() == len {
                return Delivery::All;
            }
            continue;
        }
        let mut writer = Writer {
            device,
            plan: &plan,
            stream: front,
            delivered: [false; WINDOW],
            budget,
            stats,
        };
        let written = writer.write_all();
        let delivered = writer.delivered;
        let n = match written {
            Ok(()) => plan.len(),
            Err(_) => plan.keep_undelivered(held.front_mut(), &delivered),
        };
        if n > 0 {
            held.consume(n);
        }
        track.skip(n);
        if let Err(delivery) = written {
            return delivery;
        }
        if budget.is_spent() {
            return Delivery::Spent;
        }
    }
    Delivery::All
}

/// A plan of the whole packets at the start of `stream`, or of as many as a plan takes.
fn plan(stream: &[u8], device: &VnetDevice, format: PacketFormat) -> Plan {
    let mut plan = Plan::new(device.joinable(), format.prefix());
    while !plan.is_full() {
        let rest = &stream[plan.len()..];
        match format.parse(rest) {
            Ok(Some(packet)) if packet.total() <= rest.len() => plan.add(stream, packet.total()),
            _ => break,
        }
    }
    plan
}

/// Writes the packets of a plan.
struct Writer<'a> {
    device: &'a VnetDevice,
    plan: &'a Plan,
    stream: &'a [u8],
    /// The packets that need not be written any more: they were written, or are dropped.
    delivered: [bool; WINDOW],
    budget: &'a mut Budget,
    stats: &'a mut Stats,
}

/// What has become of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Taken,
    Dropped,
}

impl Writer<'_> {
    fn write_all(&mut self) -> Result<(), Delivery> {
        let (plan, stream) = (self.plan, self.stream);
        for group in plan.groups() {
            match group.joined(self.device.layout(), stream) {
                Some(joined) if self.device.joinable().takes(joined.protocol()) => {
                    self.write_joined(&group, &joined)?;
                }
                _ => {
                    self.write_each(&group)?;
                }
            }
        }
        Ok(())
    }

    fn write_joined(&mut self, group: &Group, joined: &Super) -> Result<(), Delivery> {
        let mut pieces = [IoSlice::new(&[]); WINDOW + 1];
        pieces[0] = IoSlice::new(joined.header());
        let mut count = 1;
        let mut len = 0;
        for i in group.packets() {
            let payload = joined.payload(self.plan.packet(self.stream, i));
            pieces[count] = IoSlice::new(payload);
            count += 1;
            len += payload.len();
        }
        self.budget.spend_again(Call::System, len);
        match self.device.write(&pieces[..count]) {
            Io::Bytes(_) => {
                group.packets().for_each(|i| self.count(i));
                self.stats.super_packets_in += 1;
                self.device.joined_taken(joined.protocol());
                Ok(())
            }
            Io::WouldBlock => Err(Delivery::Blocked),
            Io::Failed(errno) => {
                let first = self.write_each(group)?;
                // While the link is down, a packet of any kind is refused.
                let is_given_up =
                    first == Fate::Taken && self.device.joined_refused(joined.protocol(), errno);
                self.stats.super_packets_refused += u64::from(is_given_up);
                Ok(())
            }
        }
    }

    /// Writes the packets one by one. Returns what has become of the first one.
    fn write_each(&mut self, group: &Group) -> Result<Fate, Delivery> {
        let mut first = None;
        for i in group.packets() {
            let fate = self.write(i)?;
            first.get_or_insert(fate);
        }
        Ok(first.unwrap_or(Fate::Dropped))
    }

    fn write(&mut self, i: usize) -> Result<Fate, Delivery> {
        let packet = self.plan.packet(self.stream, i);
        let header = [0; MAX_HEADER];
        let pieces = [
            IoSlice::new(&header[..self.device.layout().size()]),
            IoSlice::new(packet),
        ];
        self.budget.spend_again(Call::System, packet.len());
        match self.device.write(&pieces) {
            Io::Bytes(_) => {
                self.count(i);
                Ok(Fate::Taken)
            }
            Io::WouldBlock => Err(Delivery::Blocked),
            Io::Failed(errno) if self.stats.count_drop(errno) => {
                self.delivered[i] = true;
                Ok(Fate::Dropped)
            }
            Io::Failed(errno) => Err(Delivery::Failed(errno)),
        }
    }

    /// Counts a packet that was written.
    fn count(&mut self, i: usize) {
        self.delivered[i] = true;
        self.stats.count_in(self.plan.packet(self.stream, i).len());
        self.stats.bytes_in += self.plan.total(i) as u64;
    }
}

/// A super-packet that was read, and that is not split to its end.
pub struct Rest {
    /// What was read, with the header of the device.
    read: Chunk,
    header_len: usize,
    split: Split,
}

/// What [`read`] came to.
pub enum Reading {
    /// A super-packet was read.
    Super(Rest),
    /// Enough packets are there, or the budget is spent.
    Full,
    /// There is no other packet at present.
    WouldBlock,
    /// There will never be another packet.
    Eof,
    /// A read failed with this errno.
    Failed(c_int),
}

/// Reads packets that are there now from the device to `chunk`, until they come to `limit`
/// bytes, with the framing before each. Ends with the first super-packet, of which nothing
/// goes to `chunk` yet. What is no packet, or does not fit the format, is dropped and
/// counted.
///
/// Each read goes to a buffer of its own, so that no super-packet is copied as a whole before
/// it is split. Ordinary packets are copied, which costs little beside the system call for each.
pub fn read(
    chunk: &mut Chunk,
    limit: usize,
    budget: &mut Budget,
    device: &VnetDevice,
    format: PacketFormat,
    stats: &mut Stats,
) -> Reading {
    let mut read = Chunk::lend(Size::Small);
    let header_len = device.layout().size();
    // A part of a record may be left from the last batch: it goes to the start of the buffer.
    chunk.compact();
    while chunk.len() < limit.min(GATHERED) && !budget.is_spent() {
        let bytes = read.spare_for(Unit::Packets);
        let n = match device.read(bytes) {
            Io::Bytes(n) if n < header_len => return Reading::Eof,
            Io::Bytes(n) => n,
            Io::WouldBlock => return Reading::WouldBlock,
            Io::Failed(errno) => return Reading::Failed(errno),
        };
        budget.spend(Call::System, n);
        let (header, packet) = bytes[..n].split_at_mut(header_len);
        let header = device.layout().decode(header);
        match header.and_then(|header| split::open(&header, packet)) {
            Ok(Content::Packet) => append(chunk, format, stats, packet.len(), |out| {
                out.copy_from_slice(packet);
            }),
            Ok(Content::Super(split)) => {
                read.commit(n);
                stats.super_packets_out += 1;
                return Reading::Super(Rest {
                    read,
                    header_len,
                    split,
                });
            }
            Err(_) => stats.drops_out += 1,
        }
    }
    Reading::Full
}

/// Appends a packet of `len` bytes, which `fill` writes, and the framing before it.
fn append(
    chunk: &mut Chunk,
    format: PacketFormat,
    stats: &mut Stats,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) {
    let total = format.prefix() + len;
    if chunk.spare_for(Unit::Packets).len() < total {
        chunk.compact();
    }
    let out = &mut chunk.spare_for(Unit::Packets)[..total];
    fill(&mut out[format.prefix()..]);
    match format.frame(out) {
        Ok(()) => {
            chunk.commit(total);
            stats.count_out(len);
        }
        Err(_) => stats.drops_out += 1,
    }
}

impl Rest {
    /// Makes packets of what is left, and puts them into `chunk`, until there are `limit`
    /// bytes. Returns whether nothing is left.
    pub fn split(
        &mut self,
        chunk: &mut Chunk,
        limit: usize,
        format: PacketFormat,
        stats: &mut Stats,
    ) -> bool {
        chunk.compact();
        let packet = &self.read.filled()[self.header_len..];
        while let Some(len) = self.split.next_len() {
            if chunk.len() >= limit.min(GATHERED) {
                return false;
            }
            append(chunk, format, stats, len, |out| {
                self.split.make_next(packet, out);
            });
        }
        true
    }

    /// How many bytes of payload are not in a packet yet.
    pub fn unsplit(&self) -> usize {
        self.split.rest()
    }
}

/// `len` rounded down to whole records; `len` itself if it is less than one record.
pub fn whole_records(len: usize) -> usize {
    match len > MAX_RECORD {
        true => len - len % MAX_RECORD,
        false => len,
    }
}

#[cfg(test)]
#[allow(clippy::undocumented_unsafe_blocks)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashMap;
    use std::os::unix::net::UnixDatagram;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::budget;
    use crate::common::{connect, Tls, TLS1_3};
    use crate::endpoint::{Endpoint, Writev};
    use crate::error::Failure;
    use crate::frame::Framing;
    use crate::inbound::InboundStep;
    use crate::offload::header::{ByteOrder, Gso, Joined, Layout};
    use crate::outbound::OutboundStep;
    use crate::reference::{slow_split, without_atomic_id, Script, Spec};
    use crate::splice::{Direction, Splice};

    /// A splice to a socket in place of a device, and what is at both ends.
    struct Rig {
        ours: Tls,
        peer: Tls,
        splice: Splice,
        far: UnixDatagram,
    }

    impl Rig {
        fn new(high_water_mark: usize, format: impl Into<PacketFormat>) -> Rig {
            Rig::over(high_water_mark, format.into(), |device| device)
        }

        /// A rig whose device writes with `writev`.
        fn write_with(high_water_mark: usize, framing: Framing, writev: Writev) -> Rig {
            Rig::over(high_water_mark, framing.into(), |device| {
                device.write_with(writev)
            })
        }

        fn over(
            high_water_mark: usize,
            format: PacketFormat,
            adapt: impl FnOnce(VnetDevice) -> VnetDevice,
        ) -> Rig {
            let (near, far) = UnixDatagram::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            far.set_nonblocking(true).unwrap();
            let endpoint = Endpoint::Vnet(adapt(VnetDevice::over(near.into(), layout())));
            let (ours, peer) = connect(TLS1_3, true);
            let mut splice = Splice::new(endpoint, format, high_water_mark);
            splice.start(Direction::Inbound);
            splice.start(Direction::Outbound);
            Rig {
                ours,
                peer,
                splice,
                far,
            }
        }

        fn decrypt(&mut self) -> InboundStep {
            budget::next_turn();
            unsafe { self.splice.run_inbound(self.ours.0, &Cell::new(false)) }.step
        }

        fn encrypt(&mut self) -> OutboundStep {
            budget::next_turn();
            unsafe { self.splice.run_outbound(self.ours.0, &Cell::new(false)) }.step
        }

        /// What the peer gets, record by record. This empties the write BIO, whose ciphertext
        /// bounds what is read from the device.
        fn records(&mut self) -> Vec<Vec<u8>> {
            self.peer.give(&self.ours.take(usize::MAX));
            let mut records = Vec::new();
            let mut record = vec![0; MAX_RECORD + 1];
            loop {
                let (out, len) = (record.as_mut_ptr().cast(), record.len() as c_int);
                match unsafe { openssl_sys::SSL_read(self.peer.0, out, len) } {
                    n if n > 0 => records.push(record[..n as usize].to_vec()),
                    _ => return records,
                }
            }
        }

        fn received(&mut self) -> Vec<u8> {
            self.records().concat()
        }

        fn peer_sends(&mut self, stream: &[u8]) {
            for record in stream.chunks(MAX_RECORD) {
                assert!(self.peer.write(record));
            }
            self.ours.give(&self.peer.take(usize::MAX));
        }

        /// A super-packet for the source to give.
        fn give(&self, spec: &Spec, size: usize) {
            give(&self.far, spec, size);
        }

        /// Each write to the device.
        fn written(&self) -> Vec<Vec<u8>> {
            let mut bytes = vec![0; 70_000];
            let mut written = Vec::new();
            while let Ok(n) = self.far.recv(&mut bytes) {
                written.push(bytes[..n].to_vec());
            }
            written
        }

        /// Takes what the splice has not delivered, and then what the peer has sent beyond
        /// that.
        fn take_back(&mut self) -> Vec<u8> {
            let mut rest = Vec::new();
            self.splice
                .take_undelivered(usize::MAX, |bytes| rest.extend(bytes))
                .unwrap();
            rest.extend(self.ours.read_all().0);
            rest
        }
    }

    /// Sends a super-packet to the other end of the socket.
    fn give(far: &UnixDatagram, spec: &Spec, size: usize) {
        let joined = Joined {
            gso: match (spec.is_udp, spec.is_v6) {
                (true, _) => Gso::Udp,
                (false, false) => Gso::TcpV4,
                (false, true) => Gso::TcpV6,
            },
            gso_size: size as u16,
            // The kernel's value is wrong for a packet that is forwarded, and nobody may use it.
            header_len: 0,
            csum_start: spec.transport_at() as u16,
            csum_offset: if spec.is_udp { 6 } else { 16 },
        };
        let mut bytes = vec![0; layout().size()];
        layout().encode(&joined, &mut bytes);
        bytes.extend(spec.partial_packet());
        far.send(&bytes).unwrap();
    }

    fn layout() -> Layout {
        Layout::new(12, ByteOrder::NATIVE).unwrap()
    }

    /// The packets that writes to the device stand for.
    fn packets_of(written: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for bytes in written {
            let (header, packet) = bytes.split_at(layout().size());
            let header = layout().decode(header).unwrap();
            let mut packet = packet.to_vec();
            match split::open(&header, &mut packet).unwrap() {
                Content::Packet => packets.push(packet),
                Content::Super(mut split) => {
                    while let Some(len) = split.next_len() {
                        let mut out = vec![0; len];
                        split.make_next(&packet, &mut out);
                        packets.push(out);
                    }
                }
            }
        }
        packets
    }

    type Flow = Option<(bool, bool, Vec<u8>, [u8; 4])>;

    /// The packets of each flow in order, and the packets that belong to no flow. IPv4
    /// identifications that nobody may look at are left out.
    fn by_flow(packets: &[Vec<u8>]) -> HashMap<Flow, Vec<Vec<u8>>> {
        let mut flows: HashMap<Flow, Vec<Vec<u8>>> = HashMap::new();
        for packet in packets {
            let flow = Spec::parse(packet).map(|spec| spec.flow());
            flows
                .entry(flow)
                .or_default()
                .push(without_atomic_id(packet));
        }
        flows
    }

    /// Packets from a script that the framing can express.
    fn packets_from(script: &[u8], most: usize, framing: Framing) -> Vec<Vec<u8>> {
        let fits = |packet: &Vec<u8>| match framing {
            Framing::Ip => PacketFormat::from(framing)
                .frame(&mut packet.clone())
                .is_ok(),
            _ => true,
        };
        let packets = Script(script).packets(most);
        packets.into_iter().filter(fits).collect()
    }

    /// Takes the packets off the start of a stream. Nothing else may be left.
    fn unframed(mut stream: &[u8], framing: Framing) -> Vec<Vec<u8>> {
        let format = PacketFormat::from(framing);
        let mut packets = Vec::new();
        while let Ok(Some(packet)) = format.parse(stream) {
            let (first, rest) = stream.split_at(packet.total());
            packets.push(first[format.prefix()..].to_vec());
            stream = rest;
        }
        assert!(stream.is_empty());
        packets
    }

    fn framed(framing: Framing, packets: &[Vec<u8>]) -> Vec<u8> {
        let mut stream = Vec::new();
        for packet in packets {
            if framing == Framing::U16be {
                stream.extend((packet.len() as u16).to_be_bytes());
            }
            stream.extend(packet);
        }
        stream
    }

    #[test]
    fn packets_that_arrive_at_once_are_written_as_one() {
        for framing in [Framing::Ip, Framing::U16be] {
            let mut rig = Rig::new(256 * 1024, framing);
            let mut packets = Vec::new();
            for flow in 0..4 {
                packets.extend(slow_split(
                    &Spec::of_flow(flow).with_payload(60_000, 1),
                    1348,
                ));
            }
            let stream = framed(framing, &packets);
            let mut written = Vec::new();
            for piece in [&stream[..90_000], &stream[90_000..]] {
                rig.peer_sends(piece);
                // The socket has room for less than a turn.
                while rig.decrypt() != InboundStep::WantCiphertext {
                    written.extend(rig.written());
                }
                written.extend(rig.written());
            }
            assert!(written.len() <= 7, "{}", written.len());
            assert_eq!(packets_of(&written), packets);
            let stats = rig.splice.stats();
            assert_eq!(stats.packets_in, packets.len() as u64);
            assert_eq!(stats.bytes_in, stream.len() as u64);
            assert!((4..=7).contains(&stats.super_packets_in));
            assert_eq!((stats.drops_in, stats.super_packets_refused), (0, 0));
            assert_eq!(rig.splice.undelivered(), 0);
        }
    }

    #[test]
    fn a_packet_over_the_maximum_is_dropped_or_ends_the_splice_behind_those_before() {
        let spec = |payload| Spec::of_flow(0).with_payload(payload, 1);
        let len = |payload| spec(payload).packet().len();
        let format = PacketFormat::new(Framing::Ip, len(1000));
        let mut rig = Rig::new(256 * 1024, format);
        // The last segment is the only one that is short enough.
        rig.give(&spec(2500), 1200);
        rig.give(&spec(3000), 1000);
        rig.encrypt();
        let received = unframed(&rig.received(), Framing::Ip);
        let lens: Vec<usize> = received.iter().map(Vec::len).collect();
        assert_eq!(lens, [len(100), len(1000), len(1000), len(1000)]);
        assert_eq!(rig.splice.stats().drops_out, 2);

        let packets = [spec(1000).packet(), spec(1001).packet()];
        rig.peer_sends(&packets.concat());
        let expected = Failure::Framing {
            direction: Direction::Inbound,
            offset: packets[0].len() as u64,
        };
        assert_eq!(rig.decrypt(), InboundStep::Failed(expected));
        assert_eq!(packets_of(&rig.written()), packets[..1]);
    }

    #[test]
    fn a_device_that_is_full_gets_the_rest_later_in_order() {
        // The queue of the socket has room for ten or so.
        let script: Vec<u8> = (0..4000u32).map(|i| ((i * i / 7) ^ i) as u8).collect();
        let packets = packets_from(&script, 400, Framing::Ip);
        let stream = packets.concat();
        let mut rig = Rig::new(1 << 20, Framing::Ip);
        rig.peer_sends(&stream);
        let mut got = Vec::new();
        let mut stalls = 0;
        while rig.decrypt() != InboundStep::WantCiphertext {
            got.extend(packets_of(&rig.written()));
            stalls += 1;
        }
        got.extend(packets_of(&rig.written()));
        assert!(stalls > 10);
        // In each flow in order, if not among them.
        assert!(by_flow(&got) == by_flow(&packets));
    }

    #[test]
    fn a_stop_hands_back_whole_packets_that_were_not_written() {
        let packets: Vec<Vec<u8>> = (0..100)
            .map(|i| Spec::of_flow(i % 2).with_payload(1000, i).packet())
            .collect();
        let stream = packets.concat();
        let mut rig = Rig::new(256 * 1024, Framing::Ip);
        rig.peer_sends(&stream[..stream.len() - 10]);
        assert_eq!(rig.decrypt(), InboundStep::Blocked);
        assert_eq!(rig.splice.stats().stalls_in, 1);
        rig.splice.stop();
        let written = rig.written();
        assert!(!written.is_empty());
        let mut all = packets_of(&written);
        let mut rest = rig.take_back();
        rest.extend(&stream[stream.len() - 10..]);
        all.extend(unframed(&rest, Framing::Ip));
        assert!(by_flow(&all) == by_flow(&packets));
    }

    /// Takes what is written. What is written as one it fails with the errnos that it is
    /// given, one after the other; 0 takes it.
    fn refusing(errnos: &[c_int]) -> (Arc<Mutex<Vec<c_int>>>, Writev) {
        let errnos = Arc::new(Mutex::new(errnos.iter().rev().copied().collect::<Vec<_>>()));
        let left = errnos.clone();
        let writev = move |pieces: &[IoSlice]| match is_super_packet(pieces) {
            true => match left.lock().unwrap().pop() {
                None | Some(0) => Io::Bytes(1),
                Some(errno) => Io::Failed(errno),
            },
            false => Io::Bytes(1),
        };
        (errnos, Box::new(writev))
    }

    fn is_super_packet(pieces: &[IoSlice]) -> bool {
        layout().decode(&pieces[0]).unwrap().gso.is_some()
    }

    #[test]
    fn joining_is_given_up_if_the_kernel_refuses_it_but_not_if_the_link_was_down() {
        use libc::{EINVAL, EIO, ENOBUFS};
        // What is written as one is refused, and its packets are taken one by one.
        for (errnos, is_given_up) in [
            (&[EINVAL][..], true),
            (&[0, EINVAL], true),
            (&[EIO, EIO], true),
            (&[0, EIO, EIO], true),
            // The link has come up between the two writes.
            (&[EIO], false),
            (&[EIO, 0, EIO, 0, EIO], false),
            (&[ENOBUFS, ENOBUFS, ENOBUFS], false),
        ] {
            for flow in 0..4 {
                let (left, writev) = refusing(errnos);
                let mut rig = Rig::write_with(256 * 1024, Framing::Ip, writev);
                let packets = slow_split(&Spec::of_flow(flow).with_payload(3000, 1), 1000);
                // The last one shows what has become of joining.
                for _ in 0..=errnos.len() {
                    rig.peer_sends(&packets.concat());
                    assert_eq!(rig.decrypt(), InboundStep::WantCiphertext);
                }
                assert!(left.lock().unwrap().is_empty());
                let stats = rig.splice.stats();
                let taken = errnos.iter().filter(|errno| **errno == 0).count();
                let expected = taken + usize::from(!is_given_up);
                assert_eq!(stats.super_packets_in, expected as u64, "{errnos:?}");
                assert_eq!(stats.super_packets_refused, u64::from(is_given_up));
                let count = packets.len() * (errnos.len() + 1);
                assert_eq!((stats.packets_in, stats.drops_in), (count as u64, 0));
            }
        }
    }

    #[test]
    fn a_link_that_is_down_says_nothing_of_joining() {
        let mut rig = Rig::write_with(256 * 1024, Framing::Ip, Box::new(|_| Io::Failed(libc::EIO)));
        for _ in 0..3 {
            rig.peer_sends(&slow_split(&Spec::of_flow(0).with_payload(3000, 1), 1000).concat());
            assert_eq!(rig.decrypt(), InboundStep::WantCiphertext);
        }
        let stats = rig.splice.stats();
        assert_eq!((stats.drops_in, stats.drops_eio), (9, 9));
        assert_eq!(stats.super_packets_refused, 0);
    }

    /// What has become of the packets that a device was given: those that it has taken or
    /// dropped, in order, and how many it has dropped.
    #[derive(Default)]
    struct Fates {
        packets: Vec<Vec<u8>>,
        dropped: usize,
    }

    /// A device that takes what is written or fails as the bytes say, one for each write.
    fn failing(bytes: Vec<u8>) -> (Arc<Mutex<Fates>>, Writev) {
        let fates = Arc::new(Mutex::new(Fates::default()));
        let log = fates.clone();
        let mut bytes = bytes.into_iter();
        let writev = move |pieces: &[IoSlice]| {
            let errno = match bytes.next().unwrap_or(0) {
                0..=127 => None,
                128..=159 => return Io::WouldBlock,
                160..=183 => Some(libc::EINVAL),
                184..=207 => Some(libc::EIO),
                208..=231 => Some(libc::ENOBUFS),
                232..=255 => Some(libc::EMSGSIZE),
            };
            let mut log = log.lock().unwrap();
            // Of a super-packet that is refused, each packet is written again.
            if errno.is_none() || !is_super_packet(pieces) {
                let written: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
                log.packets.extend(packets_of(&[written]));
            }
            match errno {
                None => Io::Bytes(1),
                Some(errno) => {
                    log.dropped += usize::from(!is_super_packet(pieces));
                    Io::Failed(errno)
                }
            }
        };
        (fates, Box::new(writev))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn each_packet_is_written_or_dropped_or_given_back_once_and_in_order(
            script in prop::collection::vec(any::<u8>(), 0..800),
            failures in prop::collection::vec(any::<u8>(), 0..200),
            pieces in prop::collection::vec(1usize..60_000, 0..6),
            high_water_mark in prop_oneof![
                Just(3000usize), Just(100_000), Just(256 * 1024), Just(1 << 20),
            ],
            framing in prop_oneof![Just(Framing::Ip), Just(Framing::U16be)],
            stop_after in prop_oneof![Just(usize::MAX), 0usize..20],
        ) {
            let packets = packets_from(&script, 300, framing);
            let stream = framed(framing, &packets);
            let (fates, writev) = failing(failures);
            let mut rig = Rig::write_with(high_water_mark, framing, writev);
            let mut rest = &stream[..];
            let mut runs = 0;
            let mut pieces = pieces.into_iter();
            while !rest.is_empty() && runs < stop_after {
                let len = pieces.next().unwrap_or(rest.len()).min(rest.len());
                rig.peer_sends(&rest[..len]);
                rest = &rest[len..];
                while runs < stop_after && rig.decrypt() != InboundStep::WantCiphertext {
                    runs += 1;
                    prop_assert!(runs < 1_000_000);
                }
            }
            rig.splice.stop();
            let given_back = unframed(&[&rig.take_back(), rest].concat(), framing);
            let fates = fates.lock().unwrap();
            let all = [&fates.packets[..], &given_back].concat();
            prop_assert!(by_flow(&all) == by_flow(&packets));
            let stats = rig.splice.stats();
            let taken = fates.packets.len() - fates.dropped;
            prop_assert_eq!(stats.packets_in, taken as u64);
            prop_assert_eq!(stats.drops_in, fates.dropped as u64);
        }
    }

    #[test]
    fn super_packets_become_packets_in_full_records() {
        for framing in [Framing::Ip, Framing::U16be] {
            for high_water_mark in [1, 100_000, 256 * 1024] {
                let mut rig = Rig::new(high_water_mark, framing);
                let mut packets = Vec::new();
                for flow in 0..4 {
                    let spec = Spec::of_flow(flow).with_payload(64_000, 1);
                    rig.give(&spec, 1348);
                    packets.extend(slow_split(&spec, 1348));
                }
                let expected = framed(framing, &packets);
                let mut got = Vec::new();
                let mut turns = 0;
                while got.len() < expected.len() {
                    rig.encrypt();
                    let records = rig.records();
                    if high_water_mark == 256 * 1024 {
                        let short = records.iter().filter(|record| record.len() < MAX_RECORD);
                        // What is left of the turn before, and of this one.
                        assert!(records.len() > 4 && short.count() <= 2);
                    }
                    got.extend(records.concat());
                    turns += 1;
                    assert!(turns < 1000);
                }
                assert_eq!(rig.encrypt(), OutboundStep::WantSource);
                assert!(got == expected);
                let stats = rig.splice.stats();
                assert_eq!(stats.packets_out, packets.len() as u64);
                assert_eq!(stats.bytes_out, got.len() as u64);
                assert_eq!((stats.super_packets_out, stats.drops_out), (4, 0));
                // One super-packet is always held.
                assert!(stats.peak_buffered_out <= high_water_mark.max(67_000) as u64);
            }
        }
    }

    #[test]
    fn what_whole_records_leave_behind_does_not_walk_through_the_buffer() {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let device = VnetDevice::over(near.into(), layout());
        let mut chunk = Chunk::lend(Size::Large);
        let size = chunk.spare_for(Unit::Packets).len();
        let mut stats = Stats::default();
        let mut end_of_chunk = 0;
        for _ in 0..20 {
            give(&far, &Spec::of_flow(0).with_payload(60_000, 1), 1348);
            far.send(&[vec![0; 12], Spec::of_flow(0).with_payload(1000, 1).packet()].concat())
                .unwrap();
            let mut budget = Budget::default();
            while let Reading::Super(mut rest) = read(
                &mut chunk,
                GATHERED,
                &mut budget,
                &device,
                Framing::Ip.into(),
                &mut stats,
            ) {
                while !rest.split(&mut chunk, GATHERED, Framing::Ip.into(), &mut stats) {
                    chunk.consume(whole_records(chunk.len()));
                }
                end_of_chunk = end_of_chunk.max(size - chunk.spare_for(Unit::Packets).len());
            }
            // It is as much as a record at most.
            chunk.consume(whole_records(chunk.len()));
        }
        assert_eq!(stats.packets_out, 20 * (45 + 1));
        assert!(end_of_chunk <= GATHERED + MAX_RECORD, "{end_of_chunk}");
    }

    #[test]
    fn a_busy_device_allocates_no_buffers_after_its_first_turn() {
        let mut rig = Rig::new(256 * 1024, Framing::Ip);
        assert!(unsafe { rig.splice.attach(Direction::Inbound, rig.ours.0) });
        let spec = Spec::of_flow(0).with_payload(60_000, 1);
        let packets = slow_split(&spec, 1348).concat();
        let mut allocated = Vec::new();
        for _ in 0..5 {
            rig.give(&spec, 1348);
            let mut got = Vec::new();
            while rig.encrypt() != OutboundStep::WantSource {
                got.extend(rig.received());
            }
            got.extend(rig.received());
            assert!(got == packets);
            for record in packets.chunks(MAX_RECORD) {
                assert!(rig.peer.write(record));
            }
            let ciphertext = rig.peer.take(usize::MAX);
            rig.splice.alloc()[..ciphertext.len()].copy_from_slice(&ciphertext);
            rig.splice.commit(ciphertext.len());
            assert_eq!(rig.decrypt(), InboundStep::WantCiphertext);
            assert!(packets_of(&rig.written()).concat() == packets);
            allocated.push(crate::buf::allocated());
        }
        assert_eq!(allocated, [allocated[0]; 5]);
        unsafe { rig.splice.detach(Direction::Inbound, rig.ours.0) };
    }

    #[test]
    fn a_super_packet_of_tiny_packets_takes_little_memory_and_survives_a_stop() {
        for is_stopped in [false, true] {
            let mut rig = Rig::new(256 * 1024, Framing::Ip);
            let spec = Spec::of_flow(5).with_payload(60_000, 1);
            rig.give(&spec, 8);
            let mut got = Vec::new();
            assert_eq!(rig.encrypt(), OutboundStep::AfterDrain);
            if is_stopped {
                rig.splice.stop();
                assert_eq!(rig.encrypt(), OutboundStep::Stopped);
            } else {
                while rig.encrypt() != OutboundStep::WantSource {
                    got.extend(rig.received());
                }
                assert!(rig.splice.stats().peak_buffered_out <= 256 * 1024);
            }
            got.extend(rig.received());
            assert!(got == slow_split(&spec, 8).concat());
        }
    }

    #[test]
    fn ordinary_packets_come_as_they_are_and_malformed_ones_are_dropped() {
        let mut rig = Rig::new(256 * 1024, Framing::Ip);
        let good = Spec::of_flow(4).with_payload(500, 1);
        let send = |header: &[u8], packet: &[u8]| {
            let mut bytes = header.to_vec();
            bytes.resize(12, 0);
            bytes.extend(packet);
            rig.far.send(&bytes).unwrap();
        };
        send(&[], &good.packet());
        let partial = [
            &[1, 0, 0, 0, 0, 0][..],
            &20u16.to_ne_bytes(),
            &16u16.to_ne_bytes(),
        ];
        send(&partial.concat(), &good.partial_packet());
        send(&[0, 3], &good.packet());
        send(&[1, 1, 0, 0, 0, 0], &good.packet());
        send(&[], b"no packet");
        send(&[], &[]);
        assert_eq!(rig.encrypt(), OutboundStep::WantSource);
        assert_eq!(rig.received(), [good.packet(), good.packet()].concat());
        let stats = rig.splice.stats();
        assert_eq!((stats.packets_out, stats.drops_out), (2, 4));
        assert_eq!(stats.super_packets_out, 0);
    }
}
