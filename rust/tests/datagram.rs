//! Datagram sockets: how many datagrams a system call moves, and what becomes of them when the
//! kernel refuses some.
//!
//! The system calls that the splice makes go through functions of this file, which take note
//! of them and can fail in their place.

#![allow(clippy::undocumented_unsafe_blocks)]
#![cfg(target_os = "linux")]

mod common;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{IoSlice, Read};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use libc::{c_int, c_uint, c_void, mmsghdr, size_t, ssize_t, timespec};

use common::abi;
use common::packets::{framed, received, set_option, udp_pair, Rig};
use tls_splice::ffi::*;

const U16BE: u32 = TLS_SPLICE_FRAMING_U16BE;
/// The longest datagram of UDP over IPv4.
const LONGEST: usize = 65_507;

/// A system call, and what it was given and has returned.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    /// How many datagrams each message has, and how many messages were sent, or -1.
    SendMany(Vec<usize>, c_int),
    /// Whether the one datagram was sent.
    Send(bool),
    /// How many messages there was room for, and how many were received, or -1.
    ReceiveMany(usize, c_int),
}

/// A failure that takes the place of what the kernel would do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// sendmmsg(2) refuses a message of several datagrams with this errno, always.
    Segments(c_int),
    /// The next message or datagram that is sent, after so many messages, is refused with this
    /// errno, once.
    Once(usize, c_int),
    /// The next calls are refused with these errnos.
    Row(&'static [c_int]),
}

thread_local! {
    static CALLS: RefCell<Vec<(RawFd, Call)>> = const { RefCell::new(Vec::new()) };
    static FAULT: RefCell<Option<Fault>> = const { RefCell::new(None) };
    /// How much of the memory for control messages the kernel is given, in bytes.
    static CONTROL: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn note(fd: RawFd, call: Call) {
    CALLS.with_borrow_mut(|calls| calls.push((fd, call)));
}

/// The calls on the descriptor of `rig` since this was asked the last time.
fn calls(rig: &Rig) -> Vec<Call> {
    let fd = unsafe { abi::poll_fd(rig.splice) };
    let all = CALLS.take();
    let own = all.into_iter().filter(|(of, _)| *of == fd);
    own.map(|(_, call)| call).collect()
}

/// Those of [`calls`] that send.
fn sends(rig: &Rig) -> Vec<Call> {
    let mut calls = calls(rig);
    calls.retain(|call| !matches!(call, Call::ReceiveMany(..)));
    calls
}

fn set_errno(errno: c_int) -> c_int {
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// Lets a fault take the place of message number `at` of a call.
fn fails(at: usize, datagrams: usize) -> Option<c_int> {
    FAULT.with_borrow_mut(|fault| match *fault {
        Some(Fault::Segments(errno)) if datagrams > 1 => Some(errno),
        Some(Fault::Once(after, errno)) if after == at => {
            *fault = None;
            Some(errno)
        }
        Some(Fault::Row([errno, rest @ ..])) if at == 0 => {
            *fault = (!rest.is_empty()).then_some(Fault::Row(rest));
            Some(*errno)
        }
        _ => None,
    })
}

#[no_mangle]
unsafe extern "C" fn sendmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    len: c_uint,
    flags: c_int,
) -> c_int {
    let all = unsafe { std::slice::from_raw_parts(messages, len as usize) };
    let counts: Vec<usize> = all.iter().map(|m| m.msg_hdr.msg_iovlen).collect();
    for (message, count) in all.iter().zip(&counts) {
        assert_eq!(message.msg_hdr.msg_controllen > 0, *count > 1);
    }
    let fault = (0..counts.len()).find_map(|at| Some((at, fails(at, counts[at])?)));
    // As the kernel, the call says why a message was not sent only if that is the first.
    let ret = match fault {
        Some((0, errno)) => set_errno(errno),
        _ => {
            let len = fault.map_or(counts.len(), |(at, _)| at);
            unsafe { libc::syscall(libc::SYS_sendmmsg, fd, messages, len, flags) as c_int }
        }
    };
    let errno = unsafe { *libc::__errno_location() };
    note(fd, Call::SendMany(counts, ret));
    set_errno(errno);
    ret
}

#[no_mangle]
unsafe extern "C" fn send(fd: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    let null = std::ptr::null::<c_void>();
    let ret = match fails(0, 1) {
        Some(errno) => set_errno(errno) as ssize_t,
        None => unsafe { libc::syscall(libc::SYS_sendto, fd, buf, len, flags, null, 0) as ssize_t },
    };
    let errno = unsafe { *libc::__errno_location() };
    note(fd, Call::Send(ret >= 0));
    set_errno(errno);
    ret
}

#[no_mangle]
unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    len: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    for message in unsafe { std::slice::from_raw_parts_mut(messages, len as usize) } {
        let room = &mut message.msg_hdr.msg_controllen;
        *room = CONTROL.get().min(*room);
    }
    let ret =
        unsafe { libc::syscall(libc::SYS_recvmmsg, fd, messages, len, flags, timeout) as c_int };
    let errno = unsafe { *libc::__errno_location() };
    note(fd, Call::ReceiveMany(len as usize, ret));
    set_errno(errno);
    ret
}

/// A splice to one of two UDP sockets, whose queues have much room, and the other one.
fn udp(high_water_mark: usize) -> (Rig, UdpSocket) {
    let (near, far) = udp_pair();
    for socket in [&near, &far] {
        socket.set_nonblocking(true).unwrap();
        set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 1 << 20);
    }
    (Rig::with(near.into(), U16BE, high_water_mark, 0), far)
}

fn all_from(far: &UdpSocket) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut packet = vec![0; 70_000];
    while let Ok(n) = far.recv(&mut packet) {
        packets.push(packet[..n].to_vec());
    }
    packets
}

/// Packets of these lengths, no two alike.
fn packets(lens: impl IntoIterator<Item = usize>) -> Vec<Vec<u8>> {
    let packet = |(i, len)| (0..len).map(|at| (i * 31 + at * 7) as u8).collect();
    lens.into_iter().enumerate().map(packet).collect()
}

/// All that the far end gets when the peer has sent `sent` at once.
fn delivered(rig: &mut Rig, far: &UdpSocket, sent: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut run = rig.peer_sends(&framed(U16BE, sent), 16_384);
    let mut got = all_from(far);
    while run.has_more {
        run = rig.decrypt();
        got.extend(all_from(far));
    }
    assert!(!run.has_failed());
    got
}

/// Lets the splice know that datagrams are short, which it does not expect at first.
fn get_used_to_short_ones(rig: &mut Rig, far: &UdpSocket) {
    for packet in &packets([10; 100]) {
        far.send(packet).unwrap();
        rig.encrypt();
    }
    calls(rig);
}

#[test]
fn one_call_sends_many_datagrams() {
    let (mut rig, far) = udp(256 * 1024);
    // Cut by the kernel.
    let sent = packets([1000; 16]);
    assert_eq!(delivered(&mut rig, &far, &sent), sent);
    assert_eq!(sends(&rig), [Call::SendMany(vec![16], 1)]);
    // The last one may be shorter, but not empty, and what is longer begins another message.
    let sent = packets([500, 500, 100, 500, 500, 500, 0, 501, 500, 500]);
    assert_eq!(delivered(&mut rig, &far, &sent), sent);
    let messages = vec![3, 3, 1, 2, 1];
    assert_eq!(sends(&rig), [Call::SendMany(messages, 5)]);
    // Alone.
    let sent = packets([500]);
    assert_eq!(delivered(&mut rig, &far, &sent), sent);
    assert_eq!(sends(&rig), [Call::Send(true)]);
    assert_eq!(rig.stats().packets_in, 27);

    // Without segments, one message for each.
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    let mut rig = Rig::new(near.into(), U16BE);
    let sent = packets([500; 8]);
    rig.peer_sends(&framed(U16BE, &sent), 16_384);
    assert_eq!(received(&far), sent);
    assert_eq!(sends(&rig), [Call::SendMany(vec![1; 8], 8)]);
}

#[test]
fn one_call_receives_many_datagrams() {
    let (mut rig, far) = udp(256 * 1024);
    get_used_to_short_ones(&mut rig, &far);
    let sent = packets((0..40).map(|i| i * 30));
    for packet in &sent {
        far.send(packet).unwrap();
    }
    assert_eq!(rig.encrypt_all(), (false, framed(U16BE, &sent)));
    // The last one has got less than it could, so that there is no need to ask for more.
    let expected = [16, 16, 8].map(|count| Call::ReceiveMany(16, count));
    assert_eq!(calls(&rig), expected);
    // What comes one by one costs one call each.
    for packet in &packets([100; 3]) {
        far.send(packet).unwrap();
        assert_eq!(
            rig.encrypt_all().1,
            framed(U16BE, std::slice::from_ref(packet))
        );
        assert_eq!(calls(&rig), [Call::ReceiveMany(16, 1)]);
    }
    assert_eq!(rig.stats().packets_out, 143);
}

#[test]
fn batches_of_any_number_and_any_sizes_arrive() {
    let (mut rig, far) = udp(256 * 1024);
    for count in [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129] {
        for lens in [
            vec![0; count],
            vec![1; count],
            vec![512; count],
            (0..count).map(|i| i * 7 % 300).collect(),
            (0..count).map(|i| [1200, 0, 1200, 1, 3][i % 5]).collect(),
        ] {
            let sent = packets(lens);
            assert_eq!(delivered(&mut rig, &far, &sent), sent);
            for packet in &sent {
                far.send(packet).unwrap();
            }
            assert_eq!(rig.encrypt_all(), (false, framed(U16BE, &sent)));
        }
    }
    let stats = rig.stats();
    assert_eq!((stats.drops_in, stats.drops_out), (0, 0));
    assert_eq!(stats.packets_in, stats.packets_out);
}

#[test]
fn the_longest_and_the_shortest() {
    let lens = [1, LONGEST, 1, 1, LONGEST, LONGEST, 0];
    for high_water_mark in [1, 1000, 65_536, 256 * 1024] {
        let (mut rig, far) = udp(high_water_mark);
        get_used_to_short_ones(&mut rig, &far);
        let sent = packets(lens);
        assert_eq!(delivered(&mut rig, &far, &sent), sent);
        for packet in &sent {
            far.send(packet).unwrap();
        }
        assert_eq!(rig.encrypt_all(), (false, framed(U16BE, &sent)));
        let stats = rig.stats();
        assert_eq!((stats.drops_in, stats.drops_out), (0, 0));
        assert_eq!(stats.largest_packet_out, LONGEST as u64);
    }
}

#[test]
fn no_more_is_received_than_may_be_held() {
    let (mut rig, far) = udp(1);
    let sent = packets([100; 6]);
    for packet in &sent {
        far.send(packet).unwrap();
    }
    assert_eq!(rig.encrypt_all(), (false, framed(U16BE, &sent)));
    let calls = calls(&rig);
    assert!(calls
        .iter()
        .all(|call| matches!(call, Call::ReceiveMany(1, _))));
    assert!(rig.stats().peak_buffered_out < 200, "{:?}", rig.stats());
}

/// Many datagrams that are much longer than those before, received by one call, are more than
/// may be held.
fn more_than_expected() -> (Rig, UdpSocket, Vec<u8>) {
    let (mut rig, far) = udp(80_000);
    get_used_to_short_ones(&mut rig, &far);
    let sent = packets([50_000; 4]);
    for packet in &sent {
        far.send(packet).unwrap();
    }
    assert!(!rig.encrypt_only().has_failed());
    assert_eq!(calls(&rig)[0], Call::ReceiveMany(16, 4));
    assert!(rig.stats().packets_out < 104, "{:?}", rig.stats());
    assert!(rig.stats().peak_buffered_out >= 200_000);
    (rig, far, framed(U16BE, &sent))
}

#[test]
fn what_was_received_is_sent_without_another_event() {
    let (mut rig, _far, expected) = more_than_expected();
    assert_eq!(rig.encrypt_all(), (false, expected));
    // No other call has received them.
    let has_received = |call: &Call| matches!(call, Call::ReceiveMany(_, 1..));
    assert!(!calls(&rig).iter().any(has_received));
}

#[test]
fn what_was_received_is_sent_when_the_splice_stops() {
    let (mut rig, far, expected) = more_than_expected();
    far.send(b"for whoever reads the socket next").unwrap();
    assert!(rig.driver.stop().is_out_stopped());
    assert_eq!(rig.encrypt_all().1, expected);
    assert_eq!(rig.stats().packets_out, 104);
    assert!(calls(&rig).is_empty());
}

#[test]
fn the_kernel_may_refuse_segments() {
    for errno in [libc::EIO, libc::EINVAL, libc::EMSGSIZE] {
        let (mut rig, far) = udp(256 * 1024);
        FAULT.set(Some(Fault::Segments(errno)));
        let sent = packets([1000; 10]);
        assert_eq!(delivered(&mut rig, &far, &sent), sent);
        // Only what is refused twice is refused for what it is.
        let refused = Call::SendMany(vec![10], -1);
        let alone = Call::SendMany(vec![1; 10], 10);
        assert_eq!(sends(&rig), [refused.clone(), refused, alone]);
        // It is not tried again with that length.
        assert_eq!(delivered(&mut rig, &far, &sent), sent);
        assert_eq!(sends(&rig), [Call::SendMany(vec![1; 10], 10)]);
        FAULT.set(None);
        let sent = packets([999; 10]);
        assert_eq!(delivered(&mut rig, &far, &sent), sent);
        let expected = match errno {
            libc::EIO => Call::SendMany(vec![1; 10], 10),
            _ => Call::SendMany(vec![10], 1),
        };
        assert_eq!(sends(&rig), [expected]);
        assert_eq!(rig.stats().drops_in, 0);
    }
    // The kernel's own refusal.
    let (near, far) = udp_pair();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    set_option(&near, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1);
    let mut rig = Rig::new(near.into(), U16BE);
    let sent = packets([1000; 10]);
    assert_eq!(delivered(&mut rig, &far, &sent), sent);
    assert_eq!(sends(&rig)[0], Call::SendMany(vec![10], -1));
}

#[test]
fn segments_that_are_refused_behind_others_are_not_tried_again() {
    for errno in [libc::EIO, libc::EINVAL, libc::EMSGSIZE] {
        let (mut rig, far) = udp(256 * 1024);
        FAULT.set(Some(Fault::Segments(errno)));
        let sent = packets([100, 1000, 1000, 1000, 1000]);
        assert_eq!(delivered(&mut rig, &far, &sent), sent);
        let refused = Call::SendMany(vec![4], -1);
        let alone = Call::SendMany(vec![1; 4], 4);
        assert_eq!(
            sends(&rig),
            [
                Call::SendMany(vec![1, 4], 1),
                refused.clone(),
                refused,
                alone
            ]
        );
        assert_eq!(delivered(&mut rig, &far, &sent), sent);
        assert_eq!(sends(&rig), [Call::SendMany(vec![1; 5], 5)]);
        assert_eq!(rig.stats().drops_in, 0);
        FAULT.set(None);
    }
}

/// As where the path takes less than the loopback device does.
#[test]
fn datagrams_that_are_sent_as_fragments_are_not_sent_as_segments() {
    let [near, far] = [(); 2].map(|()| UdpSocket::bind("[::1]:0"));
    let (Ok(near), Ok(far)) = (near, far) else {
        println!("skipped: this machine has no IPv6, and no other option for this");
        return;
    };
    near.connect(far.local_addr().unwrap()).unwrap();
    far.connect(near.local_addr().unwrap()).unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    // Headers take 48 bytes of it.
    set_option(&near, libc::IPPROTO_IPV6, libc::IPV6_MTU, 1280);
    let mut rig = Rig::new(near.into(), U16BE);
    for (len, is_refused) in [(1232, false), (1233, true), (1232, false), (3000, false)] {
        let sent = packets([len; 3]);
        assert_eq!(delivered(&mut rig, &far, &sent), sent);
        let is_failure = |call: &Call| matches!(call, Call::SendMany(_, -1) | Call::Send(false));
        assert_eq!(sends(&rig).iter().any(is_failure), is_refused, "{len}");
    }
    assert_eq!(rig.stats().drops_in, 0);
}

/// As the owner of a socket can have it: `set` is the length of segments.
#[test]
fn segments_of_the_owner_stay() {
    let (near, far) = udp_pair();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    set_option(&near, libc::SOL_UDP, libc::UDP_SEGMENT, 100);
    let mut rig = Rig::new(near.into(), U16BE);
    let sent = packets([250; 2]);
    let expected: Vec<_> = sent.iter().flat_map(|packet| packet.chunks(100)).collect();
    assert_eq!(delivered(&mut rig, &far, &sent), expected);
    assert_eq!(rig.stats().packets_in, 2);
}

#[test]
fn datagrams_that_the_kernel_has_merged_are_cut_again() {
    merged_datagrams_are_cut(&[(libc::SOL_UDP, libc::UDP_GRO, 1)]);
    merged_datagrams_are_cut(&[
        (libc::SOL_UDP, libc::UDP_GRO, 1),
        (libc::SOL_UDP, libc::UDP_SEGMENT, 1200),
    ]);
}

/// With these options of the socket, as its owner can have set them.
fn merged_datagrams_are_cut(options: &[(c_int, c_int, c_int)]) {
    let (near, far) = udp_pair();
    near.set_nonblocking(true).unwrap();
    for &(level, name, value) in options {
        set_option(&near, level, name, value);
    }
    // Control messages that come before the one on the length.
    set_option(&near, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1);
    set_option(&near, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
    let times = libc::SOF_TIMESTAMPING_RX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
    set_option(
        &near,
        libc::SOL_SOCKET,
        libc::SO_TIMESTAMPING,
        times as c_int,
    );
    set_option(&near, libc::IPPROTO_IP, libc::IP_PKTINFO, 1);
    let mut rig = Rig::new(near.into(), U16BE);
    set_option(&far, libc::SOL_UDP, libc::UDP_SEGMENT, 1000);
    let mut expected = Vec::new();
    for len in [10_500, 3000, 1, 0, 64_000] {
        let sent = packets([len]).remove(0);
        far.send(&sent).unwrap();
        match len {
            0 => expected.push(vec![]),
            _ => expected.extend(sent.chunks(1000).map(<[u8]>::to_vec)),
        }
    }
    assert_eq!(rig.encrypt_all(), (false, framed(U16BE, &expected)));
    let messages: c_int = calls(&rig)
        .iter()
        .map(|call| match call {
            Call::ReceiveMany(_, count) => *count.max(&0),
            _ => 0,
        })
        .sum();
    assert_eq!(messages, 5, "the kernel has merged nothing");
    assert_eq!(rig.stats().packets_out, 11 + 3 + 1 + 1 + 64);
    assert_eq!(rig.stats().drops_out, 0);
}

/// As if the kernel had more control messages than there is memory for: none of the one that says
/// how long the datagrams are fits, or a part of it.
#[test]
fn merged_datagrams_of_unknown_lengths_are_dropped() {
    for room in [0, 8, 16, 18] {
        let (near, far) = udp_pair();
        near.set_nonblocking(true).unwrap();
        set_option(&near, libc::SOL_UDP, libc::UDP_GRO, 1);
        let mut rig = Rig::new(near.into(), U16BE);
        set_option(&far, libc::SOL_UDP, libc::UDP_SEGMENT, 1000);
        let sent = packets([3000]).remove(0);
        far.send(&sent).unwrap();
        CONTROL.set(room);
        assert_eq!(rig.encrypt_all(), (false, vec![]), "{room}");
        CONTROL.set(usize::MAX);
        assert_eq!((rig.stats().packets_out, rig.stats().drops_out), (0, 1));
        // The next ones are not.
        far.send(&sent).unwrap();
        let expected: Vec<_> = sent.chunks(1000).map(<[u8]>::to_vec).collect();
        assert_eq!(rig.encrypt_all(), (false, framed(U16BE, &expected)));
        assert_eq!((rig.stats().packets_out, rig.stats().drops_out), (3, 1));
    }
}

/// Other control messages may be cut off.
#[test]
fn datagrams_that_nobody_merges_need_no_control_message() {
    for room in [0, 8, 16, 18] {
        let (near, far) = udp_pair();
        near.set_nonblocking(true).unwrap();
        set_option(&near, libc::IPPROTO_IP, libc::IP_PKTINFO, 1);
        let mut rig = Rig::new(near.into(), U16BE);
        let sent = packets([3000, 0, 10]);
        for packet in &sent {
            far.send(packet).unwrap();
        }
        CONTROL.set(room);
        assert_eq!(rig.encrypt_all(), (false, framed(U16BE, &sent)), "{room}");
        CONTROL.set(usize::MAX);
        assert_eq!(rig.stats().drops_out, 0);
    }
}

#[test]
fn an_error_is_that_of_one_datagram() {
    // The kernel's own, of one that is too long for UDP.
    let (mut rig, far) = udp(256 * 1024);
    let sent = packets([10, 20, 65_535, 30, 65_520, 40]);
    let got = delivered(&mut rig, &far, &sent);
    let stats = rig.stats();
    assert_eq!(got, [0, 1, 3, 5].map(|i| sent[i].clone()));
    assert_eq!(
        (stats.packets_in, stats.drops_in, stats.drops_emsgsize),
        (4, 2, 2)
    );

    for (errno, drops) in [
        (libc::ENOBUFS, 1),
        (libc::ECONNREFUSED, 1),
        (libc::EAGAIN, 0),
    ] {
        for at in 0..5 {
            for lens in [vec![10, 20, 30, 40, 50], vec![50; 5]] {
                let (mut rig, far) = udp(256 * 1024);
                let sent = packets(lens.clone());
                FAULT.set(Some(Fault::Once(at, errno)));
                rig.peer_sends(&framed(U16BE, &sent), 16_384);
                let is_first = at == 0;
                let was_met = FAULT.take().is_none();
                // As soon as there is room.
                rig.driver.on(TLS_SPLICE_ON_SINK_READY);
                let got = all_from(&far);
                let stats = rig.stats();
                // Only of the first message sendmmsg(2) says why it was not sent, and the
                // kernel does not refuse it again.
                let dropped = if is_first { drops } else { 0 };
                assert_eq!(got, sent[dropped..], "{errno} at {at} of {lens:?}");
                assert_eq!(was_met, is_first || lens[0] != lens[1]);
                assert_eq!(stats.drops_in, dropped as u64);
                assert_eq!(stats.packets_in, 5 - dropped as u64);
                assert_eq!(
                    stats.stalls_in,
                    u64::from(is_first && errno == libc::EAGAIN)
                );
            }
        }
    }
}

/// As ICMP has it that says that a datagram was too long: the next call fails, whatever it sends.
#[test]
fn the_report_of_an_earlier_datagram_is_counted_and_refuses_no_segments() {
    for errno in [libc::EMSGSIZE, libc::EINVAL, libc::EIO] {
        for (lens, messages) in [
            (vec![50; 5], vec![5]),
            (vec![50, 50, 40, 60, 70, 70], vec![3, 1, 2]),
        ] {
            let (mut rig, far) = udp(256 * 1024);
            let sent = packets(lens);
            let all_sent = Call::SendMany(messages.clone(), messages.len() as c_int);
            FAULT.set(Some(Fault::Once(0, errno)));
            assert_eq!(delivered(&mut rig, &far, &sent), sent);
            let failed = Call::SendMany(messages, -1);
            assert_eq!(sends(&rig), [failed, all_sent.clone()]);
            // It was another one that was lost.
            let stats = rig.stats();
            let drops = [stats.drops_emsgsize, stats.drops_einval, stats.drops_eio];
            assert_eq!(stats.packets_in, sent.len() as u64);
            assert_eq!((stats.drops_in, drops.iter().sum()), (1, 1));

            assert_eq!(delivered(&mut rig, &far, &sent), sent);
            assert_eq!(sends(&rig), [all_sent]);
            assert_eq!(rig.stats().drops_in, 1);
        }
    }
}

/// The call that finds out what the first error was may fail for another reason.
#[test]
fn a_report_before_another_error() {
    for errnos in [
        &[libc::EMSGSIZE, libc::EAGAIN][..],
        &[libc::EMSGSIZE, libc::ENOBUFS],
        &[libc::EMSGSIZE, libc::EIO],
    ] {
        let (mut rig, far) = udp(256 * 1024);
        let sent = packets([50; 5]);
        FAULT.set(Some(Fault::Row(errnos)));
        assert_eq!(delivered(&mut rig, &far, &sent), sent, "{errnos:?}");
        assert!(FAULT.take().is_none());
        let stats = rig.stats();
        assert_eq!(
            (stats.packets_in, stats.drops_emsgsize, stats.drops_in),
            (5, 1, 1)
        );
        assert_eq!(delivered(&mut rig, &far, &sent), sent);
        assert_eq!(sends(&rig).last(), Some(&Call::SendMany(vec![5], 1)));
    }
}

#[test]
fn a_receiver_that_is_gone_shows() {
    // A Unix socket refuses one datagram, and is not connected any more.
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let mut rig = Rig::new(near.into(), U16BE);
    drop(far);
    let sent = packets([10; 20]);
    assert!(rig.peer_sends(&framed(U16BE, &sent), 16_384).has_failed());
    let stats = rig.stats();
    assert_eq!((stats.packets_in, stats.drops_econnrefused), (0, 1));
    let failure = unsafe { abi::failure(rig.splice) }.unwrap();
    assert_eq!(failure.errnum, libc::ENOTCONN);
    assert_eq!(rig.undelivered(), framed(U16BE, &sent[1..]));

    // A UDP socket refuses one for each packet of ICMP that has come back.
    for lens in [vec![10; 20], (1..=20).collect()] {
        let (mut rig, far) = udp(256 * 1024);
        drop(far);
        for _ in 0..3 {
            let sent = packets(lens.clone());
            assert!(!rig.peer_sends(&framed(U16BE, &sent), 16_384).has_failed());
        }
        let stats = rig.stats();
        assert_eq!(stats.packets_in + stats.drops_in, 60);
        assert_eq!(stats.drops_in, stats.drops_econnrefused);
        assert!(stats.drops_in >= 2, "{stats:?}");
    }
}

#[test]
fn a_full_socket_takes_the_rest_later() {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    let mut rig = Rig::new(near.into(), U16BE);
    let sent = packets((0..1000).map(|i| i % 100));
    let mut run = rig.peer_sends(&framed(U16BE, &sent), 16_384);
    let mut got: VecDeque<_> = VecDeque::new();
    let mut stalls = 0;
    loop {
        let more = received(&far);
        if more.is_empty() {
            break;
        }
        stalls += u64::from(run.is_paused());
        got.extend(more);
        run = rig.driver.on(TLS_SPLICE_ON_SINK_READY);
        while run.has_more {
            run = rig.decrypt();
        }
    }
    assert_eq!(got, sent);
    let stats = rig.stats();
    assert_eq!((stats.packets_in, stats.drops_in), (1000, 0));
    assert!(stalls > 0 && stats.stalls_in > 0);
}

#[test]
fn no_descriptor_is_taken_in_with_a_datagram() {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let mut rig = Rig::new(near.into(), U16BE);
    let (mut reader, writer) = std::io::pipe().unwrap();
    send_with_descriptor(&far, b"hello", writer.into());
    assert_eq!(rig.encrypt_all(), (false, b"\0\x05hello".to_vec()));
    // Nobody has the other end any more.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

/// Sends a datagram with a descriptor, which is closed here.
fn send_with_descriptor(socket: &UnixDatagram, packet: &[u8], descriptor: OwnedFd) {
    let mut part = IoSlice::new(packet);
    let mut control = [0u64; 8];
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = (&raw mut part).cast();
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        let data = libc::CMSG_DATA(header).cast::<c_int>();
        data.write_unaligned(descriptor.as_raw_fd());
        let sent = libc::sendmsg(socket.as_raw_fd(), &raw const message, 0);
        assert_eq!(sent, packet.len() as ssize_t);
    }
}
