//! The read BIO of a splice: ciphertext straight from libuv's read buffer.
//!
//! Node's `SSL*` reads from a NodeBIO, a list of heap chunks. For the time of a
//! splice over a libuv stream, libuv reads into a lent [`Chunk`] instead, and
//! this BIO serves OpenSSL from it, after what the NodeBIO still holds.

use std::cell::UnsafeCell;
use std::sync::{Arc, OnceLock};

use libc::{c_char, c_int, c_long, c_void};
use openssl_sys as ffi;
use openssl_sys::{BIO, BIO_METHOD, SSL};

use crate::buf::Chunk;
use crate::sys;

/// Ciphertext on its way into OpenSSL, shared by the pump and the BIO.
struct State {
    /// Node's BIO, on which we hold a reference: what it has comes first.
    node: *mut BIO,
    chunk: Option<Chunk>,
}

/// One of the two owners of the state; the other is the BIO itself.
struct Shared(UnsafeCell<State>);

// SAFETY: calls on one splice never overlap in time, on whatever threads they
// are, and the BIO is only used inside them.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// No other reference into the state may be alive. That holds as long as
    /// none is kept across a call into OpenSSL.
    #[allow(clippy::mut_from_ref)]
    unsafe fn get(&self) -> &mut State {
        // SAFETY: by the contract above.
        unsafe { &mut *self.0.get() }
    }
}

/// The BIO of one splice, from [`Rbio::attach`] to [`Rbio::detach`].
pub struct Rbio {
    shared: Arc<Shared>,
}

impl Rbio {
    /// Makes `ssl` read from a new BIO that serves what its present one holds
    /// first. `None` if OpenSSL cannot allocate.
    ///
    /// # Safety
    /// `ssl` must be valid, have a read BIO, and be in no call and no handshake.
    pub unsafe fn attach(ssl: *mut SSL) -> Option<Rbio> {
        // SAFETY: `ssl` by the contract above. BIO_up_ref keeps Node's BIO alive
        // when SSL_set0_rbio drops the reference that `ssl` has. The new BIO gets
        // its share of the state before `ssl` owns it.
        unsafe {
            let bio = ffi::BIO_new(method()?);
            if bio.is_null() {
                return None;
            }
            let node = ffi::SSL_get_rbio(ssl);
            sys::BIO_up_ref(node);
            let shared = Arc::new(Shared(UnsafeCell::new(State { node, chunk: None })));
            ffi::BIO_set_data(bio, Arc::into_raw(shared.clone()).cast_mut().cast());
            ffi::BIO_set_init(bio, 1);
            sys::SSL_set0_rbio(ssl, bio);
            Some(Rbio { shared })
        }
    }

    /// Gives Node's BIO back to `ssl`, with the ciphertext that OpenSSL has not
    /// read. A partly read record stays inside OpenSSL.
    ///
    /// # Safety
    /// As for [`Rbio::attach`], with the same `ssl`.
    pub unsafe fn detach(self, ssl: *mut SSL) {
        // SAFETY: by the contract above no call into OpenSSL is under way.
        let state = unsafe { self.shared.get() };
        let node = std::mem::replace(&mut state.node, std::ptr::null_mut());
        let chunk = state.chunk.take();
        // SAFETY: our reference to Node's BIO goes over to `ssl`, which drops the
        // one to ours. The chunk is readable for its length, and a NodeBIO takes
        // every byte.
        unsafe {
            if let Some(chunk) = chunk {
                let rest = chunk.filled();
                if !rest.is_empty() {
                    ffi::BIO_write(node, rest.as_ptr().cast(), rest.len() as c_int);
                }
            }
            sys::SSL_set0_rbio(ssl, node);
        }
    }

    /// The buffer for the next read of at most `limit` bytes.
    pub fn spare(&mut self, limit: usize) -> &mut [u8] {
        // SAFETY: the only other user is the BIO, inside OpenSSL calls.
        let spare = unsafe { self.shared.get() }
            .chunk
            .get_or_insert_with(Chunk::lend)
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

    /// Drops the ciphertext that OpenSSL has not read, but for Node's.
    pub fn discard(&mut self) {
        // SAFETY: as in `spare`.
        unsafe { self.shared.get() }.chunk = None;
    }

    /// Ciphertext that OpenSSL has not read, Node's included, in bytes.
    pub fn pending(&self) -> usize {
        // SAFETY: as in `spare`.
        let state = unsafe { self.shared.get() };
        // SAFETY: we hold a reference to Node's BIO.
        let node = unsafe { sys::BIO_ctrl_pending(state.node) };
        node + state.chunk.as_ref().map_or(0, Chunk::len)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if !self.node.is_null() {
            // SAFETY: our reference; it was not handed back, since the session
            // went away while spliced.
            unsafe { sys::BIO_free(self.node) };
        }
    }
}

/// # Safety
/// `bio` must be one that [`Rbio::attach`] made, inside an OpenSSL call.
unsafe fn state<'a>(bio: *mut BIO) -> &'a mut State {
    // SAFETY: the BIO's data is its share of the state until `destroy`, and the
    // pump keeps no reference into the state across calls into OpenSSL.
    unsafe { (*ffi::BIO_get_data(bio).cast::<Shared>()).get() }
}

unsafe extern "C" fn read(bio: *mut BIO, out: *mut c_char, len: c_int) -> c_int {
    if len <= 0 || out.is_null() {
        return 0;
    }
    // SAFETY: OpenSSL calls this for our BIO, with `len` writable bytes at `out`.
    unsafe {
        ffi::BIO_clear_retry_flags(bio);
        let state = state(bio);
        if sys::BIO_ctrl_pending(state.node) > 0 {
            return ffi::BIO_read(state.node, out.cast(), len);
        }
        if let Some(chunk) = state.chunk.as_mut() {
            let n = chunk.len().min(len as usize);
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
    }
}

unsafe extern "C" fn ctrl(bio: *mut BIO, cmd: c_int, _: c_long, _: *mut c_void) -> c_long {
    match cmd {
        ffi::BIO_CTRL_FLUSH => 1,
        BIO_CTRL_PENDING => {
            // SAFETY: OpenSSL calls this for our BIO.
            let state = unsafe { state(bio) };
            // SAFETY: we hold a reference to Node's BIO.
            let node = unsafe { sys::BIO_ctrl_pending(state.node) };
            (node + state.chunk.as_ref().map_or(0, Chunk::len)) as c_long
        }
        _ => 0,
    }
}

// From openssl/bio.h; openssl-sys does not have them.
const BIO_CTRL_PENDING: c_int = 10;
const BIO_TYPE_SOURCE_SINK: c_int = 0x0400;

unsafe extern "C" fn destroy(bio: *mut BIO) -> c_int {
    // SAFETY: OpenSSL calls this once, for our BIO; its data is the share that
    // `attach` gave it, or NULL if `attach` did not get that far.
    unsafe {
        let data = ffi::BIO_get_data(bio).cast::<Shared>();
        if !data.is_null() {
            drop(Arc::from_raw(data.cast_const()));
        }
        ffi::BIO_set_data(bio, std::ptr::null_mut());
    }
    1
}

/// The method table: one for the process, as every BIO type has.
fn method() -> Option<*const BIO_METHOD> {
    struct Method(*mut BIO_METHOD);
    // SAFETY: written once, before it is shared; OpenSSL only reads it.
    unsafe impl Send for Method {}
    // SAFETY: as above.
    unsafe impl Sync for Method {}
    static METHOD: OnceLock<Method> = OnceLock::new();
    let method = METHOD.get_or_init(|| {
        // SAFETY: plain constructor calls; the functions have the types asked for.
        unsafe {
            let method = ffi::BIO_meth_new(
                sys::BIO_get_new_index() | BIO_TYPE_SOURCE_SINK,
                c"tls_splice".as_ptr(),
            );
            if !method.is_null() {
                ffi::BIO_meth_set_read__fixed_rust(method, Some(read));
                ffi::BIO_meth_set_ctrl__fixed_rust(method, Some(ctrl));
                ffi::BIO_meth_set_destroy__fixed_rust(method, Some(destroy));
            }
            Method(method)
        }
    });
    (!method.0.is_null()).then_some(method.0.cast_const())
}
