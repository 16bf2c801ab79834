//! The inbound byte pump: `SSL_read` to endpoint.

use std::cell::Cell;

use libc::{c_int, c_ulong};
use openssl_sys::SSL;

use crate::budget::{Admission, Budget, Call};
use crate::buf::{Chunk, Held, Size};
use crate::endpoint::{Endpoint, Io, Stream};
use crate::error::{Failure, Syscall};
use crate::frame::PacketFormat;
use crate::packets::{self, Delivery, Track, Unit};
use crate::splice::{Context, Direction, MAX_RECORD};
use crate::ssl::session::{self, Cause, End};
use crate::stats::Stats;
use crate::super_packets;

/// The errno for a write(2) of some bytes that takes none of them and gives no reason:
/// to poll(2) such an endpoint has room, so the write would be tried for ever. gnulib's
/// full_write() fails with this errno then. A packet, on the other hand, may be empty.
const TOOK_NOTHING: c_int = libc::ENOSPC;

/// What one run of the inbound pump came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundStep {
    /// All that could be decrypted is delivered; OpenSSL needs more ciphertext.
    WantCiphertext,
    /// The endpoint takes no more at present: run again once it is writable, or has
    /// taken a transfer. Ciphertext is not to be read until then.
    Blocked,
    /// The budget is spent: run again in the next turn of the event loop. Ciphertext is
    /// not to be read until then.
    Spent,
    /// The TLS peer sends nothing more, and all that it sent is delivered.
    Ended {
        /// What `SSL_read` returned, for SSL_get_error(3); this thread's error queue is
        /// as `SSL_read` left it.
        ssl_ret: c_int,
    },
    /// The endpoint has failed, or the packets are out of step.
    Failed(Failure),
    /// The pump was told to stop, or the splice has failed before.
    Stopped,
    /// A callback of OpenSSL's has cancelled the call: the session was not used after
    /// that, and must not be.
    Cancelled,
}

/// How much ciphertext there may be for one run of the pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ciphertext {
    /// Any amount: the ciphertext is in Node's BIO.
    Unbounded,
    /// As much as [`crate::splice::Splice::alloc`] has lent memory for. When the budget is spent,
    /// `alloc` lends nothing more, so that little ciphertext is left to decrypt.
    Lent,
}

/// What the endpoint did at the last delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sink {
    /// The endpoint has taken all that it was given, except for the beginning of a packet whose
    /// rest is to come.
    #[default]
    Open,
    /// The endpoint takes no more at present.
    Full,
}

/// The inbound pump: decrypts and delivers.
#[derive(Default)]
pub struct Inbound {
    /// Cleartext that the endpoint has not taken.
    held: Held,
    track: Track,
    budget: Budget,
    /// The last run has left something to do for another turn.
    is_interrupted: bool,
    sink: Sink,
    /// A full sink that is the caller's was counted as a stall, and is counted again
    /// only after it has taken everything.
    is_stall_counted: bool,
    /// A transfer writes the front of `held`, which must stay where it is until the
    /// transfer ends.
    is_transferring: bool,
    /// The errno of a transfer, until it is reported.
    transfer_error: Option<c_int>,
    /// How the peer's cleartext has ended, once `SSL_read` has said so.
    end: Option<End>,
    /// The caller knows of `end`.
    is_end_told: bool,
    is_stopped: bool,
}

/// What [`Inbound::fill`] came to.
enum Filled {
    /// There is something to deliver, and maybe more to decrypt.
    More,
    /// OpenSSL needs more ciphertext.
    Want,
    Cancelled,
}

impl Inbound {
    /// A pump that decrypts into buffers of that size.
    pub fn new(size: Size) -> Inbound {
        Inbound {
            held: Held::new(size),
            ..Inbound::default()
        }
    }

    /// Queues cleartext that was decrypted before the splice. Only before the first
    /// [`Inbound::run`].
    pub fn push_before(&mut self, bytes: &[u8]) {
        self.held.push_before(bytes);
    }

    /// Moves nothing from now on.
    pub fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// Decrypts nothing more, as if `SSL_read` had said so. What is held is delivered.
    pub fn give_up(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    /// Takes note of `n` bytes of ciphertext that were read into a lent buffer.
    pub fn take_in(&mut self, n: usize) {
        self.budget.take_in(n);
    }

    /// Decrypts what it can and delivers it.
    ///
    /// # Safety
    /// `ssl` must be valid, and stay so while its callbacks run. Those may set
    /// `cancelled`, after which `ssl` is not used any more.
    pub unsafe fn run(
        &mut self,
        ssl: *mut SSL,
        cancelled: &Cell<bool>,
        ciphertext: Ciphertext,
        context: &mut Context,
    ) -> InboundStep {
        if self.is_stopped {
            return InboundStep::Stopped;
        }
        // A direction that was interrupted has to ask. Any other goes on with what was read when it
        // was admitted, or has nothing to do.
        match std::mem::take(&mut self.is_interrupted) {
            true if self.budget.begin() == Admission::Wait => {
                self.is_interrupted = true;
                return InboundStep::Spent;
            }
            true => {}
            false => self.budget.go_on(),
        }
        // SAFETY: passed on.
        let step = unsafe { self.work(ssl, cancelled, ciphertext, context) };
        self.budget.settle();
        step
    }

    /// # Safety
    /// As for [`Inbound::run`].
    unsafe fn work(
        &mut self,
        ssl: *mut SSL,
        cancelled: &Cell<bool>,
        ciphertext: Ciphertext,
        context: &mut Context,
    ) -> InboundStep {
        let mut is_dry = false;
        loop {
            match self.deliver(context) {
                Delivery::All => {}
                Delivery::Blocked => {
                    // The endpoint can be written in a later turn.
                    self.is_interrupted = true;
                    return InboundStep::Blocked;
                }
                Delivery::Transfer => return InboundStep::Blocked,
                Delivery::Spent => {
                    self.is_interrupted = true;
                    return InboundStep::Spent;
                }
                Delivery::OutOfStep => return InboundStep::Failed(self.out_of_step()),
                Delivery::Failed(errno) => {
                    return InboundStep::Failed(Failure::Endpoint {
                        syscall: Syscall::Write,
                        errno,
                    })
                }
            }
            if let Some(end) = self.end {
                // SAFETY: by the contract above.
                return unsafe { self.finish(ssl, end) };
            }
            if is_dry {
                return InboundStep::WantCiphertext;
            }
            if self.must_yield(ciphertext) {
                self.is_interrupted = true;
                return InboundStep::Spent;
            }
            // SAFETY: by the contract above.
            match unsafe { self.fill(ssl, cancelled, context) } {
                Filled::More => {}
                Filled::Want => is_dry = true,
                Filled::Cancelled => return InboundStep::Cancelled,
            }
        }
    }

    fn must_yield(&self, ciphertext: Ciphertext) -> bool {
        match ciphertext {
            Ciphertext::Unbounded => self.budget.is_spent(),
            Ciphertext::Lent => self.budget.is_overdrawn(),
        }
    }

    /// Tells the caller of the end, all before it being delivered.
    ///
    /// # Safety
    /// As for [`session::read`].
    unsafe fn finish(&mut self, ssl: *mut SSL, end: End) -> InboundStep {
        if end.cause == Cause::CloseNotify && !self.is_at_boundary() {
            return InboundStep::Failed(self.out_of_step());
        }
        self.is_end_told = true;
        InboundStep::Ended {
            // SAFETY: passed on.
            ssl_ret: unsafe { end.report(ssl) },
        }
    }

    /// Decrypts until the chunk is full, or what may be held at a time is there.
    ///
    /// # Safety
    /// As for [`Inbound::run`].
    unsafe fn fill(
        &mut self,
        ssl: *mut SSL,
        cancelled: &Cell<bool>,
        context: &mut Context,
    ) -> Filled {
        let limit = context.inbound_limit();
        let mut filled = Filled::More;
        loop {
            let chunk = self.held.chunk();
            let spare = chunk.spare_for(context.unit);
            let len = spare.len().min(limit);
            // SAFETY: by the contract above.
            match unsafe { session::read(ssl, &mut spare[..len]) } {
                session::Read::Data(n) => {
                    chunk.commit(n);
                    self.budget.spend(Call::SslRead, n);
                    context.stats.bytes_decrypted += n as u64;
                }
                session::Read::Want => filled = Filled::Want,
                session::Read::End(end) => {
                    context.stats.close_notify = (end.cause == Cause::CloseNotify).into();
                    self.end = Some(end);
                }
            }
            if cancelled.get() {
                return Filled::Cancelled;
            }
            let is_full = is_full(chunk, context.unit, limit);
            if is_full || !matches!(filled, Filled::More) || self.end.is_some() {
                break;
            }
            // A chunk may be begun before the budget is spent, and filled after that:
            // small records are what this bounds.
            if self.budget.is_overdrawn() {
                break;
            }
        }
        // SAFETY: by the contract above.
        let ciphertext = unsafe { session::unread_ciphertext(ssl) };
        context.stats.hold_in(self.held.buffered() + ciphertext);
        self.held.release_if_empty();
        filled
    }

    /// Writes what is held to the endpoint.
    fn deliver(&mut self, context: &mut Context) -> Delivery {
        let was_full = std::mem::take(&mut self.sink) == Sink::Full;
        if let Some(errno) = self.transfer_error.take() {
            return Delivery::Failed(errno);
        }
        if self.held.is_empty() {
            return Delivery::All;
        }
        let Context {
            endpoint,
            format,
            stats,
            ..
        } = context;
        let delivery = match endpoint {
            Endpoint::Packets(endpoint) => packets::deliver_packets(
                &mut self.held,
                &mut self.track,
                &mut self.budget,
                endpoint,
                *format,
                stats,
            ),
            Endpoint::Vnet(device) => super_packets::deliver(
                &mut self.held,
                &mut self.track,
                &mut self.budget,
                device,
                *format,
                stats,
            ),
            Endpoint::Stream(stream) => self.deliver_bytes(stream, *format, stats),
            Endpoint::File(_) | Endpoint::Caller(_) => {
                match self.track.look_ahead(*format, self.held.front()) {
                    0 => Delivery::OutOfStep,
                    _ => Delivery::Transfer,
                }
            }
        };
        match delivery {
            Delivery::Blocked => {
                self.sink = Sink::Full;
                if !was_full {
                    stats.stalls_in += 1;
                }
            }
            Delivery::Transfer => self.sink = Sink::Full,
            Delivery::All | Delivery::Spent | Delivery::OutOfStep | Delivery::Failed(_) => {}
        }
        delivery
    }

    fn deliver_bytes(
        &mut self,
        stream: &Stream,
        format: PacketFormat,
        stats: &mut Stats,
    ) -> Delivery {
        while !self.held.is_empty() {
            let wanted = self.track.look_ahead(format, self.held.front());
            if wanted == 0 {
                return Delivery::OutOfStep;
            }
            let io = stream.write(&self.held.front()[..wanted]);
            if let Io::Bytes(n) = io {
                self.budget.spend_again(Call::System, n);
                self.delivered(n, format, stats);
            }
            match io {
                Io::Bytes(n) if n == wanted => {}
                Io::Bytes(0) => return Delivery::Failed(TOOK_NOTHING),
                Io::Failed(errno) => return Delivery::Failed(errno),
                // A short write says what EAGAIN would: the endpoint is full.
                Io::Bytes(_) | Io::WouldBlock => return Delivery::Blocked,
            }
        }
        Delivery::All
    }

    /// Takes note that the endpoint has taken `n` bytes of the front.
    fn delivered(&mut self, n: usize, format: PacketFormat, stats: &mut Stats) {
        let bytes = &self.held.front()[..n];
        self.track
            .pass(format, bytes, |packet| stats.count_in(packet.len));
        self.held.consume(n);
        self.is_stall_counted &= !self.held.is_empty();
        stats.bytes_in += n as u64;
    }

    /// Begins a transfer to the endpoint: the bytes to write, which stay where they are
    /// until [`Inbound::end_transfer`]. Empty if there is nothing to write, or another
    /// transfer is under way; then there is no end.
    pub fn begin_transfer(&mut self, format: PacketFormat) -> &[u8] {
        if self.is_transferring {
            return &[];
        }
        let n = self.track.look_ahead(format, self.held.front());
        self.is_transferring = n > 0;
        &self.held.front()[..n]
    }

    /// Ends a transfer that has written that many bytes, or failed with an errno that
    /// ends the direction; `Ok(None)` if nothing was tried.
    pub fn end_transfer(&mut self, result: Result<Option<usize>, c_int>, context: &mut Context) {
        if !std::mem::take(&mut self.is_transferring) {
            return;
        }
        self.transfer_error = match result {
            Ok(Some(0)) => Some(TOOK_NOTHING),
            Ok(_) => None,
            Err(errno) => Some(errno),
        };
        if let Ok(Some(n)) = result {
            self.delivered(n, context.format, &mut context.stats);
        }
    }

    /// Whether there is cleartext for another splice, whose source this direction is.
    pub fn has_cleartext_to_pass(&self) -> bool {
        !(self.is_stopped || self.is_transferring || self.held.is_empty())
    }

    /// Takes at most `limit` bytes of cleartext out for another splice, whose source this
    /// direction is. With a framing these are bytes of packets, which may end within one; what
    /// is no packet stays.
    pub fn pass(&mut self, limit: usize, context: &mut Context) -> Held {
        let stats = &mut context.stats;
        let n = if context.format.has_packets() {
            let n = self.track.look_ahead(context.format, self.held.front());
            let n = n.min(limit);
            let bytes = &self.held.front()[..n];
            self.track
                .pass(context.format, bytes, |packet| stats.count_in(packet.len));
            n
        } else {
            let n = match self.held.len() {
                all if all <= limit => all,
                _ => self.held.front().len().min(limit),
            };
            self.track.skip(n);
            n
        };
        stats.bytes_in += n as u64;
        let passed = self.held.take(n);
        self.is_stall_counted &= !self.held.is_empty();
        passed
    }

    /// Takes note that ciphertext is about to be read into a lent buffer.
    ///
    /// Returns how many bytes may be read at most; `None` if the direction has to wait for
    /// another turn of the event loop.
    pub fn begin_read(&mut self) -> Option<usize> {
        let is_admitted = self.budget.begin() == Admission::Work;
        (is_admitted && !self.budget.is_nearly_spent()).then(|| self.budget.left())
    }

    /// Counts a stall if the caller's stream, which has been given the chance to take
    /// what is held, has not. For an endpoint that the splice writes itself
    /// [`Inbound::run`] counts.
    pub fn count_stall_of_caller(&mut self, stats: &mut Stats) {
        if self.is_waiting() && !std::mem::replace(&mut self.is_stall_counted, true) {
            stats.stalls_in += 1;
        }
    }

    /// Whether the direction waits for the endpoint, with or without a transfer.
    fn is_waiting(&self) -> bool {
        self.sink == Sink::Full && !self.is_stopped
    }

    /// Whether the endpoint is to be polled for writing, or a transfer to be begun.
    pub fn wants_sink(&self) -> bool {
        self.is_waiting() && !self.is_transferring
    }

    /// Whether `SSL_read` has said that no more cleartext comes, ever.
    pub fn has_end(&self) -> bool {
        self.end.is_some()
    }

    /// Why no more cleartext comes, if `SSL_read` has said so.
    pub fn end_cause(&self) -> Option<Cause> {
        self.end.map(|end| end.cause)
    }

    /// Whether `SSL_read` has failed, rather than come to the peer's close_notify.
    pub fn has_failed(&self) -> bool {
        self.error().is_some()
    }

    /// Hands over the error that has ended the TLS side behind bytes that are not
    /// delivered: what `SSL_read` returned, and the packed OpenSSL error. The caller gets
    /// it once, since OpenSSL does not repeat it. `None` for a close_notify, which OpenSSL
    /// repeats.
    pub fn take_error(&mut self) -> Option<(c_int, c_ulong)> {
        let error = self.error()?;
        (!std::mem::replace(&mut self.is_end_told, true)).then_some(error)
    }

    /// Takes over what [`Inbound::take_error`] of another pump has handed over.
    pub fn inherit_error(&mut self, (ret, error): (c_int, c_ulong)) {
        self.end = Some(End {
            ret,
            cause: Cause::Error(error),
        });
    }

    /// What `SSL_read` returned when it failed, and its packed OpenSSL error.
    fn error(&self) -> Option<(c_int, c_ulong)> {
        match self.end?.cause {
            Cause::CloseNotify => None,
            Cause::Error(error) => Some((self.end?.ret, error)),
        }
    }

    /// Cleartext that was decrypted and not taken by the endpoint.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// See [`crate::splice::Splice::take_undelivered`].
    pub fn take_held(&mut self, len: usize, mut take: impl FnMut(&[u8])) -> Option<usize> {
        if self.is_transferring {
            return None;
        }
        let mut taken = 0;
        while taken < len && !self.held.is_empty() {
            let n = self.held.front().len().min(len - taken);
            take(&self.held.front()[..n]);
            self.held.consume(n);
            taken += n;
        }
        Some(taken)
    }

    /// Whether no packet has been cut off so far.
    pub fn is_at_boundary(&self) -> bool {
        self.held.is_empty() && self.track.is_at_boundary()
    }

    /// The failure of a stream that is out of step, or ends within a packet.
    pub fn out_of_step(&self) -> Failure {
        Failure::Framing {
            direction: Direction::Inbound,
            offset: self.track.out_of_step(),
        }
    }
}

/// Whether no other record is to be decrypted into `chunk`: records are decrypted whole,
/// unless a small high-water mark forbids that.
fn is_full(chunk: &mut Chunk, unit: Unit, limit: usize) -> bool {
    chunk.spare_for(unit).len() < MAX_RECORD || chunk.len() >= limit
}

#[cfg(test)]
#[allow(clippy::undocumented_unsafe_blocks)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::budget;
    use crate::common::{connect, Tls, TLS1_3};
    use crate::endpoint::Access;
    use crate::frame::Framing;
    use crate::splice::{Flush, Outcome, Splice};

    /// The longest record, which the TLS peer has just sent.
    const SENT: usize = MAX_RECORD;

    /// Delivers `SENT` bytes one by one, since the high-water mark is 1. `receive` takes
    /// in the ciphertext and runs the pump. Returns how many bytes each run delivered.
    fn delivered_per_run(
        receive: impl FnOnce(&mut Splice, &Tls, &[u8]) -> Outcome<InboundStep>,
    ) -> Vec<usize> {
        let (ours, peer) = connect(TLS1_3, false);
        let (mut reader, writer) = std::io::pipe().unwrap();
        let endpoint = Endpoint::open(writer.as_raw_fd(), Access::Write).unwrap();
        let mut splice = Splice::new(endpoint, Framing::Raw.into(), 1);
        splice.start(Direction::Inbound);
        assert!(peer.write(&[7; SENT]));
        let mut outcome = receive(&mut splice, &ours, &peer.take(usize::MAX));
        let mut delivered = vec![splice.stats().bytes_in as usize];
        while outcome.step == InboundStep::Spent {
            budget::next_turn();
            outcome = unsafe { splice.run_inbound(ours.0, &Cell::new(false)) };
            delivered.push(splice.stats().bytes_in as usize - delivered.iter().sum::<usize>());
        }
        assert_eq!(outcome.step, InboundStep::WantCiphertext);
        assert_eq!(outcome.flush, Flush::No);
        let mut bytes = [0; SENT];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [7; SENT]);
        unsafe { splice.detach(Direction::Inbound, ours.0) };
        delivered
    }

    #[test]
    fn a_high_water_mark_of_1_ends_the_turn_after_a_few_thousand_calls() {
        let delivered = delivered_per_run(|splice, ours, ciphertext| {
            ours.give(ciphertext);
            unsafe { splice.run_inbound(ours.0, &Cell::new(false)) }
        });
        assert_eq!(delivered, [3319, 3319, 3319, 3319, SENT - 4 * 3319]);
    }

    #[test]
    fn a_record_in_a_lent_buffer_takes_more_than_one_turn_as_well() {
        let delivered = delivered_per_run(|splice, ours, ciphertext| {
            assert!(unsafe { splice.attach(Direction::Inbound, ours.0) });
            for byte in ciphertext {
                splice.alloc()[0] = *byte;
                splice.commit(1);
            }
            unsafe { splice.run_inbound(ours.0, &Cell::new(false)) }
        });
        assert_eq!(delivered, [6637, 6637, SENT - 2 * 6637]);
    }
}
