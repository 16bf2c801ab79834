//! The opaque handle of the C ABI.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::rc::Rc;

use libc::c_int;
use openssl_sys::SSL;

use crate::error::{TLS_SPLICE_EARG, TLS_SPLICE_EBUSY, TLS_SPLICE_EPANIC, TLS_SPLICE_OK};
use crate::events::{Actions, Call, Connection, Event, Lower};
use crate::lifecycle::{outcome, Reading};
use crate::panic::guard;
use crate::splice::{Direction, Splice};
use crate::stats::Stats;

/// One splice. `tls_splice_new` makes it, and `tls_splice_free` frees it.
///
/// Invariant: at most one call is under way at a time. A call that a callback of OpenSSL
/// makes inside another call is refused with TLS_SPLICE_EBUSY, except for two: `tls_splice_on`
/// queues its event, and `tls_splice_get_state` changes nothing. After a panic every call is
/// refused with TLS_SPLICE_EPANIC, except for `tls_splice_free` and `tls_splice_get_state`;
/// `tls_splice_get_stats` gives the last counters with that code.
#[allow(non_camel_case_types)]
pub struct tls_splice {
    /// A call is under way.
    busy: Cell<bool>,
    panicked: Cell<bool>,
    /// The call that is under way must not use the session after OpenSSL returns to it.
    cancelled: Cell<bool>,
    /// Events that arrived inside a call, and are handled when that call has returned.
    events: RefCell<VecDeque<Event>>,
    connection: RefCell<Rc<Connection>>,
    has_inbound: Cell<bool>,
    has_outbound: Cell<bool>,
    /// What had become of the directions that were given back, as bits of [`outcome`].
    finished: Cell<u32>,
    splice: UnsafeCell<Splice>,
}

/// What has become of a splice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Bits of [`outcome`].
    pub outcome: u32,
    /// What the stream below is to do.
    pub reading: Reading,
    /// An error of `SSL_read` is known, and nobody has been told of it.
    pub holds_tls_error: bool,
    /// An end of the stream below is known, and nobody has been told of it.
    pub has_untold_lower_end: bool,
    /// The inbound direction was given back, and JavaScript has yet to be told of an error
    /// or an end that follows the bytes it was given.
    pub owes: bool,
    /// A write to the stream below has failed, or the connection has failed otherwise: a failed
    /// write need not be reported any more.
    pub has_write_failed: bool,
    /// The libuv error code of the write with which the connection has failed, or 0.
    pub write_error: c_int,
}

impl tls_splice {
    pub(crate) fn new(splice: Splice) -> tls_splice {
        tls_splice {
            busy: Cell::new(false),
            panicked: Cell::new(false),
            cancelled: Cell::new(false),
            events: RefCell::default(),
            connection: RefCell::default(),
            has_inbound: Cell::new(false),
            has_outbound: Cell::new(false),
            finished: Cell::new(0),
            splice: UnsafeCell::new(splice),
        }
    }

    /// Runs `f` on the splice, and returns the code that `f` returns. The code is
    /// [`TLS_SPLICE_EBUSY`] if the handle is inside another call, and
    /// [`TLS_SPLICE_EPANIC`] from the call on in which the splice, or a callback of its
    /// BIOs, has panicked.
    pub(crate) fn with(&self, f: impl FnOnce(&mut Splice) -> c_int) -> c_int {
        if self.has_panicked() {
            return TLS_SPLICE_EPANIC;
        }
        if self.busy.replace(true) {
            return TLS_SPLICE_EBUSY;
        }
        let code = guard(|| {
            // SAFETY: `busy` was false, so that no other reference to the splice is alive.
            // If this call panics, `panicked` keeps every later call away from the splice.
            let splice = unsafe { &mut *self.splice.get() };
            // A callback of a BIO can have panicked in a call that the caller itself made
            // into OpenSSL.
            if splice.has_panicked() {
                return TLS_SPLICE_EPANIC;
            }
            let code = f(splice);
            match splice.has_panicked() {
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

    /// Runs `f` on the splices of two handles. A panic in `f` is a panic of both handles.
    /// The code is [`TLS_SPLICE_EBUSY`] if both are one handle.
    pub(crate) fn with_both(
        &self,
        other: &tls_splice,
        f: impl FnOnce(&mut Splice, &mut Splice) -> c_int,
    ) -> c_int {
        // A panic that `other` had before does not concern this handle.
        if other.has_panicked() {
            return TLS_SPLICE_EPANIC;
        }
        self.with(|splice| other.with(|other| f(splice, other)))
    }

    fn has_panicked(&self) -> bool {
        self.panicked.get()
    }

    /// What the splices of the connection share. It can be read inside a call, too.
    pub(crate) fn connection(&self) -> Rc<Connection> {
        self.connection.borrow().clone()
    }

    /// Takes a direction over. `before` is a splice that has, or has had, a direction of
    /// the same connection. The code is [`TLS_SPLICE_EARG`] if the splice has, or has had,
    /// the direction.
    pub(crate) fn start(&self, direction: Direction, before: Option<&tls_splice>) -> c_int {
        self.with(|splice| {
            if splice.was_started(direction) {
                return TLS_SPLICE_EARG;
            }
            if let Some(before) = before {
                let connection = before.connection();
                *self.connection.borrow_mut() = connection;
            }
            splice.start(direction);
            self.connection().start(direction, splice);
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

    /// Keeps what had become of a direction by the time that it is given back.
    fn keep_outcome(&self, direction: Direction) {
        if self.has(direction).replace(false) {
            let outcome = self.connection().lifecycle().outcome(direction);
            let finished = outcome
                & (outcome::IN_OVER
                    | outcome::IN_STOPPED
                    | outcome::OUT_OVER
                    | outcome::OUT_STOPPED);
            self.finished.set(self.finished.get() | finished);
        }
    }

    /// What has become of the splice. It can be read inside a call, too.
    pub(crate) fn state(&self) -> State {
        let lifecycle = self.connection().lifecycle();
        let mut outcome = self.finished.get();
        for direction in [Direction::Inbound, Direction::Outbound] {
            if self.has(direction).get() {
                outcome |= lifecycle.outcome(direction);
            }
        }
        State {
            outcome,
            reading: match self.has_inbound.get() {
                true => lifecycle.reading(),
                false => Reading::AsItIs,
            },
            holds_tls_error: lifecycle.holds_tls_error(),
            has_untold_lower_end: lifecycle.has_untold_lower_end(),
            owes: lifecycle.owes(),
            has_write_failed: lifecycle.has_write_failed(),
            write_error: lifecycle.write_error().unwrap_or(0),
        }
    }

    /// Handles an event. Inside a call the event is queued, and if it ends the splice, the
    /// call that is under way returns as soon as OpenSSL has returned to it.
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
        self.with(|splice| {
            let in_call = connection.enter();
            let mut next = Some(event);
            while let Some(event) = next {
                self.cancelled.set(false);
                let mut call = Call {
                    splice: &mut *splice,
                    connection: &connection,
                    ssl,
                    lower,
                    cancelled: &self.cancelled,
                    is_nested: in_call.is_nested,
                    actions: &mut *actions,
                };
                if let Event::Release(direction) = event {
                    self.keep_outcome(direction);
                }
                // SAFETY: passed on. An event is queued only by a callback of OpenSSL,
                // which runs only if this call has a session. After `Event::Gone` the
                // lifecycle orders nothing that uses the session.
                unsafe { call.handle(event) };
                next = self.next_event();
            }
            TLS_SPLICE_OK
        })
    }

    /// Takes the next event out of the queue. The end of the session comes first, since no
    /// event before it may use the session any more.
    fn next_event(&self) -> Option<Event> {
        let mut events = self.events.borrow_mut();
        match events.iter().position(|event| *event == Event::Gone) {
            Some(at) => events.remove(at),
            None => events.pop_front(),
        }
    }

    /// The counters, with [`TLS_SPLICE_EPANIC`] if they will not change any more; no
    /// counters inside another call.
    pub(crate) fn stats(&self) -> (c_int, Option<Stats>) {
        let mut stats = None;
        let code = self.with(|splice| {
            stats = Some(splice.stats());
            TLS_SPLICE_OK
        });
        if code == TLS_SPLICE_EPANIC {
            // SAFETY: no call is under way, since `with` would have returned EBUSY; and
            // none will reach the splice, which has panicked. The counters are plain
            // numbers, each of them written at once.
            stats = Some(unsafe { (*self.splice.get()).stats() });
        }
        (code, stats)
    }
}
