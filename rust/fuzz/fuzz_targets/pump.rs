//! Whole splices: the programs of the model test, made of an input.

#![no_main]

#[allow(dead_code)]
#[path = "../../tests/common/mod.rs"]
mod common;

use libfuzzer_sys::fuzz_target;

use common::model::{Model, Op};
use common::{Options, DUPLEX, TLS1_2, TLS1_3};
use tls_splice::ffi::{TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT};
use tls_splice_fuzz::Input;

fn options(input: &mut Input) -> Options {
    let flags = input.byte();
    Options {
        version: if flags & 1 == 0 { TLS1_3 } else { TLS1_2 },
        server: flags & 2 != 0,
        attach: flags & 4 == 0,
        high_water_mark: input.pick(&[1 << 18, 1, 37, 150, 1000, 4096, 16_384, 65_536, 1 << 30]),
        directions: input.pick(&[DUPLEX, DUPLEX, TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT]),
    }
}

fn op(input: &mut Input) -> Op {
    match input.byte() % 24 {
        0 | 1 => Op::PeerWrites(1 + input.size(200_000)),
        2 | 3 => Op::SourceWrites(1 + input.size(200_000)),
        4 | 5 => Op::SinkReads(1 + input.size(200_000)),
        6..=9 => Op::Turns(1 + input.size(20)),
        10 => Op::Kick,
        11 => Op::Segment(1 + input.size(70_000)),
        12 => Op::Fragment(512 + input.size(16_384 - 512)),
        13 => Op::Tcp(input.flag()),
        14 => Op::StopAndStart(input.size(30_000)),
        15 => Op::StopAndHandOver(input.size(30_000)),
        16 => Op::PeerUpdatesKeys(input.flag()),
        17 => Op::WeUpdateKeys(input.flag()),
        18 => Op::PeerEnds,
        19 => Op::SourceEnds,
        20 => Op::EndEncrypt,
        21 => Op::EndpointCloses(input.flag()),
        22 => {
            let n = input.size(300);
            Op::Garbage(input.bytes(n).to_vec())
        }
        _ => Op::Corrupt(input.u32() as usize),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut model = Model::new(options(&mut input));
    while !input.is_empty() {
        model.run(&op(&mut input));
    }
    model.finish();
});
