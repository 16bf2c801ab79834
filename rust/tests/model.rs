//! Random programs against an oracle that knows every byte: the two patterns of
//! common/mod.rs, which are checked wherever bytes come out.

#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use std::net::Shutdown;

use openssl_sys as ossl;
use proptest::prelude::*;

use common::*;
use tls_splice::pump::*;

#[derive(Clone, Debug)]
enum Op {
    PeerWrites(usize),
    SourceWrites(usize),
    SinkReads(usize),
    Turns(usize),
    /// How much one read of the stream gives: records come in pieces.
    Segment(usize),
    /// Whether TCP takes what we send.
    Tcp(bool),
    /// Stop, and let JavaScript forward so much each way; then splice again.
    StopAndStart(usize),
    PeerUpdatesKeys(bool),
    WeUpdateKeys(bool),
    PeerEnds,
    SourceEnds,
}

fn op() -> impl Strategy<Value = Op> {
    let size = || prop_oneof![3 => 1usize..2000, 2 => 1usize..70_000, 1 => 1usize..400_000];
    prop_oneof![
        6 => size().prop_map(Op::PeerWrites),
        6 => size().prop_map(Op::SourceWrites),
        4 => size().prop_map(Op::SinkReads),
        8 => (1usize..20).prop_map(Op::Turns),
        2 => prop_oneof![1usize..30, 1000usize..70_000].prop_map(Op::Segment),
        2 => any::<bool>().prop_map(Op::Tcp),
        2 => (0usize..30_000).prop_map(Op::StopAndStart),
        1 => any::<bool>().prop_map(Op::PeerUpdatesKeys),
        1 => any::<bool>().prop_map(Op::WeUpdateKeys),
        1 => Just(Op::PeerEnds),
        1 => Just(Op::SourceEnds),
    ]
}

fn options() -> impl Strategy<Value = Options> {
    (
        prop_oneof![Just(TLS1_2), Just(TLS1_3)],
        any::<bool>(),
        any::<bool>(),
        prop_oneof![
            1usize..200,
            prop::sample::select(vec![1000, 4096, 16_384, 65_536, 262_144, 1 << 30]),
        ],
        prop_oneof![
            6 => Just(DUPLEX),
            1 => Just(TLS_SPLICE_DECRYPT),
            1 => Just(TLS_SPLICE_ENCRYPT),
        ],
    )
        .prop_map(
            |(version, server, attach, high_water_mark, directions)| Options {
                version,
                server,
                attach,
                high_water_mark,
                directions,
            },
        )
}

struct Model {
    rig: Rig,
    peer_ended: bool,
    source_ended: bool,
}

impl Model {
    fn run(&mut self, op: &Op) {
        let rig = &mut self.rig;
        // Small steps take long over large amounts.
        let most = rig.options.high_water_mark.saturating_mul(300).max(1000);
        let tls1_3 = rig.options.version == TLS1_3;
        match *op {
            Op::PeerWrites(n) if !self.peer_ended => rig.peer_write(n.min(most)),
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
            Op::Segment(n) => rig.segment = n,
            Op::Tcp(open) => rig.tcp_open = open,
            Op::StopAndStart(n) => {
                rig.stop();
                let all = rig.sent_in.at;
                rig.peer_turn();
                rig.js_read();
                assert_eq!(rig.to_us.at, all, "JavaScript has read all there is");
                rig.js_forward(n);
                rig.again();
            }
            Op::PeerUpdatesKeys(request) if tls1_3 && !self.peer_ended => {
                rig.peer.update_keys(request);
            }
            Op::WeUpdateKeys(request) if tls1_3 => {
                rig.ours.update_keys(request);
            }
            Op::PeerEnds if !self.peer_ended => {
                self.peer_ended = true;
                rig.peer.shutdown();
            }
            Op::SourceEnds if !self.source_ended => {
                self.source_ended = true;
                rig.far.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
            }
            _ => {}
        }
        self.check_bounds();
    }

    fn check_bounds(&self) {
        let rig = &self.rig;
        let stats = rig.stats();
        let high_water_mark = rig.options.high_water_mark as u64;
        assert!(stats.bytes_decrypted - stats.bytes_in <= high_water_mark);
        if rig.options.attach {
            assert!(stats.peak_buffered_in <= high_water_mark + RECORD_OVERHEAD);
        }
        // A key update of OpenSSL's own may come on top.
        let most = high_water_mark + 2 * RECORD_OVERHEAD;
        assert!(stats.peak_buffered_out <= most);
        assert!(rig.ours.pending() as u64 <= most);
        assert!(!rig.failed);
    }

    /// Lets everything flow, then looks whether it is all there.
    fn finish(mut self) {
        let rig = &mut self.rig;
        rig.tcp_open = true;
        rig.segment = 65_536;
        rig.drain();
        let (decrypts, encrypts) = (
            rig.options.directions & TLS_SPLICE_DECRYPT != 0,
            rig.options.directions & TLS_SPLICE_ENCRYPT != 0,
        );
        if decrypts {
            assert_eq!(rig.to_us.at, rig.sent_in.at);
            assert_eq!(rig.in_over.is_some(), self.peer_ended);
            if let Some((ret, error, code)) = rig.in_over {
                assert_eq!((ret, error, code), (0, ossl::SSL_ERROR_ZERO_RETURN, 0));
            }
        }
        if encrypts {
            assert_eq!(rig.from_us.at, rig.sent_out.at);
            assert_eq!(rig.out_over, self.source_ended);
        }
        rig.stop();
        let error = rig.js_read();
        assert_eq!(error == ossl::SSL_ERROR_ZERO_RETURN, self.peer_ended);
        while rig.from_us.at < rig.sent_out.at {
            rig.js_forward(50_000);
            rig.peer_turn();
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
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_is_where_it_belongs(
        options in options(),
        program in prop::collection::vec(op(), 1..40),
    ) {
        let mut rig = Rig::new(options);
        rig.start();
        let mut model = Model { rig, peer_ended: false, source_ended: false };
        for op in &program {
            model.run(op);
        }
        model.finish();
    }
}
