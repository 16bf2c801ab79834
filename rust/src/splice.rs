//! One splice: both byte pumps, the endpoint and the BIOs that they share, and why the
//! splice has failed.
//!
//! A file is not polled, since it never says that it would block, and is not read or
//! written here, since it does block. Instead the caller asks for a [`Transfer`], carries
//! it out on another thread, and reports what came of it. The caller does likewise for a
//! stream of its own, and when another splice is the endpoint of this one: then
//! [`Splice::pass`] is the transfer.

use std::cell::Cell;

use libc::{c_int, c_ulong};
use openssl_sys::SSL;

use crate::buf::{Size, CHUNK_SIZE};
use crate::endpoint::{Adopted, Endpoint, READABLE, WRITABLE};
use crate::error::Failure;
use crate::frame::PacketFormat;
use crate::inbound::{Ciphertext, Inbound, InboundStep};
use crate::outbound::{self, Intake, Outbound, OutboundStep};
use crate::packets::Unit;
use crate::ssl::rbio::Rbio;
use crate::ssl::session;
use crate::ssl::wbio::Wbio;
use crate::stats::Stats;

/// A TLS record carries at most this many bytes of cleartext.
pub(crate) const MAX_RECORD: usize = 16 * 1024;

/// The directions of a splice, as seen from the endpoint's side of the TLS session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// What the TLS peer sends goes to the endpoint.
    Inbound,
    /// What the endpoint gives is sent to the TLS peer.
    Outbound,
}

/// What both directions share.
pub struct Context {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// What the packets in the TLS stream are like.
    pub format: PacketFormat,
    /// What the endpoint takes and gives at a time.
    pub unit: Unit,
    /// Bytes to hold per direction at most, but never less than one packet.
    pub high_water_mark: usize,
    /// Counters.
    pub stats: Stats,
}

impl Context {
    /// Bytes of cleartext to hold towards the endpoint, and of ciphertext beside it:
    /// half of what may be held each.
    pub fn inbound_limit(&self) -> usize {
        (self.high_water_mark / 2).max(1)
    }

    /// The size of the buffers for cleartext towards the endpoint, and for the ciphertext
    /// that it is made of. Packets can only be joined with those that arrive at once.
    pub fn inbound_size(&self) -> Size {
        let is_large = self.inbound_limit() > CHUNK_SIZE;
        match is_large && self.endpoint.joins_packets() {
            true => Size::ForSuperPackets,
            false => Size::Small,
        }
    }
}

/// Memory to read a file or stream into, or to write to it.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// The descriptor, which stays the splice's; -1 for a stream of the caller's.
    pub fd: c_int,
    /// The memory: nobody else touches it until the transfer ends.
    pub base: *mut u8,
    /// Length in bytes; 0 means that there is nothing to do.
    pub len: usize,
}

/// What one run of a direction came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<Step> {
    /// What to do with the direction.
    pub step: Step,
    /// What to do with the write BIO.
    pub flush: Flush,
}

/// What to do with the write BIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing.
    No,
    /// It may hold ciphertext, which is to be written to the stream.
    Yes,
}

#[cfg(test)]
#[derive(Clone, Copy)]
pub(crate) enum Bio {
    Read,
    Write,
}

/// Both directions of one splice and the endpoint that they share.
///
/// It may be moved between threads, and calls must not overlap. The session (`ssl`) is
/// passed to each call that needs it, and never stored.
pub struct Splice {
    context: Context,
    inbound: Option<Inbound>,
    outbound: Option<Outbound>,
    rbio: Option<Rbio>,
    wbio: Option<Wbio>,
    /// The source was left before the outbound direction was started.
    is_source_left: bool,
    failure: Option<Failure>,
    adopted: Adopted,
    is_inbound_released: bool,
    is_outbound_released: bool,
}

impl Splice {
    /// A splice that holds at most `high_water_mark` bytes per direction.
    pub fn new(endpoint: Endpoint, format: PacketFormat, high_water_mark: usize) -> Splice {
        Splice {
            context: Context {
                unit: endpoint.unit(),
                endpoint,
                format,
                high_water_mark,
                stats: Stats::default(),
            },
            inbound: None,
            outbound: None,
            rbio: None,
            wbio: None,
            is_source_left: false,
            failure: None,
            adopted: Adopted::default(),
            is_inbound_released: false,
            is_outbound_released: false,
        }
    }

    /// Takes over the caller's descriptor number `fd`, to be closed with the splice, and
    /// closes the one taken over before. With -1 nothing is taken over.
    ///
    /// # Safety
    /// As for [`Adopted::replace`].
    pub unsafe fn adopt_fd(&mut self, fd: c_int) {
        // SAFETY: passed on.
        unsafe { self.adopted.replace(fd) };
    }

    /// Closes the endpoint, and the descriptor that was taken over. Neither direction may
    /// be used after that.
    pub fn close_endpoint(&mut self) {
        self.context.endpoint = Endpoint::of_caller();
        self.adopted = Adopted::default();
    }

    /// The endpoint.
    pub fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.context.endpoint
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        self.context.stats
    }

    /// Starts a direction, unless it has been started. Until then its calls do nothing.
    pub fn start(&mut self, direction: Direction) {
        match direction {
            Direction::Inbound => {
                let size = self.context.inbound_size();
                self.inbound.get_or_insert_with(|| Inbound::new(size));
            }
            Direction::Outbound => {
                let high_water_mark = self.context.high_water_mark;
                let outbound = self
                    .outbound
                    .get_or_insert_with(|| Outbound::new(high_water_mark));
                if self.is_source_left {
                    outbound.leave_source();
                }
            }
        }
    }

    /// Asks the started directions to stop. The outbound one finishes an `SSL_write`
    /// that OpenSSL has begun, then its step is [`OutboundStep::Stopped`].
    pub fn stop(&mut self) {
        if let Some(inbound) = &mut self.inbound {
            inbound.stop();
        }
        if let Some(outbound) = &mut self.outbound {
            outbound.stop();
        }
    }

    /// Stops reading the source, or does not begin with it. What was read is still
    /// encrypted, then the step is [`OutboundStep::Ended`].
    pub fn leave_source(&mut self) {
        self.is_source_left = true;
        if let Some(outbound) = &mut self.outbound {
            outbound.leave_source();
        }
    }

    /// Queues bytes that JavaScript had read, cleartext for the endpoint or from it.
    /// Only right after [`Splice::start`] of that direction.
    pub fn push_before(&mut self, direction: Direction, bytes: &[u8]) {
        match (direction, &mut self.inbound, &mut self.outbound) {
            (Direction::Inbound, Some(inbound), _) => inbound.push_before(bytes),
            (Direction::Outbound, _, Some(outbound)) => outbound.push_before(bytes),
            _ => {}
        }
    }

    /// Takes note that the direction has been given back to JavaScript. Its buffers stay
    /// until the splice is freed, since a transfer may be using them.
    pub fn release(&mut self, direction: Direction) {
        match direction {
            Direction::Inbound => self.is_inbound_released = true,
            Direction::Outbound => self.is_outbound_released = true,
        }
    }

    /// Whether the direction has been started. It may have been given back since.
    pub fn was_started(&self, direction: Direction) -> bool {
        match direction {
            Direction::Inbound => self.inbound.is_some(),
            Direction::Outbound => self.outbound.is_some(),
        }
    }

    /// Whether the direction has been started, and not been given back since.
    pub fn has(&self, direction: Direction) -> bool {
        match direction {
            Direction::Inbound => self.inbound.is_some() && !self.is_inbound_released,
            Direction::Outbound => self.outbound.is_some() && !self.is_outbound_released,
        }
    }

    /// Why the TLS peer sends nothing more, if `SSL_read` has said so.
    pub fn cleartext_end(&self) -> Option<session::Cause> {
        self.inbound.as_ref().and_then(Inbound::end_cause)
    }

    /// Why the splice failed, if it has.
    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }
}

/// The byte pumps.
impl Splice {
    /// Moves what it can from `ssl` to the endpoint. To be called when ciphertext has
    /// arrived, when the endpoint is writable, and as the step says.
    ///
    /// # Safety
    /// `ssl` must be valid, and stay so while its callbacks run. Those may set
    /// `cancelled`, after which `ssl` is not used any more.
    pub unsafe fn run_inbound(
        &mut self,
        ssl: *mut SSL,
        cancelled: &Cell<bool>,
    ) -> Outcome<InboundStep> {
        // SAFETY: passed on.
        let step = unsafe { self.inbound_step(ssl, cancelled) };
        let mut flush = Flush::No;
        if !matches!(step, InboundStep::Stopped | InboundStep::Cancelled) {
            // What OpenSSL answered to a KeyUpdate, a renegotiation or bad records.
            let pending = match &self.outbound {
                // SAFETY: by the contract above; the call was not cancelled.
                Some(outbound) if !self.is_outbound_released => unsafe {
                    outbound.hold(ssl, &mut self.context)
                },
                // SAFETY: as above.
                _ => unsafe { session::pending_ciphertext(ssl) },
            };
            if pending > 0 {
                flush = Flush::Yes;
            }
            // Ciphertext arrives while the endpoint is full, too, if the stream that it
            // comes from is not stopped at once.
            // SAFETY: as above.
            self.hold_in(unsafe { session::unread_ciphertext(ssl) });
        }
        Outcome { step, flush }
    }

    /// # Safety
    /// As for [`Splice::run_inbound`].
    unsafe fn inbound_step(&mut self, ssl: *mut SSL, cancelled: &Cell<bool>) -> InboundStep {
        let Some(inbound) = &mut self.inbound else {
            return InboundStep::WantCiphertext;
        };
        if self.failure.is_some() {
            return InboundStep::Stopped;
        }
        let ciphertext = match self.rbio {
            Some(_) => Ciphertext::Lent,
            None => Ciphertext::Unbounded,
        };
        // SAFETY: passed on.
        let step = unsafe { inbound.run(ssl, cancelled, ciphertext, &mut self.context) };
        if let InboundStep::Failed(failure) = step {
            self.failure = Some(failure);
        }
        step
    }

    /// Reads nothing more from the session, as if `SSL_read` had said so.
    pub fn give_up(&mut self, end: session::End) {
        if let Some(inbound) = &mut self.inbound {
            inbound.give_up(end);
        }
    }

    /// Whether the endpoint may have packets to read because it was given some, although
    /// poll(2) has not said so yet.
    pub fn may_be_answered(&self) -> bool {
        let outbound = self.outbound.as_ref();
        self.has(Direction::Outbound)
            && outbound.is_some_and(|outbound| outbound.may_be_answered(&self.context))
    }

    /// Moves what it can from the endpoint to `ssl`. To be called when the endpoint is
    /// readable, when the write BIO has drained, when ciphertext has arrived, and as the
    /// step says.
    ///
    /// # Safety
    /// As for [`Splice::run_inbound`].
    pub unsafe fn run_outbound(
        &mut self,
        ssl: *mut SSL,
        cancelled: &Cell<bool>,
    ) -> Outcome<OutboundStep> {
        if let Some(wbio) = &mut self.wbio {
            wbio.begin_collecting();
        }
        // SAFETY: passed on.
        let step = unsafe { self.outbound_step(ssl, cancelled) };
        if let Some(wbio) = &mut self.wbio {
            wbio.end_collecting();
        }
        let flush = match step {
            OutboundStep::Idle
            | OutboundStep::Ended
            | OutboundStep::SessionFailed
            | OutboundStep::Cancelled => Flush::No,
            OutboundStep::WantSource
            | OutboundStep::AfterDrain
            | OutboundStep::WantCiphertext
            | OutboundStep::Stopped
            | OutboundStep::Failed(_) => Flush::Yes,
        };
        Outcome { step, flush }
    }

    /// # Safety
    /// As for [`Splice::run_inbound`].
    unsafe fn outbound_step(&mut self, ssl: *mut SSL, cancelled: &Cell<bool>) -> OutboundStep {
        let Some(outbound) = &mut self.outbound else {
            return OutboundStep::Idle;
        };
        let intake = match self.failure {
            None => Intake::Open,
            Some(Failure::Tls(_)) if outbound.is_over() => return OutboundStep::Idle,
            Some(Failure::Tls(_)) => return OutboundStep::SessionFailed,
            // The endpoint's failure ends this direction too.
            Some(_) => Intake::Shut,
        };
        // SAFETY: passed on.
        let step = unsafe { outbound.run(ssl, cancelled, intake, &mut self.context) };
        if let OutboundStep::Failed(failure) = step {
            let has_inbound_failed = self.inbound.as_ref().is_some_and(Inbound::has_failed);
            // SSL_read has failed before and said why, which the inbound direction
            // reports once all before that is delivered.
            if matches!(failure, Failure::Tls(_)) && has_inbound_failed {
                outbound.abandon();
                return OutboundStep::Stopped;
            }
            self.failure = Some(failure);
        }
        step
    }

    /// Hands what was decrypted to `to`, whose source this splice is, to be sent on the
    /// session `ssl` of that one. No byte is copied that need not be. False if there is
    /// nothing to hand over, or `to` has no room.
    ///
    /// # Safety
    /// `ssl` must be valid.
    pub unsafe fn pass(&mut self, to: &mut Splice, ssl: *mut SSL) -> bool {
        let (Some(inbound), Some(outbound)) = (&mut self.inbound, &mut to.outbound) else {
            return false;
        };
        let has_failed = self.failure.is_some() || to.failure.is_some();
        if has_failed || !inbound.has_cleartext_to_pass() || !outbound.wants_source() {
            return false;
        }
        // SAFETY: by the contract above.
        let pending = unsafe { session::pending_ciphertext(ssl) };
        let room = outbound::room(&to.context, pending, Unit::Bytes);
        if room == 0 {
            return false;
        }
        let limit = outbound::read_limit(room);
        outbound.accept(inbound.pass(limit, &mut self.context));
        true
    }
}

/// Waiting for the endpoint, and transfers.
impl Splice {
    /// What the endpoint is to be polled for, or to be asked for by a transfer:
    /// [`READABLE`], [`WRITABLE`], both or 0.
    ///
    /// # Safety
    /// `ssl` must be valid.
    pub unsafe fn interest(&self, ssl: *mut SSL) -> u32 {
        if self.failure.is_some() {
            return 0;
        }
        let mut interest = 0;
        if self.inbound.as_ref().is_some_and(Inbound::wants_sink) {
            interest |= WRITABLE;
        }
        if self.outbound.as_ref().is_some_and(Outbound::wants_source) {
            // SAFETY: by the contract above.
            let pending = unsafe { session::pending_ciphertext(ssl) };
            if outbound::room(&self.context, pending, self.context.unit) > 0 {
                interest |= READABLE;
            }
        }
        interest
    }

    /// Prepares to wait for the endpoint: counts the directions that are stalled, and
    /// lets the endpoint watch for [`Splice::interest`]. Returns what to poll the
    /// endpoint's descriptor for, 0 for nothing. `waits` are the directions, as bits of
    /// interest, that wait for the endpoint at all.
    ///
    /// # Safety
    /// `ssl` must be valid.
    pub unsafe fn begin_wait(&mut self, ssl: *mut SSL, waits: u32) -> u32 {
        // SAFETY: passed on.
        let interest = unsafe { self.interest(ssl) } & waits;
        if self.failure.is_none() {
            let context = &mut self.context;
            if let Some(inbound) = &mut self.inbound {
                if context.endpoint.transfers_at_once() {
                    inbound.count_stall_of_caller(&mut context.stats);
                }
            }
            if let Some(outbound) = &mut self.outbound {
                match interest & READABLE {
                    0 => outbound.count_stall(&mut context.stats),
                    _ => outbound.end_stall(),
                }
            }
        }
        self.context.endpoint.set_interest(interest)
    }

    /// Begins the transfer of a direction that [`Splice::interest`] has asked for.
    ///
    /// # Safety
    /// `ssl` must be valid. The splice must stay until [`Splice::end_transfer`].
    pub unsafe fn begin_transfer(&mut self, ssl: *mut SSL, direction: Direction) -> Transfer {
        let mut transfer = Transfer {
            fd: self.context.endpoint.fd(),
            base: std::ptr::null_mut(),
            len: 0,
        };
        match (direction, &mut self.inbound, &mut self.outbound) {
            (Direction::Inbound, Some(inbound), _) => {
                let bytes = inbound.begin_transfer(self.context.format);
                // Only read from: the caller passes it to write(2).
                transfer.base = bytes.as_ptr().cast_mut();
                transfer.len = bytes.len();
            }
            (Direction::Outbound, _, Some(outbound)) => {
                // SAFETY: by the contract above.
                let pending = unsafe { session::pending_ciphertext(ssl) };
                let spare = outbound.begin_transfer(pending, &self.context);
                transfer.base = spare.as_mut_ptr();
                transfer.len = spare.len();
            }
            _ => {}
        }
        transfer
    }

    /// Ends a transfer with the bytes that were transferred, or an errno. ECANCELED says
    /// that nothing was tried.
    pub fn end_transfer(&mut self, direction: Direction, result: Result<usize, c_int>) {
        let result = match result {
            Ok(n) => Ok(Some(n)),
            Err(libc::ECANCELED | libc::EINTR | libc::EAGAIN) => Ok(None),
            Err(errno) => Err(errno),
        };
        match (direction, &mut self.inbound, &mut self.outbound) {
            (Direction::Inbound, Some(inbound), _) => {
                inbound.end_transfer(result, &mut self.context);
            }
            (Direction::Outbound, _, Some(outbound)) => outbound.end_transfer(result),
            _ => {}
        }
    }
}

/// The end of what the TLS peer sends.
impl Splice {
    /// Takes note that nothing more will be decrypted. False if that is within a packet:
    /// then the splice has failed.
    pub fn end_inbound(&mut self) -> bool {
        match &self.inbound {
            Some(inbound) if !inbound.is_at_boundary() => {
                self.failure = Some(inbound.out_of_step());
                false
            }
            _ => true,
        }
    }

    /// Hands over the error that has ended the TLS side: see [`Inbound::take_error`].
    pub fn take_error(&mut self) -> Option<(c_int, c_ulong)> {
        self.inbound.as_mut()?.take_error()
    }

    /// See [`Inbound::inherit_error`].
    pub fn inherit_error(&mut self, error: (c_int, c_ulong)) {
        if let Some(inbound) = &mut self.inbound {
            inbound.inherit_error(error);
        }
    }

    /// How many bytes were decrypted, or pushed before the first run, and not taken by the
    /// endpoint.
    pub fn undelivered(&self) -> usize {
        self.inbound
            .as_ref()
            .map_or(0, |inbound| inbound.held().len())
    }

    /// Takes out at most `len` of the bytes that [`Splice::undelivered`] counts, and gives
    /// them to `take` in order, piece by piece. Returns how many these were. `None` while
    /// a transfer writes them: how many of them the endpoint gets is not known then, and
    /// the memory has to stay.
    pub fn take_undelivered(&mut self, len: usize, take: impl FnMut(&[u8])) -> Option<usize> {
        match &mut self.inbound {
            Some(inbound) => inbound.take_held(len, take),
            None => Some(0),
        }
    }
}

/// The BIOs.
impl Splice {
    /// Puts a BIO of the splice's between OpenSSL and Node's BIO: for the inbound
    /// direction, OpenSSL reads ciphertext from a buffer of the splice's; for the outbound
    /// one, OpenSSL writes ciphertext to buffers of the splice's. Nothing if that was done
    /// before. False if OpenSSL cannot allocate.
    ///
    /// # Safety
    /// As for [`Rbio::attach`] and [`Wbio::attach`].
    pub unsafe fn attach(&mut self, direction: Direction, ssl: *mut SSL) -> bool {
        match direction {
            Direction::Inbound => {
                if self.rbio.is_none() {
                    // SAFETY: passed on.
                    self.rbio = unsafe { Rbio::attach(ssl, self.context.inbound_size()) };
                }
                self.rbio.is_some()
            }
            Direction::Outbound => {
                if self.wbio.is_none() {
                    // SAFETY: passed on.
                    self.wbio = unsafe { Wbio::attach(ssl) };
                }
                self.wbio.is_some()
            }
        }
    }

    /// Undoes [`Splice::attach`] of that direction, if it was called.
    ///
    /// # Safety
    /// As for [`Rbio::detach`] and [`Wbio::detach`].
    pub unsafe fn detach(&mut self, direction: Direction, ssl: *mut SSL) {
        match direction {
            Direction::Inbound => {
                if let Some(rbio) = self.rbio.take() {
                    // SAFETY: passed on.
                    unsafe { rbio.detach(ssl) };
                }
            }
            Direction::Outbound => {
                if let Some(wbio) = self.wbio.take() {
                    // SAFETY: passed on.
                    unsafe { wbio.detach(ssl) };
                }
            }
        }
    }

    /// The write BIO, with the ciphertext to write now.
    pub fn wbio(&mut self) -> Option<&mut Wbio> {
        self.wbio.as_mut()
    }

    /// Whether a callback of one of the two BIOs has panicked.
    pub fn has_panicked(&self) -> bool {
        self.rbio.as_ref().is_some_and(Rbio::has_panicked)
            || self.wbio.as_ref().is_some_and(Wbio::has_panicked)
    }

    #[cfg(test)]
    pub(crate) fn sabotage(&mut self, bio: Bio) {
        match bio {
            Bio::Read => self.rbio.as_mut().unwrap().sabotage(),
            Bio::Write => self.wbio.as_mut().unwrap().sabotage(),
        }
    }

    /// The buffer that the stream's next read of ciphertext goes to. Empty unless
    /// [`Splice::attach`] was called for the inbound direction, and when it is time to let
    /// the event loop turn.
    pub fn alloc(&mut self) -> &mut [u8] {
        let mut limit = self.context.inbound_limit();
        let Some(rbio) = &mut self.rbio else {
            return &mut [];
        };
        if let Some(inbound) = &mut self.inbound {
            if inbound.has_end() {
                // Nobody will decrypt it, and the stream is read on for its own end.
                rbio.discard();
            } else {
                let Some(share) = inbound.begin_read() else {
                    return &mut [];
                };
                limit = limit.min(share);
            }
        }
        rbio.spare(limit)
    }

    /// Takes in `n` bytes of ciphertext that were read into the buffer of
    /// [`Splice::alloc`].
    pub fn commit(&mut self, n: usize) {
        let Some(rbio) = &mut self.rbio else {
            return;
        };
        if let Some(inbound) = &mut self.inbound {
            inbound.take_in(n);
        }
        rbio.commit(n);
        let ciphertext = rbio.pending();
        self.hold_in(ciphertext);
    }

    /// Takes note that `ciphertext` bytes are held towards the endpoint, and the cleartext beside
    /// them.
    fn hold_in(&mut self, ciphertext: usize) {
        let cleartext = self
            .inbound
            .as_ref()
            .map_or(0, |inbound| inbound.held().buffered());
        self.context.stats.hold_in(cleartext + ciphertext);
    }
}
