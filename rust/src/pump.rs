//! A splice in the terms of the C ABI: directions and steps as bits.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

use libc::c_int;
use openssl_sys::SSL;

use crate::endpoint::Endpoint;
use crate::frame::Framing;
use crate::inbound::InboundStep;
use crate::outbound::OutboundStep;
use crate::splice::{Direction, Flush, Outcome, Splice};

/// Direction: what the TLS peer sends goes to the endpoint.
pub const TLS_SPLICE_DECRYPT: u32 = 1;
/// Direction: what the endpoint yields is sent to the TLS peer.
pub const TLS_SPLICE_ENCRYPT: u32 = 2;

/// Step: flush the write BIO (TLSWrap::EncOut).
pub const TLS_SPLICE_STEP_FLUSH: u32 = 1;
/// Step: stop reading ciphertext from the stream; without it, read.
pub const TLS_SPLICE_STEP_PAUSE_TLS: u32 = 2;
/// Step: call again in the next turn of the loop; for encrypt, not before the
/// write BIO has drained.
pub const TLS_SPLICE_STEP_MORE: u32 = 4;
/// Step: this direction is over, and every byte of it delivered. For decrypt,
/// `ssl_ret` is what `SSL_read` returned, for SSL_get_error(3).
pub const TLS_SPLICE_STEP_OVER: u32 = 8;
/// Step: this direction has stopped as asked, or with the other's failure.
pub const TLS_SPLICE_STEP_STOPPED: u32 = 16;
/// Step: the splice has failed; see `tls_splice_failure`.
pub const TLS_SPLICE_STEP_FAILED: u32 = 32;
/// Step: `SSL_write` wants to read first. Call again when ciphertext has arrived.
pub const TLS_SPLICE_STEP_WANT_TLS: u32 = 64;

impl Direction {
    /// The bit of the direction.
    pub fn bit(self) -> u32 {
        match self {
            Direction::Inbound => TLS_SPLICE_DECRYPT,
            Direction::Outbound => TLS_SPLICE_ENCRYPT,
        }
    }
}

impl Flush {
    fn bit(self) -> u32 {
        match self {
            Flush::No => 0,
            Flush::Yes => TLS_SPLICE_STEP_FLUSH,
        }
    }
}

impl Outcome<InboundStep> {
    /// The bits of the step.
    pub fn bits(self) -> u32 {
        let step = match self.step {
            InboundStep::WantCiphertext => 0,
            InboundStep::Blocked => TLS_SPLICE_STEP_PAUSE_TLS,
            InboundStep::Spent => TLS_SPLICE_STEP_MORE | TLS_SPLICE_STEP_PAUSE_TLS,
            InboundStep::Ended { .. } => TLS_SPLICE_STEP_OVER,
            InboundStep::Failed(_) => TLS_SPLICE_STEP_FAILED | TLS_SPLICE_STEP_PAUSE_TLS,
            InboundStep::Stopped | InboundStep::Cancelled => {
                TLS_SPLICE_STEP_STOPPED | TLS_SPLICE_STEP_PAUSE_TLS
            }
        };
        step | self.flush.bit()
    }

    /// What `SSL_read` returned when the direction has ended, else 1.
    pub fn ssl_ret(self) -> c_int {
        match self.step {
            InboundStep::Ended { ssl_ret } => ssl_ret,
            _ => 1,
        }
    }
}

impl Outcome<OutboundStep> {
    /// The bits of the step.
    pub fn bits(self) -> u32 {
        let step = match self.step {
            OutboundStep::Idle | OutboundStep::WantSource => 0,
            OutboundStep::AfterDrain => TLS_SPLICE_STEP_MORE,
            OutboundStep::WantCiphertext => TLS_SPLICE_STEP_WANT_TLS,
            OutboundStep::Ended => TLS_SPLICE_STEP_OVER,
            OutboundStep::Failed(_) => TLS_SPLICE_STEP_FAILED,
            OutboundStep::Stopped | OutboundStep::SessionFailed | OutboundStep::Cancelled => {
                TLS_SPLICE_STEP_STOPPED
            }
        };
        step | self.flush.bit()
    }
}

/// A [`Splice`] whose directions and steps are bits.
pub struct Pump(Splice);

impl Pump {
    /// See [`Splice::new`].
    pub fn new(endpoint: Endpoint, framing: Framing, high_water_mark: usize) -> Pump {
        Pump(Splice::new(endpoint, framing, high_water_mark))
    }

    /// See [`Splice::start`]; for each direction whose bit is set.
    pub fn start(&mut self, directions: u32) {
        for direction in [Direction::Inbound, Direction::Outbound] {
            if directions & direction.bit() != 0 {
                self.0.start(direction);
            }
        }
    }

    /// See [`Splice::run_inbound`]. Returns the bits of the step, and what `SSL_read`
    /// returned when the direction has ended, else 1.
    ///
    /// # Safety
    /// As for [`Splice::run_inbound`].
    pub unsafe fn decrypt(&mut self, ssl: *mut SSL, cancelled: &Cell<bool>) -> (u32, c_int) {
        // SAFETY: passed on.
        let outcome = unsafe { self.0.run_inbound(ssl, cancelled) };
        (outcome.bits(), outcome.ssl_ret())
    }

    /// See [`Splice::run_outbound`]. Returns the bits of the step.
    ///
    /// # Safety
    /// As for [`Splice::run_outbound`].
    pub unsafe fn encrypt(&mut self, ssl: *mut SSL, cancelled: &Cell<bool>) -> u32 {
        // SAFETY: passed on.
        unsafe { self.0.run_outbound(ssl, cancelled) }.bits()
    }
}

impl Deref for Pump {
    type Target = Splice;

    fn deref(&self) -> &Splice {
        &self.0
    }
}

impl DerefMut for Pump {
    fn deref_mut(&mut self) -> &mut Splice {
        &mut self.0
    }
}
