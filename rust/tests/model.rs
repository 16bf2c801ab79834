//! Random programs against an oracle that knows every byte: the two patterns of
//! common/mod.rs, which are checked wherever bytes come out.

#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use proptest::prelude::*;

use common::model::{Model, Op};
use common::*;
use tls_splice::ffi::*;

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
        1 => Just(Op::Kick),
        1 => (512usize..16_385).prop_map(Op::Fragment),
        2 => (0usize..30_000).prop_map(Op::StopAndHandOver),
        1 => Just(Op::PeerEnds),
        1 => Just(Op::SourceEnds),
        1 => Just(Op::EndEncrypt),
        1 => any::<bool>().prop_map(Op::EndpointCloses),
        1 => prop::collection::vec(any::<u8>(), 1..300).prop_map(Op::Garbage),
        1 => any::<usize>().prop_map(Op::Corrupt),
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

/// PROPTEST_CASES counts, for Valgrind.
fn config() -> ProptestConfig {
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 300;
    }
    config.failure_persistence = None;
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_byte_is_where_it_belongs(
        options in options(),
        segment in prop::sample::select(vec![100, 10_000, 65_536, 1 << 20]),
        program in prop::collection::vec(op(), 1..40),
    ) {
        let mut model = Model::new(options);
        model.rig.segment = segment;
        for op in &program {
            model.run(op);
        }
        model.finish();
    }
}
