//! The opaque handle of the C ABI.

use std::cell::{Cell, UnsafeCell};

use crate::pump::Pump;

/// `struct tls_splice`: one splice. Made by `tls_splice_new`, freed by
/// `tls_splice_free`.
///
/// Calls on it must not overlap in time, but an OpenSSL callback may re-enter
/// from within one: then only `tls_splice_cancel` and `tls_splice_end_encrypt` are
/// let in.
#[allow(non_camel_case_types)]
pub struct tls_splice {
    busy: Cell<bool>,
    cancelled: Cell<bool>,
    ended: Cell<bool>,
    pump: UnsafeCell<Pump>,
}

impl tls_splice {
    pub(crate) fn new(pump: Pump) -> tls_splice {
        tls_splice {
            busy: Cell::new(false),
            cancelled: Cell::new(false),
            ended: Cell::new(false),
            pump: UnsafeCell::new(pump),
        }
    }

    /// Runs `f` on the pump; `None` if the handle is inside another call.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Pump, &Cell<bool>) -> T) -> Option<T> {
        if self.busy.replace(true) {
            return None;
        }
        // SAFETY: `busy` was false, so no other reference to the pump is alive.
        // If `f` panics it stays set, and the pump is not reached again.
        let pump = unsafe { &mut *self.pump.get() };
        let result = f(pump, &self.cancelled);
        if self.ended.take() {
            pump.end_encrypt();
        }
        self.cancelled.set(false);
        self.busy.set(false);
        Some(result)
    }

    /// Tells a call that is under way to return as soon as its `SSL_read` or
    /// `SSL_write` does.
    pub(crate) fn cancel(&self) {
        self.cancelled.set(self.busy.get());
    }

    /// [`Pump::end_encrypt`], after a call that is under way.
    pub(crate) fn end_encrypt(&self) {
        self.ended.set(true);
        self.with(|_, _| ());
    }
}
