//! Programs over a [`Rig`], and an oracle that knows every byte: the patterns of
//! what was sent are checked wherever bytes come out.

use std::net::Shutdown;
use std::os::fd::AsRawFd;

use libc::c_int;
use openssl_sys as ossl;

use super::*;

/// One step of a program. Those that make no sense any more do nothing.
#[derive(Clone, Debug)]
pub enum Op {
    PeerWrites(usize),
    SourceWrites(usize),
    SinkReads(usize),
    Turns(usize),
    /// The pump is called although nothing asks for it.
    Kick,
    /// How much one read of the stream gives: records come in pieces.
    Segment(usize),
    /// Cleartext per record, of what the peer sends and of what we do.
    Fragment(usize),
    /// Whether TCP takes what we send.
    Tcp(bool),
    /// Stop, and let JavaScript forward so much each way; then splice again.
    StopAndStart(usize),
    /// Stop, and let JavaScript read so much each way, which goes first then.
    StopAndHandOver(usize),
    PeerUpdatesKeys(bool),
    WeUpdateKeys(bool),
    PeerEnds,
    SourceEnds,
    /// The source is not read any more.
    EndEncrypt,
    /// The endpoint is closed by its other side, which leaves what it has not
    /// read if told so.
    EndpointCloses(bool),
    /// After what the peer has sent comes what it has not.
    Garbage(Vec<u8>),
    /// One of the bytes on the wire has another bit.
    Corrupt(usize),
}

/// What was done to the ciphertext.
#[derive(Clone, Copy, PartialEq)]
enum Wire {
    Sound,
    /// It is sound up to what `sent_in` says.
    Appended,
    Corrupted,
}

pub struct Model {
    pub rig: Rig,
    peer_ended: bool,
    source_ended: bool,
    encrypt_ended: bool,
    endpoint_closed: bool,
    wire: Wire,
    /// Handed over to the splice before it moved anything.
    before_in: u64,
    before_out: u64,
    /// KeyUpdates that we send.
    key_updates: u64,
}

impl Model {
    pub fn new(options: Options) -> Model {
        let mut rig = Rig::new(options);
        rig.start();
        Model {
            rig,
            peer_ended: false,
            source_ended: false,
            encrypt_ended: false,
            endpoint_closed: false,
            wire: Wire::Sound,
            before_in: 0,
            before_out: 0,
            key_updates: 0,
        }
    }

    pub fn run(&mut self, op: &Op) {
        let rig = &mut self.rig;
        // Small steps take long over large amounts.
        let most = rig.options.high_water_mark.saturating_mul(300).max(1000);
        let tls1_3 = rig.options.version == TLS1_3;
        let sound = self.wire == Wire::Sound;
        match *op {
            Op::PeerWrites(n) if sound && !self.peer_ended => rig.peer_write(n.min(most)),
            Op::SourceWrites(n) if !self.source_ended => {
                rig.source_write(n.min(most));
            }
            Op::SinkReads(n) => {
                rig.sink_read(n);
            }
            Op::Turns(n) => {
                for _ in 0..n {
                    self.rig.turn();
                    self.check_bounds();
                }
            }
            Op::Kick => {
                rig.decrypt();
                rig.encrypt();
            }
            Op::Segment(n) => rig.segment = n,
            Op::Fragment(n) => {
                rig.peer.set_max_send_fragment(n as c_long);
                rig.ours.set_max_send_fragment(n as c_long);
            }
            Op::Tcp(open) => rig.tcp_open = open,
            Op::StopAndStart(n) if sound => {
                rig.stop();
                let all = rig.sent_in.at;
                rig.peer_turn();
                rig.js_read();
                assert_eq!(rig.to_us.at, all, "JavaScript has read all there is");
                rig.js_forward(n);
                self.again();
            }
            Op::StopAndHandOver(n) if sound => self.hand_over(n.min(most)),
            Op::PeerUpdatesKeys(request) if sound && tls1_3 && !self.peer_ended => {
                rig.peer.update_keys(request);
                self.key_updates += u64::from(request);
            }
            Op::WeUpdateKeys(request) if sound && tls1_3 => {
                rig.ours.update_keys(request);
                self.key_updates += 1;
            }
            Op::PeerEnds if sound && !self.peer_ended => {
                self.peer_ended = true;
                rig.peer.shutdown();
            }
            Op::SourceEnds if !self.source_ended => {
                self.source_ended = true;
                rig.far.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
            }
            Op::EndEncrypt => {
                self.encrypt_ended = true;
                rig.on(TLS_SPLICE_ON_LEAVE_SOURCE);
                rig.encrypt();
            }
            Op::EndpointCloses(unread) if !self.endpoint_closed => {
                self.endpoint_closed = true;
                self.source_ended = true;
                if unread {
                    rig.to_us.at += unread_bytes(rig.far.as_ref().unwrap());
                } else {
                    while rig.sink_read(1 << 20).is_some_and(|n| n > 0) {}
                }
                rig.far = None;
            }
            Op::Garbage(ref bytes) if self.wire != Wire::Corrupted && !self.peer_ended => {
                if sound {
                    // In order: what the peer has sent is on the wire first.
                    rig.peer_turn();
                }
                rig.wire_in.extend(bytes);
                if !bytes.is_empty() {
                    self.wire = Wire::Appended;
                }
            }
            Op::Corrupt(at) if sound && !self.peer_ended && !rig.wire_in.is_empty() => {
                let at = at % rig.wire_in.len();
                rig.wire_in[at] ^= 1 << (at % 8);
                self.wire = Wire::Corrupted;
            }
            _ => {}
        }
        self.check_bounds();
    }

    fn again(&mut self) {
        (self.before_in, self.before_out) = (0, 0);
        // The source itself has perhaps not ended.
        self.rig.out_over &= !std::mem::take(&mut self.encrypt_ended);
        self.rig.again();
    }

    /// JavaScript has read something from both sides when the next splice starts.
    fn hand_over(&mut self, n: usize) {
        let rig = &mut self.rig;
        rig.stop();
        rig.peer_turn();
        let (cleartext, _) = rig.js_read_unchecked();
        let from_source = rig.js_take(n);
        let directions = rig.options.directions;
        let mut before = (0, 0);
        if directions & TLS_SPLICE_DECRYPT == 0 {
            rig.to_us.check(&cleartext);
        } else {
            before.0 = cleartext.len() as u64;
            rig.before.0 = cleartext;
        }
        if directions & TLS_SPLICE_ENCRYPT == 0 {
            rig.js_write(&from_source);
        } else {
            before.1 = from_source.len() as u64;
            rig.before.1 = from_source;
        }
        self.again();
        (self.before_in, self.before_out) = before;
    }

    fn check_bounds(&self) {
        let rig = &self.rig;
        let stats = rig.stats();
        let high_water_mark = rig.options.high_water_mark as u64;
        // What was handed over comes on top, and is gone first.
        let held = stats.bytes_decrypted + self.before_in - stats.bytes_in;
        let undelivered = unsafe { abi::undelivered(rig.splice) } as u64;
        assert_eq!(held, undelivered, "nothing is taken while it runs");
        assert!(held <= high_water_mark + self.before_in.saturating_sub(stats.bytes_in));
        if rig.options.attach && self.before_in == 0 {
            assert!(stats.peak_buffered_in <= high_water_mark + RECORD_OVERHEAD);
        }
        if self.before_out == 0 {
            // What OpenSSL sends by itself comes on top.
            let most = high_water_mark + (2 + self.key_updates) * RECORD_OVERHEAD;
            assert!(stats.peak_buffered_out <= most);
            assert!(rig.ours.pending() as u64 <= most);
        }
        if rig.failed {
            self.check_failure();
        }
    }

    fn check_failure(&self) {
        let failure = unsafe { abi::failure(self.rig.splice) }.unwrap();
        if failure.is_tls {
            assert!(self.wire != Wire::Sound);
            assert_eq!(failure.errnum, 0);
        } else {
            assert!(self.endpoint_closed);
            assert!([libc::EPIPE, libc::ECONNRESET].contains(&failure.errnum));
        }
    }

    /// Lets everything flow, then looks whether it is all there.
    pub fn finish(mut self) {
        let rig = &mut self.rig;
        let sound = self.wire == Wire::Sound;
        rig.tcp_open = true;
        rig.segment = 65_536;
        if !sound && rig.options.high_water_mark >= 1000 {
            // As much as a wrong length can ask for.
            rig.wire_in.extend([0; 40_000]);
        }
        rig.drain();
        if !rig.failed {
            self.check_ends();
        }
        self.check_bounds();

        let rig = &mut self.rig;
        rig.stop();
        if !sound {
            self.finish_broken();
            return;
        }
        let error = rig.js_read();
        assert_eq!(error == ossl::SSL_ERROR_ZERO_RETURN, self.peer_ended);
        while rig.from_us.at < rig.sent_out.at {
            let moved = rig.js_forward(50_000);
            let before = rig.from_us.at;
            rig.peer_turn();
            assert!(
                moved > 0 || rig.from_us.at > before,
                "the source's bytes are lost"
            );
        }
        assert_eq!(rig.to_us.at, rig.sent_in.at);
        // An ordinary session still.
        if !self.peer_ended {
            rig.peer_write(100);
            rig.peer_turn();
            assert_eq!(rig.js_read(), ossl::SSL_ERROR_WANT_READ);
            assert_eq!(rig.to_us.at, rig.sent_in.at);
        }
        let last = rig.sent_out.take(100);
        assert!(rig.ours.write(&last));
        rig.flush();
        rig.peer_turn();
        assert_eq!(rig.from_us.at, rig.sent_out.at);
    }

    /// Of what has flowed without a failure.
    fn check_ends(&self) {
        let rig = &self.rig;
        let directions = rig.options.directions;
        let sound = self.wire == Wire::Sound;
        if directions & TLS_SPLICE_DECRYPT != 0 {
            match rig.in_over {
                Some((ret, error, code)) if sound => {
                    assert_eq!((ret, error, code), (0, ossl::SSL_ERROR_ZERO_RETURN, 0));
                }
                Some((ret, error, code)) => {
                    assert_eq!((ret, error), (-1, ossl::SSL_ERROR_SSL));
                    assert_ne!(code, 0);
                }
                None => assert!(sound || rig.options.high_water_mark < 1000),
            }
            if sound {
                assert_eq!(rig.to_us.at, rig.sent_in.at);
                assert_eq!(rig.in_over.is_some(), self.peer_ended);
            }
        }
        if directions & TLS_SPLICE_ENCRYPT != 0 && sound {
            assert_eq!(rig.out_over, self.source_ended || self.encrypt_ended);
            if !self.encrypt_ended {
                assert_eq!(rig.from_us.at, rig.sent_out.at);
            }
        }
    }

    /// The splice may have read what is wrong, or JavaScript does: the same error,
    /// and nothing that the peer has not sent.
    fn finish_broken(mut self) {
        let rig = &mut self.rig;
        rig.wire_in.extend([0; 40_000]);
        let error = rig.js_read();
        assert!(error != ossl::SSL_ERROR_WANT_READ && error != ossl::SSL_ERROR_ZERO_RETURN);
        assert_eq!(rig.stats().close_notify, 0);
        if self.wire == Wire::Appended {
            assert_eq!(rig.to_us.at, rig.sent_in.at);
        } else {
            assert!(rig.to_us.at <= rig.sent_in.at);
        }
        assert!(rig.from_us.at <= rig.sent_out.at);
    }
}

fn unread_bytes(far: &UnixStream) -> u64 {
    let mut n: c_int = 0;
    assert_eq!(
        unsafe { libc::ioctl(far.as_raw_fd(), libc::FIONREAD, &mut n) },
        0
    );
    n as u64
}
