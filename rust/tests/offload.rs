//! Splitting and joining against the slow reference in common/offload.rs.

#[path = "common/offload.rs"]
mod reference;

use proptest::prelude::*;

use reference::{is_intact, restored, slow_join, slow_split, slow_sum, Script, Spec};
use tls_splice::offload::checksum::{minus_word, word, Sum};
use tls_splice::offload::header::{ByteOrder, Gso, Header, Layout, Partial};
use tls_splice::offload::join::{Joinable, Plan, WINDOW};
use tls_splice::offload::split::{open, Content};
use tls_splice::offload::Malformed;

const BOTH: Joinable = Joinable {
    tcp: true,
    udp: true,
};

fn layouts() -> impl Iterator<Item = Layout> {
    [10, 12].into_iter().flat_map(|size| {
        [ByteOrder::Little, ByteOrder::Big]
            .map(|order| Layout::new(size, order).expect("there is such a header"))
    })
}

fn native() -> Layout {
    Layout::new(10, ByteOrder::NATIVE).unwrap()
}

/// All packets of a super-packet, or the one packet that it is.
fn split(header: &Header, packet: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut packet = packet.to_vec();
    let mut split = match open(header, &mut packet)? {
        Content::Packet => return Ok(vec![packet]),
        Content::Super(split) => split,
    };
    let mut packets = Vec::new();
    while let Some(len) = split.next_len() {
        let rest = split.rest();
        // One byte behind it, which stays.
        let mut out = vec![0xaa; len + 1];
        assert_eq!(split.make_next(&packet, &mut out), len);
        assert_eq!(out.pop(), Some(0xaa));
        packets.push(out);
        assert!(split.rest() < rest || packets.len() == 1);
    }
    assert_eq!(split.make_next(&packet, &mut []), 0);
    Ok(packets)
}

fn gso_of(spec: &Spec) -> Gso {
    match (spec.is_udp, spec.is_v6) {
        (true, _) => Gso::Udp,
        (false, false) => Gso::TcpV4,
        (false, true) => Gso::TcpV6,
    }
}

fn partial_of(spec: &Spec) -> Partial {
    Partial {
        start: spec.transport_at(),
        offset: if spec.is_udp { 6 } else { 16 },
    }
}

fn super_header(spec: &Spec, size: usize) -> Header {
    Header {
        partial: Some(partial_of(spec)),
        gso: Some((gso_of(spec), size as u16)),
    }
}

fn plan(packets: &[Vec<u8>], prefix: usize, joinable: Joinable) -> (Vec<u8>, Plan) {
    let mut stream = Vec::new();
    for packet in packets {
        stream.resize(stream.len() + prefix, 0x55);
        stream.extend(packet);
    }
    let mut plan = Plan::new(joinable, prefix);
    assert!(plan.is_empty());
    for packet in packets {
        assert!(!plan.is_full());
        plan.add(&stream, prefix + packet.len());
    }
    assert_eq!((plan.count(), plan.len()), (packets.len(), stream.len()));
    (stream, plan)
}

fn groups(plan: &Plan) -> Vec<Vec<usize>> {
    plan.groups()
        .map(|group| group.packets().collect())
        .collect()
}

/// What is written to a device for each group, with the header of the device.
fn written(layout: Layout, plan: &Plan, stream: &[u8]) -> Vec<Vec<u8>> {
    let write = |group: tls_splice::offload::join::Group<'_>| match group.joined(layout, stream) {
        None => {
            let mut bytes = vec![0; layout.size()];
            for i in group.packets() {
                bytes.extend(plan.packet(stream, i));
            }
            bytes
        }
        Some(joined) => {
            let mut bytes = joined.header().to_vec();
            for i in group.packets() {
                bytes.extend(joined.payload(plan.packet(stream, i)));
            }
            bytes
        }
    };
    plan.groups().map(write).collect()
}

fn specs() -> impl Strategy<Value = Spec> {
    let small = (any::<u8>(), any::<u16>(), any::<u8>(), any::<u8>());
    let tcp = (any::<u32>(), any::<u32>(), any::<u8>(), 0u8..11);
    (small, tcp, 0usize..64_000, 0usize..4).prop_map(|(small, tcp, len, between)| {
        let (flow, id, tos, ttl) = small;
        let (seq, ack, flags, options) = tcp;
        let spec = Spec::of_flow(flow).with_payload(len, tos);
        let mut spec = Spec {
            id,
            tos,
            ttl,
            seq,
            ack,
            flags,
            options: vec![1; usize::from(options) * 4],
            ..spec
        };
        if spec.is_v6 {
            for _ in 0..between {
                let header = [spec.next_header, 0, 1, 4, 0, 0, 0, 0];
                spec.next_header = [0, 43, 60][between % 3];
                spec.between.splice(0..0, header);
            }
        } else {
            spec.between = vec![1; between * 4];
        }
        spec
    })
}

proptest! {
    #[test]
    fn sums_agree_with_the_slow_one(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        cut in 0usize..150,
        number in any::<u16>(),
    ) {
        let sum = Sum::of(&bytes);
        prop_assert_eq!(sum.folded().to_ne_bytes(), slow_sum(&bytes).to_be_bytes());
        prop_assert_eq!(sum.checksum(), (!slow_sum(&bytes)).to_be_bytes());
        let (a, b) = bytes.split_at((cut * 2).min(bytes.len() & !1));
        let parts = Sum::of(a).plus(Sum::of(b));
        prop_assert_eq!(parts.folded(), sum.folded());
        let there_and_back = sum.plus(word(number)).plus(minus_word(number));
        // Ones' complement has two zeros.
        prop_assert_eq!(there_and_back.folded() % 0xffff, sum.folded() % 0xffff);
        let both = [&bytes[..bytes.len() & !1], &number.to_be_bytes()].concat();
        let plus_word = Sum::of(&bytes[..bytes.len() & !1]).plus(word(number));
        prop_assert_eq!(plus_word.folded(), Sum::of(&both).folded());
    }

    #[test]
    fn super_packets_split_as_the_slow_reference_has_it(
        spec in specs(),
        size in prop_oneof![1usize..100, 500usize..1500, 1usize..=65_535],
        is_partial in any::<bool>(),
    ) {
        // A packet that is not a partial one can have any checksum.
        let (packet, partial) = match is_partial {
            true => (spec.partial_packet(), Some(partial_of(&spec))),
            false => (spec.packet(), None),
        };
        let header = Header { partial, gso: Some((gso_of(&spec), size as u16)) };
        let packets = split(&header, &packet).unwrap();
        prop_assert_eq!(&packets, &slow_split(&spec, size));
        for packet in &packets {
            prop_assert!(is_intact(packet));
        }
    }

    #[test]
    fn partial_checksums_are_completed(spec in specs()) {
        let header = Header { partial: Some(partial_of(&spec)), gso: None };
        let packets = split(&header, &spec.partial_packet()).unwrap();
        prop_assert_eq!(packets.len(), 1);
        prop_assert!(is_intact(&packets[0]));
        let whole = Header { partial: None, gso: None };
        prop_assert_eq!(split(&whole, &packets[0]).unwrap(), packets);
    }

    #[test]
    fn joining_agrees_with_the_slow_reference(
        script in prop::collection::vec(any::<u8>(), 0..400),
        prefix in prop_oneof![Just(0usize), Just(2)],
        (tcp, udp) in any::<(bool, bool)>(),
    ) {
        let packets = Script(&script).packets(WINDOW);
        let (stream, plan) = plan(&packets, prefix, Joinable { tcp, udp });
        prop_assert_eq!(groups(&plan), slow_join(&packets, tcp, udp));
        for layout in layouts() {
            // What is written stands for the packets.
            let mut again = Vec::new();
            for bytes in written(layout, &plan, &stream) {
                let header = layout.decode(&bytes).unwrap();
                again.extend(split(&header, &bytes[layout.size()..]).unwrap());
            }
            let packets_of = |group: Vec<usize>| -> Vec<Vec<u8>> {
                group.into_iter().map(|i| packets[i].clone()).collect()
            };
            let expected: Vec<Vec<u8>> =
                groups(&plan).into_iter().flat_map(|group| restored(&packets_of(group))).collect();
            prop_assert_eq!(again, expected);
        }
    }

    #[test]
    fn what_is_split_is_joined_again(
        spec in specs(),
        size in 600usize..1500,
    ) {
        let mut spec = Spec { between: Vec::new(), ..spec };
        spec.next_header = if spec.is_udp { 17 } else { 6 };
        // Neither CWR nor URG nor SYN nor RST.
        spec.flags &= !0xa6;
        spec.payload.truncate(64 * size);
        let packets = split(&super_header(&spec, size), &spec.partial_packet()).unwrap();
        let (stream, plan) = plan(&packets, 0, BOTH);
        let bytes = written(native(), &plan, &stream);
        prop_assert_eq!(bytes.len(), 1);
        if packets.len() > 1 {
            prop_assert_eq!(&bytes[0][native().size()..], &spec.partial_packet());
        }
    }

    #[test]
    fn undelivered_packets_are_kept_in_order(
        script in prop::collection::vec(any::<u8>(), 0..400),
        is_delivered in prop::array::uniform32(any::<bool>()),
        rest in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let packets = Script(&script).packets(32);
        let (mut stream, plan) = plan(&packets, 0, BOTH);
        let mut delivered = [false; WINDOW];
        delivered[..32].copy_from_slice(&is_delivered);
        stream.extend(&rest);
        let from = plan.keep_undelivered(&mut stream, &delivered);
        let mut expected: Vec<u8> = Vec::new();
        for (packet, _) in packets.iter().zip(is_delivered).filter(|(_, is)| !is) {
            expected.extend(packet);
        }
        expected.extend(&rest);
        prop_assert_eq!(&stream[from..], expected);
    }

    #[test]
    fn arbitrary_headers_and_packets_do_no_harm(
        header in prop::array::uniform12(any::<u8>()),
        start in prop::collection::vec(any::<u8>(), 0..80),
        len in 0usize..3000,
    ) {
        let mut packet = Spec::of_flow(header[0] & 7).with_payload(len, 1).packet();
        let n = start.len().min(packet.len());
        packet[..n].copy_from_slice(&start[..n]);
        for layout in layouts() {
            if let Ok(header) = layout.decode(&header) {
                let _ = split(&header, &packet);
                let _ = split(&header, &start);
            }
        }
        let (stream, plan) = plan(&[packet, start], 0, BOTH);
        prop_assert_eq!(written(native(), &plan, &stream).len(), 2);
    }
}

#[test]
fn headers_of_both_lengths_and_byte_orders() {
    assert!([0, 4, 9, 11, 13, 24]
        .iter()
        .all(|size| Layout::new(*size, ByteOrder::Big).is_none()));
    let spec = Spec::of_flow(4).with_payload(100, 0);
    let packets = slow_split(&spec, 60);
    let (stream, plan) = plan(&packets, 0, BOTH);
    let little = [1, 1, 52, 0, 60, 0, 20, 0, 16, 0];
    let big = [1, 1, 0, 52, 0, 60, 0, 20, 0, 16];
    for (layout, expected) in layouts().zip([
        little.to_vec(),
        big.to_vec(),
        [&little[..], &[0, 0]].concat(),
        [&big[..], &[0, 0]].concat(),
    ]) {
        let bytes = written(layout, &plan, &stream);
        assert_eq!(bytes[0][..layout.size()], expected);
        let header = layout.decode(&expected).unwrap();
        let partial = Partial {
            start: 20,
            offset: 16,
        };
        assert_eq!(
            header,
            Header {
                partial: Some(partial),
                gso: Some((Gso::TcpV4, 60))
            }
        );
        assert_eq!(layout.decode(&expected[..9]), Err(Malformed));
    }
    for (gso_type, gso) in [
        (1, Gso::TcpV4),
        (4, Gso::TcpV6),
        (5, Gso::Udp),
        (0x84, Gso::TcpV6),
    ] {
        let header = native()
            .decode(&[0, gso_type, 0, 0, 0, 0, 0, 0, 0, 0])
            .unwrap();
        assert_eq!(
            header,
            Header {
                partial: None,
                gso: Some((gso, 0))
            }
        );
    }
    // UFO, tunnels, and what there may be one day.
    for gso_type in [2, 3, 6, 0x21, 0x7f] {
        assert_eq!(
            native().decode(&[0, gso_type, 0, 0, 0, 0, 0, 0, 0, 0]),
            Err(Malformed)
        );
    }
    // That the checksum was verified is of no interest, nor are other flags.
    let header = native().decode(&[0xfe, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(
        header,
        Header {
            partial: None,
            gso: None
        }
    );
}

#[test]
fn what_no_kernel_makes_is_malformed() {
    let tcp = Spec::of_flow(4).with_payload(3000, 0);
    let udp = Spec::of_flow(3).with_payload(3000, 0);
    let v4 = tcp.partial_packet();
    let good = super_header(&tcp, 1000);
    assert_eq!(split(&good, &v4).unwrap().len(), 3);
    let with = |gso, partial| Header { gso, partial };
    let partial = |start, offset| Some(Partial { start, offset });
    for header in [
        with(Some((Gso::TcpV4, 0)), good.partial),
        with(Some((Gso::TcpV6, 1000)), good.partial),
        with(Some((Gso::Udp, 1000)), good.partial),
        with(good.gso, partial(20, 6)),
        with(good.gso, partial(22, 14)),
        with(good.gso, partial(65_535, 65_535)),
        with(None, partial(65_535, 65_535)),
        with(None, partial(v4.len() - 1, 0)),
        with(None, partial(v4.len() + 1, 0)),
    ] {
        assert_eq!(split(&header, &v4), Err(Malformed), "{header:?}");
    }
    // Another length than it says, a fragment, a header that is too short or too long.
    let v6 = udp.partial_packet();
    for (spec, packet, at, value) in [
        (&tcp, &v4, 2, 0),
        (&tcp, &v4, 0, 0x44),
        (&tcp, &v4, 0, 0x4f),
        (&tcp, &v4, 0, 0x55),
        (&tcp, &v4, 6, 0x20),
        (&tcp, &v4, 7, 1),
        (&tcp, &v4, 9, 1),
        (&tcp, &v4, 32, 0x40),
        (&udp, &v6, 4, 0),
        (&udp, &v6, 6, 44),
        (&udp, &v6, 6, 58),
    ] {
        let mut packet = packet.clone();
        packet[at] = value;
        assert_eq!(
            split(&super_header(spec, 1000), &packet),
            Err(Malformed),
            "{at}"
        );
    }
    for (spec, packet) in [(&tcp, &v4), (&udp, &v6)] {
        for len in 0..packet.len() {
            assert_eq!(
                split(&super_header(spec, 1000), &packet[..len]),
                Err(Malformed)
            );
        }
    }
    // Extension headers that go on behind the packet.
    let mut endless = udp.clone();
    endless.next_header = 60;
    endless.between = vec![60, 255, 0, 0, 0, 0, 0, 0];
    let packet = endless.partial_packet();
    assert_eq!(
        split(&super_header(&endless, 1000), &packet),
        Err(Malformed)
    );
}

#[test]
fn each_field_that_differs_keeps_packets_apart() {
    let base = |flow| Spec::of_flow(flow).with_payload(100, 0);
    let follow = |spec: &Spec, change: &dyn Fn(&mut Spec)| {
        let mut next = spec.with_payload(100, 9);
        next.seq = next.seq.wrapping_add(100);
        next.id = next.id.wrapping_add(1);
        change(&mut next);
        vec![spec.packet(), next.packet()]
    };
    let are_joined = |packets: &[Vec<u8>]| {
        let (_, plan) = plan(packets, 0, BOTH);
        groups(&plan).len() == 1
    };
    type Change = (&'static str, fn(&mut Spec), &'static str);
    // The flows that a change keeps apart: 4 and 6 over IPv4, 5 and 7 over IPv6; 6 and 7 are UDP.
    let changes: [Change; 24] = [
        ("nothing", |_| {}, ""),
        ("PSH", |spec| spec.flags |= 8, ""),
        ("FIN", |spec| spec.flags |= 1, ""),
        ("a shorter payload", |spec| spec.payload.truncate(1), ""),
        ("a longer payload", |spec| spec.payload.push(1), "4567"),
        ("no payload", |spec| spec.payload.clear(), "4567"),
        ("the acknowledgement", |spec| spec.ack += 1, "45"),
        ("the window", |spec| spec.window += 1, "45"),
        ("the urgent pointer", |spec| spec.urgent += 1, "45"),
        ("URG", |spec| spec.flags |= 0x20, "45"),
        ("SYN", |spec| spec.flags |= 2, "45"),
        ("RST", |spec| spec.flags |= 4, "45"),
        ("ECE", |spec| spec.flags |= 0x40, "45"),
        ("CWR", |spec| spec.flags |= 0x80, "45"),
        ("no ACK", |spec| spec.flags = 0, "45"),
        ("a reserved bit", |spec| spec.reserved = 1, "45"),
        ("an option", |spec| spec.options[2] = 8, "45"),
        ("fewer options", |spec| spec.options.truncate(8), "45"),
        ("the sequence number", |spec| spec.seq += 1, "45"),
        ("the identification", |spec| spec.id += 1, "46"),
        ("the same identification", |spec| spec.id -= 1, ""),
        ("DF", |spec| spec.fragment = 0, "46"),
        ("TOS", |spec| spec.tos = 2, "4567"),
        ("TTL", |spec| spec.ttl = 63, "4567"),
    ];
    for (what, change, apart) in changes {
        for flow in 4..8u8 {
            let expected = !apart.contains(char::from(b'0' + flow));
            let packets = follow(&base(flow), &change);
            assert_eq!(are_joined(&packets), expected, "{what}, flow {flow}");
        }
    }
    for flow in [5, 7] {
        let packets = follow(&base(flow), &|spec| spec.flow_label ^= 1);
        assert!(!are_joined(&packets), "the flow label");
    }
    // CWR may be a digit of a number that is different in each packet (AccECN, RFC 9768).
    for flow in [4, 5] {
        let first = Spec {
            flags: 0x90,
            ..base(flow)
        };
        assert!(!are_joined(&follow(&first, &|_| {})));
        assert!(!are_joined(&follow(&first, &|spec| spec.flags = 0x10)));
    }
    // In both alike, and yet apart.
    let alike: [Change; 7] = [
        ("SYN", |spec| spec.flags |= 2, "45"),
        ("RST", |spec| spec.flags |= 4, "45"),
        ("URG", |spec| spec.flags |= 0x20, "45"),
        ("PSH in the first", |spec| spec.flags |= 8, "45"),
        (
            "the reserved bit of IPv4",
            |spec| spec.fragment |= 0x8000,
            "46",
        ),
        ("no DF", |spec| spec.fragment = 0, ""),
        ("ECE", |spec| spec.flags |= 0x40, ""),
    ];
    for (what, change, apart) in alike {
        for flow in 4..8u8 {
            let mut spec = base(flow);
            change(&mut spec);
            let expected = !apart.contains(char::from(b'0' + flow));
            assert_eq!(
                are_joined(&follow(&spec, &|_| {})),
                expected,
                "{what}, flow {flow}"
            );
        }
    }
    // A wrong checksum in either.
    for flow in 4..8u8 {
        for which in [0, 1] {
            let mut packets = follow(&base(flow), &|_| {});
            *packets[which].last_mut().unwrap() ^= 1;
            assert!(!are_joined(&packets));
            let (stream, plan) = plan(&packets, 0, BOTH);
            let bytes = written(native(), &plan, &stream);
            assert!(bytes.iter().zip(&packets).all(|(a, b)| a[10..] == b[..]));
        }
    }
    // No checksum at all.
    let mut packets = follow(&base(6), &|_| {});
    for packet in &mut packets {
        packet[26..28].fill(0);
    }
    assert!(!are_joined(&packets));
}

#[test]
fn the_longest_runs() {
    // As much as IP can say, for TCP; 64 datagrams, for UDP.
    let groups_of = |flow, size: usize, count| {
        let mut spec = Spec::of_flow(flow);
        let mut packets = Vec::new();
        for _ in 0..count {
            spec = spec.with_payload(size, 1);
            packets.push(spec.packet());
            spec.seq = spec.seq.wrapping_add(size as u32);
            spec.id = spec.id.wrapping_add(1);
        }
        let (_, plan) = plan(&packets, 0, BOTH);
        groups(&plan).iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(groups_of(0, 1000, 128), [65, 63]);
    assert_eq!(groups_of(0, 100, 128), [128]);
    assert_eq!(groups_of(1, 16_369, 4), [4 - 1, 1]);
    assert_eq!(groups_of(1, 16_368, 4), [4]);
    assert_eq!(groups_of(2, 100, 128), [64, 64]);
    assert_eq!(groups_of(3, 40_000, 2), [1, 1]);
}

#[test]
fn the_second_packet_decides_how_the_identification_goes_on() {
    let groups_of = |flow: u8, fragment: u16, ids: &[u16]| {
        let mut spec = Spec {
            fragment,
            ..Spec::of_flow(flow)
        };
        let mut packets = Vec::new();
        for id in ids {
            spec.id = *id;
            spec = spec.with_payload(100, 1);
            packets.push(spec.packet());
            spec.seq = spec.seq.wrapping_add(100);
        }
        let (_, plan) = plan(&packets, 0, BOTH);
        groups(&plan).iter().map(Vec::len).collect::<Vec<_>>()
    };
    for flow in [0, 2] {
        let with_df = |ids: &[u16]| groups_of(flow, 0x4000, ids);
        assert_eq!(with_df(&[0, 0, 0, 0]), [4]);
        assert_eq!(with_df(&[7, 7, 7, 8, 8]), [3, 2]);
        assert_eq!(with_df(&[7, 7, 9, 10]), [2, 2]);
        assert_eq!(with_df(&[7, 8, 9, 10]), [4]);
        assert_eq!(with_df(&[7, 8, 8, 8]), [2, 2]);
        assert_eq!(with_df(&[7, 8, 7, 7]), [2, 2]);
        assert_eq!(with_df(&[0xffff, 0, 1]), [3]);
        // Without DF, the identification tells fragments of one packet from those of others.
        assert_eq!(groups_of(flow, 0, &[7, 7, 7]), [1, 1, 1]);
        assert_eq!(groups_of(flow, 0, &[7, 8, 9]), [3]);
    }
}

#[test]
fn a_long_flow_is_joined_among_many_short_ones() {
    let mut long = Spec::of_flow(0);
    let mut packets = Vec::new();
    for i in 0..50 {
        long = long.with_payload(500, 1);
        packets.push(long.packet());
        long.seq = long.seq.wrapping_add(500);
        long.id = long.id.wrapping_add(1);
        packets.push(
            Spec::of_flow((i % 31 + 1) << 3)
                .with_payload(10, 2)
                .packet(),
        );
    }
    let (_, plan) = plan(&packets, 0, BOTH);
    assert_eq!(groups(&plan)[0].len(), 50);
}

#[test]
fn more_flows_than_are_kept_apart() {
    let rounds = 3;
    for (flows, expected) in [(16, 16), (17, 51)] {
        let mut specs: Vec<Spec> = (0..flows).map(|flow| Spec::of_flow(flow << 3)).collect();
        let mut packets = Vec::new();
        for _ in 0..rounds {
            for spec in &mut specs {
                *spec = spec.with_payload(500, 2);
                packets.push(spec.packet());
                spec.seq = spec.seq.wrapping_add(500);
                spec.id = spec.id.wrapping_add(1);
            }
        }
        let (_, plan) = plan(&packets, 0, BOTH);
        let groups = groups(&plan);
        assert_eq!(groups.len(), expected);
        // In each flow in order.
        for flow in 0..usize::from(flows) {
            let written: Vec<usize> = groups
                .iter()
                .flatten()
                .copied()
                .filter(|i| i % usize::from(flows) == flow)
                .collect();
            assert!(written.is_sorted());
        }
    }
}
