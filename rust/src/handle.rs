//! The opaque handle of the C ABI.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::rc::Rc;

use libc::c_int;
use openssl_sys::SSL;

use crate::error::{TLS_SPLICE_EBUSY, TLS_SPLICE_EPANIC, TLS_SPLICE_OK};
use crate::events::{Actions, Call, Connection, Event, Lower};
use crate::ffi::{
    tls_splice_state, TLS_SPLICE_READING_AS_IT_IS, TLS_SPLICE_READING_OFF, TLS_SPLICE_READING_ON,
};
use crate::lifecycle::{outcome, Reading};
use crate::panic::guard;
use crate::pump::Pump;
use crate::splice::Direction;
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
    /// What has happened inside of a call, and is dealt with when that returns.
    events: RefCell<VecDeque<Event>>,
    connection: RefCell<Rc<Connection>>,
    has_inbound: Cell<bool>,
    has_outbound: Cell<bool>,
    /// The outcome of directions that were given back.
    finished: Cell<u32>,
    pump: UnsafeCell<Pump>,
}

impl tls_splice {
    pub(crate) fn new(pump: Pump) -> tls_splice {
        tls_splice {
            busy: Cell::new(false),
            panicked: Cell::new(false),
            cancelled: Cell::new(false),
            ended: Cell::new(false),
            events: RefCell::default(),
            connection: RefCell::default(),
            has_inbound: Cell::new(false),
            has_outbound: Cell::new(false),
            finished: Cell::new(0),
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
        if code == TLS_SPLICE_EPANIC {
            self.panicked.set(true);
            self.connection().panicked();
        }
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

    /// What the splices of the connection share. Also inside of a call.
    pub(crate) fn connection(&self) -> Rc<Connection> {
        self.connection.borrow().clone()
    }

    /// Takes a direction over. `before` is a splice that has, or has had, a direction of
    /// the connection.
    pub(crate) fn start(&self, direction: Direction, before: Option<&tls_splice>) -> c_int {
        if let Some(before) = before {
            *self.connection.borrow_mut() = before.connection();
        }
        self.with(|pump, _| {
            pump.start(direction.bit());
            self.connection().start(direction);
            self.has(direction).set(true);
            TLS_SPLICE_OK
        })
    }

    fn has(&self, direction: Direction) -> &Cell<bool> {
        match direction {
            Direction::Inbound => &self.has_inbound,
            Direction::Outbound => &self.has_outbound,
        }
    }

    /// The direction is given back: what had become of it by then stays.
    fn keep_outcome(&self, direction: Direction) {
        if self.has(direction).replace(false) {
            let outcome = self.connection().lifecycle().outcome(direction);
            let finished = outcome
                & (outcome::INBOUND_OVER
                    | outcome::INBOUND_STOPPED
                    | outcome::OUTBOUND_OVER
                    | outcome::OUTBOUND_STOPPED);
            self.finished.set(self.finished.get() | finished);
        }
    }

    /// What has become of the splice. Also inside of a call.
    pub(crate) fn state(&self) -> tls_splice_state {
        let lifecycle = self.connection().lifecycle();
        let mut outcome = self.finished.get();
        for direction in [Direction::Inbound, Direction::Outbound] {
            if self.has(direction).get() {
                outcome |= lifecycle.outcome(direction);
            }
        }
        let reading = match self.has_inbound.get() {
            true => lifecycle.reading(),
            false => Reading::AsItIs,
        };
        tls_splice_state {
            outcome,
            reading: match reading {
                Reading::AsItIs => TLS_SPLICE_READING_AS_IT_IS,
                Reading::On => TLS_SPLICE_READING_ON,
                Reading::Off => TLS_SPLICE_READING_OFF,
            },
            holds_tls_error: lifecycle.holds_tls_error(),
            holds_lower_end: lifecycle.holds_lower_end(),
            owes: lifecycle.owes(),
            has_write_failed: lifecycle.has_write_failed(),
            write_error: lifecycle.write_error().unwrap_or(0),
        }
    }

    /// Deals with an event. Inside of a call it is queued, and that call returns as soon
    /// as OpenSSL does if the event ends the splice.
    ///
    /// # Safety
    /// As for [`Call::handle`].
    pub(crate) unsafe fn on(
        &self,
        event: Event,
        lower: Lower,
        ssl: *mut SSL,
        actions: &mut Actions,
    ) -> c_int {
        if self.has_panicked() {
            return TLS_SPLICE_EPANIC;
        }
        if self.busy.get() {
            if matches!(event, Event::Stop | Event::Gone | Event::Release(_)) {
                self.cancelled.set(true);
            }
            self.events.borrow_mut().push_back(event);
            return TLS_SPLICE_OK;
        }
        let connection = self.connection();
        self.with(|pump, cancelled| {
            let in_call = connection.enter();
            let mut next = Some(event);
            while let Some(event) = next {
                cancelled.set(false);
                let mut call = Call {
                    splice: pump,
                    connection: &connection,
                    ssl,
                    lower,
                    cancelled,
                    is_nested: in_call.is_nested,
                    actions: &mut *actions,
                };
                if let Event::Release(direction) = event {
                    self.keep_outcome(direction);
                }
                // SAFETY: passed on. After what frees the session nothing uses it.
                unsafe { call.handle(event) };
                next = self.next_event();
            }
            TLS_SPLICE_OK
        })
    }

    /// The end of the session goes first: nothing that comes before it may use that.
    fn next_event(&self) -> Option<Event> {
        let mut events = self.events.borrow_mut();
        match events.iter().position(|event| *event == Event::Gone) {
            Some(at) => events.remove(at),
            None => events.pop_front(),
        }
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
