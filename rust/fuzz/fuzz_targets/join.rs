//! Packets that are written to a TUN device as one: those that a reference joins that is as
//! simple as can be, in order, and what is written stands for what was joined.

#![no_main]

#[path = "../../tests/common/offload.rs"]
mod reference;

use libfuzzer_sys::fuzz_target;
use reference::{restored, slow_join, Script};
use tls_splice::offload::header::{ByteOrder, Layout};
use tls_splice::offload::join::{Joinable, Plan, WINDOW};
use tls_splice::offload::split::{open, Content};
use tls_splice_fuzz::Input;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let layout = Layout::new(input.pick(&[10, 12]), ByteOrder::Little).unwrap();
    let joinable = Joinable {
        tcp: !input.flag(),
        udp: !input.flag(),
    };
    let prefix = input.size(2);
    let mut packets = Vec::new();
    while input.flag() && packets.len() < 20 {
        let len = input.size(200);
        packets.push(input.bytes(len).to_vec());
    }
    packets.extend(Script(input.bytes(usize::MAX)).packets(WINDOW - packets.len()));

    let mut stream = Vec::new();
    for packet in &packets {
        stream.resize(stream.len() + prefix, 0);
        stream.extend(packet);
    }
    let mut plan = Plan::new(joinable, prefix);
    for packet in &packets {
        plan.add(&stream, prefix + packet.len());
    }
    let groups: Vec<Vec<usize>> = plan.groups().map(|group| group.packets().collect()).collect();
    assert_eq!(groups, slow_join(&packets, joinable.tcp, joinable.udp));

    for group in plan.groups() {
        let Some(joined) = group.joined(layout, &stream) else {
            assert_eq!(group.packets().count(), 1);
            continue;
        };
        let mut bytes = joined.header().to_vec();
        for i in group.packets() {
            bytes.extend(joined.payload(plan.packet(&stream, i)));
        }
        let header = layout.decode(&bytes).unwrap();
        let packet = &mut bytes[layout.size()..];
        let Ok(Content::Super(mut split)) = open(&header, packet) else {
            panic!("it is no super-packet");
        };
        let mut out = vec![0; packet.len()];
        let joined: Vec<Vec<u8>> = group.packets().map(|i| packets[i].clone()).collect();
        for expected in restored(&joined) {
            let len = split.make_next(packet, &mut out);
            assert_eq!(&out[..len], expected);
        }
        assert_eq!(split.next_len(), None);
    }
});
