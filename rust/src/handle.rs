//! The opaque handle of the C ABI.

use std::cell::{Cell, UnsafeCell};

use libc::c_int;

use crate::error::{TLS_SPLICE_EBUSY, TLS_SPLICE_EPANIC, TLS_SPLICE_OK};
use crate::panic::guard;
use crate::pump::Pump;
use crate::stats::Stats;

/// `struct tls_splice`: one splice. Made by `tls_splice_new`, freed by
/// `tls_splice_free`.
///
/// Calls on it must not overlap in time, but an OpenSSL callback may re-enter
/// from within one: then only `tls_splice_cancel` and `tls_splice_end_encrypt` are
/// let in. After a panic nothing is.
#[allow(non_camel_case_types)]
pub struct tls_splice {
    busy: Cell<bool>,
    panicked: Cell<bool>,
    cancelled: Cell<bool>,
    ended: Cell<bool>,
    pump: UnsafeCell<Pump>,
}

impl tls_splice {
    pub(crate) fn new(pump: Pump) -> tls_splice {
        tls_splice {
            busy: Cell::new(false),
            panicked: Cell::new(false),
            cancelled: Cell::new(false),
            ended: Cell::new(false),
            pump: UnsafeCell::new(pump),
        }
    }

    /// Runs `f` on the pump, and returns the code that it does;
    /// [`TLS_SPLICE_EBUSY`] if the handle is inside another call,
    /// [`TLS_SPLICE_EPANIC`] from the call on in which the pump, or a callback of
    /// its BIOs, has panicked.
    pub(crate) fn with(&self, f: impl FnOnce(&mut Pump, &Cell<bool>) -> c_int) -> c_int {
        if self.has_panicked() {
            return TLS_SPLICE_EPANIC;
        }
        if self.busy.replace(true) {
            return TLS_SPLICE_EBUSY;
        }
        let code = guard(|| {
            // SAFETY: `busy` was false, so no other reference to the pump is alive.
            // If this panics, the pump is not reached again.
            let pump = unsafe { &mut *self.pump.get() };
            // That can have been in a call of the caller's own into OpenSSL.
            if pump.has_panicked() {
                return TLS_SPLICE_EPANIC;
            }
            let code = f(pump, &self.cancelled);
            if self.ended.take() {
                pump.leave_source();
            }
            match pump.has_panicked() {
                true => TLS_SPLICE_EPANIC,
                false => code,
            }
        })
        .unwrap_or(TLS_SPLICE_EPANIC);
        self.panicked.set(code == TLS_SPLICE_EPANIC);
        self.cancelled.set(false);
        self.busy.set(false);
        code
    }

    /// The same with the pumps of two handles, of which a panic leaves neither.
    /// [`TLS_SPLICE_EBUSY`] if they are the same.
    pub(crate) fn with_both(
        &self,
        other: &tls_splice,
        f: impl FnOnce(&mut Pump, &mut Pump) -> c_int,
    ) -> c_int {
        // One that was before is nothing to this.
        if other.has_panicked() {
            return TLS_SPLICE_EPANIC;
        }
        self.with(|pump, _| other.with(|pump_of_other, _| f(pump, pump_of_other)))
    }

    fn has_panicked(&self) -> bool {
        self.panicked.get()
    }

    /// Tells a call that is under way to return as soon as its `SSL_read` or
    /// `SSL_write` does.
    pub(crate) fn cancel(&self) -> c_int {
        if self.has_panicked() {
            return TLS_SPLICE_EPANIC;
        }
        self.cancelled.set(self.busy.get());
        TLS_SPLICE_OK
    }

    /// `Splice::leave_source`, after a call that is under way.
    pub(crate) fn end_encrypt(&self) -> c_int {
        self.ended.set(true);
        match self.with(|_, _| TLS_SPLICE_OK) {
            TLS_SPLICE_EBUSY => TLS_SPLICE_OK,
            code => code,
        }
    }

    /// The counters, and [`TLS_SPLICE_EPANIC`] if they will not change any more;
    /// `None` inside another call.
    pub(crate) fn stats(&self) -> (c_int, Option<Stats>) {
        let mut stats = None;
        let code = self.with(|pump, _| {
            stats = Some(pump.stats());
            TLS_SPLICE_OK
        });
        if code == TLS_SPLICE_EPANIC {
            // SAFETY: no call is under way, and none will get at the pump. Counters
            // are whole whenever it may have panicked.
            stats = Some(unsafe { (*self.pump.get()).stats() });
        }
        (code, stats)
    }
}
