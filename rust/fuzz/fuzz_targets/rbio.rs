//! The BIO that serves OpenSSL from the pump's buffer, against a queue of bytes.

#![no_main]

#[allow(dead_code)]
#[path = "../../tests/common/mod.rs"]
mod common;

use std::collections::VecDeque;
use std::ptr;

use libc::c_int;
use libfuzzer_sys::fuzz_target;
use openssl_sys as ossl;
use openssl_sys::{BIO, SSL};

use common::{connect, Tls, TLS1_3};
use tls_splice::buf::{Size, CHUNK_SIZE};
use tls_splice::ssl::rbio::Rbio;
use tls_splice::sys::BIO_ctrl_pending;
use tls_splice_fuzz::{Counter, Input};

// What openssl-sys lacks.
extern "C" {
    fn SSL_up_ref(ssl: *mut SSL) -> c_int;
    fn BIO_test_flags(bio: *const BIO, flags: c_int) -> c_int;
}

struct World {
    tls: Tls,
    rbio: Option<Rbio>,
    stream: Counter,
    /// What the BIO that Node has holds, and what was committed.
    node: VecDeque<u8>,
    chunk: VecDeque<u8>,
}

impl World {
    fn bio(&self) -> *mut BIO {
        // SAFETY: the session is valid.
        unsafe { ossl::SSL_get_rbio(self.tls.0) }
    }

    fn attach(&mut self) {
        if self.rbio.is_none() {
            // SAFETY: the session has a read BIO, and is in no call.
            self.rbio = unsafe { Rbio::attach(self.tls.0, Size::Small) };
            assert!(self.rbio.is_some());
        }
    }

    fn detach(&mut self) {
        if let Some(rbio) = self.rbio.take() {
            // SAFETY: it was attached to this session.
            unsafe { rbio.detach(self.tls.0) };
            self.node.append(&mut self.chunk);
        }
    }

    fn give_node(&mut self, n: usize) {
        let bytes = self.stream.take(n);
        if self.rbio.is_none() {
            self.tls.give(&bytes);
            self.node.extend(bytes);
        }
    }

    fn commit(&mut self, input: &mut Input) {
        let Some(rbio) = &mut self.rbio else { return };
        let limit = input.size(CHUNK_SIZE * 2);
        let spare = rbio.spare(limit);
        assert!(spare.len() <= limit);
        assert!(!self.chunk.is_empty() || spare.len() == limit.min(CHUNK_SIZE));
        let n = input.size(spare.len());
        self.stream.fill(&mut spare[..n]);
        self.chunk.extend(&spare[..n]);
        rbio.commit(n);
    }

    fn read(&mut self, len: usize) {
        let mut out = vec![0u8; len];
        // SAFETY: `out` is writable for its length.
        let n = unsafe { ossl::BIO_read(self.bio(), out.as_mut_ptr().cast(), len as i32) };
        if n <= 0 {
            // Never an end.
            assert!(len == 0 || self.node.is_empty() && self.chunk.is_empty());
            // SAFETY: the BIO is valid.
            let retry = unsafe { BIO_test_flags(self.bio(), ossl::BIO_FLAGS_SHOULD_RETRY) };
            assert!(len == 0 || retry != 0 && n == -1);
            return;
        }
        // As much as there is in one of the two.
        let from = if self.node.is_empty() {
            &mut self.chunk
        } else {
            &mut self.node
        };
        assert_eq!(n as usize, len.min(from.len()));
        assert!(from.drain(..n as usize).eq(out[..n as usize].iter().copied()));
    }

    fn check(&self) {
        let pending = self.node.len() + self.chunk.len();
        // SAFETY: the BIO is valid.
        assert_eq!(unsafe { BIO_ctrl_pending(self.bio()) }, pending);
        if let Some(rbio) = &self.rbio {
            assert_eq!(rbio.pending(), pending);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    thread_local! {
        // The session has shaken hands, and is given other BIOs each time.
        static SESSION: Tls = connect(TLS1_3, true).0;
    }
    let tls = SESSION.with(|session| {
        // SAFETY: a reference for each, one more for the session, which the other
        // one's Drop gives back.
        unsafe {
            SSL_up_ref(session.0);
            let memory = || ossl::BIO_new(ossl::BIO_s_mem());
            let wbio = memory();
            ossl::SSL_set_bio(session.0, memory(), wbio);
            Tls(session.0, wbio)
        }
    });
    let mut world = World {
        tls,
        rbio: None,
        stream: Counter::default(),
        node: VecDeque::new(),
        chunk: VecDeque::new(),
    };
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        match input.byte() % 8 {
            0 => world.attach(),
            1 => world.detach(),
            2 => world.give_node(input.size(100_000)),
            3 | 4 => world.commit(&mut input),
            5 | 6 => world.read(input.size(100_000)),
            _ => {
                if let Some(rbio) = &mut world.rbio {
                    rbio.discard();
                    world.chunk.clear();
                }
            }
        }
        world.check();
    }
    // Each of the two owners may be the last.
    if bytes.len() % 2 == 0 {
        world.rbio = None;
        world.check();
    }
    // SAFETY: the session is valid, and lets go of its BIOs.
    unsafe { ossl::SSL_set_bio(world.tls.0, ptr::null_mut(), ptr::null_mut()) };
});
