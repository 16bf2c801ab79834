//! The read BIO of a splice: ciphertext straight from libuv's read buffer.
//!
//! Node's `SSL*` reads from a NodeBIO, a list of heap chunks. For the time of a
//! splice over a libuv stream, libuv reads into a lent [`Chunk`] instead, and
//! this BIO serves OpenSSL from it, after what the NodeBIO still holds.

use std::sync::{Arc, OnceLock};

use libc::{c_char, c_int, c_long, c_void};
use openssl_sys as ffi;
use openssl_sys::{BIO, SSL};

use crate::buf::{Chunk, Size};
use crate::ssl::bio::{self, Method, NodeBio, Shared};
use crate::sys;

/// Ciphertext on its way into OpenSSL.
struct State {
    /// Node's BIO, whose ciphertext comes first. `None` once it was handed back.
    node: Option<NodeBio>,
    /// What the stream was read into; `None` while there is nothing in it.
    chunk: Option<Chunk>,
}

impl State {
    fn pending(&self) -> usize {
        let node = self.node.as_ref().map_or(0, NodeBio::pending);
        node + self.chunk.as_ref().map_or(0, Chunk::len)
    }
}

/// The BIO of one splice, from [`Rbio::attach`] to [`Rbio::detach`].
pub struct Rbio {
    shared: Arc<Shared<State>>,
    size: Size,
}

impl Rbio {
    /// Makes `ssl` read from a new BIO that serves what its present one holds
    /// first. The stream is read into buffers of that size. `None` if OpenSSL cannot
    /// allocate.
    ///
    /// # Safety
    /// `ssl` must be valid, have a read BIO, and be in no call and no handshake.
    pub unsafe fn attach(ssl: *mut SSL, size: Size) -> Option<Rbio> {
        static METHOD: OnceLock<Method> = OnceLock::new();
        let method =
            METHOD.get_or_init(|| Method::new::<State>(c"tls_splice read", Some(read), None, ctrl));
        // SAFETY: `ssl` by the contract above. Our reference keeps Node's BIO alive
        // when SSL_set0_rbio drops the reference that `ssl` has.
        unsafe {
            let node = NodeBio::new(ffi::SSL_get_rbio(ssl));
            let (bio, shared) = method.bio(State {
                node: Some(node),
                chunk: None,
            })?;
            sys::SSL_set0_rbio(ssl, bio);
            Some(Rbio { shared, size })
        }
    }

    /// Gives Node's BIO back to `ssl`, with the ciphertext that OpenSSL has not
    /// read. A partly read record stays inside OpenSSL.
    ///
    /// # Safety
    /// `ssl` must be valid, and the one that [`Rbio::attach`] was given. A handshake, and a
    /// callback of OpenSSL's, may be under way, but no function of the BIO: OpenSSL takes the
    /// BIO from `ssl` anew for each of its reads.
    pub unsafe fn detach(self, ssl: *mut SSL) {
        // SAFETY: by the contract above no function of the BIO, which has the other
        // references into the state, is under way.
        let state = unsafe { self.shared.get() };
        let chunk = state.chunk.take();
        if let Some(node) = state.node.take() {
            if let Some(chunk) = chunk {
                node.write(chunk.filled());
            }
            // SAFETY: our reference to Node's BIO goes over to `ssl`, which drops its
            // reference to our BIO.
            unsafe { sys::SSL_set0_rbio(ssl, node.into_ptr()) };
        }
    }

    /// The buffer for the next read of at most `limit` bytes.
    pub fn spare(&mut self, limit: usize) -> &mut [u8] {
        // SAFETY: the only other user is the BIO, inside OpenSSL calls.
        let spare = unsafe { self.shared.get() }
            .chunk
            .get_or_insert_with(|| Chunk::lend(self.size))
            .spare();
        let len = spare.len().min(limit);
        &mut spare[..len]
    }

    /// Takes in `n` bytes read into [`Rbio::spare`].
    pub fn commit(&mut self, n: usize) {
        // SAFETY: as in `spare`.
        let state = unsafe { self.shared.get() };
        if let Some(chunk) = state.chunk.as_mut() {
            chunk.commit(n);
            if chunk.is_empty() {
                state.chunk = None;
            }
        }
    }

    /// Drops the ciphertext that OpenSSL has not read, except for that in Node's BIO.
    pub fn discard(&mut self) {
        // SAFETY: as in `spare`.
        unsafe { self.shared.get() }.chunk = None;
    }

    #[cfg(test)]
    pub(crate) fn sabotage(&mut self) {
        // SAFETY: as in `spare`.
        unsafe { self.shared.get() }.chunk = Some(Chunk::broken());
    }

    /// See [`Shared::has_panicked`].
    pub fn has_panicked(&self) -> bool {
        self.shared.has_panicked()
    }

    /// Ciphertext that OpenSSL has not read, in bytes, including that in Node's BIO.
    pub fn pending(&self) -> usize {
        // SAFETY: as in `spare`.
        unsafe { self.shared.get() }.pending()
    }
}

unsafe extern "C" fn read(bio: *mut BIO, out: *mut c_char, len: c_int) -> c_int {
    if len <= 0 || out.is_null() {
        return 0;
    }
    // SAFETY: OpenSSL calls this for our BIO.
    unsafe {
        ffi::BIO_clear_retry_flags(bio);
        bio::with_state::<State, _>(bio, -1, |state| {
            if let Some(node) = state.node.as_ref().filter(|node| node.pending() > 0) {
                return ffi::BIO_read(node.as_ptr(), out.cast(), len);
            }
            if let Some(chunk) = state.chunk.as_mut() {
                let n = chunk.len().min(len as usize);
                // SAFETY: there are `len` writable bytes at `out`.
                std::ptr::copy_nonoverlapping(chunk.filled().as_ptr(), out.cast(), n);
                chunk.consume(n);
                if chunk.is_empty() {
                    state.chunk = None;
                }
                return n as c_int;
            }
            // Never an end of file: only the stream's owner knows of one.
            ffi::BIO_set_retry_read(bio);
            -1
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
