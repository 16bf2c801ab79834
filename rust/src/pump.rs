//! The two state machines.
//!
//! A file is not polled, since it never says that it would block, and is not read
//! or written here, since it does. Instead the caller asks for a [`Transfer`],
//! carries it out on another thread, and reports what came of it. So he does for a
//! stream of his own, or another pump is the endpoint of this one: then
//! [`Pump::pass`] is the transfer.

use std::cell::Cell;

use libc::c_int;
use openssl_sys::SSL;

use crate::buf::{Held, Size, CHUNK_SIZE, LARGE_CHUNK_SIZE};
use crate::endpoint::{Endpoint, Io, PacketIo, READABLE, WRITABLE};
use crate::error::{Failure, Syscall};
use crate::frame::{Desync, Follower, Framing, Packet, MAX_PACKET};
use crate::rbio::Rbio;
use crate::stats::Stats;
use crate::tls;
use crate::wbio::Wbio;

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

/// Bytes that one direction moves before it lets the loop turn.
const TURN_BUDGET: usize = 256 * 1024;

/// What a packet counts as at least: small ones, and those that come to nothing,
/// cost a system call as well.
const LEAST_WORK: usize = 64;

/// TLS records carry at most this much cleartext.
const MAX_RECORD: usize = 16 * 1024;

/// The longest packet with its framing.
const MAX_FRAMED: usize = MAX_PACKET + 2;

/// The errno for a write(2) of some bytes that takes none of them and does not say
/// why: to poll(2) such a sink has room, so that it would be tried for ever. With this
/// one full_write() of gnulib fails then. A packet may well be empty.
const TOOK_NOTHING: c_int = libc::ENOSPC;

/// Memory to read a file into, or to write to it.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// The descriptor, which stays the pump's.
    pub fd: c_int,
    /// The memory: nobody else touches it until the transfer ends.
    pub base: *mut u8,
    /// Length in bytes; 0 means that there is nothing to do.
    pub len: usize,
}

#[derive(Default)]
struct Decrypt {
    held: Held,
    /// A transfer is writing what is held.
    writing: bool,
    /// The errno of a transfer.
    error: Option<c_int>,
    track: Track,
    end: Option<tls::End>,
    /// The caller has been told of it.
    end_is_told: bool,
    /// Bytes since the loop last turned.
    turn: usize,
    blocked: bool,
    /// That has been counted.
    stalled: bool,
    /// All that is held is the beginning of a packet.
    partial: bool,
    stopped: bool,
}

#[derive(Default)]
struct Encrypt {
    held: Held,
    /// A transfer is reading into what is held.
    reading: bool,
    /// Most that it can give.
    offered: usize,
    /// Bytes of transfers since the loop last turned.
    turn: usize,
    /// The errno of a transfer.
    error: Option<c_int>,
    track: Track,
    /// Of what is held, the packets for the next record.
    batch: usize,
    /// Length of an SSL_write that has begun and is to be tried again, else 0.
    begun: usize,
    eof: bool,
    /// Nobody has seen an end of the source: it is just not read any more.
    told_to_end: bool,
    /// The write BIO is so full that the source is not read.
    stalled: bool,
    stopping: bool,
    over: bool,
}

/// Where the packets are in a stream whose pieces are not packets.
#[derive(Default)]
struct Track {
    follower: Follower,
    /// The same, of what has gone.
    gone: Follower,
    /// Bytes that have gone.
    offset: u64,
    /// Bytes of the next ones that the follower has seen.
    seen: usize,
    /// No packet starts at this offset.
    desync: Option<u64>,
}

impl Track {
    /// How many of the next bytes are packets, or the beginning of one.
    fn good(&mut self, framing: Framing, next: &[u8]) -> usize {
        if framing != Framing::Raw && self.seen < next.len() && self.desync.is_none() {
            if let Err(at) = self.follower.follow(framing, &next[self.seen..], |_| {}) {
                let seen = self.offset + self.seen as u64;
                self.desync = Some(seen.saturating_add_signed(at as i64));
            }
            self.seen = next.len();
        }
        match self.desync {
            Some(at) => at.saturating_sub(self.offset) as usize,
            None => next.len(),
        }
    }

    /// Where the packet begins that is none, or is not there whole.
    fn out_of_step(&self) -> u64 {
        let seen = self.offset + self.seen as u64;
        self.desync.unwrap_or(seen - self.follower.begun() as u64)
    }

    /// Takes note of good bytes that have gone. `on_packet` is called for each
    /// packet of which the last one has.
    fn pass(&mut self, framing: Framing, bytes: &[u8], on_packet: impl FnMut(Packet)) {
        if framing != Framing::Raw {
            // Good ones have no error.
            let _ = self.gone.follow(framing, bytes, on_packet);
        }
        self.skip(bytes.len());
    }

    /// The same for whole packets that others count.
    fn skip(&mut self, n: usize) {
        self.offset += n as u64;
        self.seen = self.seen.saturating_sub(n);
    }
}

/// What came of delivering.
enum Delivery {
    /// Nothing is left, or the beginning of a packet.
    All,
    /// The sink is full.
    Blocked,
    /// That is enough for now.
    Paused,
    Failed(Failure),
}

#[cfg(test)]
#[derive(Clone, Copy)]
pub(crate) enum Bio {
    Read,
    Write,
}

/// Both directions of one splice and the endpoint they share.
pub struct Pump {
    endpoint: Endpoint,
    decrypt: Option<Decrypt>,
    encrypt: Option<Encrypt>,
    rbio: Option<Rbio>,
    wbio: Option<Wbio>,
    /// The source has ended before encryption was started.
    ended: bool,
    framing: Framing,
    high_water_mark: usize,
    failure: Option<Failure>,
    /// Counters, in bytes.
    pub stats: Stats,
}

impl Pump {
    /// A pump that holds at most `high_water_mark` bytes per direction.
    pub fn new(endpoint: Endpoint, framing: Framing, high_water_mark: usize) -> Pump {
        Pump {
            endpoint,
            decrypt: None,
            encrypt: None,
            rbio: None,
            wbio: None,
            ended: false,
            framing,
            high_water_mark,
            failure: None,
            stats: Stats::default(),
        }
    }

    /// The endpoint.
    pub fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }

    /// Starts a direction; until then its calls do nothing.
    pub fn start(&mut self, direction: u32) {
        if direction & TLS_SPLICE_DECRYPT != 0 && self.decrypt.is_none() {
            self.decrypt = Some(Decrypt::default());
        }
        if direction & TLS_SPLICE_ENCRYPT != 0 && self.encrypt.is_none() {
            self.encrypt = Some(Encrypt {
                held: self.source_buffer(),
                eof: self.ended,
                told_to_end: self.ended,
                ..Encrypt::default()
            });
        }
    }

    /// None that is larger than what may be held.
    fn source_buffer(&self) -> Held {
        Held::new(match self.high_water_mark > CHUNK_SIZE {
            true => Size::Large,
            false => Size::Small,
        })
    }

    /// Asks the started directions to stop. `encrypt` finishes an `SSL_write`
    /// that OpenSSL has begun, then says STOPPED.
    pub fn stop(&mut self) {
        if let Some(decrypt) = &mut self.decrypt {
            decrypt.stopped = true;
        }
        if let Some(encrypt) = &mut self.encrypt {
            encrypt.stopping = true;
        }
    }

    /// Stops reading the source, or does not begin with it; what was read is still
    /// encrypted, then `encrypt` says OVER.
    pub fn end_encrypt(&mut self) {
        self.ended = true;
        if let Some(encrypt) = &mut self.encrypt {
            encrypt.told_to_end |= !encrypt.eof;
            encrypt.eof = true;
        }
    }

    /// Queues bytes that JavaScript had read: cleartext for the endpoint
    /// (`TLS_SPLICE_DECRYPT`), or from it (`TLS_SPLICE_ENCRYPT`). Only right
    /// after [`Pump::start`].
    pub fn push_before(&mut self, direction: u32, bytes: &[u8]) {
        match direction {
            TLS_SPLICE_DECRYPT => {
                if let Some(decrypt) = &mut self.decrypt {
                    decrypt.held.push_before(bytes);
                }
            }
            _ => {
                if let Some(encrypt) = &mut self.encrypt {
                    encrypt.held.push_before(bytes);
                }
            }
        }
    }

    /// Makes OpenSSL read ciphertext from the pump's buffer.
    ///
    /// # Safety
    /// As for [`Rbio::attach`].
    pub unsafe fn attach_rbio(&mut self, ssl: *mut SSL) -> bool {
        if self.rbio.is_none() {
            // SAFETY: passed on.
            self.rbio = unsafe { Rbio::attach(ssl) };
        }
        self.rbio.is_some()
    }

    /// Undoes [`Pump::attach_rbio`], if it was called.
    ///
    /// # Safety
    /// As for [`Rbio::detach`].
    pub unsafe fn detach_rbio(&mut self, ssl: *mut SSL) {
        if let Some(rbio) = self.rbio.take() {
            // SAFETY: passed on.
            unsafe { rbio.detach(ssl) };
        }
    }

    /// Makes OpenSSL write ciphertext to the pump's buffers.
    ///
    /// # Safety
    /// As for [`Wbio::attach`].
    pub unsafe fn attach_wbio(&mut self, ssl: *mut SSL) -> bool {
        if self.wbio.is_none() {
            // SAFETY: passed on.
            self.wbio = unsafe { Wbio::attach(ssl) };
        }
        self.wbio.is_some()
    }

    /// Undoes [`Pump::attach_wbio`], if it was called.
    ///
    /// # Safety
    /// As for [`Wbio::detach`].
    pub unsafe fn detach_wbio(&mut self, ssl: *mut SSL) {
        if let Some(wbio) = self.wbio.take() {
            // SAFETY: passed on.
            unsafe { wbio.detach(ssl) };
        }
    }

    #[cfg(test)]
    pub(crate) fn sabotage(&mut self, bio: Bio) {
        match bio {
            Bio::Read => self.rbio.as_mut().unwrap().sabotage(),
            Bio::Write => self.wbio.as_mut().unwrap().sabotage(),
        }
    }

    /// Whether a callback of one of the two BIOs has panicked.
    pub fn has_panicked(&self) -> bool {
        self.rbio.as_ref().is_some_and(Rbio::has_panicked)
            || self.wbio.as_ref().is_some_and(Wbio::has_panicked)
    }

    /// The ciphertext to write now.
    pub fn wbio(&mut self) -> Option<&mut Wbio> {
        self.wbio.as_mut()
    }

    /// The buffer that the stream's next read goes to; empty unless
    /// [`Pump::attach_rbio`] was called, and when it is time to let the loop turn.
    pub fn alloc(&mut self) -> &mut [u8] {
        // Half of what may be held, since as much again may be held decrypted.
        let limit = (self.high_water_mark / 2).max(1);
        let Some(rbio) = &mut self.rbio else {
            return &mut [];
        };
        if let Some(decrypt) = &mut self.decrypt {
            if decrypt.end.is_some() {
                // Nobody will read it, and the stream is read on for its own end.
                rbio.discard();
            } else if decrypt.turn >= TURN_BUDGET {
                decrypt.turn = 0;
                return &mut [];
            }
        }
        rbio.spare(limit)
    }

    /// Takes in `n` bytes of ciphertext.
    pub fn commit(&mut self, n: usize) {
        let Some(rbio) = &mut self.rbio else {
            return;
        };
        // Less than asked for: libuv reads no more in this turn.
        if let Some(decrypt) = self.decrypt.as_mut().filter(|_| n < rbio.offered()) {
            decrypt.turn = 0;
        }
        rbio.commit(n);
        let ciphertext = rbio.pending();
        self.hold_in(ciphertext);
    }

    /// Takes note of so much ciphertext, and of the cleartext beside it.
    fn hold_in(&mut self, ciphertext: usize) {
        let cleartext = self.decrypt.as_ref().map_or(0, |d| d.held.len());
        self.stats.hold_in(cleartext + ciphertext);
    }

    /// Whether the endpoint has not taken all that it could be given.
    pub fn is_blocked(&self) -> bool {
        self.decrypt
            .as_ref()
            .is_some_and(|d| !(d.held.is_empty() || d.partial) || d.error.is_some())
    }

    /// Says that no more will be decrypted. False if that is within a packet.
    pub fn end_decrypt(&mut self) -> bool {
        if let Some(decrypt) = self.decrypt.as_ref().filter(|d| !d.is_at_boundary()) {
            self.failure = Some(decrypt.out_of_step());
            return false;
        }
        true
    }

    /// Whether SSL_read has failed, and nobody has been told.
    pub fn is_failing(&self) -> bool {
        self.decrypt
            .as_ref()
            .is_some_and(|decrypt| decrypt.has_failed() && !decrypt.end_is_told)
    }

    /// The error that has ended the TLS side, behind bytes that are not delivered. It
    /// is the caller's from then on, who gets it once: OpenSSL does not say it again.
    pub fn take_end(&mut self) -> Option<tls::End> {
        let decrypt = self.decrypt.as_mut()?;
        let end = decrypt.end.filter(|end| !end.close_notify)?;
        (!std::mem::replace(&mut decrypt.end_is_told, true)).then_some(end)
    }

    /// Cleartext that was decrypted and not taken by the endpoint.
    pub fn undelivered(&mut self) -> Option<&mut Held> {
        self.decrypt.as_mut().map(|decrypt| &mut decrypt.held)
    }

    /// Begins the reading ([`READABLE`]) or writing ([`WRITABLE`]) of a file that
    /// [`Pump::interest`] has asked for.
    ///
    /// # Safety
    /// `ssl` must be valid. The pump must stay until [`Pump::end_transfer`].
    pub unsafe fn begin_transfer(&mut self, ssl: *mut SSL, event: u32) -> Transfer {
        let mut transfer = Transfer {
            fd: self.endpoint.fd(),
            base: std::ptr::null_mut(),
            len: 0,
        };
        if event == WRITABLE {
            if let Some(decrypt) = self.decrypt.as_mut().filter(|d| !d.writing) {
                // Only read from: the caller passes it to write(2).
                transfer.base = decrypt.held.front().as_ptr().cast_mut();
                transfer.len = decrypt.track.good(self.framing, decrypt.held.front());
                decrypt.writing = transfer.len > 0;
            }
        } else if let Some(encrypt) = self.encrypt.as_mut().filter(|e| e.wants_source()) {
            // SAFETY: by the contract above.
            let pending = unsafe { tls::pending_ciphertext(ssl) };
            let room = room(self.high_water_mark, pending, false);
            // A stream is read over and over in one turn.
            let enough = encrypt.turn >= TURN_BUDGET && self.endpoint.is_of_caller();
            if enough {
                encrypt.turn = 0;
            } else if room > 0 {
                let limit = read_limit(room);
                let spare = &mut encrypt.held.chunk().spare()[..limit];
                transfer.base = spare.as_mut_ptr();
                transfer.len = limit;
                encrypt.reading = true;
                encrypt.offered = limit;
            }
        }
        transfer
    }

    /// Ends it with the bytes that were transferred, or an errno. ECANCELED says
    /// that nothing was.
    pub fn end_transfer(&mut self, event: u32, result: Result<usize, c_int>) {
        let error = match result {
            Err(errno) if ![libc::ECANCELED, libc::EINTR, libc::EAGAIN].contains(&errno) => {
                Some(errno)
            }
            _ => None,
        };
        if event == WRITABLE {
            if let Some(decrypt) = self.decrypt.as_mut().filter(|d| d.writing) {
                decrypt.writing = false;
                decrypt.error = match result {
                    Ok(0) => Some(TOOK_NOTHING),
                    _ => error,
                };
                if let Ok(n) = result {
                    decrypt.delivered(n, self.framing, &mut self.stats);
                }
            }
        } else if let Some(encrypt) = self
            .encrypt
            .as_mut()
            // The end of a stream may come with a hang-up, and not from another read.
            .filter(|e| e.reading || result == Ok(0))
        {
            encrypt.reading = false;
            encrypt.error = error;
            if let Ok(n) = result {
                if n > 0 {
                    encrypt.held.chunk().commit(n);
                }
                encrypt.eof |= n == 0;
                encrypt.turn += n;
            }
            // Less than asked for: libuv reads no more in this turn.
            if result != Ok(encrypt.offered) {
                encrypt.turn = 0;
            }
            encrypt.held.release_if_empty();
        }
    }

    /// Hands what was decrypted to `to`, whose source this pump is, to be sent on the
    /// session `ssl` of that. False if there is nothing, or `to` has no room.
    ///
    /// # Safety
    /// `ssl` must be valid.
    pub unsafe fn pass(&mut self, to: &mut Pump, ssl: *mut SSL) -> bool {
        let (Some(decrypt), Some(encrypt)) = (&mut self.decrypt, &mut to.encrypt) else {
            return false;
        };
        let failed = self.failure.is_some() || to.failure.is_some();
        let has_none = decrypt.stopped || decrypt.writing || decrypt.held.is_empty();
        if failed || has_none || !encrypt.wants_source() {
            return false;
        }
        // SAFETY: by the contract above.
        let pending = unsafe { tls::pending_ciphertext(ssl) };
        if room(to.high_water_mark, pending, false) == 0 {
            return false;
        }
        let n = match self.framing {
            Framing::Raw => {
                decrypt.track.skip(decrypt.held.len());
                decrypt.held.len()
            }
            framing => {
                let n = decrypt.track.good(framing, decrypt.held.front());
                let bytes = &decrypt.held.front()[..n];
                let stats = &mut self.stats;
                decrypt
                    .track
                    .pass(framing, bytes, |packet| stats.count_in(packet.len));
                n
            }
        };
        self.stats.bytes_in += n as u64;
        encrypt.held.replace(decrypt.held.take(n));
        decrypt.stalled &= !decrypt.held.is_empty();
        true
    }

    /// Why the splice failed, if it has.
    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// What the endpoint has to be polled for.
    ///
    /// # Safety
    /// `ssl` must be valid.
    pub unsafe fn interest(&mut self, ssl: *mut SSL) -> u32 {
        let mut interest = 0;
        if self.failure.is_none() {
            let of_caller = self.endpoint.is_of_caller();
            if let Some(decrypt) = self.decrypt.as_mut().filter(|d| d.blocked && !d.stopped) {
                if !decrypt.writing {
                    interest |= WRITABLE;
                }
                // He has tried by now.
                if of_caller && !std::mem::replace(&mut decrypt.stalled, true) {
                    self.stats.stalls_in += 1;
                }
            }
            if let Some(encrypt) = self.encrypt.as_mut().filter(|e| e.wants_source()) {
                // SAFETY: by the contract above.
                let pending = unsafe { tls::pending_ciphertext(ssl) };
                let packets = self.endpoint.has_packets();
                let stalled = room(self.high_water_mark, pending, packets) == 0;
                if stalled && !encrypt.stalled {
                    self.stats.stalls_out += 1;
                }
                encrypt.stalled = stalled;
                if !stalled {
                    interest |= READABLE;
                }
            }
        }
        self.endpoint.set_interest(interest)
    }

    /// Moves what it can from `ssl` to the endpoint. Returns the steps, and what
    /// `SSL_read` returned when the direction is over.
    ///
    /// # Safety
    /// `ssl` must be valid, and stay so while its callbacks run. Those may set
    /// `cancelled`, after which `ssl` is not used any more.
    pub unsafe fn decrypt(&mut self, ssl: *mut SSL, cancelled: &Cell<bool>) -> (u32, c_int) {
        // SAFETY: passed on.
        let (mut steps, ret) = unsafe { self.decrypt_turn(ssl, cancelled) };
        // Otherwise it may have been cancelled.
        if steps & TLS_SPLICE_STEP_STOPPED == 0 {
            // What OpenSSL answered to a KeyUpdate, a renegotiation or bad records.
            // SAFETY: by the contract above.
            if unsafe { tls::pending_ciphertext(ssl) } > 0 {
                steps |= TLS_SPLICE_STEP_FLUSH;
            }
            // Ciphertext arrives while the sink is full, too, if the stream that it
            // comes from is not stopped at once.
            // SAFETY: by the contract above.
            self.hold_in(unsafe { tls::unread_ciphertext(ssl) });
        }
        (steps, ret)
    }

    /// # Safety
    /// As for [`Pump::decrypt`].
    unsafe fn decrypt_turn(&mut self, ssl: *mut SSL, cancelled: &Cell<bool>) -> (u32, c_int) {
        let Some(decrypt) = &mut self.decrypt else {
            return (0, 1);
        };
        if self.failure.is_some() || decrypt.stopped {
            return (TLS_SPLICE_STEP_STOPPED | TLS_SPLICE_STEP_PAUSE_TLS, 1);
        }
        let mut want = false;
        loop {
            match decrypt.deliver(&self.endpoint, self.framing, &mut self.stats) {
                Delivery::All => {}
                Delivery::Blocked => {
                    return (TLS_SPLICE_STEP_PAUSE_TLS, 1);
                }
                Delivery::Paused => {
                    decrypt.turn = 0;
                    return (TLS_SPLICE_STEP_MORE | TLS_SPLICE_STEP_PAUSE_TLS, 1);
                }
                Delivery::Failed(failure) => {
                    self.failure = Some(failure);
                    return (TLS_SPLICE_STEP_FAILED | TLS_SPLICE_STEP_PAUSE_TLS, 1);
                }
            }
            if let Some(end) = decrypt.end {
                if end.close_notify && !decrypt.is_at_boundary() {
                    self.failure = Some(decrypt.out_of_step());
                    return (TLS_SPLICE_STEP_FAILED | TLS_SPLICE_STEP_PAUSE_TLS, 1);
                }
                decrypt.end_is_told = true;
                // SAFETY: by the contract above.
                let ret = unsafe { end.report(ssl) };
                return (TLS_SPLICE_STEP_OVER, ret);
            }
            if want {
                return (0, 1);
            }
            // Of what the stream reads into our buffer little can be left.
            if decrypt.turn >= TURN_BUDGET && self.rbio.is_none() {
                decrypt.turn = 0;
                return (TLS_SPLICE_STEP_MORE | TLS_SPLICE_STEP_PAUSE_TLS, 1);
            }

            let limit = (self.high_water_mark / 2).max(1);
            let packets = self.endpoint.has_packets();
            let chunk = decrypt.held.chunk();
            loop {
                let spare = chunk.spare_for(packets);
                let len = spare.len().min(limit);
                // SAFETY: by the contract above.
                match unsafe { tls::read(ssl, &mut spare[..len]) } {
                    tls::Read::Data(n) => {
                        chunk.commit(n);
                        decrypt.turn += n;
                        self.stats.bytes_decrypted += n as u64;
                    }
                    tls::Read::Want => want = true,
                    tls::Read::End(end) => {
                        self.stats.close_notify = end.close_notify.into();
                        decrypt.end = Some(end);
                    }
                }
                if cancelled.get() {
                    return (TLS_SPLICE_STEP_STOPPED | TLS_SPLICE_STEP_PAUSE_TLS, 1);
                }
                // Whole records only, unless a small high-water mark forbids it.
                let full = chunk.spare_for(packets).len() < MAX_RECORD || chunk.len() >= limit;
                if want || decrypt.end.is_some() || full {
                    break;
                }
            }
            // SAFETY: by the contract above.
            let ciphertext = unsafe { tls::unread_ciphertext(ssl) };
            self.stats.hold_in(decrypt.held.len() + ciphertext);
            decrypt.held.release_if_empty();
        }
    }

    /// Moves what it can from the endpoint to `ssl`. Returns the steps. To be
    /// called when the endpoint is readable, when the write BIO has drained, and
    /// when ciphertext has arrived.
    ///
    /// # Safety
    /// As for [`Pump::decrypt`].
    pub unsafe fn encrypt(&mut self, ssl: *mut SSL, cancelled: &Cell<bool>) -> u32 {
        if let Some(wbio) = &mut self.wbio {
            wbio.set_collecting(true);
        }
        // SAFETY: passed on.
        let steps = unsafe { self.encrypt_turn(ssl, cancelled) };
        if let Some(wbio) = &mut self.wbio {
            wbio.set_collecting(false);
        }
        steps
    }

    /// # Safety
    /// As for [`Pump::encrypt`].
    unsafe fn encrypt_turn(&mut self, ssl: *mut SSL, cancelled: &Cell<bool>) -> u32 {
        let Some(encrypt) = &mut self.encrypt else {
            return 0;
        };
        if encrypt.over {
            return 0;
        }
        if let Some(Failure::Tls(_)) = self.failure {
            return TLS_SPLICE_STEP_STOPPED;
        }
        // The sink's failure ends this direction too.
        let stopping = encrypt.stopping || self.failure.is_some();
        let packets = self.endpoint.has_packets();
        let mut turn = 0;
        let mut dry = false;
        let mut checked = false;
        loop {
            // What was read must be sent, even when stopping: OpenSSL may have
            // begun with it, and the source cannot take it back.
            while !encrypt.held.is_empty() {
                // What came before the splice is a stream, in any pieces.
                let packets = packets && !encrypt.held.has_before();
                // More that is ready shares its record.
                if packets && encrypt.batch == 0 && !stopping && !encrypt.eof {
                    break;
                }
                // SAFETY: by the contract above.
                let pending = unsafe { tls::pending_ciphertext(ssl) };
                let room = room(self.high_water_mark, pending, packets);
                // A stop does not wait for the peer to read.
                if room == 0 && !stopping {
                    return TLS_SPLICE_STEP_MORE | TLS_SPLICE_STEP_FLUSH;
                }
                let n = match encrypt.begun {
                    0 if packets => encrypt.next_batch(),
                    // What JavaScript had read can be more than there is room for.
                    0 if stopping => encrypt.next_bytes(self.framing, usize::MAX),
                    0 => encrypt.next_bytes(self.framing, read_limit(room)),
                    begun => begun,
                };
                if n == 0 && stopping {
                    // It would have failed for that.
                    encrypt.held.replace(Held::default());
                    break;
                }
                if n == 0 {
                    self.failure = Some(encrypt.out_of_step());
                    encrypt.held.replace(Held::default());
                    return TLS_SPLICE_STEP_FAILED | TLS_SPLICE_STEP_FLUSH;
                }
                // SAFETY: by the contract above.
                if unsafe { tls::is_renegotiating(ssl) } {
                    return TLS_SPLICE_STEP_WANT_TLS | TLS_SPLICE_STEP_FLUSH;
                }
                encrypt.begun = n;
                // SAFETY: by the contract above; the slice is the same at a retry.
                let write = unsafe { tls::write(ssl, &encrypt.held.front()[..n]) };
                if write == tls::Write::All {
                    encrypt.begun = 0;
                    encrypt.sent(n, packets, self.framing, &mut self.stats);
                    encrypt.batch = 0;
                    self.stats.bytes_out += n as u64;
                }
                if cancelled.get() {
                    return TLS_SPLICE_STEP_STOPPED;
                }
                match write {
                    tls::Write::All => {}
                    tls::Write::Want => return TLS_SPLICE_STEP_WANT_TLS | TLS_SPLICE_STEP_FLUSH,
                    // SSL_read has failed before and said why, which `decrypt`
                    // reports once all before that is delivered.
                    tls::Write::Failed(_)
                        if self.decrypt.as_ref().is_some_and(Decrypt::has_failed) =>
                    {
                        encrypt.over = true;
                        return TLS_SPLICE_STEP_STOPPED | TLS_SPLICE_STEP_FLUSH;
                    }
                    tls::Write::Failed(error) => {
                        self.failure = Some(Failure::Tls(error));
                        return TLS_SPLICE_STEP_FAILED | TLS_SPLICE_STEP_FLUSH;
                    }
                }
            }
            // What it reads must be sent as well.
            if encrypt.reading {
                return TLS_SPLICE_STEP_FLUSH;
            }
            if stopping {
                return TLS_SPLICE_STEP_STOPPED | TLS_SPLICE_STEP_FLUSH;
            }
            // SAFETY: by the contract above.
            let pending = unsafe { tls::pending_ciphertext(ssl) };
            let held = (encrypt.held.len() + pending) as u64;
            self.stats.peak_buffered_out = self.stats.peak_buffered_out.max(held);
            if dry {
                return TLS_SPLICE_STEP_FLUSH;
            }
            if encrypt.eof {
                // The source may have had the rest.
                if !encrypt.told_to_end && !encrypt.track.follower.is_at_boundary() {
                    self.failure = Some(encrypt.out_of_step());
                    return TLS_SPLICE_STEP_FAILED | TLS_SPLICE_STEP_FLUSH;
                }
                if pending > 0 {
                    return TLS_SPLICE_STEP_MORE | TLS_SPLICE_STEP_FLUSH;
                }
                encrypt.over = true;
                return TLS_SPLICE_STEP_OVER;
            }
            let room = room(self.high_water_mark, pending, packets);
            if room == 0 || turn >= TURN_BUDGET {
                // The beginning of the next record is not left behind.
                encrypt.batch = encrypt.held.len();
                let more = self.endpoint.hides_eof() || encrypt.batch > 0;
                return match more {
                    true => TLS_SPLICE_STEP_MORE | TLS_SPLICE_STEP_FLUSH,
                    false => TLS_SPLICE_STEP_FLUSH,
                };
            }

            let read = match encrypt.error.take() {
                Some(errno) => Io::Failed(errno),
                None if packets => {
                    // A system call, and not for each record.
                    let ready = match std::mem::replace(&mut checked, true) {
                        true => Ok(()),
                        false => self.endpoint.begin_packets(),
                    };
                    let stats = &mut self.stats;
                    match ready {
                        Ok(()) => encrypt.read_packets(&self.endpoint, self.framing, room, stats),
                        Err(errno) => Io::Failed(errno),
                    }
                }
                None if self.endpoint.has_transfers() => Io::WouldBlock,
                None => {
                    let limit = read_limit(room);
                    let read = encrypt.read_bytes(&self.endpoint, limit);
                    // Less than asked for says what EAGAIN would.
                    dry = matches!(read, Io::Bytes(n) if (1..limit).contains(&n))
                        && !self.endpoint.hides_eof();
                    read
                }
            };
            encrypt.held.release_if_empty();
            match read {
                Io::Bytes(n) => turn += n,
                Io::WouldBlock if encrypt.held.is_empty() => return TLS_SPLICE_STEP_FLUSH,
                Io::WouldBlock => dry = true,
                Io::Failed(errno) => {
                    self.failure = Some(Failure::Endpoint {
                        syscall: Syscall::Read,
                        errno,
                    });
                    return TLS_SPLICE_STEP_FAILED | TLS_SPLICE_STEP_FLUSH;
                }
            }
        }
    }
}

impl Decrypt {
    /// Writes what is held to the sink.
    fn deliver(&mut self, sink: &Endpoint, framing: Framing, stats: &mut Stats) -> Delivery {
        let was_blocked = std::mem::replace(&mut self.blocked, false);
        if let Some(errno) = self.error.take() {
            return failed_write(errno);
        }
        if self.held.is_empty() {
            return Delivery::All;
        }
        let delivery = match sink.has_packets() {
            true => self.deliver_packets(sink, framing, stats),
            false => self.deliver_bytes(sink, framing, stats),
        };
        self.partial = matches!(delivery, Delivery::All) && !self.held.is_empty();
        if matches!(delivery, Delivery::Blocked) {
            self.blocked = true;
            if !was_blocked && !sink.has_transfers() {
                stats.stalls_in += 1;
            }
        }
        delivery
    }

    fn deliver_bytes(&mut self, sink: &Endpoint, framing: Framing, stats: &mut Stats) -> Delivery {
        while !self.held.is_empty() {
            let wanted = self.track.good(framing, self.held.front());
            if wanted == 0 {
                return Delivery::Failed(self.out_of_step());
            }
            let io = sink.write(&self.held.front()[..wanted]);
            if let Io::Bytes(n) = io {
                self.delivered(n, framing, stats);
            }
            match io {
                Io::Bytes(n) if n == wanted => {}
                Io::Bytes(0) => return failed_write(TOOK_NOTHING),
                Io::Failed(errno) => return failed_write(errno),
                // A short write says what EAGAIN would: the sink is full.
                _ => return Delivery::Blocked,
            }
        }
        Delivery::All
    }

    /// The sink has taken `n` bytes.
    fn delivered(&mut self, n: usize, framing: Framing, stats: &mut Stats) {
        let bytes = &self.held.front()[..n];
        self.track
            .pass(framing, bytes, |packet| stats.count_in(packet.len));
        self.held.consume(n);
        self.stalled &= !self.held.is_empty();
        stats.bytes_in += n as u64;
    }

    fn deliver_packets(
        &mut self,
        sink: &Endpoint,
        framing: Framing,
        stats: &mut Stats,
    ) -> Delivery {
        if let Err(errno) = sink.begin_packets() {
            return failed_write(errno);
        }
        loop {
            let front = self.held.front();
            match framing.parse(front) {
                Err(Desync) => return Delivery::Failed(self.out_of_step()),
                Ok(Some(packet)) if packet.total() <= front.len() => {
                    match sink.write_packet(&front[packet.prefix..packet.total()]) {
                        Io::Bytes(_) => {
                            stats.count_in(packet.len);
                            stats.bytes_in += packet.total() as u64;
                        }
                        Io::WouldBlock => return Delivery::Blocked,
                        Io::Failed(errno) if stats.count_drop(errno) => {}
                        Io::Failed(errno) => return failed_write(errno),
                    }
                    self.held.consume(packet.total());
                    self.track.skip(packet.total());
                    // Small ones cost as much time as large ones.
                    self.turn += LEAST_WORK.saturating_sub(packet.total());
                    if self.turn >= TURN_BUDGET {
                        return Delivery::Paused;
                    }
                }
                Ok(_) => {
                    // Its rest may be in another place, or needs the room.
                    let len = front.len();
                    self.held.gather();
                    if self.held.front().len() == len {
                        return Delivery::All;
                    }
                }
            }
        }
    }

    /// Whether SSL_read has failed, rather than come to the peer's close_notify.
    fn has_failed(&self) -> bool {
        self.end.is_some_and(|end| !end.close_notify)
    }

    /// Whether no packet has been cut off so far.
    fn is_at_boundary(&self) -> bool {
        self.held.is_empty() && self.track.follower.is_at_boundary()
    }

    fn out_of_step(&self) -> Failure {
        Failure::Framing {
            direction: TLS_SPLICE_DECRYPT,
            offset: self.track.out_of_step(),
        }
    }
}

fn failed_write(errno: c_int) -> Delivery {
    Delivery::Failed(Failure::Endpoint {
        syscall: Syscall::Write,
        errno,
    })
}

impl Encrypt {
    fn read_bytes(&mut self, source: &Endpoint, limit: usize) -> Io {
        let chunk = self.held.chunk();
        let read = source.read(&mut chunk.spare()[..limit]);
        if let Io::Bytes(n) = read {
            chunk.commit(n);
            self.eof = n == 0;
        }
        read
    }

    /// Reads packets that are there now, until they fill a record or `limit`. What it
    /// returns stands for the work done.
    fn read_packets(
        &mut self,
        source: &Endpoint,
        framing: Framing,
        limit: usize,
        stats: &mut Stats,
    ) -> Io {
        let limit = limit.min(MAX_RECORD);
        let prefix = framing.prefix();
        let chunk = self.held.chunk();
        chunk.compact();
        let mut work = 0;
        loop {
            let before = chunk.len();
            if before >= limit || work >= TURN_BUDGET {
                self.batch = before;
                return Io::Bytes(work);
            }
            let spare = chunk.spare_for(true);
            match source.read_packet(&mut spare[prefix..]) {
                PacketIo::Packet(n) => {
                    work += n.max(LEAST_WORK);
                    if framing.frame(&mut spare[..prefix + n]).is_err() {
                        stats.drops_out += 1;
                        continue;
                    }
                    chunk.commit(prefix + n);
                    stats.count_out(n);
                    if before > 0 && chunk.len() > MAX_RECORD {
                        // It begins the next record.
                        self.batch = before;
                        return Io::Bytes(work);
                    }
                }
                PacketIo::Truncated => {
                    work += LEAST_WORK;
                    stats.drops_out += 1;
                }
                PacketIo::Refused(errno) => {
                    work += LEAST_WORK;
                    stats.count_drop(errno);
                }
                PacketIo::WouldBlock => {
                    self.batch = before;
                    if before > 0 || work > 0 || !source.is_over() {
                        return Io::WouldBlock;
                    }
                    self.eof = true;
                    return Io::Bytes(0);
                }
                PacketIo::Eof => {
                    self.batch = before;
                    self.eof = true;
                    return Io::Bytes(work);
                }
                PacketIo::Failed(errno) => {
                    self.batch = before;
                    return Io::Failed(errno);
                }
            }
        }
    }

    /// Packets for the next SSL_write.
    fn next_batch(&mut self) -> usize {
        if self.batch == 0 {
            self.batch = self.held.len();
        }
        self.batch
    }

    /// Bytes for the next SSL_write, at most `limit`; 0 if they are no packets.
    fn next_bytes(&mut self, framing: Framing, limit: usize) -> usize {
        self.track.good(framing, self.held.front()).min(limit)
    }

    /// OpenSSL has accepted `n` bytes. Of a packet endpoint they are whole packets,
    /// counted when they were read.
    fn sent(&mut self, n: usize, packets: bool, framing: Framing, stats: &mut Stats) {
        let bytes = &self.held.front()[..n];
        match packets {
            true => self.track.skip(n),
            false => self
                .track
                .pass(framing, bytes, |packet| stats.count_out(packet.len)),
        }
        self.held.consume(n);
    }

    fn out_of_step(&self) -> Failure {
        Failure::Framing {
            direction: TLS_SPLICE_ENCRYPT,
            offset: self.track.out_of_step(),
        }
    }

    fn wants_source(&self) -> bool {
        self.held.is_empty() && !(self.reading || self.eof || self.stopping || self.over)
    }
}

/// How much may be added to `pending` bytes of ciphertext. Nothing while there is
/// little room: reading a little at a time would make small records. Of packets,
/// which come in any size, one more than that may be read.
fn room(high_water_mark: usize, pending: usize, packets: bool) -> usize {
    let room = high_water_mark.saturating_sub(pending);
    if packets {
        let room = (room - room / 6).saturating_sub(MAX_FRAMED);
        return if pending == 0 { room.max(1) } else { room };
    }
    if pending > 0 && room <= high_water_mark / 4 {
        0
    } else {
        room
    }
}

/// How much to read for that: records grow by 90 bytes at most, with 512 bytes in
/// each at least (setMaxSendFragment).
fn read_limit(room: usize) -> usize {
    (room - room / 6).clamp(1, LARGE_CHUNK_SIZE)
}

impl tls::End {
    /// Says it again, so that `SSL_get_error` gives the right answer for the
    /// returned value although other calls may have come between.
    ///
    /// # Safety
    /// As for [`tls::read`].
    unsafe fn report(&self, ssl: *mut SSL) -> c_int {
        if self.close_notify {
            // SAFETY: passed on. After close_notify, SSL_read keeps returning 0.
            unsafe { tls::read(ssl, &mut [0]) };
        } else {
            tls::raise(self.error);
        }
        self.ret
    }
}
