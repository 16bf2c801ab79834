//! The two state machines.
//!
//! A file is not polled, since it never says that it would block, and is not read
//! or written here, since it does. Instead the caller asks for a [`Transfer`],
//! carries it out on another thread, and reports what came of it.

use std::cell::Cell;
use std::os::fd::RawFd;

use libc::c_int;
use openssl_sys::SSL;

use crate::buf::{Held, CHUNK_SIZE};
use crate::endpoint::{Endpoint, Io, READABLE, WRITABLE};
use crate::error::{Failure, Syscall};
use crate::rbio::Rbio;
use crate::stats::Stats;
use crate::tls;

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
const TURN_BUDGET: usize = 512 * 1024;

/// TLS records carry at most this much cleartext.
const MAX_RECORD: usize = 16 * 1024;

/// Memory to read a file into, or to write to it.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// The descriptor, which stays the pump's.
    pub fd: RawFd,
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
    end: Option<tls::End>,
    /// Bytes since the loop last turned.
    turn: usize,
    blocked: bool,
    stopped: bool,
}

#[derive(Default)]
struct Encrypt {
    held: Held,
    /// A transfer is reading into what is held.
    reading: bool,
    /// The errno of a transfer.
    error: Option<c_int>,
    /// Length of an SSL_write that has begun and is to be tried again, else 0.
    begun: usize,
    eof: bool,
    /// The write BIO is so full that the source is not read.
    stalled: bool,
    stopping: bool,
    over: bool,
}

/// Both directions of one splice and the endpoint they share.
pub struct Pump {
    endpoint: Endpoint,
    decrypt: Option<Decrypt>,
    encrypt: Option<Encrypt>,
    rbio: Option<Rbio>,
    high_water_mark: usize,
    failure: Option<Failure>,
    /// Counters, in bytes.
    pub stats: Stats,
}

impl Pump {
    /// A pump that holds at most `high_water_mark` bytes per direction.
    pub fn new(endpoint: Endpoint, high_water_mark: usize) -> Pump {
        Pump {
            endpoint,
            decrypt: None,
            encrypt: None,
            rbio: None,
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
            self.encrypt = Some(Encrypt::default());
        }
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

    /// Stops reading the source; what was read is still encrypted, then `encrypt`
    /// says OVER.
    pub fn end_encrypt(&mut self) {
        if let Some(encrypt) = &mut self.encrypt {
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

    /// The buffer that the stream's next read goes to; empty unless
    /// [`Pump::attach_rbio`] was called.
    pub fn alloc(&mut self) -> &mut [u8] {
        // Half of what may be held, since as much again may be held decrypted.
        let limit = (self.high_water_mark / 2).max(1);
        let over = self.decrypt.as_ref().is_some_and(|d| d.end.is_some());
        match &mut self.rbio {
            Some(rbio) => {
                // Nobody will read it, and the stream is read on for its own end.
                if over {
                    rbio.discard();
                }
                rbio.spare(limit)
            }
            None => &mut [],
        }
    }

    /// Takes in `n` bytes of ciphertext.
    pub fn commit(&mut self, n: usize) {
        if let Some(rbio) = &mut self.rbio {
            rbio.commit(n);
        }
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
                transfer.len = decrypt.held.front().len();
                decrypt.writing = transfer.len > 0;
            }
        } else if let Some(encrypt) = self.encrypt.as_mut().filter(|e| e.wants_source()) {
            // SAFETY: by the contract above.
            let pending = unsafe { tls::pending_ciphertext(ssl) };
            let room = room(self.high_water_mark, pending);
            if room > 0 {
                let limit = read_limit(room);
                let spare = &mut encrypt.held.chunk().spare()[..limit];
                transfer.base = spare.as_mut_ptr();
                transfer.len = limit;
                encrypt.reading = true;
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
                decrypt.error = error;
                if let Ok(n) = result {
                    decrypt.held.consume(n);
                    self.stats.bytes_in += n as u64;
                }
            }
        } else if let Some(encrypt) = self.encrypt.as_mut().filter(|e| e.reading) {
            encrypt.reading = false;
            encrypt.error = error;
            if let Ok(n) = result {
                encrypt.held.chunk().commit(n);
                encrypt.eof |= n == 0;
            }
            encrypt.held.release_if_empty();
        }
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
            if self
                .decrypt
                .as_ref()
                .is_some_and(|d| d.blocked && !d.stopped && !d.writing)
            {
                interest |= WRITABLE;
            }
            if let Some(encrypt) = self.encrypt.as_mut().filter(|e| e.wants_source()) {
                // SAFETY: by the contract above.
                let pending = unsafe { tls::pending_ciphertext(ssl) };
                let stalled = room(self.high_water_mark, pending) == 0;
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
        // What OpenSSL answered to a KeyUpdate, a renegotiation or bad records.
        // SAFETY: by the contract above; not cancelled.
        if steps & TLS_SPLICE_STEP_STOPPED == 0 && unsafe { tls::pending_ciphertext(ssl) } > 0 {
            steps |= TLS_SPLICE_STEP_FLUSH;
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
            match decrypt.deliver(&self.endpoint, &mut self.stats) {
                Io::Bytes(_) => {}
                Io::WouldBlock => {
                    return (TLS_SPLICE_STEP_PAUSE_TLS, 1);
                }
                Io::Failed(errno) => {
                    self.failure = Some(Failure::Endpoint {
                        syscall: Syscall::Write,
                        errno,
                    });
                    return (TLS_SPLICE_STEP_FAILED | TLS_SPLICE_STEP_PAUSE_TLS, 1);
                }
            }
            if let Some(end) = decrypt.end {
                // SAFETY: by the contract above.
                let ret = unsafe { end.report(ssl) };
                return (TLS_SPLICE_STEP_OVER, ret);
            }
            if want {
                return (0, 1);
            }
            if decrypt.turn >= TURN_BUDGET {
                decrypt.turn = 0;
                return (TLS_SPLICE_STEP_MORE | TLS_SPLICE_STEP_PAUSE_TLS, 1);
            }

            let limit = (self.high_water_mark / 2).max(1);
            let chunk = decrypt.held.chunk();
            loop {
                let spare = chunk.spare();
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
                let full = chunk.spare().len() < MAX_RECORD || chunk.len() >= limit;
                if want || decrypt.end.is_some() || full {
                    break;
                }
            }
            let ciphertext = self.rbio.as_ref().map_or(0, Rbio::pending);
            let held = (chunk.len() + ciphertext) as u64;
            self.stats.peak_buffered_in = self.stats.peak_buffered_in.max(held);
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
        let mut turn = 0;
        loop {
            // What was read must be sent, even when stopping: OpenSSL may have
            // begun with it, and the source cannot take it back.
            while !encrypt.held.is_empty() {
                // SAFETY: by the contract above.
                let pending = unsafe { tls::pending_ciphertext(ssl) };
                let room = room(self.high_water_mark, pending);
                // A stop does not wait for the peer to read.
                if room == 0 && !stopping {
                    return TLS_SPLICE_STEP_MORE | TLS_SPLICE_STEP_FLUSH;
                }
                // What JavaScript had read can be more than there is room for.
                let n = match encrypt.begun {
                    0 if stopping => usize::MAX,
                    0 => read_limit(room),
                    begun => begun,
                };
                let n = n.min(encrypt.held.front().len());
                encrypt.begun = n;
                // SAFETY: by the contract above; the slice is the same at a retry.
                let write = unsafe { tls::write(ssl, &encrypt.held.front()[..n]) };
                if write == tls::Write::All {
                    encrypt.begun = 0;
                    encrypt.held.consume(n);
                    self.stats.bytes_out += n as u64;
                }
                if cancelled.get() {
                    return TLS_SPLICE_STEP_STOPPED;
                }
                match write {
                    tls::Write::All => {}
                    tls::Write::Want => return TLS_SPLICE_STEP_WANT_TLS | TLS_SPLICE_STEP_FLUSH,
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
            self.stats.peak_buffered_out = self.stats.peak_buffered_out.max(pending as u64);
            if encrypt.eof {
                if pending > 0 {
                    return TLS_SPLICE_STEP_MORE | TLS_SPLICE_STEP_FLUSH;
                }
                encrypt.over = true;
                return TLS_SPLICE_STEP_OVER;
            }
            let room = room(self.high_water_mark, pending);
            if room == 0 || turn >= TURN_BUDGET {
                return match self.endpoint.hides_eof() {
                    true => TLS_SPLICE_STEP_MORE | TLS_SPLICE_STEP_FLUSH,
                    false => TLS_SPLICE_STEP_FLUSH,
                };
            }

            let chunk = encrypt.held.chunk();
            let read = match encrypt.error.take() {
                Some(errno) => Io::Failed(errno),
                None => self.endpoint.read(&mut chunk.spare()[..read_limit(room)]),
            };
            if let Io::Bytes(n) = read {
                chunk.commit(n);
                turn += n;
                encrypt.eof = n == 0;
            }
            encrypt.held.release_if_empty();
            match read {
                Io::Bytes(_) => {}
                Io::WouldBlock => return TLS_SPLICE_STEP_FLUSH,
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
    /// Writes what is held to the sink: `Bytes` when nothing is left.
    fn deliver(&mut self, sink: &Endpoint, stats: &mut Stats) -> Io {
        let was_blocked = std::mem::replace(&mut self.blocked, false);
        if let Some(errno) = self.error.take() {
            return Io::Failed(errno);
        }
        while !self.held.is_empty() {
            let wanted = self.held.front().len();
            let io = sink.write(self.held.front());
            if let Io::Bytes(n) = io {
                self.held.consume(n);
                stats.bytes_in += n as u64;
            }
            match io {
                Io::Bytes(n) if n == wanted => {}
                Io::Failed(errno) => return Io::Failed(errno),
                // A short write says what EAGAIN would: the sink is full.
                _ => {
                    self.blocked = true;
                    if !was_blocked && !sink.is_file() {
                        stats.stalls_in += 1;
                    }
                    return Io::WouldBlock;
                }
            }
        }
        Io::Bytes(0)
    }
}

impl Encrypt {
    fn wants_source(&self) -> bool {
        self.held.is_empty() && !(self.reading || self.eof || self.stopping || self.over)
    }
}

/// How much may be added to `pending` bytes of ciphertext. Nothing while there is
/// little room: reading a little at a time would make small records.
fn room(high_water_mark: usize, pending: usize) -> usize {
    let room = high_water_mark.saturating_sub(pending);
    if pending > 0 && room <= high_water_mark / 4 {
        0
    } else {
        room
    }
}

/// How much to read for that: records grow by 90 bytes at most, with 512 bytes in
/// each at least (setMaxSendFragment).
fn read_limit(room: usize) -> usize {
    (room - room / 6).clamp(1, CHUNK_SIZE)
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
            self.raise();
        }
        self.ret
    }
}
