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
use tls_splice::endpoint::{Access, Endpoint, READABLE, WRITABLE};
use tls_splice::error::*;
use tls_splice::ffi::*;
use tls_splice::frame::Framing;
use tls_splice::handle::tls_splice as Splice;
use tls_splice::inbound::InboundStep;
use tls_splice::outbound::OutboundStep;
use tls_splice::splice::{Direction, Flush, Splice as RustSplice};

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
        assert_eq!(rig.state().reading, TLS_SPLICE_READING_OFF);
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
        rig.orders = 0;
        rig.encrypt();
        assert_eq!(rig.orders, 0);
    }
}

#[test]
fn ending_the_encrypt_direction_by_hand() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    rig.source_write(1000);
    rig.settle();
    rig.on(TLS_SPLICE_ON_LEAVE_SOURCE);
    rig.source_write(1000);
    rig.encrypt();
    assert!(!rig.out_over, "not before the next turn");
    rig.settle();
    assert!(rig.out_over);
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
    // Neither direction moves anything any more, and both end when they are told to.
    let before = rig.stats();
    rig.encrypt();
    assert!(!rig.out_stopped);
    rig.peer_write(1000);
    rig.peer_turn();
    rig.stream_read();
    assert!(!rig.is_reading(), "nobody would decrypt it");
    rig.on(TLS_SPLICE_ON_STOP);
    assert!(rig.out_stopped && rig.in_stopped);
    rig.decrypt();
    let after = rig.stats();
    assert_eq!(
        (after.bytes_in, after.bytes_decrypted),
        (before.bytes_in, before.bytes_decrypted)
    );
    assert_eq!(after.bytes_out, before.bytes_out);
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
    assert_eq!(rig.state().outcome, TLS_SPLICE_OUTCOME_TLS_FAILED);
    let before = rig.stats();
    rig.source_write(1000);
    rig.encrypt();
    rig.on(TLS_SPLICE_ON_STOP);
    assert_eq!(rig.stats(), before, "nothing is sent any more");
    assert_ne!(rig.state().outcome & TLS_SPLICE_OUTCOME_TLS_FAILED, 0);
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
        assert!(rig.state().holds_tls_error);
        rig.stop();
        assert_eq!(rig.to_us.at, 10_000);
        let (ret, error, code) = rig.owed.unwrap();
        assert_eq!((ret, error), (-1, ossl::SSL_ERROR_SSL));
        assert_ne!(code, 0);
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
        rig.orders = 0;
        rig.stream_read();
        assert!(rig.ours.pending() > 0, "OpenSSL has answered");
        assert_eq!(rig.orders, TLS_SPLICE_ACTION_FLUSH);
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
            assert!(rig.wants_handshake(), "{options:?}");
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
        assert!(rig.wants_handshake());
        rig.stop();
        rig.peer_turn();
        assert_eq!(rig.from_us.at, 60_000);
    }
}

thread_local! {
    static INSIDE: Cell<*mut Splice> = const { Cell::new(ptr::null_mut()) };
    static SEEN: Cell<u32> = const { Cell::new(0) };
    /// What the callback reports.
    static EVENT: Cell<Option<u32>> = const { Cell::new(None) };
    static VALUE: Cell<u32> = const { Cell::new(TLS_SPLICE_DECRYPT) };
}

/// What re-entering calls are answered, in a callback of OpenSSL's: they are refused, but
/// for the event.
unsafe extern "C" fn reenter(ssl: *const SSL, _: c_int, _: c_int) {
    let splice = INSIDE.get();
    if splice.is_null() {
        return;
    }
    SEEN.set(SEEN.get() + 1);
    let ssl = ssl.cast_mut();
    unsafe {
        abi::refused(splice, ssl, BUSY);
        let before = abi::state(splice);
        // Once: an event may make OpenSSL call back again.
        if let Some(event) = EVENT.take() {
            let actions = abi::on(splice, event, VALUE.get() as c_int, ssl);
            assert_eq!(
                (actions.orders, actions.ssl_ret),
                (0, 1),
                "that comes later"
            );
        }
        assert_eq!(abi::state(splice).outcome, before.outcome);
    }
}

/// A rig whose next `SSL_read` runs a callback, before any of the 40,000 bytes that the peer
/// has sent after them.
fn rig_with_a_callback_in_ssl_read(attach: bool) -> Rig {
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
    rig.segment = 1 << 20;
    rig
}

/// Runs `call`, in which a callback reports `event`.
fn inside(rig: &mut Rig, event: Option<u32>, call: impl FnOnce(&mut Rig)) {
    INSIDE.set(rig.splice);
    EVENT.set(event);
    SEEN.set(0);
    call(rig);
    INSIDE.set(ptr::null_mut());
    assert!(SEEN.get() > 0, "no callback has run");
}

#[test]
fn a_callback_may_stop() {
    for attach in [true, false] {
        let mut rig = rig_with_a_callback_in_ssl_read(attach);
        inside(&mut rig, Some(TLS_SPLICE_ON_STOP), |rig| {
            rig.stream_read();
        });
        assert!(rig.in_stopped, "stopped");
        let moved = rig.stats().bytes_in;
        rig.settle();
        assert_eq!(rig.stats().bytes_in, moved, "nothing moves any more");
        rig.stop();
        assert_eq!(rig.to_us.at, 40_000, "nothing was lost");
        // The session is as good as before, once the handshake is done.
        for _ in 0..5 {
            rig.flush();
            rig.peer_turn();
            rig.js_read();
        }
        rig.again();
        rig.peer_write(20_000);
        rig.source_write(20_000);
        rig.drain();
        assert_eq!((rig.to_us.at, rig.from_us.at), (60_000, 20_000));
        rig.stop();
    }
}

/// What is reported inside a call, and does not end the splice, leaves that call alone.
#[test]
fn a_call_within_a_call_is_refused_and_does_no_harm() {
    for attach in [true, false] {
        for event in [
            None,
            Some(TLS_SPLICE_ON_TURN),
            Some(TLS_SPLICE_ON_LOWER_READ),
            Some(TLS_SPLICE_ON_LOWER_DRAINED),
            Some(TLS_SPLICE_ON_SINK_READY),
            Some(TLS_SPLICE_ON_SOURCE_READY),
            Some(TLS_SPLICE_ON_SOURCE_GAVE),
            Some(TLS_SPLICE_ON_DECRYPT),
            Some(TLS_SPLICE_ON_CYCLED),
        ] {
            let mut rig = rig_with_a_callback_in_ssl_read(attach);
            rig.source_write(1000);
            inside(&mut rig, event, |rig| {
                rig.stream_read();
            });
            assert!(!rig.in_stopped && !rig.out_stopped && !rig.failed);
            for _ in 0..10 {
                rig.drain();
            }
            assert_eq!((rig.to_us.at, rig.from_us.at), (40_000, 1000), "{event:?}");
        }
    }
}

/// After the call in which the session goes nothing uses the session, and what was
/// decrypted before can still be taken.
#[test]
fn a_callback_may_free_the_session() {
    for attach in [true, false] {
        let mut rig = rig_with_a_callback_in_ssl_read(attach);
        inside(&mut rig, Some(TLS_SPLICE_ON_GONE), |rig| {
            rig.stream_read();
        });
        assert_ne!(rig.state().outcome & TLS_SPLICE_OUTCOME_TLS_FAILED, 0);
        assert_eq!(rig.in_over, None);
        let before = rig.stats();
        rig.ours = Tls::new(TLS1_2, true);
        for event in 0..TLS_SPLICE_ON_RELEASE {
            rig.on(event);
        }
        assert_eq!(rig.stats(), before);
        rig.read_sink_and_undelivered();
        assert_eq!(rig.to_us.at, before.bytes_decrypted);
        rig.abandon();
    }
}

#[test]
fn a_callback_may_release_the_direction() {
    for attach in [true, false] {
        let mut rig = rig_with_a_callback_in_ssl_read(attach);
        inside(&mut rig, Some(TLS_SPLICE_ON_RELEASE), |rig| {
            rig.stream_read();
        });
        assert_eq!(rig.state().reading, TLS_SPLICE_READING_AS_IT_IS);
        let moved = rig.stats().bytes_decrypted;
        rig.source_write(1000);
        rig.settle();
        assert_eq!(
            rig.stats().bytes_decrypted,
            moved,
            "nothing is decrypted any more"
        );
        rig.give_back();
        assert_eq!(rig.to_us.at, 40_000, "nothing was lost");
    }
}

/// The call that a release ends early goes on in the next turn if it was one of the other
/// direction.
#[test]
fn a_callback_may_release_the_other_direction() {
    for attach in [true, false] {
        let mut rig = rig_with_a_callback_in_ssl_read(attach);
        VALUE.set(TLS_SPLICE_ENCRYPT);
        inside(&mut rig, Some(TLS_SPLICE_ON_RELEASE), |rig| {
            rig.stream_read();
        });
        VALUE.set(TLS_SPLICE_DECRYPT);
        rig.drain();
        assert_eq!(rig.to_us.at, 40_000);

        let mut rig = Rig::new(Options {
            attach,
            ..Options::default()
        });
        rig.start();
        unsafe {
            SSL_set_info_callback(rig.ours.0, Some(reenter));
            assert_eq!(SSL_key_update(rig.ours.0, 0), 1);
        }
        rig.source_write(60_000);
        inside(&mut rig, Some(TLS_SPLICE_ON_RELEASE), Rig::encrypt);
        rig.drain();
        assert_eq!(rig.from_us.at, 60_000);
    }
}

#[test]
fn a_stop_inside_a_write_sends_what_was_read() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    unsafe {
        SSL_set_info_callback(rig.ours.0, Some(reenter));
        assert_eq!(SSL_key_update(rig.ours.0, 0), 1);
    }
    rig.source_write(1000);
    rig.orders = 0;
    inside(&mut rig, Some(TLS_SPLICE_ON_STOP), Rig::encrypt);
    assert_ne!(rig.orders & TLS_SPLICE_ACTION_FLUSH, 0);
    assert!(rig.out_stopped && rig.in_stopped);
    // Nothing more is read.
    rig.source_write(1000);
    rig.encrypt();
    rig.drain();
    assert_eq!(rig.from_us.at, 1000, "nothing was lost");
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
        unsafe { SSL_set_info_callback(rig.ours.0, Some(reenter)) };
        if by_encrypt {
            assert_eq!(unsafe { SSL_key_update(rig.ours.0, 0) }, 1);
            rig.source_write(1000);
        } else {
            unsafe {
                assert_eq!(SSL_renegotiate(rig.peer.0), 1);
                ossl::SSL_do_handshake(rig.peer.0);
            }
            rig.peer_turn();
        }
        inside(&mut rig, Some(TLS_SPLICE_ON_LEAVE_SOURCE), |rig| {
            if by_encrypt {
                rig.encrypt();
            } else {
                rig.stream_read();
            }
        });
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

/// What would end a call from inside it is nothing to a call that comes later, if it
/// concerns a direction that the splice has not.
#[test]
fn the_release_of_a_direction_that_was_not_started_is_nothing() {
    let mut rig = Rig::new(Options {
        directions: TLS_SPLICE_DECRYPT,
        ..Options::default()
    });
    rig.start();
    rig.peer_write(1000);
    rig.peer_turn();
    let release = |rig: &Rig| unsafe {
        let direction = TLS_SPLICE_ENCRYPT as c_int;
        abi::on(
            rig.splice,
            TLS_SPLICE_ON_RELEASE,
            direction,
            ptr::null_mut(),
        );
    };
    release(&rig);
    rig.stream_read();
    release(&rig);
    rig.drain();
    assert!(!rig.in_stopped && !rig.out_stopped);
    assert_eq!(rig.to_us.at, 1000);
}

#[test]
fn a_direction_is_started_once() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    let again =
        |rig: &Rig| unsafe { tls_splice_start(rig.splice, TLS_SPLICE_DECRYPT, ptr::null()) };
    assert_eq!(again(&rig), TLS_SPLICE_EARG);
    rig.peer_write(1000);
    rig.drain();
    assert_eq!(rig.to_us.at, 1000, "it goes on");
    rig.stop();
    assert_eq!(again(&rig), TLS_SPLICE_EARG);
    for direction in [0, 3, 4] {
        let code = unsafe { tls_splice_start(rig.splice, direction, ptr::null()) };
        assert_eq!(code, TLS_SPLICE_EARG);
    }
}

/// Questions, each asked twice: the answer is the same, and nothing else is.
#[test]
fn a_question_changes_nothing() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    rig.peer_write(4 * MEGABYTE);
    rig.source_write(1000);
    rig.tcp_open = false;
    rig.settle();
    let splice = rig.splice;
    let ask = || unsafe {
        let state = abi::state(splice);
        let undelivered = abi::undelivered(splice);
        let (poll_fd, ready) = (abi::poll_fd(splice), abi::ready(splice, READABLE));
        let failure = abi::failure(splice);
        let state = (
            state.outcome,
            state.reading,
            state.holds_tls_error,
            state.owes,
        );
        (
            state,
            undelivered,
            poll_fd,
            ready,
            failure,
            abi::stats(splice),
        )
    };
    let first = ask();
    assert!(first.1 > 0);
    for _ in 0..3 {
        assert_eq!(ask(), first);
    }
}

/// Without a session: the events that say so.
#[test]
fn an_event_that_needs_no_session_takes_none() {
    let needs = [
        TLS_SPLICE_ON_LOWER_READ,
        TLS_SPLICE_ON_SOURCE_READY,
        TLS_SPLICE_ON_DECRYPT,
        TLS_SPLICE_ON_CYCLED,
        TLS_SPLICE_ON_STOP,
    ];
    for event in 0..=TLS_SPLICE_ON_SOURCE_GAVE {
        let mut rig = Rig::new(Options::default());
        rig.start();
        rig.source_write(1000);
        let mut actions = abi::no_actions();
        let value = TLS_SPLICE_DECRYPT as c_int;
        let none = ptr::null_mut();
        let code = unsafe { tls_splice_on(rig.splice, event, value, none, &mut actions) };
        let expected = match needs.contains(&event) {
            true => TLS_SPLICE_EARG,
            false => TLS_SPLICE_OK,
        };
        assert_eq!(code, expected, "event {event}");
        if expected == TLS_SPLICE_EARG {
            assert_eq!((actions.orders, actions.ssl_ret), (0, 1));
            rig.drain();
            assert_eq!(rig.from_us.at, 1000, "it is none the worse for it");
        }
    }
    // There is no such event, and no such direction.
    let rig = Rig::new(Options::default());
    for (event, value) in [
        (TLS_SPLICE_ON_SOURCE_GAVE + 1, 0),
        (TLS_SPLICE_ON_RELEASE, 3),
    ] {
        let mut actions = abi::no_actions();
        let ssl = rig.ours.0;
        let code = unsafe { tls_splice_on(rig.splice, event, value, ssl, &mut actions) };
        assert_eq!((code, actions.orders), (TLS_SPLICE_EARG, 0));
    }
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
                let outcome = rig.state().outcome;
                assert_eq!(outcome, TLS_SPLICE_OUTCOME_TLS_FAILED);
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
        let mut state = abi::no_state();
        assert_eq!(tls_splice_get_state(none, &mut state), TLS_SPLICE_EARG);
        assert_eq!(state.outcome, 0);
        abi::free(none);
    }
}

#[test]
fn null_in_place_of_what_is_needed_is_refused() {
    let mut rig = Rig::new(Options::default());
    rig.start();
    let (splice, ssl) = (rig.splice, rig.ours.0);
    let (mut readiness, mut n) = (0, 0);
    let mut piece = MaybeUninit::uninit();
    let mut transfer = abi::no_transfer();
    let mut actions = abi::no_actions();
    let none = ptr::null_mut();
    unsafe {
        let codes = [
            tls_splice_poll_fd(splice, ptr::null_mut()),
            tls_splice_begin_wait(splice, none, &mut readiness),
            tls_splice_begin_wait(splice, ssl, ptr::null_mut()),
            tls_splice_ready(splice, 3, ptr::null_mut()),
            tls_splice_begin_transfer(splice, none, WRITABLE, &mut transfer),
            tls_splice_begin_transfer(splice, ssl, WRITABLE, ptr::null_mut()),
            tls_splice_pass(splice, ptr::null_mut(), ssl),
            tls_splice_push_before(splice, TLS_SPLICE_ENCRYPT, ptr::null(), 5),
            tls_splice_attach(splice, TLS_SPLICE_DECRYPT, none),
            tls_splice_detach(splice, TLS_SPLICE_DECRYPT, none),
            tls_splice_attach(splice, TLS_SPLICE_ENCRYPT, none),
            tls_splice_detach(splice, TLS_SPLICE_ENCRYPT, none),
            tls_splice_collected(splice, ptr::null_mut(), 1, &mut n),
            tls_splice_collected(splice, piece.as_mut_ptr(), 1, ptr::null_mut()),
            tls_splice_alloc(splice, ptr::null_mut()),
            tls_splice_on(splice, TLS_SPLICE_ON_DECRYPT, 0, none, &mut actions),
            tls_splice_on(splice, TLS_SPLICE_ON_DECRYPT, 0, ssl, ptr::null_mut()),
            tls_splice_on(splice, TLS_SPLICE_ON_CYCLED, 0, none, &mut actions),
            tls_splice_on(splice, TLS_SPLICE_ON_CYCLED, 0, ssl, ptr::null_mut()),
            tls_splice_take_undelivered(splice, ptr::null_mut(), 1, &mut n),
            tls_splice_take_undelivered(splice, ptr::null_mut(), 0, ptr::null_mut()),
            tls_splice_get_state(splice, ptr::null_mut()),
            tls_splice_get_stats(splice, ptr::null_mut()),
            tls_splice_get_failure(splice, ptr::null_mut()),
            // Neither is a value that means nothing.
            tls_splice_attach(splice, DUPLEX, ssl),
            tls_splice_detach(splice, 0, ssl),
            tls_splice_push_before(splice, DUPLEX, [7].as_ptr(), 1),
            tls_splice_begin_transfer(splice, ssl, READABLE | WRITABLE, &mut transfer),
            tls_splice_end_transfer(splice, 0, 1),
        ];
        assert_eq!(codes, [TLS_SPLICE_EARG; 29]);
    }
    assert_eq!((transfer.fd, transfer.buf.len, actions.orders), (-1, 0, 0));
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
        max_packet_size: 0,
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
            framing: 6,
            ..good()
        }),
        TLS_SPLICE_EARG
    );
    // A stream of bytes has no packets.
    for framing in [TLS_SPLICE_FRAMING_AUTO, TLS_SPLICE_FRAMING_RAW] {
        let config = tls_splice_config {
            framing,
            max_packet_size: 1500,
            ..good()
        };
        assert_eq!(try_new(config), TLS_SPLICE_ENOPACKETS);
    }
    let size = std::mem::size_of::<tls_splice_config>();
    for struct_size in [0, 8, size - 1, size + 1, size + 8] {
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

/// A caller that does not know all fields: the library reads and writes no more than those.
#[test]
fn a_struct_may_be_that_of_an_older_caller() {
    let (near, far) = nonblocking_pair();
    let mut config = tls_splice_config {
        struct_size: std::mem::offset_of!(tls_splice_config, framing),
        fd: near.as_raw_fd(),
        directions: DUPLEX,
        high_water_mark: 1000,
        // What is behind the caller's struct.
        framing: u32::MAX,
        max_packet_size: 1500,
    };
    let mut splice = ptr::null_mut();
    unsafe {
        assert_eq!(tls_splice_new(&config, &mut splice), TLS_SPLICE_OK);
        let mut stats = tls_splice::stats::Stats {
            struct_size: std::mem::offset_of!(tls_splice::stats::Stats, packets_in),
            bytes_in: 77,
            packets_in: 77,
            ..Default::default()
        };
        assert_eq!(tls_splice_get_stats(splice, &mut stats), TLS_SPLICE_OK);
        assert_eq!((stats.bytes_in, stats.packets_in), (0, 77));
        abi::free(splice);
        // A caller that knows `framing`.
        config.struct_size = std::mem::offset_of!(tls_splice_config, max_packet_size);
        config.framing = TLS_SPLICE_FRAMING_AUTO;
        assert_eq!(tls_splice_new(&config, &mut splice), TLS_SPLICE_OK);
        abi::free(splice);
    }
    config.framing = u32::MAX;
    config.struct_size = std::mem::size_of::<tls_splice_config>();
    splice = ptr::null_mut();
    let code = unsafe { tls_splice_new(&config, &mut splice) };
    assert_eq!((code, splice.is_null()), (TLS_SPLICE_EARG, true));
    drop(far);
}

/// No version of any struct has had these sizes, or it is one that the library is too old
/// for.
#[test]
fn a_struct_of_no_version_is_refused() {
    let rig = Rig::new(Options::default());
    let (splice, ssl) = (rig.splice, rig.ours.0);
    let (mut actions, mut transfer) = (abi::no_actions(), abi::no_transfer());
    let (mut state, mut failure) = (abi::no_state(), abi::no_failure());
    let mut stats = tls_splice::stats::Stats::default();
    for (i, off) in [
        (0, 1usize),
        (1, usize::MAX),
        (2, 8),
        (3, 16usize.wrapping_neg()),
    ] {
        actions.struct_size = size_of_val(&actions).wrapping_add(off);
        transfer.struct_size = size_of_val(&transfer).wrapping_add(off);
        state.struct_size = size_of_val(&state).wrapping_add(off);
        failure.struct_size = size_of_val(&failure).wrapping_add(off);
        stats.struct_size = size_of_val(&stats).wrapping_add(off);
        unsafe {
            let codes = [
                tls_splice_on(splice, TLS_SPLICE_ON_TURN, 0, ssl, &mut actions),
                tls_splice_begin_transfer(splice, ssl, WRITABLE, &mut transfer),
                tls_splice_get_state(splice, &mut state),
                tls_splice_get_failure(splice, &mut failure),
                tls_splice_get_stats(splice, &mut stats),
            ];
            assert_eq!(codes, [TLS_SPLICE_EABI; 5], "{i}");
        }
    }
    assert_eq!((actions.orders, transfer.fd, state.outcome), (77, 77, 77));
    assert_eq!(failure.errnum, 77);
}

#[test]
fn attaching_inside_a_handshake_is_refused() {
    let (near, _far) = nonblocking_pair();
    let splice = new_splice(near.as_raw_fd(), DUPLEX, 1000).unwrap();
    let ours = Tls::new(TLS1_3, true);
    unsafe {
        assert_eq!(tls_splice_attach(splice, TLS_SPLICE_DECRYPT, ours.0), BUSY);
        assert_eq!(tls_splice_attach(splice, TLS_SPLICE_ENCRYPT, ours.0), BUSY);
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
        abi::attach(rig.splice, TLS_SPLICE_DECRYPT, ssl);
        abi::attach(rig.splice, TLS_SPLICE_ENCRYPT, ssl);
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
    let (splice, ssl) = (rig.splice, rig.ours.0);
    let actions = unsafe { abi::on(splice, TLS_SPLICE_ON_SOURCE_READY, 0, ssl) };
    assert_ne!(actions.orders & TLS_SPLICE_ACTION_FLUSH, 0);
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
        abi::written(rig.splice, bytes.len());
        abi::write_later(rig.splice);
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
            abi::attach(splice, TLS_SPLICE_DECRYPT, ours.0);
            abi::attach(splice, TLS_SPLICE_ENCRYPT, ours.0);
            abi::push_before(splice, TLS_SPLICE_ENCRYPT, [7; 5000].as_ptr(), 5000);
            abi::on(splice, TLS_SPLICE_ON_TURN, 0, ours.0);
            abi::on(splice, TLS_SPLICE_ON_CYCLED, 0, ours.0);
            assert_eq!(abi::stats(splice).bytes_out, 5000);
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
        // The turn, or what is more than asked for.
        if !rig.loop_turn() {
            rig.decrypt();
        }
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
    // Less than there is room for: then the loop turns.
    abi::next_turn();
    rig.segment = 60_000;
    let yields = rig.yields;
    rig.peer_write(2 * MEGABYTE);
    rig.peer_turn();
    while rig.stream_read() {
        abi::next_turn();
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
    let mut decrypt = RustSplice::new(
        Endpoint::open(sink.as_raw_fd(), Access::Write).unwrap(),
        Framing::Raw.into(),
        1 << 16,
    );
    let mut encrypt = RustSplice::new(
        Endpoint::open(source.as_raw_fd(), Access::Read).unwrap(),
        Framing::Raw.into(),
        1 << 16,
    );
    drop((sink, source));
    decrypt.start(Direction::Inbound);
    encrypt.start(Direction::Outbound);
    let cancelled = Cell::new(false);

    let (mut sent, mut got) = (Pattern::new(3), Pattern::new(3));
    for _ in 0..200 {
        assert!(peer.write(&sent.take(5000)));
        ours.give(&peer.take(usize::MAX));
        abi::next_turn();
        let step = unsafe { decrypt.run_inbound(ours.0, &cancelled) }.step;
        assert_eq!(step, InboundStep::WantCiphertext);
        let mut buf = [0; 5000];
        sink_reader.read_exact(&mut buf).unwrap();
        got.check(&buf);

        source_writer.write_all(&buf).unwrap();
        let outcome = unsafe { encrypt.run_outbound(ours.0, &cancelled) };
        assert_eq!(
            (outcome.step, outcome.flush),
            (OutboundStep::WantSource, Flush::Yes)
        );
        peer.give(&ours.take(usize::MAX));
        assert_eq!(peer.read_all().0, buf);
    }
    drop(source_writer);
    let outcome = unsafe { encrypt.run_outbound(ours.0, &cancelled) };
    assert_eq!(
        (outcome.step, outcome.flush),
        (OutboundStep::Ended, Flush::No)
    );

    // A pipe without a reader.
    drop(sink_reader);
    assert!(peer.write(&[1; 10]));
    ours.give(&peer.take(usize::MAX));
    let outcome = unsafe { decrypt.run_inbound(ours.0, &cancelled) };
    let failure = Failure::Endpoint {
        syscall: Syscall::Write,
        errno: libc::EPIPE,
    };
    assert_eq!(outcome.step, InboundStep::Failed(failure));
    assert_eq!(decrypt.failure(), Some(failure));
    let mut rest = Vec::new();
    let taken = decrypt.take_undelivered(usize::MAX, |bytes| rest.extend(bytes));
    assert_eq!((taken, &rest[..]), (Some(10), &[1; 10][..]));
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
        rig.loop_turn();
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
