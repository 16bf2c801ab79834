//! Whatever a TUN device gives, with any header: it is dropped, or what is made of it is
//! what a reference makes that is as simple as can be.

#![no_main]

#[path = "../../tests/common/offload.rs"]
mod reference;

use libfuzzer_sys::fuzz_target;
use reference::{is_intact, slow_split, Spec};
use tls_splice::offload::header::{ByteOrder, Layout};
use tls_splice::offload::split::{open, Content};
use tls_splice_fuzz::Input;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let order = input.pick(&[ByteOrder::Little, ByteOrder::Big]);
    let layout = Layout::new(input.pick(&[10, 12]), order).unwrap();
    let mut header = [0; 12];
    for byte in &mut header {
        *byte = input.byte();
    }
    // A packet with garbage in its headers, or garbage alone.
    let mut packet = match input.flag() {
        true => {
            let len = input.size(66_000);
            let spec = Spec::of_flow(input.byte()).with_payload(len.min(65_400), 3);
            match input.flag() {
                true => spec.packet(),
                false => spec.partial_packet(),
            }
        }
        false => Vec::new(),
    };
    let start = input.bytes(120);
    if packet.len() < start.len() {
        packet.resize(start.len(), 0);
    }
    // Zero leaves a byte as it is.
    for (to, from) in packet.iter_mut().zip(start) {
        *to ^= from;
    }

    let Ok(header) = layout.decode(&header) else {
        return;
    };
    let read = packet.clone();
    let mut split = match open(&header, &mut packet) {
        Ok(Content::Super(split)) => split,
        Ok(Content::Packet) => {
            // Only a checksum was completed.
            let place = header.partial.map(|partial| partial.start + partial.offset);
            for (at, (now, then)) in packet.iter().zip(&read).enumerate() {
                let is_checksum = place.is_some_and(|place| (place..place + 2).contains(&at));
                assert!(now == then || is_checksum);
            }
            return;
        }
        Err(_) => return,
    };
    let (_, size) = header.gso.unwrap();
    let spec = Spec::parse(&read).unwrap();
    // The sum of the pseudo header is taken from where it is.
    let is_right = header.partial.is_none() || spec.partial_packet() == read;
    let expected = slow_split(&spec, size.into());
    let mut out = vec![0; packet.len()];
    for expected in &expected {
        let len = split.next_len().unwrap();
        assert_eq!(split.make_next(&packet, &mut out), len);
        assert_eq!(len, expected.len());
        if is_right {
            assert_eq!(&out[..len], expected);
            assert!(is_intact(&out[..len]));
        }
    }
    assert_eq!((split.next_len(), split.rest()), (None, 0));
    assert_eq!(packet, read);
});
