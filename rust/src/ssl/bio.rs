//! What the BIOs of a splice have in common: a state that the splice and OpenSSL
//! share, and how OpenSSL is told of a BIO type.

use std::cell::{Cell, UnsafeCell};
use std::ffi::CStr;
use std::sync::Arc;

use libc::{c_char, c_int, c_long, c_void};
use openssl_sys as ffi;
use openssl_sys::{BIO, BIO_METHOD};

use crate::panic::guard;
use crate::sys;

/// The state of a BIO. It has two owners, the splice and the BIO.
pub struct Shared<S> {
    state: UnsafeCell<S>,
    panicked: Cell<bool>,
}

// SAFETY: an SSL and its splices are used by one thread at a time, by the contract of the C
// ABI. The BIO is used only in calls into OpenSSL with that SSL.
unsafe impl<S> Send for Shared<S> {}
// SAFETY: as above.
unsafe impl<S> Sync for Shared<S> {}

impl<S> Shared<S> {
    /// # Safety
    /// No other reference into the state may be alive. That holds as long as
    /// none is kept across a call into OpenSSL that uses this BIO.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn get(&self) -> &mut S {
        // SAFETY: by the contract above.
        unsafe { &mut *self.state.get() }
    }

    /// Whether a callback of the BIO has panicked: see [`with_state`].
    pub fn has_panicked(&self) -> bool {
        self.panicked.get()
    }
}

/// BIO_write_ex(3)'s older form: `len` bytes at `data`.
pub type Write = unsafe extern "C" fn(*mut BIO, *const c_char, c_int) -> c_int;
/// BIO_read(3): into `len` bytes at `out`.
pub type Read = unsafe extern "C" fn(*mut BIO, *mut c_char, c_int) -> c_int;
/// BIO_ctrl(3).
pub type Ctrl = unsafe extern "C" fn(*mut BIO, c_int, c_long, *mut c_void) -> c_long;

/// A BIO type: one of each for the process, never freed.
pub struct Method(*mut BIO_METHOD);

// SAFETY: written once, before it is shared; OpenSSL only reads it.
unsafe impl Send for Method {}
// SAFETY: as above.
unsafe impl Sync for Method {}

impl Method {
    /// A type whose BIOs have the state `S`. OpenSSL refuses what there is no function for.
    pub fn new<S>(name: &CStr, read: Option<Read>, write: Option<Write>, ctrl: Ctrl) -> Method {
        // SAFETY: plain constructor calls; the functions have the types asked for.
        unsafe {
            let index = sys::BIO_get_new_index() | BIO_TYPE_SOURCE_SINK;
            let method = ffi::BIO_meth_new(index, name.as_ptr());
            if !method.is_null() {
                if let Some(read) = read {
                    ffi::BIO_meth_set_read__fixed_rust(method, Some(read));
                }
                if let Some(write) = write {
                    ffi::BIO_meth_set_write__fixed_rust(method, Some(write));
                }
                ffi::BIO_meth_set_ctrl__fixed_rust(method, Some(ctrl));
                ffi::BIO_meth_set_destroy__fixed_rust(method, Some(destroy::<S>));
            }
            Method(method)
        }
    }

    /// A BIO of this type and the splice's share of its state. `None` if OpenSSL
    /// cannot allocate.
    ///
    /// # Safety
    /// `S` must be what [`Method::new`] was told.
    pub unsafe fn bio<S>(&self, state: S) -> Option<(*mut BIO, Arc<Shared<S>>)> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the type is complete; the new BIO gets its share of the state
        // before anybody else has it.
        unsafe {
            let bio = ffi::BIO_new(self.0);
            if bio.is_null() {
                return None;
            }
            let shared = Arc::new(Shared {
                state: UnsafeCell::new(state),
                panicked: Cell::new(false),
            });
            ffi::BIO_set_data(bio, Arc::into_raw(shared.clone()).cast_mut().cast());
            ffi::BIO_set_init(bio, 1);
            Some((bio, shared))
        }
    }
}

/// Runs `f`, which a callback of `bio` consists of, on the state. A panic in it makes
/// the call into the BIO fail, and each later one, as `failed`: OpenSSL's own frames,
/// which are below, cannot be unwound. Nor can the state be used any more, and the
/// handle that it belongs to says so ([`crate::handle`]).
///
/// # Safety
/// `bio` must be of a type with the state `S`, inside an OpenSSL call.
pub unsafe fn with_state<S, T>(bio: *mut BIO, failed: T, f: impl FnOnce(&mut S) -> T) -> T {
    // SAFETY: the BIO's data is its share of the state until `destroy`.
    let shared = unsafe { &*ffi::BIO_get_data(bio).cast::<Shared<S>>() };
    if shared.has_panicked() {
        return failed;
    }
    // SAFETY: the splice keeps no reference into the state across calls into OpenSSL.
    guard(|| f(unsafe { shared.get() })).unwrap_or_else(|| {
        shared.panicked.set(true);
        failed
    })
}

unsafe extern "C" fn destroy<S>(bio: *mut BIO) -> c_int {
    // SAFETY: OpenSSL calls this once, for a BIO of this type; its data is the
    // share that `Method::bio` gave it, or NULL if that did not get so far.
    let share = unsafe {
        let data = ffi::BIO_get_data(bio).cast::<Shared<S>>();
        ffi::BIO_set_data(bio, std::ptr::null_mut());
        (!data.is_null()).then(|| Arc::from_raw(data.cast_const()))
    };
    // If the state is dropped here, the BIO was its last owner: there is no handle left
    // that could report a panic.
    guard(|| drop(share)).is_some().into()
}

/// A reference to one of Node's BIOs.
pub struct NodeBio(*mut BIO);

impl NodeBio {
    /// Takes a reference of its own.
    ///
    /// # Safety
    /// `bio` must be valid.
    pub unsafe fn new(bio: *mut BIO) -> NodeBio {
        // SAFETY: by the contract above.
        unsafe { sys::BIO_up_ref(bio) };
        NodeBio(bio)
    }

    /// For calls into OpenSSL.
    pub fn as_ptr(&self) -> *mut BIO {
        self.0
    }

    /// Gives the reference away.
    pub fn into_ptr(self) -> *mut BIO {
        std::mem::ManuallyDrop::new(self).0
    }

    /// What it holds, in bytes.
    pub fn pending(&self) -> usize {
        // SAFETY: we hold a reference.
        unsafe { sys::BIO_ctrl_pending(self.0) }
    }

    /// Appends to it. A NodeBIO takes every byte.
    pub fn write(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            // SAFETY: we hold a reference; `bytes` is readable for its length,
            // which is that of a buffer of ours.
            unsafe { ffi::BIO_write(self.0, bytes.as_ptr().cast(), bytes.len() as c_int) };
        }
    }
}

impl Drop for NodeBio {
    fn drop(&mut self) {
        // SAFETY: our reference.
        unsafe { sys::BIO_free(self.0) };
    }
}

// From openssl/bio.h; openssl-sys does not have them.
/// BIO_pending(3).
pub const BIO_CTRL_PENDING: c_int = 10;
const BIO_TYPE_SOURCE_SINK: c_int = 0x0400;

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;

    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }

    unsafe extern "C" fn ctrl(bio: *mut BIO, _: c_int, _: c_long, _: *mut c_void) -> c_long {
        // SAFETY: a BIO of that state, in a call of OpenSSL's.
        unsafe { with_state(bio, -1, |_: &mut Bomb| panic!("on purpose")) }
    }

    #[test]
    fn a_panic_is_kept_in_and_remembered() {
        static METHOD: OnceLock<Method> = OnceLock::new();
        let method =
            METHOD.get_or_init(|| Method::new::<Bomb>(c"tls_splice test", None, None, ctrl));
        // SAFETY: it is of that state; we have the only reference to it.
        unsafe {
            let (bio, shared) = method.bio(Bomb).unwrap();
            assert!(!shared.has_panicked());
            assert_eq!(sys::BIO_ctrl_pending(bio), 0);
            assert!(shared.has_panicked());
            // The BIO is the last owner.
            drop(shared);
            assert_eq!(sys::BIO_free(bio), 1);
        }
    }
}
