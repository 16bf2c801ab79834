//! Packets: the framing against a simple reference, and what the pump makes of
//! datagram sockets and of byte streams that carry packets.

#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use proptest::prelude::*;

use common::packets::{framed, received, set_option, udp_pair, Rig};
use common::*;
use tls_splice::ffi::*;
use tls_splice::frame::*;

/// Counts what a thread allocates while it asks for that.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<Option<usize>> = const { Cell::new(None) };
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get().map(|n| n + 1)));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(run: impl FnOnce()) -> usize {
    ALLOCATIONS.set(Some(0));
    run();
    ALLOCATIONS.take().unwrap()
}

/// An IPv4 or IPv6 packet of `len` bytes with recognisable contents.
fn ip_packet(len: usize, seed: u8) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(7) ^ seed).collect();
    if len >= 40 && seed & 1 == 1 {
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        packet[6] = 17;
    } else {
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    }
    packet
}

/// The whole packets at the start of a stream, by a parser that is as simple as can
/// be; and where the first comes that is none.
fn reference(framing: Framing, max_len: usize, stream: &[u8]) -> (Vec<Vec<u8>>, Option<usize>) {
    let mut packets = Vec::new();
    let mut at = 0;
    loop {
        let rest = &stream[at..];
        let byte = |i: usize| rest.get(i).map(|b| usize::from(*b));
        let number = |i: usize| Some(byte(i)? * 256 + byte(i + 1)?);
        let (prefix, len) = match framing {
            Framing::Raw => unreachable!(),
            Framing::U16be => (2, number(0).map(|n| n + 2)),
            Framing::Ip | Framing::Ipv4 | Framing::Ipv6 => match byte(0).map(|b| b / 16) {
                None => (0, None),
                Some(4) if framing != Framing::Ipv6 => {
                    let header = (rest[0] % 16) as usize * 4;
                    if header < 20 || number(2).is_some_and(|n| n < header) {
                        return (packets, Some(at));
                    }
                    (0, number(2))
                }
                Some(6) if framing != Framing::Ipv4 => {
                    if byte(6) == Some(0) && number(4) == Some(0) {
                        return (packets, Some(at));
                    }
                    (0, byte(6).and_then(|_| number(4)).map(|n| n + 40))
                }
                Some(_) => return (packets, Some(at)),
            },
        };
        match len {
            Some(len) if len - prefix > max_len => return (packets, Some(at)),
            Some(len) if len <= rest.len() => {
                packets.push(rest[prefix..len].to_vec());
                at += len;
            }
            _ => return (packets, None),
        }
    }
}

fn by_parse(format: PacketFormat, stream: &[u8]) -> (Vec<Vec<u8>>, Option<usize>) {
    let mut packets = Vec::new();
    let mut at = 0;
    loop {
        match format.parse(&stream[at..]) {
            Err(Desync) => return (packets, Some(at)),
            Ok(Some(packet)) if packet.total() <= stream.len() - at => {
                packets.push(stream[at + packet.prefix..at + packet.total()].to_vec());
                at += packet.total();
            }
            Ok(_) => return (packets, None),
        }
    }
}

/// The same from pieces. The lengths only: a follower holds nothing.
fn by_follower(format: PacketFormat, stream: &[u8], cuts: &[usize]) -> (Vec<usize>, Option<usize>) {
    let mut follower = Follower::default();
    let mut lens = Vec::new();
    let mut at = 0;
    let mut cuts = cuts.iter().cycle();
    while at < stream.len() {
        let n = (*cuts.next().unwrap()).clamp(1, stream.len() - at);
        let piece = &stream[at..at + n];
        if let Err(bad) = follower.follow(format, piece, |packet| lens.push(packet.len)) {
            return (lens, Some(at.checked_add_signed(bad).unwrap()));
        }
        at += n;
    }
    (lens, None)
}

fn framings() -> impl Strategy<Value = Framing> {
    prop_oneof![
        Just(Framing::Ip),
        Just(Framing::Ipv4),
        Just(Framing::Ipv6),
        Just(Framing::U16be)
    ]
}

/// Packets with garbage behind or between them, or garbage alone.
fn streams(framing: Framing) -> impl Strategy<Value = Vec<u8>> {
    let packet = (0usize..3000, any::<u8>()).prop_map(move |(len, seed)| {
        let format = PacketFormat::from(framing);
        let mut bytes = vec![0; format.prefix()];
        bytes.extend(match framing {
            Framing::Ip => ip_packet(len.max(20), seed),
            Framing::Ipv4 => ip_packet(len.max(20), seed & !1),
            Framing::Ipv6 => ip_packet(len.max(40), seed | 1),
            _ => vec![seed; len],
        });
        format.frame(&mut bytes).unwrap();
        bytes
    });
    let garbage = prop::collection::vec(any::<u8>(), 0..60);
    let other_version = (40usize..60, any::<u8>()).prop_map(|(len, seed)| ip_packet(len, seed));
    let piece = prop_oneof![20 => packet, 1 => garbage, 1 => other_version];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn parsing_agrees_with_the_reference(
        (framing, stream) in framings().prop_flat_map(|f| (Just(f), streams(f))),
        max_len in prop_oneof![Just(usize::MAX), 1usize..3000],
        cuts in prop::collection::vec(1usize..2000, 1..8),
    ) {
        let format = PacketFormat::new(framing, max_len);
        let expected = reference(framing, max_len, &stream);
        prop_assert_eq!(&by_parse(format, &stream), &expected);
        let (lens, bad) = by_follower(format, &stream, &cuts);
        prop_assert_eq!(bad, expected.1);
        let whole: Vec<usize> = expected.0.iter().map(Vec::len).collect();
        prop_assert_eq!(lens, whole);
    }
}

#[test]
fn what_cannot_be_a_packet_is_refused() {
    let ip = PacketFormat::from(Framing::Ip);
    for (bytes, why) in [
        (&[0x00][..], "version 0"),
        (&[0x55], "version 5"),
        (&[0x44], "a header of 16 bytes"),
        (&[0x45, 0, 0, 19], "shorter than its header"),
        (&[0x46, 0, 0, 20], "shorter than its header with options"),
        (&[0x45, 0, 0, 0], "of no length, as with TSO"),
        (&[0x60, 0, 0, 0, 0, 0, 0], "a jumbogram"),
    ] {
        assert_eq!(ip.parse(bytes), Err(Desync), "{why}");
    }
    for bytes in [&[][..], &[0x45], &[0x45, 0, 5], &[0x60, 0, 0, 0, 0, 0]] {
        assert_eq!(ip.parse(bytes), Ok(None));
    }
    let longest = [0x6f, 0, 0, 0, 0xff, 0xff, 6];
    let packet = ip.parse(&longest).unwrap().unwrap();
    assert_eq!(packet.total(), MAX_PACKET);
    let u16be = PacketFormat::from(Framing::U16be);
    let empty = u16be.parse(&[0, 0]).unwrap().unwrap();
    assert_eq!((empty.prefix, empty.len), (2, 0));
}

#[test]
fn another_version_of_ip_is_refused_at_its_first_byte() {
    for (framing, good, bad) in [(Framing::Ipv4, 0x45, 0x60), (Framing::Ipv6, 0x60, 0x45)] {
        let format = PacketFormat::from(framing);
        assert_eq!(format.parse(&[good]), Ok(None));
        assert_eq!(format.parse(&[bad]), Err(Desync));
        assert_eq!(PacketFormat::from(Framing::Ip).parse(&[bad]), Ok(None));
    }
}

#[test]
fn a_packet_that_is_too_long_is_refused_when_its_length_is_known() {
    let v4 = |len: u16| [&[0x45, 0][..], &len.to_be_bytes()].concat();
    let v6 = |len: u16| [&[0x60, 0, 0, 0][..], &(len - 40).to_be_bytes(), &[17]].concat();
    let u16be = |len: u16| len.to_be_bytes().to_vec();
    type Beginning = fn(u16) -> Vec<u8>;
    let cases: [(Framing, Beginning); 5] = [
        (Framing::Ip, v4),
        (Framing::Ipv4, v4),
        (Framing::Ip, v6),
        (Framing::Ipv6, v6),
        (Framing::U16be, u16be),
    ];
    for (framing, beginning) in cases {
        let format = PacketFormat::new(framing, 1280);
        let packet = format.parse(&beginning(1280)).unwrap().unwrap();
        assert_eq!(packet.len, 1280);
        assert_eq!(format.parse(&beginning(1281)), Err(Desync));
        let mut follower = Follower::default();
        let stream = beginning(1281);
        let bad = follower.follow(format, &stream, |_| unreachable!());
        assert_eq!(bad, Err(0));
    }
}

#[test]
fn headers_of_devices() {
    let (v4, v6) = (ip_packet(60, 0), ip_packet(60, 1));
    let mut frame = [0; 60];
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    for (header, packet, expected) in [
        (DeviceHeader::PacketInfo, &v4[..], [0, 0, 0x08, 0x00]),
        (DeviceHeader::PacketInfo, &v6, [0, 0, 0x86, 0xdd]),
        (DeviceHeader::PacketInfoEthernet, &frame, [0, 0, 0x08, 0x06]),
        (DeviceHeader::Utun, &v4, [0, 0, 0, 2]),
        (DeviceHeader::Utun, &v6, [0, 0, 0, 30]),
    ] {
        assert_eq!(header.for_packet(packet), expected);
        assert_eq!(header.size(), 4);
    }
    assert_eq!(DeviceHeader::None.size(), 0);
    // What a TUN device gives says which it is.
    for packet in [&v4[..], &v6, &v4[..20]] {
        assert_eq!(DeviceHeader::of_tun(packet), Some(DeviceHeader::None));
        let header = DeviceHeader::PacketInfo;
        let read = [&header.for_packet(packet)[..], packet].concat();
        assert_eq!(DeviceHeader::of_tun(&read), Some(header));
    }
    for garbage in [
        &[][..],
        &[0; 100],
        &[0, 0, 8, 0],
        &[0, 0, 8, 0, 0x60],
        &[0x55; 20],
    ] {
        assert_eq!(DeviceHeader::of_tun(garbage), None);
    }
    let stripped = 1u16.to_ne_bytes();
    let header = [stripped[0], stripped[1], 8, 0];
    assert!(DeviceHeader::PacketInfo.is_truncated(header));
    assert!(!DeviceHeader::PacketInfo.is_truncated([0, 0, 8, 0]));
    assert!(!DeviceHeader::Utun.is_truncated(header));
}

#[test]
fn packets_arrive_whole_across_any_records() {
    for framing in [TLS_SPLICE_FRAMING_IP, TLS_SPLICE_FRAMING_U16BE] {
        let sizes = [
            20, 1400, 40, 65_535, 41, 9000, 1280, 65_535, 65_535, 1500, 60,
        ];
        let mut packets: Vec<_> = (0..).zip(sizes).map(|(i, n)| ip_packet(n, i)).collect();
        if framing == TLS_SPLICE_FRAMING_U16BE {
            packets.insert(3, vec![]);
            packets.push(vec![]);
        }
        let stream = framed(framing, &packets);
        for record in [1, 7, 1000, 16_384] {
            if record == 1 && stream.len() > 10_000 {
                // A record each: only for the first few.
                let few = framed(framing, &packets[..3]);
                let (mut rig, far) = Rig::datagrams(framing);
                rig.peer_sends(&few, 1);
                assert_eq!(received(&far), packets[..3]);
                continue;
            }
            let (mut rig, far) = Rig::datagrams(framing);
            let mut got = Vec::new();
            rig.peer_sends(&stream, record);
            loop {
                let more = received(&far);
                if more.is_empty() {
                    break;
                }
                got.extend(more);
                // A full queue is backpressure.
                rig.decrypt();
            }
            assert_eq!(got.len(), packets.len());
            assert_eq!(got, packets, "records of {record}");
            let stats = rig.stats();
            assert_eq!(stats.packets_in, packets.len() as u64);
            assert_eq!(stats.bytes_in, stream.len() as u64);
            assert_eq!(stats.largest_packet_in, 65_535);
            assert_eq!(stats.drops_in, 0);
        }
    }
}

#[test]
fn packets_that_are_ready_share_a_record() {
    for framing in [TLS_SPLICE_FRAMING_IP, TLS_SPLICE_FRAMING_U16BE] {
        let (mut rig, far) = Rig::datagrams(framing);
        // As many as a queue holds by default.
        let packets: Vec<_> = (0..10).map(|i| ip_packet(1400, i)).collect();
        for packet in &packets {
            far.send(packet).unwrap();
        }
        let (run, records) = rig.encrypt();
        assert!(run.flushes());
        assert_eq!(records, [framed(framing, &packets)]);

        // Each record begins with a packet.
        let packets: Vec<_> = (0..8).map(|i| ip_packet(5000, i)).collect();
        for packet in &packets {
            far.send(packet).unwrap();
        }
        let records = rig.encrypt().1;
        let expected: Vec<_> = packets
            .chunks(3)
            .map(|group| framed(framing, group))
            .collect();
        assert_eq!(records, expected);
        let stats = rig.stats();
        assert_eq!(stats.packets_out, 18);
        assert_eq!(stats.largest_packet_out, 5000);
    }
}

#[test]
fn the_high_water_mark_leaves_room_for_one_packet() {
    let packets: Vec<_> = (0..200).map(|i| ip_packet(1400, i)).collect();
    for (high_water_mark, most) in [(1, 1500), (80_000, 80_000), (256 * 1024, 256 * 1024)] {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut rig = Rig::with(near.into(), TLS_SPLICE_FRAMING_IP, high_water_mark, 0);
        let mut sent = packets.iter().peekable();
        let mut got = Vec::new();
        while got.len() < 200 * 1400 {
            // The stalled peer takes nothing until no more is read.
            let mut before = None;
            while before != Some(rig.stats().packets_out) {
                before = Some(rig.stats().packets_out);
                while sent.next_if(|packet| far.send(packet).is_ok()).is_some() {}
                rig.encrypt_only();
            }
            assert_ne!(rig.ours.pending(), 0);
            got.extend(rig.encrypt().1.concat());
        }
        assert_eq!(got, packets.concat());
        assert!(rig.stats().peak_buffered_out <= most, "{:?}", rig.stats());
    }
}

#[test]
fn what_does_not_fit_is_dropped_and_counted() {
    let (mut rig, far) = Rig::datagrams(TLS_SPLICE_FRAMING_IP);
    far.send(b"no packet").unwrap();
    far.send(&ip_packet(100, 3)).unwrap();
    let (_, records) = rig.encrypt();
    assert_eq!(records, [ip_packet(100, 3)]);
    assert_eq!(rig.stats().drops_out, 1);

    // Refused: nobody is there any more.
    drop(far);
    let run = rig.peer_sends(&ip_packet(50, 2), 16_384);
    assert!(!run.has_failed());
    let stats = rig.stats();
    assert_eq!((stats.drops_in, stats.drops_econnrefused), (1, 1));
    assert_eq!(stats.packets_in, 0);
}

/// A stream of packets that has lost its step: a packet of another version, or of a length
/// that no packet here can have.
#[test]
fn a_format_that_allows_less_finds_garbage_at_once() {
    let v6 = |len| ip_packet(len, 1);
    for (framing, garbage) in [
        (TLS_SPLICE_FRAMING_IPV6, ip_packet(60, 0)),
        (TLS_SPLICE_FRAMING_IPV6, v6(1281)[..7].to_vec()),
        (TLS_SPLICE_FRAMING_IP, v6(1281)[..7].to_vec()),
        (TLS_SPLICE_FRAMING_IPV4, ip_packet(1281, 0)[..4].to_vec()),
        (TLS_SPLICE_FRAMING_IPV4, v6(60)),
    ] {
        let first = ip_packet(1280, u8::from(framing == TLS_SPLICE_FRAMING_IPV6));
        let stream = [&first[..], &garbage].concat();

        // To packets
        let (near, far) = UnixDatagram::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let mut rig = Rig::with(near.into(), framing, 256 * 1024, 1280);
        let run = rig.peer_sends(&stream, 16_384);
        assert!(run.has_failed());
        assert_eq!(rig.desync(), Some((TLS_SPLICE_DECRYPT, 1280)));
        assert_eq!(received(&far), std::slice::from_ref(&first));
        assert_eq!(rig.undelivered(), garbage);

        // To a stream
        let (near, far) = nonblocking_pair();
        let mut rig = Rig::with(near, framing, 256 * 1024, 1280);
        let run = rig.peer_sends(&stream, 16_384);
        assert!(run.has_failed());
        assert_eq!(rig.desync(), Some((TLS_SPLICE_DECRYPT, 1280)));
        assert_eq!(read_some(&far), first);

        // From a stream
        let (near, far) = nonblocking_pair();
        let mut rig = Rig::with(near, framing, 256 * 1024, 1280);
        std::io::Write::write_all(&mut &far, &stream).unwrap();
        let (run, records) = rig.encrypt();
        assert!(run.has_failed());
        assert_eq!(rig.desync(), Some((TLS_SPLICE_ENCRYPT, 1280)));
        assert_eq!(records.concat(), first);
    }
}

#[test]
fn what_the_format_does_not_allow_is_dropped_and_counted() {
    for framing in [
        TLS_SPLICE_FRAMING_IPV4,
        TLS_SPLICE_FRAMING_IPV6,
        TLS_SPLICE_FRAMING_U16BE,
    ] {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut rig = Rig::with(near.into(), framing, 256 * 1024, 1280);
        let good = ip_packet(1280, u8::from(framing == TLS_SPLICE_FRAMING_IPV6));
        let long = ip_packet(1281, u8::from(framing == TLS_SPLICE_FRAMING_IPV6));
        let other = ip_packet(100, u8::from(framing != TLS_SPLICE_FRAMING_IPV6));
        far.send(&long).unwrap();
        far.send(&good).unwrap();
        far.send(&other).unwrap();
        let mut expected = vec![good];
        if framing == TLS_SPLICE_FRAMING_U16BE {
            expected.push(other);
        }
        assert_eq!(rig.encrypt().1, [framed(framing, &expected)]);
        let stats = rig.stats();
        assert_eq!(stats.packets_out, expected.len() as u64);
        assert_eq!(stats.drops_out, 3 - expected.len() as u64);
        assert_eq!(stats.largest_packet_out, 1280);
    }
}

#[test]
fn garbage_ends_it_with_its_offset() {
    for attempt in [TLS_SPLICE_FRAMING_IP, TLS_SPLICE_FRAMING_AUTO] {
        let stream = [ip_packet(100, 0), ip_packet(50, 1), b"\0garbage".to_vec()].concat();
        if attempt == TLS_SPLICE_FRAMING_IP {
            let (mut rig, far) = Rig::datagrams(attempt);
            let run = rig.peer_sends(&stream, 16_384);
            assert!(run.has_failed());
            assert_eq!(rig.desync(), Some((TLS_SPLICE_DECRYPT, 150)));
            assert_eq!(received(&far).len(), 2);
            assert_eq!(rig.undelivered(), b"\0garbage");
        }
        // On a byte stream too, from either side.
        let (near, far) = nonblocking_pair();
        let mut rig = Rig::new(near, TLS_SPLICE_FRAMING_IP);
        let run = rig.peer_sends(&stream, 33);
        assert!(run.has_failed());
        assert_eq!(rig.desync(), Some((TLS_SPLICE_DECRYPT, 150)));
        assert_eq!(read_some(&far), stream[..150]);
        assert_eq!(rig.undelivered()[..], stream[150..]);

        let (near, far) = nonblocking_pair();
        let mut rig = Rig::new(near, TLS_SPLICE_FRAMING_IP);
        std::io::Write::write_all(&mut &far, &stream).unwrap();
        let (run, records) = rig.encrypt();
        assert!(run.has_failed());
        assert_eq!(rig.desync(), Some((TLS_SPLICE_ENCRYPT, 150)));
        assert_eq!(records.concat(), stream[..150]);
        assert!(rig.driver.stop().is_out_stopped());
        assert!(rig.encrypt().1.is_empty());
    }
}

fn read_some(mut far: &UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 10_000];
    let n = std::io::Read::read(&mut far, &mut bytes).unwrap();
    bytes.truncate(n);
    bytes
}

#[test]
fn an_end_within_a_packet_is_a_failure() {
    let packet = ip_packet(100, 0);
    let (mut rig, far) = Rig::datagrams(TLS_SPLICE_FRAMING_IP);
    rig.peer_sends(&packet, 100);
    rig.peer_sends(&packet[..99], 100);
    rig.peer.shutdown();
    rig.ours.give(&rig.peer.take(usize::MAX));
    assert!(rig.decrypt().has_failed());
    assert_eq!(rig.desync(), Some((TLS_SPLICE_DECRYPT, 100)));
    assert_eq!(received(&far), std::slice::from_ref(&packet));
    assert_eq!(rig.undelivered(), packet[..99]);

    let (near, far) = nonblocking_pair();
    let mut rig = Rig::new(near, TLS_SPLICE_FRAMING_IP);
    std::io::Write::write_all(&mut &far, &packet[..60]).unwrap();
    drop(far);
    // What there is, and then its end.
    assert!(!rig.encrypt().0.has_failed());
    assert!(rig.encrypt().0.has_failed());
    assert_eq!(rig.desync(), Some((TLS_SPLICE_ENCRYPT, 0)));
}

#[test]
fn a_datagram_socket_that_is_shut_down_ends() {
    for nonblocking in [false, true] {
        for queued in [&[][..], &[&b"a"[..], b"", b"bc", b""]] {
            let queued: Vec<_> = queued.iter().map(|packet| packet.to_vec()).collect();
            let (near, far) = UnixDatagram::pair().unwrap();
            near.set_nonblocking(nonblocking).unwrap();
            let mut rig = Rig::new(near.into(), TLS_SPLICE_FRAMING_U16BE);
            for packet in &queued {
                far.send(packet).unwrap();
            }
            // An empty one is no end.
            let expected = framed(TLS_SPLICE_FRAMING_U16BE, &queued);
            assert_eq!(rig.encrypt_all(), (false, expected.clone()));
            // Neither is one that waits when it is shut down, nor what is behind it.
            for packet in &queued {
                far.send(packet).unwrap();
            }
            unsafe { libc::shutdown(rig.near.as_raw_fd(), libc::SHUT_RD) };
            assert!(rig.is_readable());
            assert_eq!(rig.encrypt_all(), (true, expected));
            assert_eq!(rig.stats().packets_out, 2 * queued.len() as u64);
        }

        let (near, far) = udp_pair();
        near.set_nonblocking(nonblocking).unwrap();
        let mut rig = Rig::new(near.into(), TLS_SPLICE_FRAMING_U16BE);
        far.send(b"a").unwrap();
        far.send(b"").unwrap();
        unsafe { libc::shutdown(rig.near.as_raw_fd(), libc::SHUT_RD) };
        assert_eq!(rig.encrypt_all(), (true, b"\0\x01a\0\0".to_vec()));
    }
}

/// Packets of ICMP, and the times of sending, make a socket ready until somebody has
/// read them.
#[test]
#[cfg(target_os = "linux")]
fn reports_of_the_kernel_do_not_make_it_spin() {
    for nonblocking in [false, true] {
        let (near, far) = udp_pair();
        near.set_nonblocking(nonblocking).unwrap();
        set_option(&near, libc::IPPROTO_IP, libc::IP_RECVERR, 1);
        drop(far);
        let mut rig = Rig::new(near.into(), TLS_SPLICE_FRAMING_U16BE);
        for _ in 0..3 {
            rig.peer_sends(b"\0\x05hello", 100);
            assert!(rig.is_readable());
            assert_eq!(rig.encrypt_all(), (false, vec![]));
        }
        let stats = rig.stats();
        assert_eq!((stats.packets_in, stats.drops_econnrefused), (3, 3));

        let (near, far) = udp_pair();
        near.set_nonblocking(nonblocking).unwrap();
        let times = libc::SOF_TIMESTAMPING_TX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
        set_option(
            &near,
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPING,
            times as libc::c_int,
        );
        let mut rig = Rig::new(near.into(), TLS_SPLICE_FRAMING_U16BE);
        rig.peer_sends(b"\0\x05hello", 100);
        assert!(rig.is_readable());
        assert_eq!(rig.encrypt_all(), (false, vec![]));
        // It is as good as before.
        far.send(b"answer").unwrap();
        assert_eq!(rig.encrypt_all(), (false, b"\0\x06answer".to_vec()));
        assert_eq!(rig.stats().drops_in, 0);
    }
}

#[test]
fn empty_packets_are_work() {
    const PACKETS: u64 = 50_000;
    // What a turn may move, divided by what a packet counts as at least; its own
    // bytes may have counted in the turn before.
    const MOST: u64 = 512 * 1024 / (64 - 2) + 1;
    let (near, _far) = udp_pair();
    near.set_nonblocking(true).unwrap();
    let mut rig = Rig::new(near.into(), TLS_SPLICE_FRAMING_U16BE);
    let mut run = rig.peer_sends(&[0; 2 * PACKETS as usize], 16_384);
    let mut before = 0;
    loop {
        let sent = rig.stats().packets_in;
        assert!((before + 1..=before + MOST).contains(&sent));
        if sent == PACKETS {
            break;
        }
        assert!(run.has_more);
        before = sent;
        run = rig.decrypt();
    }
}

#[test]
fn bytes_from_before_the_splice_are_packets_too() {
    let packets: Vec<_> = (0..100).map(|i| ip_packet(1400, i)).collect();
    let stream = framed(TLS_SPLICE_FRAMING_U16BE, &packets);
    let (mut rig, far) = Rig::datagrams(TLS_SPLICE_FRAMING_U16BE);
    let (before, after) = stream.split_at(100_001);
    for piece in before.chunks(999) {
        unsafe {
            abi::push_before(rig.splice, TLS_SPLICE_DECRYPT, piece.as_ptr(), piece.len());
        }
    }
    let mut got = Vec::new();
    rig.peer_sends(after, 16_384);
    loop {
        let more = received(&far);
        if more.is_empty() {
            break;
        }
        got.extend(more);
        rig.decrypt();
    }
    assert_eq!(got, packets);
}

#[test]
fn packets_read_before_the_splice_go_first() {
    for (cut, stop) in [(100_001, true), (100_001, false), (999, true), (999, false)] {
        let packets: Vec<_> = (0..130).map(|i| ip_packet(1400, i)).collect();
        let stream = framed(TLS_SPLICE_FRAMING_IP, &packets);
        let (mut rig, far) = Rig::datagrams(TLS_SPLICE_FRAMING_IP);
        for piece in [&stream[..cut], &stream[cut..]] {
            let (base, len) = (piece.as_ptr(), piece.len());
            unsafe { abi::push_before(rig.splice, TLS_SPLICE_ENCRYPT, base, len) };
        }
        let after = ip_packet(1000, 7);
        far.send(&after).unwrap();
        let mut expected = stream;
        if stop {
            rig.driver.stop();
        } else {
            expected.extend(&after);
        }
        let (over, got) = rig.encrypt_all();
        assert!(!over && got == expected, "{} bytes", got.len());
        assert_eq!(rig.stats().packets_out, 130 + u64::from(!stop));
    }
}

#[test]
fn a_stop_hands_whole_packets_back() {
    let packets: Vec<_> = (0..1000u32).map(|i| ip_packet(1400, i as u8)).collect();
    let stream = framed(TLS_SPLICE_FRAMING_IP, &packets);
    let (mut rig, far) = Rig::datagrams(TLS_SPLICE_FRAMING_IP);
    let run = rig.peer_sends(&stream[..stream.len() - 10], 16_384);
    assert!(run.is_paused(), "the queue is full");
    assert_eq!(rig.stats().stalls_in, 1);
    assert!(rig.driver.stop().is_in_stopped());
    let delivered = received(&far);
    assert!(!delivered.is_empty());
    let mut rest = rig.undelivered();
    rest.extend(rig.ours.read_all().0);
    rest.extend(&stream[stream.len() - 10..]);
    assert_eq!([delivered.concat(), rest].concat(), stream);
    assert_eq!(delivered, packets[..delivered.len()]);
}

#[test]
fn a_packet_allocates_nothing() {
    let (mut rig, far) = Rig::datagrams(TLS_SPLICE_FRAMING_IP);
    let packets: Vec<_> = (0..5).map(|i| ip_packet(1400, i)).collect();
    let stream = packets.concat();
    let mut allocated = 0;
    for round in 0..200 {
        // What the pump holds across packets is made by the first.
        if round == 1 {
            allocated = 0;
        }
        assert!(rig.peer.write(&stream));
        rig.ours.give(&rig.peer.take(usize::MAX));
        allocated += allocations(|| while rig.decrypt().has_more {});
        assert_eq!(received(&far), packets);
        for packet in &packets {
            far.send(packet).unwrap();
        }
        allocated += allocations(|| {
            rig.encrypt_only();
        });
        rig.peer.give(&rig.ours.take(usize::MAX));
        assert_eq!(rig.peer.read_all().0, stream);
    }
    assert_eq!(allocated, 0);
    assert_eq!(rig.stats().packets_out, 1000);
    // It counts.
    assert_eq!(allocations(|| drop(vec![0; 10])), 1);
}

#[test]
fn splices_share_the_memory_that_they_receive_into() {
    let mut rigs: Vec<_> = (0..20)
        .map(|_| {
            let (near, far) = udp_pair();
            near.set_nonblocking(true).unwrap();
            let mut rig = Rig::new(near.into(), TLS_SPLICE_FRAMING_U16BE);
            // Nothing is there yet.
            rig.encrypt_only();
            (rig, far)
        })
        .collect();
    for _ in 0..3 {
        for (rig, far) in &mut rigs {
            for _ in 0..10 {
                far.send(&[7; 1400]).unwrap();
            }
            let before = rig.stats().packets_out;
            let allocated = allocations(|| {
                rig.encrypt_only();
            });
            assert_eq!(allocated, 0);
            assert_eq!(rig.stats().packets_out, before + 10);
            rig.peer.give(&rig.ours.take(usize::MAX));
            assert_eq!(rig.peer.read_all().0.len(), 14_020);
        }
    }
}
