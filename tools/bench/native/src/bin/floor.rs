//! The floor: about the least that a TLS terminator can do in user space with OpenSSL, on one
//! thread. What it leaves out (timeouts, limits, handshakes that do not wait) costs next to nothing.
//!
//! Decryption reads as much ciphertext as fits OpenSSL's buffer, and writes the content of many
//! records at once: more than 64 KiB would leave the CPU's cache. Encryption reads more at once, and
//! sends all of its records with one call, which counts for more.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;

use openssl::ssl::SslContext;
use tls_splice_bench::args::Args;
use tls_splice_bench::sys::{self, Endpoint, Ends, Epoll};
use tls_splice_bench::tls::{self, Read, Tls};

/// What a direction needs next.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    /// Its turn again.
    More,
    /// An event.
    Blocked,
    /// Nothing ever.
    Over,
}

struct Relay {
    tls: Tls,
    ends: Ends,
    source_drained: bool,
    sink_full: bool,
    /// Cleartext that the sink has not taken.
    held: Vec<u8>,
    decrypt_ended: bool,
    encrypt_ended: bool,
    queued: bool,
}

impl Relay {
    fn decrypt(&mut self, scratch: &mut [u8]) -> io::Result<Step> {
        if !self.held.is_empty() {
            if self.sink_full {
                return Ok(Step::Blocked);
            }
            let n = sys::write(self.ends.sink(), &self.held)?.unwrap_or(0);
            self.held.drain(..n);
            self.sink_full = !self.held.is_empty();
            if self.sink_full {
                return Ok(Step::Blocked);
            }
        }
        if self.decrypt_ended {
            return Ok(Step::Over);
        }
        let mut len = 0;
        let mut step = Step::More;
        while len < scratch.len() {
            match self.tls.read(&mut scratch[len..])? {
                Read::Bytes(n) => len += n,
                Read::Blocked => {
                    step = Step::Blocked;
                    break;
                }
                Read::End => {
                    self.decrypt_ended = true;
                    break;
                }
            }
        }
        if len > 0 {
            let n = sys::write(self.ends.sink(), &scratch[..len])?.unwrap_or(0);
            self.held.extend_from_slice(&scratch[n..len]);
            self.sink_full = n < len;
        }
        if self.decrypt_ended && self.held.is_empty() {
            // SAFETY: no pointers. What is not a socket refuses, and is closed with the relay.
            unsafe { libc::shutdown(self.ends.sink(), libc::SHUT_WR) };
            return Ok(Step::Over);
        }
        Ok(if self.sink_full { Step::Blocked } else { step })
    }

    fn encrypt(&mut self, scratch: &mut [u8]) -> io::Result<Step> {
        if !self.tls.flush()? {
            return Ok(Step::Blocked);
        }
        if self.encrypt_ended {
            return Ok(Step::Over);
        }
        if self.source_drained {
            return Ok(Step::Blocked);
        }
        match sys::read(self.ends.source(), scratch)? {
            None => self.source_drained = true,
            Some(0) => {
                self.encrypt_ended = true;
                self.tls.shutdown();
            }
            Some(n) => {
                self.source_drained = n < scratch.len();
                self.tls.write(&scratch[..n])?;
            }
        }
        Ok(if self.tls.flush()? && !self.source_drained {
            Step::More
        } else {
            Step::Blocked
        })
    }
}

/// Tokens: the listener's, then two for each relay.
const LISTENER: u64 = u64::MAX;

fn accept(listener: &TcpListener, ctx: &SslContext, upstream: &Endpoint) -> io::Result<Relay> {
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut tls = Tls::new(ctx, stream.into(), true)?;
    tls.handshake()?;
    Ok(Relay {
        tls,
        ends: upstream.connect()?,
        source_drained: false,
        sink_full: false,
        held: Vec::new(),
        decrypt_ended: false,
        encrypt_ended: false,
        queued: false,
    })
}

fn main() -> io::Result<()> {
    let args = Args::new();
    let upstream: Endpoint = args.need("--upstream");
    let decrypt_size = args.get("--decrypt").unwrap_or(64 << 10);
    let encrypt_size = args.get("--encrypt").unwrap_or(256 << 10);
    let (cert, key): (String, String) = (args.need("--cert"), args.need("--key"));
    // Four records of 16 KiB with what TLS adds.
    let read_ahead = args.get("--read-ahead").unwrap_or(66 << 10);
    let ctx = tls::server(&cert, &key, read_ahead)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.need("--port")))?;
    listener.set_nonblocking(true)?;
    let mut epoll = Epoll::new()?;
    epoll.add(listener.as_raw_fd(), LISTENER)?;

    let mut scratch = vec![0; decrypt_size.max(encrypt_size)];
    let mut relays: Vec<Option<Relay>> = Vec::new();
    let mut queue = VecDeque::new();
    loop {
        let mut accepting = false;
        let timeout = (!queue.is_empty()).then_some(std::time::Duration::ZERO);
        for event in epoll.wait(timeout)? {
            if event.token == LISTENER {
                accepting = true;
                continue;
            }
            let (index, is_tls) = ((event.token >> 1) as usize, event.token & 1 == 0);
            let Some(relay) = &mut relays[index] else {
                continue;
            };
            if is_tls {
                event.readable.then(|| relay.tls.readable());
                event.writable.then(|| relay.tls.writable());
            } else {
                relay.source_drained &= !event.readable;
                relay.sink_full &= !event.writable;
            }
            if !std::mem::replace(&mut relay.queued, true) {
                queue.push_back(index);
            }
        }
        while accepting {
            match accept(&listener, &ctx, &upstream) {
                Ok(mut relay) => {
                    let token = (relays.len() as u64) << 1;
                    epoll.add(relay.tls.fd(), token)?;
                    epoll.add(relay.ends.source(), token | 1)?;
                    if let Some(sink) = &relay.ends.sink {
                        epoll.add(sink.as_raw_fd(), token | 1)?;
                    }
                    relays.push(Some(relay));
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => accepting = false,
                Err(err) => eprintln!("{err}"),
            }
        }
        for _ in 0..queue.len() {
            let Some(index) = queue.pop_front() else {
                break;
            };
            let Some(relay) = &mut relays[index] else {
                continue;
            };
            relay.queued = false;
            let steps = relay
                .decrypt(&mut scratch[..decrypt_size])
                .and_then(|step| Ok([step, relay.encrypt(&mut scratch[..encrypt_size])?]));
            match steps {
                Ok([Step::Over, Step::Over]) => relays[index] = None,
                Ok(steps) => {
                    if steps.contains(&Step::More) {
                        relay.queued = true;
                        queue.push_back(index);
                    }
                }
                Err(err) => {
                    eprintln!("{err}");
                    relays[index] = None;
                }
            }
        }
    }
}
