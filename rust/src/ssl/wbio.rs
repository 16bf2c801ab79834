//! The write BIO of a splice: ciphertext side by side for one large write.
//!
//! Node's `SSL*` writes into a NodeBIO, a list of heap chunks that TLSWrap sends
//! a few at a time. For the time of a splice over a libuv stream, what one call of
//! [`crate::splice::Splice::run_outbound`] makes is collected in lent [`Chunk`]s instead,
//! and the caller tries to write it at once. What the stream does not take then
//! goes to the NodeBIO after all, and the usual way, so nothing is here between
//! calls. All other output goes to the NodeBIO straight away.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use libc::{c_char, c_int, c_long, c_void};
use openssl_sys as ffi;
use openssl_sys::{BIO, SSL};

use crate::buf::{Chunk, Size};
use crate::packets::Unit;
use crate::ssl::bio::{self, Method, NodeBio, Shared};
use crate::sys;

/// Ciphertext on its way out of OpenSSL.
struct State {
    /// Node's BIO, whose ciphertext comes first. `None` once it was handed back.
    node: Option<NodeBio>,
    /// What is to be written to the stream at once.
    collected: VecDeque<Chunk>,
    output: Output,
}

impl State {
    fn pending(&self) -> usize {
        let node = self.node.as_ref().map_or(0, NodeBio::pending);
        node + self.collected.iter().map(Chunk::len).sum::<usize>()
    }

    fn collect(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(chunk) = self.collected.back_mut().filter(|chunk| !chunk.is_full()) else {
                self.collected.push_back(Chunk::lend(Size::Small));
                continue;
            };
            let room = chunk.spare_for(Unit::Packets);
            let n = room.len().min(bytes.len());
            room[..n].copy_from_slice(&bytes[..n]);
            chunk.commit(n);
            bytes = &bytes[n..];
        }
    }

    /// Moves what is collected to Node's BIO.
    fn settle(&mut self) {
        if let Some(node) = &self.node {
            for chunk in self.collected.drain(..) {
                node.write(chunk.filled());
            }
        }
    }
}

/// Where OpenSSL's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// To Node's BIO.
    PassedOn,
    /// To lent chunks.
    Collected,
}

/// The BIO of one splice, from [`Wbio::attach`] to [`Wbio::detach`].
pub struct Wbio {
    shared: Arc<Shared<State>>,
}

impl Wbio {
    /// Makes `ssl` write to a new BIO that passes on to its present one what is
    /// not collected. `None` if OpenSSL cannot allocate.
    ///
    /// # Safety
    /// `ssl` must be valid, have a write BIO, and be in no call and no handshake.
    pub unsafe fn attach(ssl: *mut SSL) -> Option<Wbio> {
        static METHOD: OnceLock<Method> = OnceLock::new();
        let method = METHOD
            .get_or_init(|| Method::new::<State>(c"tls_splice write", None, Some(write), ctrl));
        // SAFETY: `ssl` by the contract above. Our reference keeps Node's BIO alive
        // when SSL_set0_wbio drops the reference that `ssl` has.
        unsafe {
            let node = NodeBio::new(ffi::SSL_get_wbio(ssl));
            let (bio, shared) = method.bio(State {
                node: Some(node),
                collected: VecDeque::new(),
                output: Output::PassedOn,
            })?;
            sys::SSL_set0_wbio(ssl, bio);
            Some(Wbio { shared })
        }
    }

    /// Gives Node's BIO back to `ssl`, with what is collected.
    ///
    /// # Safety
    /// `ssl` must be valid, and the one that [`Wbio::attach`] was given. A handshake, and a
    /// callback of OpenSSL's, may be under way, but no function of the BIO: OpenSSL takes the
    /// BIO from `ssl` anew for each of its writes.
    pub unsafe fn detach(self, ssl: *mut SSL) {
        // SAFETY: by the contract above no function of the BIO, which has the other
        // references into the state, is under way.
        let state = unsafe { self.shared.get() };
        state.settle();
        if let Some(node) = state.node.take() {
            // SAFETY: our reference to Node's BIO goes over to `ssl`, which drops its
            // reference to our BIO.
            unsafe { sys::SSL_set0_wbio(ssl, node.into_ptr()) };
        }
    }

    #[cfg(test)]
    pub(crate) fn sabotage(&mut self) {
        // SAFETY: as in `begin_collecting`.
        let state = unsafe { self.shared.get() };
        state.collected.push_back(Chunk::broken());
    }

    /// See [`Shared::has_panicked`].
    pub fn has_panicked(&self) -> bool {
        self.shared.has_panicked()
    }

    /// Collects OpenSSL's output from now on, unless Node's BIO has something that must
    /// go first.
    pub fn begin_collecting(&mut self) {
        // SAFETY: the only other user is the BIO, inside OpenSSL calls.
        let state = unsafe { self.shared.get() };
        if state.node.as_ref().is_some_and(|node| node.pending() == 0) {
            state.output = Output::Collected;
        }
    }

    /// Passes OpenSSL's output on to Node's BIO again, from now on.
    pub fn end_collecting(&mut self) {
        // SAFETY: as in `begin_collecting`.
        unsafe { self.shared.get() }.output = Output::PassedOn;
    }

    /// What is collected, in order.
    pub fn collected(&self) -> impl Iterator<Item = &[u8]> {
        // SAFETY: as in `begin_collecting`.
        let state = unsafe { self.shared.get() };
        state.collected.iter().map(Chunk::filled)
    }

    /// Drops the first `n` bytes of what is collected, since they were written.
    pub fn written(&mut self, mut n: usize) {
        // SAFETY: as in `begin_collecting`.
        let state = unsafe { self.shared.get() };
        while let Some(chunk) = state.collected.front_mut() {
            if n < chunk.len() {
                chunk.consume(n);
                break;
            }
            n -= chunk.len();
            state.collected.pop_front();
        }
    }

    /// Hands what is collected over to Node's BIO, since the stream takes no more at present.
    pub fn write_later(&mut self) {
        // SAFETY: as in `begin_collecting`.
        unsafe { self.shared.get() }.settle();
    }
}

unsafe extern "C" fn write(bio: *mut BIO, data: *const c_char, len: c_int) -> c_int {
    if len <= 0 || data.is_null() {
        return 0;
    }
    // SAFETY: OpenSSL calls this for our BIO, with `len` readable bytes at `data`.
    unsafe {
        ffi::BIO_clear_retry_flags(bio);
        let bytes = std::slice::from_raw_parts(data.cast::<u8>(), len as usize);
        bio::with_state(bio, -1, |state: &mut State| {
            if state.output == Output::Collected {
                state.collect(bytes);
            } else {
                state.settle();
                if let Some(node) = &state.node {
                    node.write(bytes);
                }
            }
            len
        })
    }
}

unsafe extern "C" fn ctrl(bio: *mut BIO, cmd: c_int, _: c_long, _: *mut c_void) -> c_long {
    match cmd {
        ffi::BIO_CTRL_FLUSH => 1,
        // SAFETY: OpenSSL calls this for our BIO.
        bio::BIO_CTRL_PENDING => unsafe {
            bio::with_state(bio, -1, |state: &mut State| state.pending() as c_long)
        },
        _ => 0,
    }
}
