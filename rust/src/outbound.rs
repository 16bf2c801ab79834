//! The outbound byte pump: endpoint to `SSL_write`.

use std::cell::Cell;

use libc::c_int;
use openssl_sys::SSL;

use crate::budget::{Admission, Budget, Call};
use crate::buf::{Held, Size, CHUNK_SIZE, LARGE_CHUNK_SIZE};
use crate::endpoint::{Endpoint, Packets, Resume, Stream, StreamRead, VnetDevice};
use crate::error::{Failure, Syscall};
use crate::frame::{PacketFormat, MAX_PACKET, MAX_PREFIX};
use crate::packets::{self, Batch, BatchEnd, Track, Unit};
use crate::splice::{Context, Direction};
use crate::ssl::session;
use crate::stats::Stats;
use crate::super_packets::{self, Reading, Rest};

/// The longest packet with its framing.
const MAX_FRAMED: usize = MAX_PACKET + MAX_PREFIX;

/// What one run of the outbound pump came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundStep {
    /// There is nothing to do: the direction has not been started, or has ended before.
    Idle,
    /// All that was read is encrypted: run again once the endpoint is readable, or has
    /// given a transfer.
    WantSource,
    /// Run again in the next turn of the event loop, and not before the write BIO has
    /// drained.
    AfterDrain,
    /// `SSL_write` wants to read first: run again when ciphertext has arrived.
    WantCiphertext,
    /// The source has ended, all that it gave is encrypted, and the write BIO is empty.
    Ended,
    /// The pump was told to stop and has finished the `SSL_write` that had begun.
    Stopped,
    /// The endpoint or `SSL_write` has failed, or the packets are out of step.
    Failed(Failure),
    /// The session has failed before: it was not used.
    SessionFailed,
    /// A callback of OpenSSL's has cancelled the call: the session was not used after
    /// that, and must not be.
    Cancelled,
}

/// Whether the source is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// The source is read.
    Open,
    /// The source is not read any more. What was read is still encrypted, whether the peer takes
    /// it or not: OpenSSL may have begun with it, and the source cannot take it back.
    Shut,
}

/// Whether the source gives more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Source {
    /// The source may give more.
    #[default]
    Open,
    /// The source has given its end of file.
    Ended,
    /// The source is not read any more, as the caller asked; whether it has ended is not known.
    Left,
}

/// How far the direction is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Running,
    /// It was told to stop.
    Stopping,
    /// It does nothing more.
    Over,
}

/// The outbound pump: reads and encrypts.
pub struct Outbound {
    /// Bytes from the source that OpenSSL has not accepted.
    held: Held,
    track: Track,
    /// Length of the packets at the front of `held` that go into the next record, in
    /// bytes; 0 while more packets may join them.
    batch: usize,
    /// A super-packet that was read, the rest of which goes behind `held`.
    rest: Option<Rest>,
    /// Length of an `SSL_write` that has begun and is to be tried again with the same
    /// bytes, else 0.
    begun: usize,
    source: Source,
    phase: Phase,
    /// A transfer reads into the chunk of `held`, which must stay where it is until the
    /// transfer ends.
    is_transferring: bool,
    /// The errno of a transfer, until it is reported.
    transfer_error: Option<c_int>,
    /// The work since the event loop last turned. A run of the pump ends the turn, except if
    /// the endpoint is a stream of the caller's.
    budget: Budget,
    /// The source is not read, since the write BIO is too full, and this was counted as a stall.
    is_stall_counted: bool,
    /// How many packets the endpoint had been given by the time that the pump ran last.
    packets_given: u64,
}

/// One run of the pump.
#[derive(Default)]
struct Run {
    /// The source has nothing more at present.
    is_dry: bool,
    /// A packet endpoint was asked whether it can be read.
    is_checked: bool,
}

/// What reading from the source came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// What was there, or the end.
    Done,
    /// There is nothing more at present.
    WouldBlock,
    /// An errno.
    Failed(c_int),
}

impl Outbound {
    /// A pump whose chunks are not larger than what may be held.
    pub fn new(high_water_mark: usize) -> Outbound {
        let size = match high_water_mark > CHUNK_SIZE {
            true => Size::Large,
            false => Size::Small,
        };
        Outbound {
            held: Held::new(size),
            track: Track::default(),
            batch: 0,
            rest: None,
            begun: 0,
            source: Source::default(),
            phase: Phase::default(),
            is_transferring: false,
            transfer_error: None,
            budget: Budget::default(),
            is_stall_counted: false,
            packets_given: 0,
        }
    }

    /// Whether the source, which is the endpoint of both directions, may have answered packets
    /// that it was given since the pump ran the last time.
    pub fn may_be_answered(&self, context: &Context) -> bool {
        context.endpoint.answers_at_once() && context.stats.packets_in != self.packets_given
    }

    /// Queues bytes of the source that were read before the splice. Only before the
    /// first [`Outbound::run`].
    pub fn push_before(&mut self, bytes: &[u8]) {
        self.held.push_before(bytes);
    }

    /// Finishes an `SSL_write` that has begun, and moves nothing after that.
    pub fn stop(&mut self) {
        if self.phase == Phase::Running {
            self.phase = Phase::Stopping;
        }
    }

    /// Moves nothing from now on, and does not finish what has begun: the session has
    /// failed.
    pub fn abandon(&mut self) {
        self.phase = Phase::Over;
    }

    /// Does not read the source any more. What was read is still encrypted.
    pub fn leave_source(&mut self) {
        if self.source == Source::Open {
            self.source = Source::Left;
        }
    }

    /// Reads what it can and encrypts it.
    ///
    /// # Safety
    /// `ssl` must be valid, and stay so while its callbacks run. Those may set
    /// `cancelled`, after which `ssl` is not used any more.
    pub unsafe fn run(
        &mut self,
        ssl: *mut SSL,
        cancelled: &Cell<bool>,
        intake: Intake,
        context: &mut Context,
    ) -> OutboundStep {
        self.packets_given = context.stats.packets_in;
        // SAFETY: passed on.
        let step = unsafe { self.work(ssl, cancelled, intake, context) };
        self.budget.settle();
        step
    }

    /// # Safety
    /// As for [`Outbound::run`].
    unsafe fn work(
        &mut self,
        ssl: *mut SSL,
        cancelled: &Cell<bool>,
        intake: Intake,
        context: &mut Context,
    ) -> OutboundStep {
        let intake = match self.phase {
            Phase::Running => intake,
            Phase::Stopping => Intake::Shut,
            Phase::Over => return OutboundStep::Idle,
        };
        let mut run = Run::default();
        loop {
            // SAFETY: by the contract above.
            if let Some(step) = unsafe { self.encrypt(ssl, cancelled, intake, context) } {
                if step != OutboundStep::Cancelled {
                    // SAFETY: by the contract above; the call was not cancelled.
                    unsafe { self.hold(ssl, context) };
                }
                return step;
            }
            // What a transfer reads must be sent, too, even when stopping.
            if self.is_transferring {
                return OutboundStep::WantSource;
            }
            // SAFETY: by the contract above.
            let pending = unsafe { self.hold(ssl, context) };
            if let Some(step) = self.take_in(&mut run, intake, pending, context) {
                return step;
            }
        }
    }

    /// Takes something from the source that is to be encrypted next, if `pending` bytes of
    /// ciphertext leave room for that. Otherwise the step with which the run ends.
    fn take_in(
        &mut self,
        run: &mut Run,
        intake: Intake,
        pending: usize,
        context: &mut Context,
    ) -> Option<OutboundStep> {
        let is_shut = intake == Intake::Shut;
        if (is_shut || self.source != Source::Open) && self.read_received(context) {
            return None;
        }
        if self.rest.is_some() {
            return self.take_rest(intake, pending, context);
        }
        if is_shut {
            return Some(OutboundStep::Stopped);
        }
        if run.is_dry {
            return Some(OutboundStep::WantSource);
        }
        if self.source != Source::Open {
            return Some(self.finish(pending));
        }
        let room = room(context, pending, context.unit);
        if room == 0 || self.ask_to_read(context) == Admission::Wait {
            return Some(self.interrupt(context));
        }
        let read = match self.transfer_error.take() {
            Some(errno) => Read::Failed(errno),
            None => self.read(run, room, context),
        };
        self.held.release_if_empty();
        match read {
            Read::Done => None,
            Read::WouldBlock if self.held.is_empty() => Some(OutboundStep::WantSource),
            Read::WouldBlock => {
                run.is_dry = true;
                None
            }
            Read::Failed(errno) => Some(OutboundStep::Failed(Failure::Endpoint {
                syscall: Syscall::Read,
                errno,
            })),
        }
    }

    /// Takes packets of a super-packet of which others have been sent.
    fn take_rest(
        &mut self,
        intake: Intake,
        pending: usize,
        context: &mut Context,
    ) -> Option<OutboundStep> {
        let room = match intake {
            Intake::Open => room(context, pending, context.unit),
            // As much as the source has given.
            Intake::Shut => usize::MAX,
        };
        if room == 0 {
            return Some(self.interrupt(context));
        }
        self.split_rest(room, context);
        None
    }

    /// Asks the budget whether the source may be read now. A transfer asks when it begins.
    fn ask_to_read(&mut self, context: &Context) -> Admission {
        match context.unit {
            _ if context.endpoint.needs_transfers() => Admission::Work,
            Unit::Bytes => self.ask_to_read_bytes(),
            Unit::Packets => self.budget.begin(),
        }
    }

    /// Asks the budget whether a byte stream may be read now.
    fn ask_to_read_bytes(&mut self) -> Admission {
        match self.budget.begin() {
            Admission::Work if self.budget.is_nearly_spent() => Admission::Wait,
            admission => admission,
        }
    }

    /// Counts what is held as cleartext and as ciphertext, but for bytes from before the
    /// splice. Returns how many bytes of ciphertext that is.
    ///
    /// # Safety
    /// `ssl` must be valid.
    pub unsafe fn hold(&self, ssl: *mut SSL, context: &mut Context) -> usize {
        // SAFETY: by the contract above.
        let pending = unsafe { session::pending_ciphertext(ssl) };
        let unread = context.endpoint.unread();
        let rest = self.rest.as_ref().map_or(0, Rest::unsplit);
        context
            .stats
            .hold_out(self.held.buffered() + unread + rest + pending);
        pending
    }

    /// Encrypts what is held, as far as the write BIO has room. `None` if nothing is
    /// left, or more packets may join what is: then the source is to be read.
    ///
    /// # Safety
    /// As for [`Outbound::run`].
    unsafe fn encrypt(
        &mut self,
        ssl: *mut SSL,
        cancelled: &Cell<bool>,
        intake: Intake,
        context: &mut Context,
    ) -> Option<OutboundStep> {
        while !self.held.is_empty() {
            let unit = self.unit_of_front(context);
            let may_grow = intake == Intake::Open && self.source == Source::Open;
            if unit == Unit::Packets && self.batch == 0 && may_grow {
                return None;
            }
            // SAFETY: by the contract above.
            let pending = unsafe { session::pending_ciphertext(ssl) };
            let room = room(context, pending, unit);
            // A stop does not wait for the peer to read.
            if room == 0 && intake == Intake::Open {
                return Some(OutboundStep::AfterDrain);
            }
            let n = match intake {
                Intake::Open => self.prepare_write(unit, read_limit(room), context.format),
                // What was read before the splice can be more than there is room for.
                Intake::Shut => self.prepare_write(unit, usize::MAX, context.format),
            };
            if n == 0 {
                self.held.replace(Held::default());
                return match intake {
                    Intake::Open => Some(OutboundStep::Failed(self.out_of_step())),
                    // A stopped direction does not fail for bytes that are no packets.
                    Intake::Shut => None,
                };
            }
            // SAFETY: by the contract above.
            if unsafe { session::is_renegotiating(ssl) } {
                return Some(OutboundStep::WantCiphertext);
            }
            self.begun = n;
            // SAFETY: by the contract above; a retry passes the same slice, since
            // `begun` and the front of `held` are the same then.
            let write = unsafe { session::write(ssl, &self.held.front()[..n]) };
            if write == session::Write::All {
                self.encrypted(n, unit, context);
            }
            if cancelled.get() {
                return Some(OutboundStep::Cancelled);
            }
            match write {
                session::Write::All => {}
                session::Write::Want => return Some(OutboundStep::WantCiphertext),
                session::Write::Failed(error) => {
                    return Some(OutboundStep::Failed(Failure::Tls(error)));
                }
            }
        }
        None
    }

    /// What came before the splice is a byte stream, also from a packet endpoint.
    fn unit_of_front(&self, context: &Context) -> Unit {
        match self.held.has_before() {
            true => Unit::Bytes,
            false => context.unit,
        }
    }

    /// Chooses what the next `SSL_write` encrypts, and returns its length: the packets that are
    /// held become the batch, unless there is one; of a stream it is at most `limit` bytes. An
    /// `SSL_write` that has begun keeps its length. 0 if what is next is no packet.
    fn prepare_write(&mut self, unit: Unit, limit: usize, format: PacketFormat) -> usize {
        match (self.begun, unit) {
            (0, Unit::Packets) => {
                if self.batch == 0 {
                    self.batch = self.held.len();
                }
                self.batch
            }
            (0, Unit::Bytes) => self.track.look_ahead(format, self.held.front()).min(limit),
            (begun, _) => begun,
        }
    }

    /// Takes note that OpenSSL has accepted the first `n` bytes that are held. Packets
    /// from a packet endpoint were counted when they were read.
    fn encrypted(&mut self, n: usize, unit: Unit, context: &mut Context) {
        let bytes = &self.held.front()[..n];
        let stats = &mut context.stats;
        match unit {
            Unit::Packets => self.track.skip(n),
            Unit::Bytes => self.track.pass(context.format, bytes, |packet| {
                stats.count_out(packet.len);
            }),
        }
        self.held.consume(n);
        self.begun = 0;
        self.batch = 0;
        stats.bytes_out += n as u64;
    }

    /// The source gives nothing more, and `pending` bytes of ciphertext are in the write
    /// BIO.
    fn finish(&mut self, pending: usize) -> OutboundStep {
        // A source that was left may have had the rest of the packet.
        if self.source == Source::Ended && !self.track.is_at_boundary() {
            return OutboundStep::Failed(self.out_of_step());
        }
        if pending > 0 {
            return OutboundStep::AfterDrain;
        }
        self.phase = Phase::Over;
        OutboundStep::Ended
    }

    /// Leaves the source, which may have more, for another run.
    fn interrupt(&mut self, context: &Context) -> OutboundStep {
        // The beginning of the next record is not left behind.
        self.batch = self.held.len();
        match context.endpoint.resume() {
            Resume::WhenReadable if self.batch == 0 && self.rest.is_none() => {
                OutboundStep::WantSource
            }
            Resume::WhenReadable | Resume::NextTurn => OutboundStep::AfterDrain,
        }
    }

    /// Reads from the source what is there and fits.
    fn read(&mut self, run: &mut Run, room: usize, context: &mut Context) -> Read {
        let Context {
            endpoint,
            format,
            stats,
            ..
        } = context;
        match endpoint {
            Endpoint::Packets(packets) => self.read_packets(run, room, packets, *format, stats),
            Endpoint::Vnet(device) => self.read_super_packet(run, room, device, *format, stats),
            Endpoint::Stream(stream) => self.read_bytes(run, room, stream),
            Endpoint::File(_) | Endpoint::Caller(_) => Read::WouldBlock,
        }
    }

    fn read_bytes(&mut self, run: &mut Run, room: usize, stream: &Stream) -> Read {
        let limit = read_limit(room).min(self.budget.left());
        let chunk = self.held.chunk();
        let n = match stream.read(&mut chunk.spare()[..limit]) {
            StreamRead::Bytes(n) => n,
            StreamRead::Last(n) => {
                run.is_dry = true;
                n
            }
            StreamRead::Eof => {
                self.source = Source::Ended;
                return Read::Done;
            }
            StreamRead::WouldBlock => return Read::WouldBlock,
            StreamRead::Failed(errno) => return Read::Failed(errno),
        };
        chunk.commit(n);
        self.budget.spend(Call::System, n);
        Read::Done
    }

    fn read_packets(
        &mut self,
        run: &mut Run,
        room: usize,
        endpoint: &mut Packets,
        format: PacketFormat,
        stats: &mut Stats,
    ) -> Read {
        // The check is a system call: once for all records of a run.
        if !std::mem::replace(&mut run.is_checked, true) {
            if let Err(errno) = endpoint.prepare() {
                return Read::Failed(errno);
            }
        }
        let chunk = self.held.chunk();
        let Batch { len, end } =
            packets::read_batch(chunk, room, &mut self.budget, endpoint, format, stats);
        self.batch = len;
        match end {
            BatchEnd::Full => Read::Done,
            BatchEnd::WouldBlock => Read::WouldBlock,
            BatchEnd::Eof => {
                self.source = Source::Ended;
                Read::Done
            }
            BatchEnd::Failed(errno) => Read::Failed(errno),
        }
    }

    /// Reads packets that the source has received already, and cannot take back. Whether there
    /// are any.
    fn read_received(&mut self, context: &mut Context) -> bool {
        let Context {
            endpoint: Endpoint::Packets(endpoint),
            format,
            stats,
            ..
        } = context
        else {
            return false;
        };
        packets::read_received(self.held.chunk(), endpoint, *format, stats);
        self.batch = self.held.len();
        self.held.release_if_empty();
        self.batch > 0
    }

    fn read_super_packet(
        &mut self,
        run: &mut Run,
        room: usize,
        device: &VnetDevice,
        format: PacketFormat,
        stats: &mut Stats,
    ) -> Read {
        if !std::mem::replace(&mut run.is_checked, true) {
            if let Err(errno) = device.prepare() {
                return Read::Failed(errno);
            }
        }
        let chunk = self.held.chunk();
        let reading = super_packets::read(chunk, room, &mut self.budget, device, format, stats);
        self.batch = chunk.len();
        match reading {
            Reading::Super(rest) => {
                self.batch = 0;
                self.rest = Some(rest);
                Read::Done
            }
            Reading::Full => {
                self.batch = super_packets::whole_records(self.batch);
                Read::Done
            }
            Reading::WouldBlock => Read::WouldBlock,
            Reading::Eof => {
                self.source = Source::Ended;
                Read::Done
            }
            Reading::Failed(errno) => Read::Failed(errno),
        }
    }

    /// Makes packets of the super-packet that was read, as many as there is room for.
    fn split_rest(&mut self, room: usize, context: &mut Context) {
        let Some(rest) = &mut self.rest else {
            return;
        };
        let chunk = self.held.chunk();
        let is_split = rest.split(chunk, room, context.format, &mut context.stats);
        self.batch = super_packets::whole_records(chunk.len());
        if is_split {
            self.rest = None;
            // Other packets may join the last ones.
            self.batch = 0;
        }
        self.held.release_if_empty();
    }

    /// Whether the source is to be polled for reading, or a transfer to be begun, as
    /// far as there is room for more.
    pub fn wants_source(&self) -> bool {
        let can_read = self.source == Source::Open && self.phase == Phase::Running;
        let is_empty = self.held.is_empty() && self.rest.is_none();
        can_read && is_empty && !self.is_transferring
    }

    /// Counts a stall, once until [`Outbound::end_stall`], if the source is to be read. To
    /// be called when there is no room for what it would give.
    pub fn count_stall(&mut self, stats: &mut Stats) {
        if self.wants_source() && !std::mem::replace(&mut self.is_stall_counted, true) {
            stats.stalls_out += 1;
        }
    }

    /// Takes note that there is room for what the source gives.
    pub fn end_stall(&mut self) {
        self.is_stall_counted = false;
    }

    /// Whether the direction does nothing more.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Begins a transfer from the source: the memory to read into, which stays where it
    /// is until [`Outbound::end_transfer`]. Empty if there is nothing to read, or no
    /// room; then there is no end. And, from a stream of the caller's, which is read over
    /// and over in one turn of the event loop, if the direction has to wait for another turn.
    ///
    /// `pending` is how many bytes of ciphertext are in the write BIO.
    pub fn begin_transfer(&mut self, pending: usize, context: &Context) -> &mut [u8] {
        if !self.wants_source() {
            return &mut [];
        }
        if self.ask_to_read_bytes() == Admission::Wait {
            return &mut [];
        }
        let room = room(context, pending, Unit::Bytes);
        if room == 0 {
            return &mut [];
        }
        self.is_transferring = true;
        let limit = read_limit(room).min(self.budget.left());
        &mut self.held.chunk().spare()[..limit]
    }

    /// Ends a transfer that has read that many bytes, 0 at the end of the source, or
    /// failed with an errno that ends the direction; `Ok(None)` if nothing was tried.
    /// The end of a stream may be said without a transfer.
    pub fn end_transfer(&mut self, result: Result<Option<usize>, c_int>) {
        if !self.is_transferring && result != Ok(Some(0)) {
            return;
        }
        self.is_transferring = false;
        self.transfer_error = result.err();
        if let Ok(Some(n)) = result {
            if n > 0 {
                self.held.chunk().commit(n);
            } else if self.source == Source::Open {
                self.source = Source::Ended;
            }
            // A file may have been read for some turns of the event loop.
            self.budget.go_on();
            self.budget.spend(Call::System, n);
        }
        self.held.release_if_empty();
    }

    /// Holds cleartext that another splice has decrypted, whose sink this direction is.
    /// Only while [`Outbound::wants_source`].
    pub fn accept(&mut self, cleartext: Held) {
        self.held.replace(cleartext);
    }

    fn out_of_step(&self) -> Failure {
        Failure::Framing {
            direction: Direction::Outbound,
            offset: self.track.out_of_step(),
        }
    }
}

/// How many bytes may be read while `pending` bytes of ciphertext are in the write BIO.
/// 0 while there is little room: reading a little at a time would make small records. Of
/// packets, which come in any size, one more than that may be read.
pub fn room(context: &Context, pending: usize, unit: Unit) -> usize {
    let high_water_mark = context.high_water_mark;
    let room = high_water_mark.saturating_sub(pending);
    match unit {
        Unit::Packets => {
            let room = (room - room / 6).saturating_sub(MAX_FRAMED);
            if pending == 0 {
                room.max(1)
            } else {
                room
            }
        }
        Unit::Bytes if pending > 0 && room <= high_water_mark / 4 => 0,
        Unit::Bytes => room,
    }
}

/// How much to read for that room: records grow by 90 bytes at most, with 512 bytes in
/// each at least (setMaxSendFragment).
pub fn read_limit(room: usize) -> usize {
    (room - room / 6).clamp(1, LARGE_CHUNK_SIZE)
}
