//! `Held` and its lent buffers, against a queue of bytes.

#![no_main]

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;
use tls_splice::buf::{Held, CHUNK_SIZE};
use tls_splice_fuzz::{Counter, Input};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let stream = Counter::default();
    // Two, since they take their buffers from one pool.
    let mut helds = [Held::default(), Held::default()];
    let mut models: [VecDeque<u8>; 2] = Default::default();
    // How much of it was pushed before.
    let mut befores = [0; 2];
    // How much room the lent buffer has; `None` while nothing is lent.
    let mut room: [Option<usize>; 2] = [None, None];
    while !input.is_empty() {
        let op = input.byte();
        let i = usize::from(op & 1);
        let (held, model) = (&mut helds[i], &mut models[i]);
        let (before, room) = (&mut befores[i], &mut room[i]);
        match op >> 1 & 7 {
            0 if room.is_none() => {
                let bytes = stream.take(input.size(200_000));
                held.push_before(&bytes);
                *before += bytes.len();
                model.extend(bytes);
            }
            1 | 2 => {
                let spare = held.chunk().spare();
                assert_eq!(spare.len(), room.unwrap_or(CHUNK_SIZE));
                let n = input.size(spare.len());
                stream.fill(&mut spare[..n]);
                model.extend(&spare[..n]);
                held.chunk().commit(n);
                *room = Some(room.unwrap_or(CHUNK_SIZE) - n);
            }
            3 | 4 if !held.is_empty() => {
                let n = input.size(held.front().len());
                held.consume(n);
                model.drain(..n);
                if *before > 0 {
                    *before -= n;
                } else if model.is_empty() {
                    *room = None;
                }
            }
            5 => {
                held.release_if_empty();
                if model.len() == *before {
                    *room = None;
                }
            }
            6 => {
                *held = Held::default();
                model.clear();
                (*before, *room) = (0, None);
            }
            _ => {}
        }
        assert_eq!(held.len(), model.len());
        assert_eq!(held.is_empty(), model.is_empty());
        let front = held.front();
        assert!(front.len() <= CHUNK_SIZE);
        assert_eq!(front.is_empty(), model.is_empty());
        assert!(front.iter().eq(model.iter().take(front.len())));
    }
});
