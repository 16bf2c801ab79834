//! Alerts that no API of OpenSSL sends, as other implementations do: records made
//! here, with the keys of the session. OpenJDK closes TLS 1.3 with user_canceled and
//! close_notify.

#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use std::cell::RefCell;
use std::ffi::{c_char, CStr};

use libc::c_int;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::symm::{encrypt_aead, Cipher};
use openssl_sys as ossl;
use openssl_sys::SSL;

use common::*;
use tls_splice::ffi::*;

const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const HANDSHAKE_FAILURE: u8 = 40;
const USER_CANCELED: u8 = 90;
const UNRECOGNIZED_NAME: u8 = 112;
const UNASSIGNED: u8 = 199;

const SSL_AD_REASON_OFFSET: c_int = 1000;
const SSL_R_PROTOCOL_IS_SHUTDOWN: c_int = 207;
const SSL_R_UNKNOWN_ALERT_TYPE: c_int = 246;
const ERR_LIB_SSL: c_int = 20;

const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;

thread_local! {
    /// The lines of the key log.
    static SECRETS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

unsafe extern "C" fn log(_: *const SSL, line: *const c_char) {
    let line = unsafe { CStr::from_ptr(line) }.to_str().unwrap();
    SECRETS.with(|secrets| secrets.borrow_mut().push(line.into()));
}

/// The last one with that label.
fn secret(label: &str) -> Vec<u8> {
    SECRETS.with(|secrets| {
        let secrets = secrets.borrow();
        let line = secrets.iter().rev().find(|line| line.starts_with(label));
        let hex = line.unwrap().split(' ').nth(2).unwrap();
        (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect()
    })
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let key = PKey::hmac(key).unwrap();
    let mut signer = Signer::new(MessageDigest::sha384(), &key).unwrap();
    for part in parts {
        signer.update(part).unwrap();
    }
    signer.sign_to_vec().unwrap()
}

/// HKDF-Expand-Label of RFC 8446, for what one hash gives.
fn expand(secret: &[u8], label: &str, len: u8) -> Vec<u8> {
    let label = [b"tls13 ", label.as_bytes()].concat();
    let mut out = hmac(secret, &[&[0, len, label.len() as u8], &label, &[0, 1]]);
    out.truncate(len.into());
    out
}

/// Makes the peer's records, with AES-256-GCM and SHA-384.
struct Forger {
    version: c_int,
    key: Vec<u8>,
    iv: Vec<u8>,
    sequence: u64,
}

impl Forger {
    /// For a peer that has just shaken hands.
    fn new(options: Options, peer: &Tls) -> Forger {
        let peer_is_server = !options.server;
        if options.version == TLS1_3 {
            let secret = secret(match peer_is_server {
                true => "SERVER_TRAFFIC_SECRET_0",
                false => "CLIENT_TRAFFIC_SECRET_0",
            });
            return Forger {
                version: TLS1_3,
                key: expand(&secret, "key", 32),
                iv: expand(&secret, "iv", 12),
                // Tickets.
                sequence: if peer_is_server { 2 } else { 0 },
            };
        }
        let master = secret("CLIENT_RANDOM");
        let mut random = [[0u8; 32]; 2];
        unsafe {
            ossl::SSL_get_server_random(peer.0, random[0].as_mut_ptr(), 32);
            ossl::SSL_get_client_random(peer.0, random[1].as_mut_ptr(), 32);
        }
        let seed = [&b"key expansion"[..], &random.concat()].concat();
        let first = hmac(&master, &[&seed]);
        let second = hmac(&master, &[&first]);
        let block = [
            hmac(&master, &[&first, &seed]),
            hmac(&master, &[&second, &seed]),
        ]
        .concat();
        let i = usize::from(peer_is_server);
        Forger {
            version: TLS1_2,
            key: block[32 * i..32 * (i + 1)].to_vec(),
            iv: block[64 + 4 * i..64 + 4 * (i + 1)].to_vec(),
            // Finished.
            sequence: 1,
        }
    }

    /// A record of that type.
    fn record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let sequence = self.sequence.to_be_bytes();
        self.sequence += 1;
        let len = |n: usize| (n as u16).to_be_bytes();
        let cipher = Cipher::aes_256_gcm();
        let mut tag = [0; 16];
        if self.version == TLS1_2 {
            let aad = [&sequence[..], &[kind, 3, 3], &len(content.len())].concat();
            let nonce = [&self.iv[..], &sequence].concat();
            let sealed = encrypt_aead(cipher, &self.key, Some(&nonce), &aad, content, &mut tag);
            let body = [&sequence[..], &sealed.unwrap(), &tag].concat();
            return [&[kind, 3, 3][..], &len(body.len()), &body].concat();
        }
        let mut nonce = self.iv.clone();
        for (to, from) in nonce[4..].iter_mut().zip(sequence) {
            *to ^= from;
        }
        let content = [content, &[kind]].concat();
        let header = [&[APPLICATION_DATA, 3, 3][..], &len(content.len() + 16)].concat();
        let sealed = encrypt_aead(cipher, &self.key, Some(&nonce), &header, &content, &mut tag);
        [&header[..], &sealed.unwrap(), &tag].concat()
    }

    fn alert(&mut self, (level, description): (u8, u8)) -> Vec<u8> {
        self.record(ALERT, &[level, description])
    }

    fn alerts(&mut self, alerts: &[(u8, u8)]) -> Vec<u8> {
        alerts.iter().flat_map(|alert| self.alert(*alert)).collect()
    }
}

/// A splice that is not started, and what makes its peer's records.
fn forged(options: Options) -> (Rig, Forger) {
    for server in [true, false] {
        let context = unsafe { ossl::SSL_get_SSL_CTX(Tls::new(options.version, server).0) };
        unsafe { ossl::SSL_CTX_set_keylog_callback(context, Some(log)) };
    }
    let rig = Rig::new(options);
    let cipher = unsafe {
        let cipher = ossl::SSL_get_current_cipher(rig.peer.0);
        CStr::from_ptr(ossl::SSL_CIPHER_get_name(cipher)).to_str()
    };
    let cipher = cipher.unwrap().replace('_', "-").replace("AES-", "AES");
    assert!(cipher.ends_with("AES256-GCM-SHA384"), "{cipher}");
    let forger = Forger::new(options, &rig.peer);
    (rig, forger)
}

/// What comes before a close_notify, and is no end.
fn warnings(version: c_int) -> Vec<Vec<(u8, u8)>> {
    let mut all = vec![
        vec![],
        vec![(WARNING, USER_CANCELED)],
        // OpenSSL takes four in a row.
        vec![(WARNING, USER_CANCELED); if version == TLS1_3 { 4 } else { 3 }],
    ];
    if version == TLS1_2 {
        all.push(vec![(WARNING, UNRECOGNIZED_NAME)]);
        all.push(vec![(WARNING, USER_CANCELED), (WARNING, UNRECOGNIZED_NAME)]);
    }
    all
}

/// What ends a session as an error. In TLS 1.3 the level says nothing.
fn fatals(version: c_int) -> Vec<(u8, u8)> {
    match version {
        TLS1_3 => vec![
            (FATAL, HANDSHAKE_FAILURE),
            (WARNING, HANDSHAKE_FAILURE),
            (FATAL, UNASSIGNED),
        ],
        _ => vec![
            (FATAL, HANDSHAKE_FAILURE),
            (FATAL, CLOSE_NOTIFY),
            (FATAL, UNASSIGNED),
        ],
    }
}

fn bytes_then(forger: &mut Forger, rig: &mut Rig, len: usize, alerts: &[(u8, u8)]) {
    let bytes = rig.sent_in.take(len);
    for piece in bytes.chunks(16_000) {
        rig.wire_in.extend(forger.record(APPLICATION_DATA, piece));
    }
    rig.wire_in.extend(forger.alerts(alerts));
}

#[test]
fn a_close_notify_is_one_whatever_warns_of_it() {
    for options in variants() {
        for warnings in warnings(options.version) {
            // At once, and behind bytes that wait for the sink.
            for len in [0, 1000, 1_000_000] {
                let (mut rig, mut forger) = forged(options);
                let alerts = [&warnings[..], &[(WARNING, CLOSE_NOTIFY)]].concat();
                bytes_then(&mut forger, &mut rig, len, &alerts);
                rig.start();
                rig.settle();
                assert_eq!(rig.in_over.is_none(), len == 1_000_000);
                rig.drain();
                assert_eq!(rig.to_us.at, len as u64);
                let (ret, _, queued) = rig.in_over.unwrap();
                assert_eq!((ret, queued), (0, 0), "{options:?} {warnings:?}");
                assert_eq!(rig.stats().close_notify, 1);
                assert!(!rig.failed);
                // The other direction goes on.
                rig.source_write(1000);
                rig.settle();
                assert_eq!(rig.from_us.at, 1000);
            }
        }
    }
}

#[test]
fn a_fatal_alert_is_an_error_whatever_comes_before() {
    for options in variants() {
        for warnings in warnings(options.version) {
            for fatal in fatals(options.version) {
                let (mut rig, mut forger) = forged(options);
                let alerts = [&warnings[..], &[fatal]].concat();
                bytes_then(&mut forger, &mut rig, 1000, &alerts);
                rig.start();
                rig.drain();
                assert_eq!(rig.to_us.at, 1000);
                let (ret, error, queued) = rig.in_over.unwrap();
                assert_eq!((ret, error), (0, ossl::SSL_ERROR_SSL));
                assert_eq!(
                    ossl::ERR_GET_REASON(queued),
                    reason_of(fatal.1),
                    "{options:?} {alerts:?}"
                );
                assert_eq!(rig.stats().close_notify, 0);
            }
        }
    }
}

/// The reason of the error for a fatal alert: that of OpenSSL if OpenSSL has a string for it.
/// Node.js drops an error without one.
fn reason_of(description: u8) -> c_int {
    let reason = SSL_AD_REASON_OFFSET + c_int::from(description);
    let packed = ossl::ERR_PACK(ERR_LIB_SSL, 0, reason);
    match unsafe { ossl::ERR_reason_error_string(packed) }.is_null() {
        true => SSL_R_UNKNOWN_ALERT_TYPE,
        false => reason,
    }
}

#[test]
fn a_fatal_alert_of_any_number_is_an_error_with_a_name() {
    for options in variants() {
        for description in 0..=u8::MAX {
            if options.version == TLS1_3 && [CLOSE_NOTIFY, USER_CANCELED].contains(&description) {
                continue; // The level says nothing.
            }
            let (mut rig, mut forger) = forged(options);
            rig.wire_in.extend(forger.alert((FATAL, description)));
            rig.start();
            rig.settle();
            let (ret, error, queued) = rig.in_over.unwrap();
            assert_eq!((ret, error), (0, ossl::SSL_ERROR_SSL));
            assert_eq!(ossl::ERR_GET_LIB(queued), ERR_LIB_SSL);
            assert_eq!(ossl::ERR_GET_REASON(queued), reason_of(description));
            let number = format!("SSL alert number {description}");
            assert!(rig.in_over_text.contains(&number), "{}", rig.in_over_text);
        }
    }
}

/// The end was told to somebody else before: OpenSSL says no more than that the
/// session is over.
#[test]
fn an_end_before_the_splice_is_what_it_was() {
    for options in variants() {
        for warnings in warnings(options.version) {
            let fatals = fatals(options.version);
            for last in [&fatals[..], &[(WARNING, CLOSE_NOTIFY)]].concat() {
                let (mut rig, mut forger) = forged(options);
                let alerts = [&warnings[..], &[last]].concat();
                rig.ours.give(&forger.alerts(&alerts));
                for _ in 0..2 {
                    assert!(rig.ours.read_all().0.is_empty());
                }
                let is_close_notify = last == (WARNING, CLOSE_NOTIFY);
                // One that has failed lets nobody change its BIOs.
                rig.options.attach &= is_close_notify;
                rig.start();
                rig.drain();
                let (ret, error, queued) = rig.in_over.unwrap();
                assert_eq!(rig.stats().close_notify, u64::from(is_close_notify));
                assert_eq!(ret, 0);
                if is_close_notify {
                    assert_eq!(queued, 0);
                } else {
                    assert_eq!(error, ossl::SSL_ERROR_SSL, "{options:?} {alerts:?}");
                    assert_eq!(ossl::ERR_GET_REASON(queued), SSL_R_PROTOCOL_IS_SHUTDOWN);
                }
            }
        }
    }
}

/// What has been told to somebody else does not come out of SSL_write, either.
#[test]
fn sending_behind_a_failure_is_an_error_with_a_name() {
    for options in variants() {
        for fatal in fatals(options.version) {
            let (mut rig, mut forger) = forged(Options {
                attach: false,
                directions: TLS_SPLICE_ENCRYPT,
                ..options
            });
            rig.ours.give(&forger.alert(fatal));
            rig.ours.read_all();
            rig.start();
            rig.source_write(1000);
            rig.settle();
            assert!(rig.failed);
            let failure = unsafe { abi::failure(rig.splice) }.unwrap();
            assert!(failure.is_tls);
            assert_eq!(ossl::ERR_GET_LIB(failure.tls_error), ERR_LIB_SSL);
            let reason = ossl::ERR_GET_REASON(failure.tls_error);
            assert_eq!(reason, SSL_R_PROTOCOL_IS_SHUTDOWN);
        }
    }
}

/// So is an end that the splice has met, for the one that comes next.
#[test]
fn an_end_of_another_splice_is_what_it_was() {
    for options in variants() {
        for (last, is_close_notify) in [
            ((WARNING, CLOSE_NOTIFY), true),
            ((FATAL, HANDSHAKE_FAILURE), false),
            ((FATAL, UNASSIGNED), false),
        ] {
            let (mut rig, mut forger) = forged(options);
            let alerts = [(WARNING, USER_CANCELED), last];
            bytes_then(&mut forger, &mut rig, 1000, &alerts);
            rig.start();
            rig.drain();
            assert_eq!(rig.stats().close_notify, u64::from(is_close_notify));
            rig.give_back();
            rig.in_over = None;
            rig.options.attach &= is_close_notify;
            rig.again();
            rig.drain();
            assert_eq!(rig.stats().close_notify, u64::from(is_close_notify));
            assert_eq!(rig.in_over.unwrap().2 == 0, is_close_notify);
        }
    }
}

/// Stopped before the end is told: an error is the caller's then, a close_notify
/// OpenSSL says again.
#[test]
fn an_end_behind_undelivered_bytes_can_be_taken() {
    for options in variants() {
        for (last, is_close_notify) in [
            ((WARNING, CLOSE_NOTIFY), true),
            ((FATAL, HANDSHAKE_FAILURE), false),
            ((FATAL, UNASSIGNED), false),
        ] {
            let (mut rig, mut forger) = forged(options);
            let near = std::os::fd::AsRawFd::as_raw_fd(&rig.near);
            while unsafe { libc::send(near, [0u8; 4096].as_ptr().cast(), 4096, 0) } > 0 {}
            bytes_then(
                &mut forger,
                &mut rig,
                1000,
                &[(WARNING, USER_CANCELED), last],
            );
            rig.start();
            rig.settle();
            assert_eq!((rig.in_over, rig.stats().bytes_in), (None, 0));
            assert_eq!(rig.state().holds_tls_error, !is_close_notify);
            assert_eq!(rig.stats().close_notify, u64::from(is_close_notify));
            // What filled the sink is not what was sent.
            let mut junk = vec![0; 1 << 20];
            while std::io::Read::read(rig.far.as_mut().unwrap(), &mut junk).is_ok() {}
            rig.on(TLS_SPLICE_ON_STOP);
            assert_eq!(rig.in_over, None, "it is told behind the bytes");
            let outcome = rig.state().outcome;
            let failing = TLS_SPLICE_OUTCOME_TLS_FAILING;
            assert_eq!(
                outcome & failing,
                0,
                "a direction that has stopped does not fail"
            );
            rig.give_back();
            assert_eq!(rig.to_us.at, 1000);
            if is_close_notify {
                assert_eq!(rig.owed, None);
                continue;
            }
            let (ret, error, queued) = rig.owed.take().unwrap();
            assert_eq!((ret, error), (0, ossl::SSL_ERROR_SSL));
            assert_eq!(ossl::ERR_GET_REASON(queued), reason_of(last.1));
            assert_eq!(ossl::ERR_GET_LIB(queued), ERR_LIB_SSL);
            // Once.
            let ssl = rig.ours.0;
            for event in [TLS_SPLICE_ON_DECRYPT, TLS_SPLICE_ON_RESUME] {
                let actions = unsafe { abi::on(rig.splice, event, 0, ssl) };
                assert_eq!((actions.orders, actions.ssl_ret), (0, 1));
                assert_eq!(unsafe { ERR_peek_error() }, 0);
            }
        }
    }
}

/// The peer leaves without an answer: a handshake that will not end has not failed.
#[test]
fn a_close_notify_within_a_renegotiation_is_one() {
    for server in [true, false] {
        for begun in [true, false] {
            let (mut rig, mut forger) = forged(Options {
                version: TLS1_2,
                attach: false,
                server,
                ..Options::default()
            });
            unsafe {
                assert_eq!(SSL_renegotiate(rig.ours.0), 1);
                if begun {
                    ossl::SSL_do_handshake(rig.ours.0);
                    ossl::ERR_clear_error();
                }
            }
            bytes_then(&mut forger, &mut rig, 1000, &[(WARNING, CLOSE_NOTIFY)]);
            rig.start();
            rig.drain();
            assert_eq!(rig.to_us.at, 1000);
            assert_eq!(rig.stats().close_notify, 1, "{server} {begun}");
            let (ret, error, queued) = rig.in_over.unwrap();
            assert_eq!((error, queued), (ossl::SSL_ERROR_ZERO_RETURN, 0), "{ret}");
        }
    }
}
