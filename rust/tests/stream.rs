//! Streams of the caller's, and pumps that are each other's endpoint.

#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use common::*;
use tls_splice::endpoint::{READABLE, WRITABLE};
use tls_splice::ffi::*;
use tls_splice::handle::tls_splice as Splice;

const MEGABYTE: usize = 1 << 20;
const TURN: usize = 256 * 1024;

/// A session whose endpoint is the caller's.
struct End {
    ours: Tls,
    peer: Tls,
    splice: *mut Splice,
    driver: Driver,
}

impl End {
    fn new(directions: u32, high_water_mark: usize, framing: u32) -> End {
        let (ours, peer) = connect(TLS1_3, true);
        let config = tls_splice_config {
            struct_size: size_of::<tls_splice_config>(),
            fd: TLS_SPLICE_FD_NONE,
            directions,
            high_water_mark,
            framing,
            max_packet_size: 0,
        };
        let mut splice = std::ptr::null_mut();
        unsafe {
            assert_eq!(tls_splice_new(&config, &mut splice), 0);
            assert_eq!(abi::poll_fd(splice), -1);
        }
        let driver = Driver::new(splice, ours.0);
        driver.start(directions);
        End {
            ours,
            peer,
            splice,
            driver,
        }
    }

    fn raw(directions: u32) -> End {
        End::new(directions, 256 * 1024, TLS_SPLICE_FRAMING_AUTO)
    }

    /// The peer sends that, and ours has it.
    fn receive(&self, bytes: &[u8]) {
        assert!(self.peer.write(bytes));
        self.ours.give(&self.peer.take(usize::MAX));
    }

    /// What the peer gets of what ours has sent.
    fn sent(&self) -> Vec<u8> {
        self.peer.give(&self.ours.take(usize::MAX));
        self.peer.read_all().0
    }

    /// Decrypts. A full sink is to be written to.
    fn decrypt(&self) -> Run {
        let run = self.driver.decrypt();
        let is_blocked = run.is_paused() && !run.has_more && !run.has_failed();
        let is_over = run.is_in_over() || run.is_in_stopped();
        let deliver = run.orders & TLS_SPLICE_ACTION_DELIVER != 0;
        assert_eq!(deliver, is_blocked && !is_over);
        run
    }

    fn encrypt(&self) -> Run {
        self.driver.encrypt()
    }

    fn begin(&self, event: u32) -> tls_splice_buf {
        let transfer = unsafe { abi::begin_transfer(self.splice, self.ours.0, event) };
        assert_eq!(transfer.fd, -1);
        transfer.buf
    }

    fn end(&self, event: u32, result: isize) {
        unsafe { abi::end_transfer(self.splice, event, result) };
    }

    fn pass(&self, to: &End) -> bool {
        unsafe { abi::pass(self.splice, to.splice, to.ours.0) }
    }

    fn interest(&self) -> u32 {
        unsafe { abi::begin_wait(self.splice, self.ours.0) }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        unsafe { abi::free(self.splice) };
    }
}

fn slice(buf: &tls_splice_buf) -> Vec<u8> {
    unsafe { std::slice::from_raw_parts(buf.base, buf.len) }.to_vec()
}

#[test]
fn a_sink_takes_what_was_decrypted() {
    let end = End::raw(TLS_SPLICE_DECRYPT);
    let bytes = Pattern::new(1).take(200_000);
    end.receive(&bytes);
    let mut got = Vec::new();
    while end.decrypt().is_paused() {
        let buf = end.begin(WRITABLE);
        got.extend(slice(&buf));
        end.end(WRITABLE, buf.len as isize);
    }
    assert_eq!(end.begin(WRITABLE).len, 0);
    assert!(got == bytes);
    let stats = stats_of(end.splice);
    assert_eq!((stats.bytes_in, stats.stalls_in), (200_000, 0));
}

#[test]
fn a_sink_that_does_not_take_it_at_once_is_a_stall() {
    let end = End::raw(TLS_SPLICE_DECRYPT);
    end.receive(&[7; 1000]);
    for stalls in 1..3 {
        end.decrypt();
        let buf = end.begin(WRITABLE);
        assert_eq!((buf.len, end.begin(WRITABLE).len), (1000, 0));
        // It has been written in part, and the rest is waited for.
        for _ in 0..3 {
            assert_eq!(end.interest(), 0);
            assert_eq!(stats_of(end.splice).stalls_in, stalls);
            assert!(end.decrypt().is_paused());
        }
        end.end(WRITABLE, 1000);
        let run = end.decrypt();
        assert!(!run.is_paused() && run.orders == 0);
        end.receive(&[7; 1000]);
    }
}

#[test]
fn a_sink_that_fails_keeps_nothing() {
    let end = End::raw(TLS_SPLICE_DECRYPT);
    end.receive(&[7; 1000]);
    end.decrypt();
    assert_eq!(end.begin(WRITABLE).len, 1000);
    end.end(WRITABLE, -(libc::EPIPE as isize));
    assert!(end.decrypt().has_failed());
    let failure = unsafe { abi::failure(end.splice) }.unwrap();
    assert_eq!((failure.errnum, failure.is_write), (libc::EPIPE, true));
    assert_eq!(unsafe { abi::undelivered(end.splice) }, 1000);
}

#[test]
fn a_source_is_read_until_its_end_and_lets_the_loop_turn() {
    let end = End::raw(TLS_SPLICE_ENCRYPT);
    end.encrypt();
    assert_eq!(end.interest(), READABLE);
    let mut pattern = Pattern::new(1);
    let (mut got, mut turn, mut turns) = (Vec::new(), 0, 0);
    while got.len() < 2 * MEGABYTE {
        let buf = end.begin(READABLE);
        if buf.len == 0 {
            (turn, turns) = (0, turns + 1);
            abi::next_turn();
            continue;
        }
        let bytes = pattern.take(buf.len);
        unsafe { buf.base.copy_from_nonoverlapping(bytes.as_ptr(), buf.len) };
        end.end(READABLE, buf.len as isize);
        end.driver.on(TLS_SPLICE_ON_LOWER_DRAINED);
        end.driver.on(TLS_SPLICE_ON_SOURCE_READY);
        got.extend(end.sent());
        turn += buf.len;
        assert!(turn <= TURN + 256 * 1024, "{turn} bytes in a turn");
    }
    assert!(turns >= 4);
    Pattern::new(1).check(&got);
    // Less than asked for, and nothing: then the loop turns.
    end.encrypt();
    for n in [1000, -(libc::EAGAIN as isize)].repeat(1000) {
        assert!(end.begin(READABLE).len > 1000);
        end.end(READABLE, n);
        end.encrypt();
        end.sent();
    }
    assert!(end.begin(READABLE).len > 0);
    end.end(READABLE, 0);
    assert!(end.encrypt().is_out_over());
}

#[test]
fn a_source_is_not_read_while_the_tls_side_is_full() {
    let end = End::raw(TLS_SPLICE_ENCRYPT);
    let mut total = 0;
    loop {
        let buf = end.begin(READABLE);
        if buf.len == 0 && end.interest() == 0 {
            break;
        }
        if buf.len > 0 {
            end.end(READABLE, buf.len as isize);
            total += buf.len;
        }
        end.encrypt();
        assert!(total <= 256 * 1024);
    }
    assert_eq!(stats_of(end.splice).stalls_out, 1);
    assert_eq!(end.sent().len(), total);
    end.encrypt();
    assert_eq!(end.interest(), READABLE);
}

#[test]
fn what_one_decrypts_the_other_encrypts() {
    let a = End::raw(DUPLEX);
    let b = End::raw(DUPLEX);
    let mut there = Pattern::new(1);
    let mut back = Pattern::new(2);
    let (mut at_b, mut at_a) = (Pattern::new(1), Pattern::new(2));
    for size in [1, 1000, 16_384, 300_000, 2 * MEGABYTE] {
        a.receive(&there.take(size));
        b.receive(&back.take(size));
        while at_b.at < there.at || at_a.at < back.at {
            for (from, to, got) in [(&a, &b, &mut at_b), (&b, &a, &mut at_a)] {
                from.decrypt();
                if from.pass(to) {
                    to.encrypt();
                    got.check(&to.sent());
                }
            }
        }
    }
    for end in [&a, &b] {
        let stats = stats_of(end.splice);
        assert_eq!((stats.bytes_in, stats.bytes_out), (there.at, there.at));
        assert!(!a.pass(&b), "there is nothing");
        let to_itself = unsafe { tls_splice_pass(end.splice, end.splice, end.ours.0) };
        assert_eq!(to_itself, BUSY);
    }
}

#[test]
fn one_that_is_full_takes_no_more() {
    let a = End::raw(TLS_SPLICE_DECRYPT);
    let b = End::raw(TLS_SPLICE_ENCRYPT);
    let mut pattern = Pattern::new(1);
    a.receive(&pattern.take(2 * MEGABYTE));
    let mut passed = 0;
    loop {
        assert!(a.decrypt().is_paused());
        if !a.pass(&b) {
            break;
        }
        b.encrypt();
        passed += 1;
    }
    assert!(passed > 1);
    a.interest();
    a.interest();
    let (of_a, of_b) = (stats_of(a.splice), stats_of(b.splice));
    assert_eq!(of_a.stalls_in, 1);
    assert!(of_b.peak_buffered_out <= 256 * 1024);
    assert!(of_a.bytes_in <= 256 * 1024);
    let mut got = Pattern::new(1);
    while got.at < pattern.at {
        got.check(&b.sent());
        a.decrypt();
        a.pass(&b);
        b.encrypt();
    }
    assert_eq!(stats_of(a.splice).bytes_in, pattern.at);
}

#[test]
fn nothing_is_passed_before_the_start_and_after_the_end() {
    let a = End::raw(TLS_SPLICE_DECRYPT);
    let b = End::raw(TLS_SPLICE_ENCRYPT);
    let not_started = End::raw(TLS_SPLICE_DECRYPT);
    a.receive(b"abc");
    a.decrypt();
    unsafe {
        assert!(!a.pass(&not_started));
        b.driver.on(TLS_SPLICE_ON_LEAVE_SOURCE);
        assert!(!a.pass(&b));
        assert!(b.encrypt().is_out_over());
        assert!(a.driver.stop().is_in_stopped());
        let other = End::raw(TLS_SPLICE_ENCRYPT);
        assert!(!a.pass(&other));
        // It is the caller's.
        assert_eq!(abi::undelivered(a.splice), 3);
    }
}

#[test]
fn an_end_before_the_start_is_kept() {
    let end = End::raw(DUPLEX);
    let config = tls_splice_config {
        struct_size: size_of::<tls_splice_config>(),
        fd: TLS_SPLICE_FD_NONE,
        directions: DUPLEX,
        high_water_mark: 1000,
        framing: TLS_SPLICE_FRAMING_AUTO,
        max_packet_size: 0,
    };
    unsafe {
        let mut splice = std::ptr::null_mut();
        assert_eq!(tls_splice_new(&config, &mut splice), 0);
        // Without a session, since there is none yet.
        let none = std::ptr::null_mut();
        let actions = abi::on(splice, TLS_SPLICE_ON_LEAVE_SOURCE, 0, none);
        assert_eq!(actions.orders, 0);
        abi::start(splice, TLS_SPLICE_ENCRYPT);
        abi::push_before(splice, TLS_SPLICE_ENCRYPT, b"abc".as_ptr(), 3);
        let driver = Driver::new(splice, end.ours.0);
        driver.on(TLS_SPLICE_ON_TURN);
        assert_eq!(end.sent(), b"abc");
        assert!(driver.encrypt().is_out_over());
        abi::free(splice);
    }
}

#[test]
fn packets_are_counted_on_their_way_and_the_last_good_one_arrives() {
    let a = End::new(TLS_SPLICE_DECRYPT, 256 * 1024, TLS_SPLICE_FRAMING_IP);
    let b = End::raw(TLS_SPLICE_ENCRYPT);
    let mut packet = vec![0x45, 0, 0, 40];
    packet.resize(40, 9);
    let mut bytes = packet.repeat(3);
    bytes.extend([0xff; 30]);
    unsafe {
        let (first, rest) = bytes.split_at(50);
        abi::push_before(a.splice, TLS_SPLICE_DECRYPT, first.as_ptr(), first.len());
        a.receive(rest);
    }
    let mut got = Vec::new();
    while !a.decrypt().has_failed() {
        assert!(a.pass(&b));
        b.encrypt();
        got.extend(b.sent());
    }
    assert_eq!(got, packet.repeat(3));
    assert_eq!(stats_of(a.splice).packets_in, 3);
    let failure = unsafe { abi::failure(a.splice) }.unwrap();
    assert_eq!((failure.framing, failure.offset), (TLS_SPLICE_DECRYPT, 120));
}

#[test]
fn a_source_can_end_without_another_read() {
    for held in [false, true] {
        let end = End::raw(TLS_SPLICE_ENCRYPT);
        let buf = end.begin(READABLE);
        unsafe { std::ptr::write_bytes(buf.base, 7, 100) };
        end.end(READABLE, 100);
        if !held {
            assert!(!end.encrypt().is_out_over());
            assert_eq!(end.sent(), [7; 100]);
        }
        end.end(READABLE, 0);
        while !end.encrypt().is_out_over() {
            end.peer.give(&end.ours.take(usize::MAX));
        }
        if held {
            assert_eq!(end.peer.read_all().0, [7; 100]);
        }
        assert_eq!(end.begin(READABLE).len, 0);
    }
}

#[test]
fn what_was_passed_leaves_room_for_a_large_read() {
    let a = End::raw(TLS_SPLICE_DECRYPT);
    let b = End::raw(TLS_SPLICE_ENCRYPT);
    let room = || unsafe {
        let transfer = abi::begin_transfer(b.splice, b.ours.0, READABLE);
        abi::end_transfer(b.splice, READABLE, -(libc::ECANCELED as isize));
        transfer.buf.len
    };
    let before = room();
    a.receive(b"abc");
    a.decrypt();
    assert!(a.pass(&b));
    b.encrypt();
    assert_eq!(b.sent(), b"abc");
    assert_eq!(room(), before);
}

/// However much is handed over, no more is held than the high-water mark allows.
#[test]
fn what_is_passed_fits_into_the_room() {
    for framing in [TLS_SPLICE_FRAMING_RAW, TLS_SPLICE_FRAMING_IP] {
        let high_water_mark = 70_000;
        let a = End::new(TLS_SPLICE_DECRYPT, high_water_mark, framing);
        let b = End::new(TLS_SPLICE_ENCRYPT, high_water_mark, framing);
        let mut packet = vec![0; 1000];
        packet[..4].copy_from_slice(&[0x45, 0, 3, 232]);
        let bytes = packet.repeat(500);
        a.receive(&bytes);
        let mut got = Vec::new();
        let mut most = 0;
        while got.len() < bytes.len() {
            // The peer of `b` takes nothing until there is no room any more.
            loop {
                a.decrypt();
                let is_passed = a.pass(&b);
                b.encrypt();
                most = most.max(b.ours.pending());
                if !is_passed {
                    break;
                }
            }
            got.extend(b.sent());
        }
        assert!(got == bytes);
        assert!(
            most > high_water_mark * 3 / 4 && most <= high_water_mark,
            "{most}"
        );
        let peak = stats_of(b.splice).peak_buffered_out;
        assert!(
            (most as u64..=high_water_mark as u64).contains(&peak),
            "{peak}"
        );
    }
}
