//! What the pump does with real TLS sessions and real endpoints.

#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use std::cell::Cell;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::ptr;

use libc::c_int;
use openssl_sys as ossl;
use openssl_sys::SSL;

use common::*;
use tls_splice::endpoint::{Endpoint, READABLE, WRITABLE};
use tls_splice::error::*;
use tls_splice::ffi::*;
use tls_splice::frame::Framing;
use tls_splice::handle::tls_splice as Splice;
use tls_splice::pump::*;

const MEGABYTE: usize = 1 << 20;
const ERR_LIB_SSL: c_int = 20;

fn failure_of(rig: &Rig) -> Option<tls_splice_failure> {
    unsafe { abi::failure(rig.splice) }
}

#[test]
fn both_directions_with_each_version_role_and_bio() {
    for options in variants() {
        let mut rig = Rig::new(options);
        rig.start();
        while rig.sent_in.at < MEGABYTE as u64 || rig.sent_out.at < MEGABYTE as u64 {
            rig.peer_write(30_000);
            rig.source_write(30_000);
            rig.drain();
        }
        assert_eq!(rig.to_us.at, rig.sent_in.at, "{options:?}");
        assert_eq!(rig.from_us.at, rig.sent_out.at, "{options:?}");
        let stats = rig.stats();
        assert_eq!(stats.bytes_in, rig.sent_in.at);
        assert_eq!(stats.bytes_decrypted, rig.sent_in.at);
        assert_eq!(stats.bytes_out, rig.sent_out.at);
        assert!(stats.peak_buffered_in <= options.high_water_mark as u64);
        assert!(stats.peak_buffered_out <= options.high_water_mark as u64);
    }
}

#[test]
fn one_direction_leaves_the_other_alone() {
    for directions in [TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT] {
        let mut rig = Rig::new(Options {
            directions,
            attach: directions == TLS_SPLICE_DECRYPT,
            ..Options::default()
        });
        rig.start();
        rig.peer_write(1000);
        rig.source_write(1000);
        rig.settle();
        if directions == TLS_SPLICE_DECRYPT {
            assert_eq!(rig.sink_read(2000), Some(1000));
            assert_eq!(rig.from_us.at, 0);
        } else {
            assert_eq!(rig.sink_read(2000), Some(0));
            assert_eq!(rig.from_us.at, 1000);
            // What the peer sent is still there for the TLS side's reader.
            assert_eq!(rig.js_read(), ossl::SSL_ERROR_WANT_READ);
            assert_eq!(rig.to_us.at, 1000);
        }
    }
}

#[test]
fn nothing_moves_before_the_start() {
    let mut rig = Rig::new(Options::default());
    rig.peer_write(10);
    rig.source_write(10);
    rig.peer_turn();
    rig.decrypt();
    rig.encrypt();
    assert_eq!(rig.poll(), 0);
    assert_eq!(rig.stats(), Default::default());
    rig.start();
    rig.drain();
    assert_eq!((rig.to_us.at, rig.from_us.at), (10, 10));
}

#[test]
fn bytes_read_before_the_splice_go_first() {
    for attach in [true, false] {
        let mut rig = Rig::new(Options {
            attach,
            ..Options::default()
        });
        // A record that waits as ciphertext, a partial record after it.
        let before = rig.sent_in.take(200_000);
        rig.peer_write(5000);
        rig.peer_write(10_000);
        let cipher = rig.peer.take(usize::MAX);
        let (now, later) = cipher.split_at(9000);
        rig.ours.give(now);
        rig.wire_in.extend(later);
        let from = rig.sent_out.take(100_000);

        rig.start_quietly();
        for part in before.chunks(70_000) {
            unsafe { abi::push_before(rig.splice, TLS_SPLICE_DECRYPT, part.as_ptr(), part.len()) };
        }
        unsafe {
            abi::push_before(rig.splice, TLS_SPLICE_ENCRYPT, from.as_ptr(), from.len());
            // Nothing to queue.
            abi::push_before(rig.splice, TLS_SPLICE_ENCRYPT, ptr::null(), 0);
            abi::push_before(rig.splice, TLS_SPLICE_ENCRYPT, from.as_ptr(), 0);
        }
        rig.source_write(1000);
        // The rest arrives before the pump has looked at the beginning.
        assert!(rig.stream_read());
        rig.encrypt();
        rig.drain();
        assert_eq!(rig.to_us.at, 215_000);
        assert_eq!(rig.from_us.at, 101_000);
    }
}

#[test]
fn a_full_sink_pauses_the_tls_side_and_loses_nothing() {
    for options in variants() {
        let mut rig = Rig::new(options);
        rig.start();
        let mut written = 0;
        while written < 4 * MEGABYTE {
            rig.peer_write(64_000);
            written += 64_000;
        }
        rig.settle();
        assert!(!rig.is_reading());
        assert_ne!(rig.steps & TLS_SPLICE_STEP_PAUSE_TLS, 0);
        let stats = rig.stats();
        assert_eq!(stats.stalls_in, 1, "{options:?}");
        assert!(stats.bytes_decrypted - stats.bytes_in <= options.high_water_mark as u64);
        assert!(!rig.wire_in.is_empty(), "the sender is held up");
        // The other direction is not.
        rig.source_write(50_000);
        rig.settle();
        assert_eq!(rig.from_us.at, 50_000);
        // Little by little.
        for _ in 0..100 {
            rig.sink_read(1000);
            rig.settle();
        }
        rig.drain();
        assert_eq!(rig.to_us.at, written as u64);
        assert!(rig.is_reading());
    }
}

#[test]
fn a_full_tls_side_leaves_the_source_unread() {
    for options in variants() {
        let mut rig = Rig::new(options);
        rig.start();
        rig.tcp_open = false;
        let mut accepted = 0;
        loop {
            let n = rig.source_write(50_000);
            rig.settle();
            accepted += n;
            if n == 0 {
                break;
            }
        }
        let stats = rig.stats();
        assert!(stats.bytes_out < accepted as u64);
        assert_eq!(stats.stalls_out, 1);
        assert!(rig.ours.pending() <= options.high_water_mark, "{options:?}");
        assert_eq!(stats.peak_buffered_out, rig.ours.pending() as u64);
        rig.tcp_open = true;
        rig.settle();
        assert_eq!(rig.from_us.at, accepted as u64);
    }
}

#[test]
fn the_high_water_mark_holds_down_to_one_byte() {
    for high_water_mark in [1, 2, 3, 100, 4096, 16_384, 65_536, usize::MAX] {
        for options in variants().map(|o| Options {
            high_water_mark,
            ..o
        }) {
            let total = if high_water_mark < 4096 {
                3000
            } else {
                300_000
            };
            let mut rig = Rig::new(options);
            rig.start();
            rig.peer_write(total);
            rig.source_write(total);
            while rig.to_us.at < total as u64 || rig.from_us.at < total as u64 {
                let before = (rig.to_us.at, rig.from_us.at);
                rig.settle();
                rig.sink_read(50_000);
                let missing = total - rig.sent_out.at as usize;
                rig.source_write(missing);
                assert_ne!(before, (rig.to_us.at, rig.from_us.at), "{options:?}");
            }
            let stats = rig.stats();
            let most = (high_water_mark as u64).saturating_add(RECORD_OVERHEAD);
            assert!(stats.peak_buffered_out <= most, "{options:?} {stats:?}");
            if options.attach {
                assert!(stats.peak_buffered_in <= most, "{options:?} {stats:?}");
            }
        }
    }
}

#[test]
fn small_records_stay_under_the_high_water_mark() {
    for version in [TLS1_2, TLS1_3] {
        let mut rig = Rig::new(Options {
            version,
            high_water_mark: 65_536,
            ..Options::default()
        });
        rig.ours.set_max_send_fragment(512);
        rig.start();
        rig.tcp_open = false;
        while rig.source_write(50_000) > 0 {
            rig.settle();
        }
        assert!(rig.stats().peak_buffered_out <= 65_536);
        rig.tcp_open = true;
        rig.settle();
        assert_eq!(rig.from_us.at, rig.sent_out.at);
    }
}

#[test]
fn the_end_of_the_source_waits_for_the_write_bio() {
    for options in variants() {
        let mut rig = Rig::new(options);
        rig.start();
        rig.tcp_open = false;
        rig.source_write(20_000);
        rig.far.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        rig.settle();
        assert!(!rig.out_over, "ciphertext is still held");
        rig.tcp_open = true;
        rig.settle();
        assert!(rig.out_over);
        assert_eq!(rig.from_us.at, 20_000);
        assert_eq!(rig.poll(), 0, "nothing is left to poll for");
        // The other direction goes on.
        rig.peer_write(70_000);
        rig.drain();
        assert_eq!(rig.to_us.at, 70_000);
        assert_eq!(unsafe { abi::encrypt(rig.splice, rig.ours.0) }, 0);
    }
}

#[test]
fn ending_the_encrypt_direction_by_hand() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    rig.source_write(1000);
    rig.settle();
    unsafe { abi::end_encrypt(rig.splice) };
    rig.source_write(1000);
    rig.encrypt();
    assert!(rig.out_over);
    rig.settle();
    assert_eq!(rig.from_us.at, 1000);
    assert_eq!(rig.stats().bytes_out, 1000);
}

#[test]
fn close_notify_ends_the_direction_after_the_last_byte() {
    for options in variants() {
        let mut rig = Rig::new(options);
        rig.start();
        rig.peer_write(3 * MEGABYTE);
        rig.peer.shutdown();
        rig.settle();
        assert_eq!(rig.in_over, None, "the sink has not got everything");
        rig.drain();
        assert_eq!(rig.to_us.at, 3 * MEGABYTE as u64);
        assert_eq!(rig.in_over, Some((0, ossl::SSL_ERROR_ZERO_RETURN, 0)));
        assert_eq!(rig.stats().close_notify, 1);

        unsafe { abi::shutdown_write(rig.splice) };
        assert_eq!(rig.sink_read(1), None);
        rig.source_write(1000);
        rig.settle();
        assert_eq!(rig.from_us.at, 1000, "half-closed");
    }
}

/// What SSL_read returns, SSL_get_error and the error queue say without the pump,
/// to a bad record or to the alert that the peer answers one with.
fn without_pump(options: Options, bad_record: bool) -> ((c_int, c_int, libc::c_ulong), String) {
    let (ours, peer) = connect(options.version, options.server);
    if bad_record {
        peer.write(&[1; 100]);
        let mut bytes = peer.take(usize::MAX);
        bytes[50] ^= 1;
        ours.give(&bytes);
    } else {
        peer.give(&garbage());
        peer.read_all();
        ours.give(&peer.take(usize::MAX));
    }
    unsafe {
        ossl::ERR_clear_error();
        let ret = ossl::SSL_read(ours.0, [0u8; 100].as_mut_ptr().cast(), 100);
        let error = (ret, ours.error(ret), ERR_peek_error());
        (error, openssl::error::ErrorStack::get().to_string())
    }
}

/// A record that no peer has made.
fn garbage() -> Vec<u8> {
    [vec![23, 3, 3, 0, 40], vec![7; 40]].concat()
}

#[test]
fn a_bad_record_comes_after_the_bytes_before_it() {
    for options in variants() {
        let mut rig = Rig::new(options);
        rig.start();
        rig.peer_write(MEGABYTE);
        rig.peer_turn();
        let good = rig.wire_in.len();
        assert!(rig.peer.write(&[1; 100]));
        rig.peer_turn();
        rig.wire_in[good + 50] ^= 1;
        rig.settle();
        assert_eq!(rig.in_over, None, "the sink has not got everything");
        rig.drain();
        assert_eq!(rig.to_us.at, MEGABYTE as u64);
        assert_eq!(
            rig.in_over,
            Some(without_pump(options, true).0),
            "{options:?}"
        );
        assert_eq!(rig.stats().close_notify, 0);
        // Our alert is on its way.
        rig.peer_turn();
        assert_eq!(rig.peer_error, ossl::SSL_ERROR_SSL);
    }
}

#[test]
fn a_fatal_alert_is_reported_as_such() {
    const SSL_AD_REASON_OFFSET: c_int = 1000;
    for options in variants() {
        let mut rig = Rig::new(options);
        rig.start();
        rig.peer_write(100);
        rig.peer_turn();
        // The peer sees garbage, and says so.
        rig.peer.give(&garbage());
        rig.drain();
        assert_eq!(rig.to_us.at, 100);
        let (ret, error, code) = rig.in_over.unwrap();
        let (expected, text) = without_pump(options, false);
        assert_eq!((ret, error, code), expected);
        assert_eq!(rig.in_over_text, text, "with all details");
        assert!(text.contains("alert number"));
        assert_eq!(error, ossl::SSL_ERROR_SSL);
        assert_eq!(ossl::ERR_GET_LIB(code), ERR_LIB_SSL);
        assert!(ossl::ERR_GET_REASON(code) > SSL_AD_REASON_OFFSET);
    }
}

#[test]
fn a_broken_sink_fails_and_gives_back_what_it_did_not_take() {
    for options in variants() {
        let mut rig = Rig::new(options);
        rig.start();
        rig.peer_write(MEGABYTE);
        rig.settle();
        // The sink got so much, and nobody will ever read it.
        let accepted = rig.stats().bytes_in;
        rig.to_us.at = accepted;
        rig.far = None;
        rig.settle();
        assert!(rig.failed);
        let failure = failure_of(&rig).unwrap();
        assert!(failure.is_write && !failure.is_tls);
        assert!([libc::EPIPE, libc::ECONNRESET].contains(&failure.errnum));
        assert_eq!(rig.poll(), 0);
        rig.encrypt();
        assert!(rig.out_stopped, "the other direction ends with it");
        rig.give_back();
        assert_eq!(rig.to_us.at, MEGABYTE as u64, "{options:?}");
        assert_eq!(rig.stats().bytes_in, accepted);
        // The session is as good as ever.
        rig.peer_write(10);
        rig.peer_turn();
        rig.js_read();
        assert_eq!(rig.to_us.at, MEGABYTE as u64 + 10);
    }
}

#[test]
fn a_broken_source_fails() {
    // Unread bytes at its other end reset a TCP connection.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    let (_, unused) = nonblocking_pair();
    let mut rig = Rig::over(Options::default(), near.into(), unused);
    rig.start();
    rig.peer_write(1000);
    rig.settle();
    drop(far);
    std::thread::sleep(std::time::Duration::from_millis(20));
    rig.settle();
    assert!(rig.failed);
    let failure = failure_of(&rig).unwrap();
    assert_eq!(failure.errnum, libc::ECONNRESET);
    assert!(!failure.is_write && !failure.is_tls);
    rig.encrypt();
    assert!(rig.out_stopped);
    rig.decrypt();
    assert!(rig.in_stopped);
}

#[test]
fn a_session_that_cannot_be_written_fails_as_tls() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    rig.ours.shutdown();
    rig.source_write(1000);
    rig.settle();
    assert!(rig.failed);
    let failure = failure_of(&rig).unwrap();
    assert!(failure.is_tls && failure.errnum == 0);
    assert_eq!(ossl::ERR_GET_LIB(failure.tls_error), ERR_LIB_SSL);
    rig.encrypt();
    assert!(rig.out_stopped);
}

#[test]
fn stop_at_any_point_gives_every_byte_back() {
    // The points: so many bytes of ciphertext have arrived, partial records too,
    // with an empty and with a full sink.
    for options in variants() {
        for arrived in [
            0, 1, 4, 5, 6, 100, 5000, 16_400, 16_500, 40_000, 90_000, 400_000,
        ] {
            for high_water_mark in [100, 65_536, 262_144] {
                let mut rig = Rig::new(Options {
                    high_water_mark,
                    ..options
                });
                rig.start();
                rig.peer_write(MEGABYTE / 2);
                rig.source_write(100_000);
                rig.peer_turn();
                let later = rig.wire_in.split_off(arrived);
                for _ in 0..arrived % 7 + 1 {
                    rig.turn();
                }
                rig.wire_in.extend(later);
                rig.stop();
                let stats = rig.stats();
                assert_eq!(rig.to_us.at, MEGABYTE as u64 / 2, "{options:?} {arrived}");
                rig.peer_turn();
                assert_eq!(rig.from_us.at, stats.bytes_out);
                // An ordinary session again, and the rest of the source is there.
                while rig.from_us.at < rig.sent_out.at {
                    rig.js_forward(30_000);
                    rig.peer_turn();
                }
                rig.peer_write(20_000);
                rig.peer_turn();
                assert_eq!(rig.js_read(), ossl::SSL_ERROR_WANT_READ);
                assert_eq!(rig.to_us.at, rig.sent_in.at);
                // And again.
                rig.again();
                rig.peer_write(20_000);
                rig.source_write(20_000);
                rig.drain();
                assert_eq!(rig.to_us.at, rig.sent_in.at);
                assert_eq!(rig.from_us.at, rig.sent_out.at);
            }
        }
    }
}

#[test]
fn stop_with_a_full_tls_side_sends_what_was_read() {
    for options in variants() {
        let mut rig = Rig::new(options);
        rig.start_quietly();
        let before = rig.sent_out.take(3 * MEGABYTE);
        unsafe {
            abi::push_before(
                rig.splice,
                TLS_SPLICE_ENCRYPT,
                before.as_ptr(),
                before.len(),
            )
        };
        rig.tcp_open = false;
        rig.decrypt();
        rig.encrypt();
        rig.settle();
        assert!(rig.stats().bytes_out < before.len() as u64);
        rig.source_write(1000);
        rig.stop();
        rig.peer_turn();
        assert_eq!(rig.from_us.at, before.len() as u64, "no more and no less");
    }
}

/// A rig whose sink has no room for what the peer sent, which has an end.
fn ended_with_a_full_sink(options: Options, end: impl Fn(&mut Rig)) -> Rig {
    let mut rig = Rig::new(options);
    let junk = [0u8; 4096];
    let near = rig.near.as_raw_fd();
    let full = || unsafe { libc::send(near, junk.as_ptr().cast(), junk.len(), 0) } < 0;
    while !full() {}
    rig.start();
    rig.peer_write(10_000);
    rig.peer_turn();
    end(&mut rig);
    rig.settle();
    assert_eq!(rig.stats().bytes_decrypted, 10_000);
    assert_eq!(rig.stats().bytes_in, 0);
    assert_eq!(rig.in_over, None);
    // Out of the way, so that what comes now can be checked.
    let mut sink = rig.far.as_ref().unwrap();
    let mut buf = vec![0; 1 << 20];
    while sink.read(&mut buf).is_ok() {}
    rig
}

#[test]
fn stop_after_the_end_was_seen_but_not_delivered() {
    for options in variants() {
        let mut rig = ended_with_a_full_sink(options, |rig| rig.peer.shutdown());
        assert_eq!(rig.stats().close_notify, 1);
        rig.stop();
        assert_eq!(rig.to_us.at, 10_000);
        assert_eq!(rig.js_read(), ossl::SSL_ERROR_ZERO_RETURN);
    }
}

#[test]
fn stop_after_an_error_was_seen_but_not_delivered() {
    for options in variants() {
        let mut rig = ended_with_a_full_sink(options, |rig| rig.wire_in.extend(garbage()));
        rig.stop();
        assert_eq!(rig.to_us.at, 10_000);
        // Not "want read": JavaScript must hear that the session is dead.
        let error = rig.js_read();
        assert!(
            [ossl::SSL_ERROR_SSL, ossl::SSL_ERROR_SYSCALL].contains(&error),
            "{options:?}: {error}"
        );
    }
}

#[test]
fn key_updates_in_mid_stream() {
    for attach in [true, false] {
        let mut rig = Rig::new(Options {
            attach,
            ..Options::default()
        });
        rig.start();
        for round in 0..20 {
            rig.peer_write(10_000);
            // 1: and the other side shall update too.
            rig.peer.update_keys(round % 2 == 1);
            rig.peer_write(10_000);
            rig.source_write(10_000);
            if round % 3 == 0 {
                rig.drain();
            }
            rig.source_write(10_000);
        }
        rig.drain();
        while rig.sent_out.at < 400_000 {
            rig.source_write(10_000);
            rig.drain();
        }
        assert_eq!(rig.to_us.at, 400_000);
        assert_eq!(rig.from_us.at, 400_000);
    }
}

#[test]
fn what_openssl_answers_by_itself_is_asked_to_be_flushed() {
    for attach in [true, false] {
        let mut rig = Rig::new(Options {
            version: TLS1_2,
            directions: TLS_SPLICE_DECRYPT,
            attach,
            ..Options::default()
        });
        rig.start();
        rig.tcp_open = false;
        unsafe {
            assert_eq!(SSL_renegotiate(rig.peer.0), 1);
            ossl::SSL_do_handshake(rig.peer.0);
        }
        rig.peer_turn();
        rig.stream_read();
        assert!(rig.ours.pending() > 0, "OpenSSL has answered");
        assert_eq!(rig.steps, TLS_SPLICE_STEP_FLUSH);
    }
}

#[test]
fn renegotiation_in_mid_stream() {
    for by_peer in [true, false] {
        for options in variants().filter(|o| o.version == TLS1_2) {
            let mut rig = Rig::new(options);
            rig.start();
            rig.peer_write(20_000);
            rig.source_write(20_000);
            rig.drain();
            let tls = if by_peer { &rig.peer } else { &rig.ours };
            unsafe {
                assert_eq!(SSL_renegotiate(tls.0), 1);
                ossl::SSL_do_handshake(tls.0);
            }
            rig.flush();
            // OpenSSL takes no new handshake as long as it has data to send.
            for _ in 0..10 {
                rig.drain();
            }
            rig.source_write(20_000);
            rig.drain();
            rig.peer_write(20_000);
            rig.drain();
            assert_eq!(rig.to_us.at, 40_000, "{options:?}");
            assert_eq!(rig.from_us.at, 40_000, "{options:?}");
        }
    }
}

/// In the middle of our renegotiation SSL_write would have to read, and fails at
/// what the peer had sent before it heard of that.
#[test]
fn a_write_waits_for_our_renegotiation() {
    // A server would only ask for it, and not wait.
    for options in variants().filter(|o| o.version == TLS1_2 && !o.server) {
        let mut rig = Rig::new(options);
        rig.start();
        rig.drain();
        let both = options.directions == TLS_SPLICE_DECRYPT | TLS_SPLICE_ENCRYPT;
        rig.peer_write(if both { 20_000 } else { 0 });
        assert_eq!(unsafe { SSL_renegotiate(rig.ours.0) }, 1);
        rig.source_write(30_000);
        // Before it has begun, and when it has.
        for _ in 0..2 {
            rig.encrypt();
            assert_ne!(rig.steps & TLS_SPLICE_STEP_WANT_TLS, 0, "{options:?}");
            assert_eq!(rig.stats().bytes_out, 0);
            rig.decrypt();
        }
        rig.drain();
        assert!(!rig.failed);
        assert_eq!(rig.from_us.at, 30_000);
        assert_eq!(rig.to_us.at, if both { 20_000 } else { 0 });
        // The same, with a stop in between.
        assert_eq!(unsafe { SSL_renegotiate(rig.ours.0) }, 1);
        rig.decrypt();
        rig.source_write(30_000);
        rig.encrypt();
        assert_ne!(rig.steps & TLS_SPLICE_STEP_WANT_TLS, 0);
        rig.stop();
        rig.peer_turn();
        assert_eq!(rig.from_us.at, 60_000);
    }
}

thread_local! {
    static INSIDE: Cell<*mut Splice> = const { Cell::new(ptr::null_mut()) };
    static SEEN: Cell<u32> = const { Cell::new(0) };
}

/// What re-entering calls are answered, in a callback of OpenSSL's.
unsafe extern "C" fn reenter(ssl: *const SSL, _: c_int, _: c_int) {
    let splice = INSIDE.get();
    if splice.is_null() {
        return;
    }
    SEEN.set(SEEN.get() + 1);
    let ssl = ssl.cast_mut();
    unsafe {
        abi::refused(splice, ssl, BUSY);
        abi::cancel(splice);
    }
}

#[test]
fn a_callback_may_cancel() {
    for attach in [true, false] {
        let mut rig = Rig::new(Options {
            version: TLS1_2,
            attach,
            ..Options::default()
        });
        rig.start();
        rig.peer_write(40_000);
        rig.peer_turn();
        unsafe {
            assert_eq!(SSL_renegotiate(rig.peer.0), 1);
            ossl::SSL_do_handshake(rig.peer.0);
        }
        rig.peer_turn();
        unsafe { SSL_set_info_callback(rig.ours.0, Some(reenter)) };
        INSIDE.set(rig.splice);
        SEEN.set(0);
        rig.segment = 1 << 20;
        rig.stream_read();
        INSIDE.set(ptr::null_mut());
        assert!(SEEN.get() > 0, "no callback has run");
        assert!(rig.in_stopped, "cancelled");
        // Only that call: what the caller makes of it is its own affair.
        rig.in_stopped = false;
        rig.drain();
        rig.decrypt();
        rig.drain();
        assert_eq!(rig.to_us.at, 40_000);
        rig.stop();
    }
}

#[test]
fn a_cancelled_write_says_stopped() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    unsafe {
        SSL_set_info_callback(rig.ours.0, Some(reenter));
        assert_eq!(SSL_key_update(rig.ours.0, 0), 1);
    }
    rig.source_write(1000);
    INSIDE.set(rig.splice);
    SEEN.set(0);
    rig.encrypt();
    INSIDE.set(ptr::null_mut());
    assert!(SEEN.get() > 0, "no callback has run");
    assert_eq!(rig.steps, TLS_SPLICE_STEP_STOPPED);
    assert!(rig.out_stopped);
    rig.out_stopped = false;
    rig.encrypt();
    rig.drain();
    assert_eq!(rig.from_us.at, 1000, "nothing was lost");
}

unsafe extern "C" fn end_from_inside(_: *const SSL, _: c_int, _: c_int) {
    let splice = INSIDE.get();
    if !splice.is_null() {
        SEEN.set(SEEN.get() + 1);
        unsafe { abi::end_encrypt(splice) };
    }
}

#[test]
fn a_callback_may_end_the_encrypt_direction() {
    // While that encrypts itself, and while the other one decrypts
    for by_encrypt in [true, false] {
        let mut rig = Rig::new(Options {
            version: if by_encrypt { TLS1_3 } else { TLS1_2 },
            ..Options::default()
        });
        rig.start();
        unsafe { SSL_set_info_callback(rig.ours.0, Some(end_from_inside)) };
        INSIDE.set(rig.splice);
        SEEN.set(0);
        if by_encrypt {
            assert_eq!(unsafe { SSL_key_update(rig.ours.0, 0) }, 1);
            rig.source_write(1000);
            rig.encrypt();
        } else {
            unsafe {
                assert_eq!(SSL_renegotiate(rig.peer.0), 1);
                ossl::SSL_do_handshake(rig.peer.0);
            }
            rig.peer_turn();
            rig.stream_read();
        }
        INSIDE.set(ptr::null_mut());
        assert!(SEEN.get() > 0, "no callback has run");
        assert!(!rig.out_over && !rig.out_stopped);
        rig.settle();
        // Not read any more.
        rig.source_write(1000);
        rig.encrypt();
        rig.settle();
        assert!(rig.out_over);
        assert_eq!(rig.from_us.at, if by_encrypt { 1000 } else { 0 });
        // The other direction goes on.
        rig.peer_write(70_000);
        rig.drain();
        assert_eq!(rig.to_us.at, 70_000);
    }
}

#[test]
fn cancel_outside_of_a_call_is_nothing() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    rig.peer_write(1000);
    rig.source_write(1000);
    rig.peer_turn();
    unsafe { abi::cancel(rig.splice) };
    rig.stream_read();
    unsafe { abi::cancel(rig.splice) };
    rig.encrypt();
    rig.drain();
    assert!(!rig.in_stopped && !rig.out_stopped);
    assert_eq!((rig.to_us.at, rig.from_us.at), (1000, 1000));
}

/// Makes a call panic: by a lie about how much there is, when the peer has sent so much.
type Lie = unsafe fn(&mut Rig) -> c_int;

const LIES: [(&str, usize, Lie); 3] = [
    ("commit", 1000, |rig| unsafe {
        assert!(abi::alloc(rig.splice).len > 0);
        tls_splice_commit(rig.splice, usize::MAX)
    }),
    ("end_transfer, writing", MEGABYTE, |rig| unsafe {
        let transfer = abi::begin_transfer(rig.splice, rig.ours.0, WRITABLE);
        assert!(transfer.buf.len > 0);
        tls_splice_end_transfer(rig.splice, WRITABLE, transfer.buf.len as isize + 1)
    }),
    ("end_transfer, reading", 1000, |rig| unsafe {
        let transfer = abi::begin_transfer(rig.splice, rig.ours.0, READABLE);
        assert!(transfer.buf.len > 0);
        tls_splice_end_transfer(rig.splice, READABLE, isize::MAX)
    }),
];

#[test]
fn a_panic_stays_inside_and_the_handle_refuses_from_then_on() {
    for (name, sent, lie) in LIES {
        let mut rig = Rig::new(Options::default());
        rig.start();
        rig.peer_write(sent);
        rig.settle();
        let before = rig.stats();
        assert!(before.bytes_in > 0);
        unsafe {
            assert_eq!(lie(&mut rig), TLS_SPLICE_EPANIC, "{name}");
            for _ in 0..2 {
                abi::refused(rig.splice, rig.ours.0, TLS_SPLICE_EPANIC);
                assert_eq!(tls_splice_cancel(rig.splice), TLS_SPLICE_EPANIC);
                assert_eq!(tls_splice_end_encrypt(rig.splice), TLS_SPLICE_EPANIC);
            }
            let mut last = Default::default();
            let code = tls_splice_get_stats(rig.splice, &mut last);
            assert_eq!((code, last), (TLS_SPLICE_EPANIC, before));
            // The session still has the splice's BIOs.
            rig.ours.read_all();
            rig.ours.shutdown();
        }
        rig.abandon();
    }
}

#[test]
fn a_null_handle_is_refused() {
    let (ours, _peer) = connect(TLS1_3, true);
    let none: *mut Splice = ptr::null_mut();
    unsafe {
        abi::refused(none, ours.0, TLS_SPLICE_EARG);
        assert_eq!(tls_splice_cancel(none), TLS_SPLICE_EARG);
        assert_eq!(tls_splice_end_encrypt(none), TLS_SPLICE_EARG);
        abi::free(none);
    }
}

#[test]
fn null_in_place_of_what_is_needed_is_refused() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    let (splice, ssl) = (rig.splice, rig.ours.0);
    let (mut steps, mut ret, mut n, mut error) = (0, 0, 0, 0);
    let mut piece = MaybeUninit::uninit();
    let mut transfer = MaybeUninit::uninit();
    unsafe {
        let codes = [
            tls_splice_poll_fd(splice, ptr::null_mut()),
            tls_splice_interest(splice, ptr::null_mut(), &mut steps),
            tls_splice_interest(splice, ssl, ptr::null_mut()),
            tls_splice_ready(splice, 3, ptr::null_mut()),
            tls_splice_begin_transfer(splice, ptr::null_mut(), WRITABLE, transfer.as_mut_ptr()),
            tls_splice_begin_transfer(splice, ssl, WRITABLE, ptr::null_mut()),
            tls_splice_pass(splice, ptr::null_mut(), ssl),
            tls_splice_push_before(splice, TLS_SPLICE_ENCRYPT, ptr::null(), 5),
            tls_splice_attach_rbio(splice, ptr::null_mut()),
            tls_splice_detach_rbio(splice, ptr::null_mut()),
            tls_splice_attach_wbio(splice, ptr::null_mut()),
            tls_splice_detach_wbio(splice, ptr::null_mut()),
            tls_splice_collected(splice, ptr::null_mut(), 1, &mut n),
            tls_splice_collected(splice, piece.as_mut_ptr(), 1, ptr::null_mut()),
            tls_splice_alloc(splice, ptr::null_mut()),
            tls_splice_decrypt(splice, ptr::null_mut(), &mut steps, &mut ret),
            tls_splice_decrypt(splice, ssl, ptr::null_mut(), &mut ret),
            tls_splice_decrypt(splice, ssl, &mut steps, ptr::null_mut()),
            tls_splice_encrypt(splice, ptr::null_mut(), &mut steps),
            tls_splice_encrypt(splice, ssl, ptr::null_mut()),
            tls_splice_is_blocked(splice, ptr::null_mut()),
            tls_splice_end_decrypt(splice, ptr::null_mut()),
            tls_splice_take_end(splice, ptr::null_mut(), &mut error),
            tls_splice_take_end(splice, &mut ret, ptr::null_mut()),
            tls_splice_raise(0),
            tls_splice_undelivered(splice, ptr::null_mut()),
            tls_splice_take_undelivered(splice, ptr::null_mut(), 1, &mut n),
            tls_splice_take_undelivered(splice, ptr::null_mut(), 0, ptr::null_mut()),
            tls_splice_get_stats(splice, ptr::null_mut()),
            tls_splice_get_failure(splice, ptr::null_mut()),
        ];
        assert_eq!(codes, [TLS_SPLICE_EARG; 30]);
    }
    // It is none the worse for it.
    rig.peer_write(1000);
    rig.source_write(1000);
    rig.drain();
    assert_eq!((rig.to_us.at, rig.from_us.at), (1000, 1000));
}

#[test]
fn bad_configs_are_refused() {
    let (near, _far) = nonblocking_pair();
    let good = || tls_splice_config {
        struct_size: std::mem::size_of::<tls_splice_config>(),
        fd: near.as_raw_fd(),
        directions: DUPLEX,
        high_water_mark: 1,
        framing: TLS_SPLICE_FRAMING_AUTO,
    };
    let try_new = |config: tls_splice_config| {
        let mut out = ptr::null_mut();
        let code = unsafe { tls_splice_new(&config, &mut out) };
        assert_eq!(out.is_null(), code != TLS_SPLICE_OK);
        unsafe { abi::free(out) };
        code
    };
    assert_eq!(try_new(good()), TLS_SPLICE_OK);
    for directions in [0, 4, 7, u32::MAX] {
        let config = tls_splice_config {
            directions,
            ..good()
        };
        assert_eq!(try_new(config), TLS_SPLICE_EARG);
    }
    assert_eq!(
        try_new(tls_splice_config {
            high_water_mark: 0,
            ..good()
        }),
        TLS_SPLICE_EARG
    );
    assert_eq!(
        try_new(tls_splice_config {
            framing: 4,
            ..good()
        }),
        TLS_SPLICE_EARG
    );
    for struct_size in [0, 8, std::mem::size_of::<tls_splice_config>() + 8] {
        let config = tls_splice_config {
            struct_size,
            ..good()
        };
        assert_eq!(try_new(config), TLS_SPLICE_EABI);
    }
    unsafe {
        assert_eq!(tls_splice_new(&good(), ptr::null_mut()), TLS_SPLICE_EARG);
        let mut out = ptr::null_mut();
        assert_eq!(tls_splice_new(ptr::null(), &mut out), TLS_SPLICE_EARG);
    }
    assert_eq!(tls_splice_abi_version(), TLS_SPLICE_ABI_VERSION);
}

#[test]
fn attaching_inside_a_handshake_is_refused() {
    let (near, _far) = nonblocking_pair();
    let splice = new_splice(near.as_raw_fd(), DUPLEX, 1000).unwrap();
    let ours = Tls::new(TLS1_3, true);
    unsafe {
        assert_eq!(tls_splice_attach_rbio(splice, ours.0), BUSY);
        assert_eq!(tls_splice_attach_wbio(splice, ours.0), BUSY);
        abi::free(splice);
    }
}

#[test]
fn attaching_twice_is_attaching_once() {
    let mut rig = Rig::new(Options::default());
    let own = unsafe { ossl::SSL_get_rbio(rig.ours.0) };
    rig.start();
    let ssl = rig.ours.0;
    unsafe {
        assert_eq!(tls_splice_attach_rbio(rig.splice, ssl), TLS_SPLICE_OK);
        assert_eq!(tls_splice_attach_wbio(rig.splice, ssl), TLS_SPLICE_OK);
        assert_ne!(ossl::SSL_get_rbio(ssl), own);
        assert_ne!(ossl::SSL_get_wbio(ssl), rig.ours.1);
    }
    rig.peer_write(50_000);
    rig.source_write(50_000);
    rig.drain();
    assert_eq!((rig.to_us.at, rig.from_us.at), (50_000, 50_000));
    rig.stop();
    unsafe {
        assert_eq!(ossl::SSL_get_rbio(ssl), own);
        assert_eq!(ossl::SSL_get_wbio(ssl), rig.ours.1);
    }
}

/// Bytes that the splice has collected and nobody has taken.
fn collected(rig: &Rig) -> usize {
    let mut pieces: [_; 64] = std::array::from_fn(|_| tls_splice_buf {
        base: ptr::null_mut(),
        len: 0,
    });
    let n = unsafe { abi::collected(rig.splice, pieces.as_mut_ptr(), pieces.len()) };
    pieces[..n].iter().map(|piece| piece.len).sum()
}

/// What of `n` bytes of cleartext waits for the stream, in the splice's buffers
/// and in the `SSL`'s own BIO.
fn encrypt_only(rig: &mut Rig, n: usize) -> (usize, usize) {
    assert_eq!(rig.source_write(n), n);
    let steps = unsafe { abi::encrypt(rig.splice, rig.ours.0) };
    assert_ne!(steps & TLS_SPLICE_STEP_FLUSH, 0);
    let waiting = (collected(rig), rig.ours.pending());
    assert!(waiting.1 > n);
    (waiting.0, waiting.1 - waiting.0)
}

#[test]
fn ciphertext_is_collected_for_one_write() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    let (collected_now, own) = encrypt_only(&mut rig, 100_000);
    assert!(collected_now > 100_000);
    assert_eq!(own, 0);
    // The stream takes a part of it now.
    let mut piece = tls_splice_buf {
        base: ptr::null_mut(),
        len: 0,
    };
    unsafe {
        assert_eq!(abi::collected(rig.splice, &mut piece, 1), 1);
        let bytes = std::slice::from_raw_parts(piece.base, 12_345);
        rig.wire_out.extend(bytes);
        abi::written(rig.splice, bytes.len(), false);
    }
    assert_eq!(collected(&rig), 0);
    assert_eq!(rig.ours.pending(), collected_now - 12_345);
    // That goes first: nothing overtakes it.
    let (collected_now, own) = encrypt_only(&mut rig, 1000);
    assert_eq!(collected_now, 0);
    assert!(own > 1000);
    rig.settle();
    assert_eq!(rig.from_us.at, 101_000);
    let (collected_now, _) = encrypt_only(&mut rig, 1000);
    assert!(collected_now > 1000);
}

#[test]
fn answers_of_openssl_are_not_overtaken() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    encrypt_only(&mut rig, 1000);
    // Between two calls, whoever it is that writes.
    rig.ours.update_keys(false);
    assert_eq!(collected(&rig), 0);
    encrypt_only(&mut rig, 1000);
    rig.settle();
    assert_eq!(rig.from_us.at, 2000);
}

#[test]
fn what_is_collected_survives_the_splice() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    encrypt_only(&mut rig, 100_000);
    rig.give_back();
    rig.flush();
    rig.peer_turn();
    assert_eq!(rig.from_us.at, 100_000);
}

/// Reference counts, for the address sanitizer's eyes.
#[test]
fn either_may_go_first_while_attached() {
    for ssl_first in [true, false] {
        let (near, _far) = nonblocking_pair();
        let (ours, peer) = connect(TLS1_3, true);
        let splice = new_splice(near.as_raw_fd(), DUPLEX, 100_000).unwrap();
        unsafe {
            abi::start(splice, DUPLEX);
            assert_eq!(tls_splice_attach_rbio(splice, ours.0), TLS_SPLICE_OK);
            assert_eq!(tls_splice_attach_wbio(splice, ours.0), TLS_SPLICE_OK);
            abi::push_before(splice, TLS_SPLICE_ENCRYPT, [7; 5000].as_ptr(), 5000);
            abi::encrypt(splice, ours.0);
            peer.write(&[7; 5000]);
            let bytes = peer.take(usize::MAX);
            let buf = abi::alloc(splice);
            ptr::copy_nonoverlapping(bytes.as_ptr(), buf.base, bytes.len());
            abi::commit(splice, bytes.len());
            if ssl_first {
                drop(ours);
                // Only the splice is left, with a read that was under way.
                let buf = abi::alloc(splice);
                assert!(buf.len > 0);
                abi::commit(splice, 0);
                abi::free(splice);
            } else {
                abi::free(splice);
                // What it had taken in is still there.
                assert_eq!(ours.read_all(), (vec![7; 5000], ossl::SSL_ERROR_WANT_READ));
            }
        }
    }
}

#[test]
fn buffers_exist_only_while_there_is_something_in_them() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    rig.peer_write(1000);
    rig.source_write(1000);
    rig.drain();
    assert_eq!(unsafe { abi::undelivered(rig.splice) }, 0);
    let stats = rig.stats();
    assert!(stats.peak_buffered_in <= 1100 && stats.peak_buffered_out <= 1100);
}

/// The error queue belongs to the caller, but for what decrypt reports.
#[test]
fn stale_errors_do_not_confuse_the_pump() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    rig.peer_write(1000);
    rig.source_write(1000);
    rig.peer_turn();
    unsafe {
        ossl::ERR_new();
        ossl::ERR_set_error(ERR_LIB_SSL, 100, ptr::null());
    }
    rig.drain();
    assert!(!rig.failed && rig.in_over.is_none());
    assert_eq!((rig.to_us.at, rig.from_us.at), (1000, 1000));
    assert_eq!(unsafe { ERR_peek_error() }, 0);
}

#[test]
fn a_turn_is_bounded_and_the_next_one_goes_on() {
    let (near, mut far) = {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (near, far)
    };
    // A reader that always keeps up.
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        far.read_to_end(&mut all).unwrap();
        all
    });
    let (_, unused) = nonblocking_pair();
    let mut rig = Rig::over(
        Options {
            attach: false,
            ..Options::default()
        },
        near.into(),
        unused,
    );
    rig.start();
    let total = 6 * MEGABYTE;
    let bytes = rig.sent_in.take(total);
    assert!(rig.peer.write(&bytes));
    let cipher = rig.peer.take(usize::MAX);
    rig.ours.give(&cipher);
    let mut most = 0;
    while rig.stats().bytes_in < total as u64 {
        let before = rig.stats().bytes_in;
        rig.decrypt();
        most = most.max(rig.stats().bytes_in - before);
    }
    assert!(most <= 330 * 1024, "{most} bytes in one call");
    unsafe { abi::shutdown_write(rig.splice) };
    assert!(reader.join().unwrap() == bytes);
}

#[test]
fn reading_the_stream_lets_the_loop_turn() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    rig.peer_write(2 * MEGABYTE);
    rig.peer_turn();
    let (mut between, mut most) = (0, 0);
    while !rig.wire_in.is_empty() {
        let (yields, before) = (rig.yields, rig.wire_in.len());
        rig.stream_read();
        if rig.yields > yields {
            between = 0;
        }
        between += before - rig.wire_in.len();
        most = most.max(between);
        while rig.sink_read(65536) != Some(0) {}
    }
    assert!(most <= 330 * 1024, "{most} bytes in one turn");
    // Less than there is room for: the loop turns anyway.
    rig.segment = 60_000;
    let yields = rig.yields;
    rig.peer_write(2 * MEGABYTE);
    rig.peer_turn();
    while rig.stream_read() {
        while rig.sink_read(65536) != Some(0) {}
    }
    assert_eq!((rig.yields, rig.to_us.at), (yields, 4 * MEGABYTE as u64));
}

/// The same through the Rust API, over a pipe each way.
#[test]
fn the_rust_api_over_pipes() {
    let (ours, peer) = connect(TLS1_3, false);
    let (mut sink_reader, sink) = std::io::pipe().unwrap();
    let (source, mut source_writer) = std::io::pipe().unwrap();
    let mut decrypt = Pump::new(
        Endpoint::open(sink.as_raw_fd(), false, true).unwrap(),
        Framing::Raw,
        1 << 16,
    );
    let mut encrypt = Pump::new(
        Endpoint::open(source.as_raw_fd(), true, false).unwrap(),
        Framing::Raw,
        1 << 16,
    );
    drop((sink, source));
    decrypt.start(TLS_SPLICE_DECRYPT);
    encrypt.start(TLS_SPLICE_ENCRYPT);
    let cancelled = Cell::new(false);

    let (mut sent, mut got) = (Pattern::new(3), Pattern::new(3));
    for _ in 0..200 {
        assert!(peer.write(&sent.take(5000)));
        ours.give(&peer.take(usize::MAX));
        // The turn is over now and then.
        while unsafe { decrypt.decrypt(ours.0, &cancelled).0 } != 0 {}
        let mut buf = [0; 5000];
        sink_reader.read_exact(&mut buf).unwrap();
        got.check(&buf);

        source_writer.write_all(&buf).unwrap();
        let steps = unsafe { encrypt.encrypt(ours.0, &cancelled) };
        assert_eq!(steps, TLS_SPLICE_STEP_FLUSH);
        peer.give(&ours.take(usize::MAX));
        assert_eq!(peer.read_all().0, buf);
    }
    drop(source_writer);
    let steps = unsafe { encrypt.encrypt(ours.0, &cancelled) };
    assert_eq!(steps, TLS_SPLICE_STEP_OVER);

    // A pipe without a reader.
    drop(sink_reader);
    assert!(peer.write(&[1; 10]));
    ours.give(&peer.take(usize::MAX));
    let (steps, _) = unsafe { decrypt.decrypt(ours.0, &cancelled) };
    assert_eq!(steps, TLS_SPLICE_STEP_FAILED | TLS_SPLICE_STEP_PAUSE_TLS);
    assert_eq!(
        decrypt.failure(),
        Some(Failure::Endpoint {
            syscall: Syscall::Write,
            errno: libc::EPIPE
        })
    );
    assert_eq!(decrypt.undelivered().unwrap().front(), [1; 10]);
}

#[test]
fn what_follows_close_notify_is_read_and_dropped() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    rig.peer_write(10);
    rig.peer.shutdown();
    rig.peer_turn();
    rig.wire_in.extend([0; 100_000]);
    rig.drain();
    assert!(rig.in_over.is_some());
    for _ in 0..3 {
        let buf = unsafe { abi::alloc(rig.splice) };
        assert!(buf.len > 0, "the stream could not be read any more");
        unsafe { abi::commit(rig.splice, buf.len) };
    }
}

#[test]
fn bytes_read_before_the_splice_stay_under_the_high_water_mark() {
    for high_water_mark in [1000, 16_384, 100_000] {
        let mut rig = Rig::new(Options {
            directions: TLS_SPLICE_ENCRYPT,
            attach: false,
            high_water_mark,
            ..Options::default()
        });
        let before = rig.sent_out.take(200_000);
        rig.start_quietly();
        unsafe {
            abi::push_before(
                rig.splice,
                TLS_SPLICE_ENCRYPT,
                before.as_ptr(),
                before.len(),
            );
        }
        rig.tcp_open = false;
        rig.encrypt();
        let pending = rig.ours.pending();
        assert!(pending > 0 && pending <= high_water_mark, "{pending}");
        rig.tcp_open = true;
        rig.drain();
        assert_eq!(rig.from_us.at, 200_000);
        assert!(rig.stats().peak_buffered_out <= high_water_mark as u64);
    }
}

/// What is held is counted wherever it is: as cleartext, in the splice's read BIO, or
/// in that of the session; also when nothing of it moves.
#[test]
fn the_peak_is_of_all_that_is_held() {
    for options in variants() {
        let mut rig = Rig::new(options);
        // So that the sink is full before the first turn.
        let near = rig.near.as_raw_fd();
        let filler = [0u8; 65536];
        while unsafe { libc::send(near, filler.as_ptr().cast(), 65536, 0) } > 0 {}
        // This is decrypted, and held.
        rig.peer_write(10_000);
        let first = rig.peer.take(usize::MAX);
        rig.ours.give(&first);
        rig.start();
        let peak = rig.stats().peak_buffered_in;
        assert!((10_000..=10_000 + RECORD_OVERHEAD).contains(&peak));
        // This arrives and stays as it is.
        rig.peer_write(40_000);
        let cipher = rig.peer.take(usize::MAX);
        let expected = 10_000 + cipher.len() as u64;
        if options.attach {
            let buf = unsafe { abi::alloc(rig.splice) };
            assert!(buf.len >= cipher.len());
            unsafe {
                ptr::copy_nonoverlapping(cipher.as_ptr(), buf.base, cipher.len());
                abi::commit(rig.splice, cipher.len());
            }
            assert_eq!(rig.stats().peak_buffered_in, expected);
            rig.decrypt();
        } else {
            rig.ours.give(&cipher);
            assert_eq!(rig.stats().peak_buffered_in, peak);
            rig.decrypt();
        }
        assert_eq!(rig.stats().peak_buffered_in, expected, "{options:?}");
        assert_eq!(rig.stats().bytes_in, 0);
        // It is a peak.
        let mut buf = vec![0; 1 << 20];
        while rig.stats().bytes_in < 50_000 {
            assert!(rig.far.as_ref().unwrap().read(&mut buf).unwrap() > 0);
            rig.decrypt();
        }
        assert_eq!(rig.stats().peak_buffered_in, expected);
    }
}
