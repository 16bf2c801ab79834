//! Where packets end, against a parser as simple as can be: how the stream is cut
//! makes no difference.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tls_splice::frame::{Desync, Follower, Framing, PacketFormat};
use tls_splice_fuzz::{Counter, Input};

/// The packets in a stream as (where, length of the framing, length of the packet),
/// the last of which may not be there whole; and where one begins that is none.
type Packets = (Vec<(usize, usize, usize)>, Option<usize>);

fn reference(framing: Framing, max_len: usize, stream: &[u8]) -> Packets {
    let mut packets = Vec::new();
    let mut at = 0;
    while at < stream.len() {
        let byte = |i: usize| stream.get(at + i).map(|byte| usize::from(*byte));
        let number = |i: usize| Some(byte(i)? * 256 + byte(i + 1)?);
        let first = usize::from(stream[at]);
        let (prefix, len) = match (framing, first / 16) {
            (Framing::Raw, _) => unreachable!(),
            (Framing::U16be, _) => (2, number(0)),
            (Framing::Ip | Framing::Ipv4, 4) => {
                let header = first % 16 * 4;
                if header < 20 || number(2).is_some_and(|len| len < header) {
                    return (packets, Some(at));
                }
                (0, number(2))
            }
            (Framing::Ip | Framing::Ipv6, 6) => {
                let payload = byte(6).and(number(4));
                if payload == Some(0) && byte(6) == Some(0) {
                    return (packets, Some(at));
                }
                (0, payload.map(|len| len + 40))
            }
            (Framing::Ip | Framing::Ipv4 | Framing::Ipv6, _) => return (packets, Some(at)),
        };
        let Some(len) = len else { break };
        if len > max_len {
            return (packets, Some(at));
        }
        packets.push((at, prefix, len));
        at += prefix + len;
    }
    (packets, None)
}

/// Packet by packet, as a sink of packets is served.
fn by_parse(format: PacketFormat, stream: &[u8]) -> Packets {
    let mut packets = Vec::new();
    let mut at = 0;
    while at < stream.len() {
        match format.parse(&stream[at..]) {
            Err(Desync) => return (packets, Some(at)),
            Ok(None) => break,
            Ok(Some(packet)) => {
                packets.push((at, packet.prefix, packet.len));
                at += packet.total();
            }
        }
    }
    (packets, None)
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let framing = input.pick(&[Framing::Ip, Framing::U16be, Framing::Ipv4, Framing::Ipv6]);
    let max_len = input.pick(&[usize::MAX, 1280, 65_535, 1]);
    let format = PacketFormat::new(framing, max_len);
    let counter = Counter::default();
    let mut stream = Vec::new();
    let mut cuts = Vec::new();
    while !input.is_empty() {
        match input.byte() & 7 {
            0 => stream.extend(input.bytes(40)),
            1 => {
                // What `frame` makes is one packet again, or is refused.
                let n = format.prefix() + input.size(66_000);
                let mut packet = counter.take(n);
                let head = input.bytes(8);
                let to = format.prefix();
                let len = head.len().min(n - to);
                packet[to..to + len].copy_from_slice(&head[..len]);
                if format.frame(&mut packet).is_ok() {
                    let expected = (vec![(0, to, n - to)], None);
                    assert_eq!(reference(framing, max_len, &packet), expected);
                    stream.extend(packet);
                }
            }
            2 | 3 => {
                let len = 20 + input.size(2000);
                let mut packet = counter.take(len);
                packet[0] = 0x45;
                packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                stream.extend(packet);
            }
            4 | 5 => {
                let len = input.size(2000);
                let mut packet = counter.take(40 + len);
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&(len as u16).to_be_bytes());
                packet[6] = 17;
                stream.extend(packet);
            }
            _ => cuts.push(input.size(70_000)),
        }
    }

    let expected = reference(framing, max_len, &stream);
    assert_eq!(by_parse(format, &stream), expected);

    // In pieces, of which it keeps nothing.
    let mut follower = Follower::default();
    let mut lens = Vec::new();
    let mut at = 0;
    let mut cuts = cuts.into_iter();
    while at < stream.len() {
        let n = cuts.next().unwrap_or(stream.len()).min(stream.len() - at);
        let piece = &stream[at..at + n];
        let on_packet = |packet: tls_splice::frame::Packet| lens.push((packet.prefix, packet.len));
        if let Err(bad) = follower.follow(format, piece, on_packet) {
            assert_eq!(at.checked_add_signed(bad), expected.1);
            break;
        }
        at += n;
    }
    // The last one may not be there whole.
    let expected_lens: Vec<_> = expected
        .0
        .iter()
        .filter(|packet| packet.0 + packet.1 + packet.2 <= stream.len())
        .map(|packet| (packet.1, packet.2))
        .collect();
    assert_eq!(lens, expected_lens);
    assert_eq!(at < stream.len(), expected.1.is_some());
    let end = expected
        .0
        .last()
        .map_or(0, |packet| packet.0 + packet.1 + packet.2);
    if expected.1.is_none() {
        assert_eq!(follower.is_at_boundary(), end == stream.len());
    }
});
