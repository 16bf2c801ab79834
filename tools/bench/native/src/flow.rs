//! The two ends of what goes through a forwarder: many connections on one thread, each sending and
//! receiving as fast as it can, or at a given rate.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering::Relaxed};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::sys::{self, Endpoint, Ends, Epoll};
use crate::tls::{Read, Tls};

/// A prime, so that a chunk that is missing, repeated or out of order shows.
const PERIOD: usize = 65521;
/// How often something is sent when the rate is limited: as iperf3 does it, and about
/// what a network interface makes of a stream that it gathers interrupts for.
const TICK: Duration = Duration::from_millis(1);
/// The most that is sent at once.
pub const CHUNK: usize = 256 << 10;

/// What every stream has at `position`, where it need not be anything in particular.
pub fn pattern(position: u64, len: usize) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let byte = |i| ((i % PERIOD as u64 * 2_654_435_761) >> 13) as u8;
        (0..(PERIOD + CHUNK) as u64).map(byte).collect()
    });
    let at = (position % PERIOD as u64) as usize;
    &bytes[at..at + len]
}

/// What is received is compared with what must have been sent.
pub const VERIFY: u8 = 0;
/// It is dropped in the kernel where that is possible.
pub const DISCARD: u8 = 1;
/// Nothing new is sent.
pub const DRAIN: u8 = 2;
/// The threads end.
pub const QUIT: u8 = 3;

/// One connection's, as other threads see it.
#[derive(Default)]
pub struct Counters {
    /// Cleartext that was handed over for sending.
    pub sent: AtomicU64,
    /// Cleartext; on the TLS side ciphertext while it is dropped.
    pub received: AtomicU64,
}

/// What one side of all connections does.
pub struct Side {
    /// Whether it sends.
    pub sends: bool,
    /// Whether it receives. One that does not stalls.
    pub receives: bool,
    /// Bytes for each record, or for each write when the rate is limited.
    pub record: usize,
    /// Bytes that one connection sends before it is another one's turn.
    pub turn: usize,
    /// Bytes per second on each connection.
    pub rate: Option<f64>,
    /// What every stream has at a position, for a length of at most [`CHUNK`].
    pub content: fn(u64, usize) -> &'static [u8],
    /// One for each connection.
    pub counters: Vec<Counters>,
}

impl Side {
    /// Sum of what was sent.
    pub fn sent(&self) -> u64 {
        self.counters
            .iter()
            .map(|counters| counters.sent.load(Relaxed))
            .sum()
    }

    /// Sum of what was received.
    pub fn received(&self) -> u64 {
        self.counters
            .iter()
            .map(|counters| counters.received.load(Relaxed))
            .sum()
    }
}

/// One end of one connection.
pub enum End {
    /// Not encrypted.
    Plain(Endpoint, Ends),
    /// TLS over TCP.
    Tls(Tls),
}

struct Flow<'a> {
    end: End,
    counters: &'a Counters,
    sent: u64,
    received: u64,
    readable: bool,
    writable: bool,
}

impl Flow<'_> {
    /// One read; whether another one may get something.
    fn receive(
        &mut self,
        side: &Side,
        discard: bool,
        buf: &mut [u8],
        null: &File,
    ) -> io::Result<bool> {
        let len = buf.len();
        let got = match &mut self.end {
            End::Tls(tls) if discard => sys::discard_tcp(tls.fd(), len)?,
            End::Tls(tls) => match tls.read(buf)? {
                Read::Bytes(n) => Some(n),
                Read::Blocked => None,
                Read::End => Some(0),
            },
            End::Plain(Endpoint::Tcp(_), ends) if discard => sys::discard_tcp(ends.source(), len)?,
            End::Plain(Endpoint::Fifo(_), ends) if discard => {
                sys::discard_pipe(ends.source(), null.as_raw_fd(), len)?
            }
            End::Plain(_, ends) => sys::read(ends.source(), buf)?,
        };
        self.readable = false;
        let Some(n) = got else { return Ok(false) };
        if n == 0 {
            return Err(io::Error::other("the forwarder has closed a connection"));
        }
        if !discard && buf[..n] != *(side.content)(self.received, n) {
            return Err(io::Error::other(format!(
                "wrong content after byte {}",
                self.received
            )));
        }
        self.received += n as u64;
        self.counters.received.store(self.received, Relaxed);
        // A TLS read is one record, a pipe gives less than asked for whenever it likes.
        self.readable =
            n == len || matches!(self.end, End::Tls(_) | End::Plain(Endpoint::Fifo(_), _));
        Ok(self.readable)
    }

    /// Sends what fits, up to the position `limit`; whether more may fit.
    fn send(&mut self, side: &Side, limit: u64) -> io::Result<bool> {
        let record = side.record;
        match &mut self.end {
            End::Tls(tls) => {
                while tls.pending() < side.turn && self.sent + record as u64 <= limit {
                    tls.write((side.content)(self.sent, record))?;
                    self.sent += record as u64;
                }
                self.writable = tls.flush()?;
            }
            End::Plain(_, ends) => {
                let limited = side.rate.is_some();
                let chunk = if limited { record } else { side.turn };
                let room = limit.saturating_sub(self.sent).min(chunk as u64) as usize;
                if room == 0 || (limited && room < record) {
                    return Ok(false);
                }
                let n = sys::write(ends.sink(), (side.content)(self.sent, room))?.unwrap_or(0);
                self.sent += n as u64;
                self.writable = n == room;
            }
        }
        self.counters.sent.store(self.sent, Relaxed);
        Ok(self.writable && self.sent + record as u64 <= limit)
    }

    fn register(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        match &mut self.end {
            End::Tls(tls) => epoll.add(tls.fd(), token),
            End::Plain(_, ends) => {
                epoll.add(ends.source(), token)?;
                if ends.sink.is_some() {
                    epoll.add(ends.sink(), token)
                } else {
                    Ok(())
                }
            }
        }
    }
}

/// Until `phase` is [`QUIT`].
pub fn run(ends: Vec<End>, side: &Side, phase: &AtomicU8) -> io::Result<()> {
    sys::exact_timers();
    let null = File::options().write(true).open("/dev/null")?;
    let mut epoll = Epoll::new()?;
    let mut flows = Vec::new();
    for (end, counters) in ends.into_iter().zip(&side.counters) {
        let (sent, received) = (0, 0);
        let mut flow = Flow {
            end,
            counters,
            sent,
            received,
            readable: true,
            writable: true,
        };
        flow.register(&epoll, flows.len() as u64)?;
        flows.push(flow);
    }
    let mut buf = vec![0; CHUNK];
    let start = Instant::now();
    loop {
        let now = phase.load(Relaxed);
        if now == QUIT {
            return Ok(());
        }
        let elapsed = start.elapsed();
        let ticks = elapsed.as_micros() as u64 / TICK.as_micros() as u64;
        let due = side.rate.map_or(u64::MAX, |rate| {
            (ticks as f64 * TICK.as_secs_f64() * rate) as u64
        });
        let mut busy = false;
        for flow in &mut flows {
            if side.receives && flow.readable {
                busy |= flow.receive(side, now != VERIFY, &mut buf, &null)?;
            }
            if side.sends && flow.writable {
                let limit = if now < DRAIN { due } else { 0 };
                busy |= flow.send(side, limit)?;
            }
        }
        let timeout = match side.rate {
            _ if busy => Duration::ZERO,
            Some(_) if now < DRAIN => (TICK * (ticks as u32 + 1)).saturating_sub(elapsed),
            _ => Duration::from_millis(10),
        };
        for event in epoll.wait(Some(timeout))? {
            let flow = &mut flows[event.token as usize];
            flow.readable |= event.readable;
            flow.writable |= event.writable;
            if let End::Tls(tls) = &mut flow.end {
                event.readable.then(|| tls.readable());
                event.writable.then(|| tls.writable());
            }
        }
    }
}
