//! The floor: about the least that a TLS forwarder can do in user space with OpenSSL, on one
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
use tls_splice_bench::sys::{self, Endpoint, Ends, Epoll, Event};
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

/// Decrypts until there is nothing more, or no room.
fn read(tls: &mut Tls, buf: &mut [u8]) -> io::Result<(usize, Step)> {
    let mut len = 0;
    while len < buf.len() {
        match tls.read(&mut buf[len..])? {
            Read::Bytes(n) => len += n,
            Read::Blocked => return Ok((len, Step::Blocked)),
            Read::End => return Ok((len, Step::Over)),
        }
    }
    Ok((len, Step::More))
}

/// From TLS to cleartext and back.
struct Terminator {
    tls: Tls,
    ends: Ends,
    source_drained: bool,
    /// The source has ended, and may have bytes before its end.
    source_ended: bool,
    sink_full: bool,
    /// Cleartext that the sink has not taken.
    held: Vec<u8>,
    decrypt_ended: bool,
    encrypt_ended: bool,
}

impl Terminator {
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
        let (len, step) = read(&mut self.tls, scratch)?;
        self.decrypt_ended = step == Step::Over;
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
                self.source_drained = n < scratch.len() && !self.source_ended;
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

/// From TLS to TLS and back.
struct Proxy {
    ends: [Tls; 2],
    ended: [bool; 2],
}

impl Proxy {
    fn forward(&mut self, way: usize, scratch: &mut [u8]) -> io::Result<Step> {
        let [client, server] = &mut self.ends;
        let (from, to) = if way == 0 {
            (client, server)
        } else {
            (server, client)
        };
        if !to.flush()? {
            return Ok(Step::Blocked);
        }
        if self.ended[way] {
            return Ok(Step::Over);
        }
        let (len, step) = read(from, scratch)?;
        if len > 0 {
            to.write(&scratch[..len])?;
        }
        if step == Step::Over {
            self.ended[way] = true;
            to.shutdown();
        }
        Ok(if to.flush()? { step } else { Step::Blocked })
    }
}

enum Pair {
    Terminator(Terminator),
    Proxy(Proxy),
}

impl Pair {
    fn register(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        match self {
            Pair::Terminator(Terminator { tls, ends, .. }) => {
                epoll.add(tls.fd(), token)?;
                epoll.add(ends.source(), token | 1)?;
                ends.sink
                    .as_ref()
                    .map_or(Ok(()), |sink| epoll.add(sink.as_raw_fd(), token | 1))
            }
            Pair::Proxy(Proxy { ends, .. }) => {
                epoll.add(ends[0].fd(), token)?;
                epoll.add(ends[1].fd(), token | 1)
            }
        }
    }

    fn take_event(&mut self, event: &Event) {
        let tls = match (self, event.token & 1) {
            (Pair::Terminator(relay), 0) => &mut relay.tls,
            (Pair::Terminator(relay), _) => {
                relay.source_drained &= !event.readable;
                relay.source_ended |= event.ended;
                relay.sink_full &= !event.writable;
                return;
            }
            (Pair::Proxy(relay), end) => &mut relay.ends[end as usize],
        };
        event.readable.then(|| tls.readable());
        event.writable.then(|| tls.writable());
    }

    fn step(&mut self, scratch: &mut [u8], sizes: &Sizes) -> io::Result<[Step; 2]> {
        let decrypt = &mut scratch[..sizes.decrypt];
        Ok(match self {
            Pair::Terminator(relay) => [
                relay.decrypt(decrypt)?,
                relay.encrypt(&mut scratch[..sizes.encrypt])?,
            ],
            Pair::Proxy(relay) => [relay.forward(0, decrypt)?, relay.forward(1, decrypt)?],
        })
    }
}

/// Of the buffers.
struct Sizes {
    decrypt: usize,
    encrypt: usize,
}

struct Relay {
    pair: Pair,
    queued: bool,
}

struct Contexts {
    server: SslContext,
    client: SslContext,
}

/// Tokens: the listener's, then two for each relay.
const LISTENER: u64 = u64::MAX;

fn accept(listener: &TcpListener, ctx: &Contexts, upstream: &Endpoint) -> io::Result<Relay> {
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut tls = Tls::new(&ctx.server, stream.into(), true)?;
    tls.handshake()?;
    let ends = upstream.connect()?;
    let pair = if let Endpoint::Tls(_) = upstream {
        let mut server = Tls::new(&ctx.client, ends.source, false)?;
        server.handshake()?;
        Pair::Proxy(Proxy {
            ends: [tls, server],
            ended: [false; 2],
        })
    } else {
        Pair::Terminator(Terminator {
            tls,
            ends,
            source_drained: false,
            source_ended: false,
            sink_full: false,
            held: Vec::new(),
            decrypt_ended: false,
            encrypt_ended: false,
        })
    };
    // OpenSSL may have read more than the handshake, of which epoll says nothing.
    Ok(Relay { pair, queued: true })
}

fn main() -> io::Result<()> {
    let args = Args::new();
    let upstream: Endpoint = args.need("--upstream");
    let sizes = Sizes {
        decrypt: args.get("--decrypt").unwrap_or(64 << 10),
        encrypt: args.get("--encrypt").unwrap_or(256 << 10),
    };
    let (cert, key): (String, String) = (args.need("--cert"), args.need("--key"));
    // Four records of 16 KiB with what TLS adds.
    let read_ahead = Some(args.get("--read-ahead").unwrap_or(66 << 10));
    let ctx = Contexts {
        server: tls::server(&cert, &key, read_ahead)?,
        client: tls::client(read_ahead)?,
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.need("--port")))?;
    listener.set_nonblocking(true)?;
    let mut epoll = Epoll::new()?;
    epoll.add(listener.as_raw_fd(), LISTENER)?;

    let mut scratch = vec![0; sizes.decrypt.max(sizes.encrypt)];
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
            let index = (event.token >> 1) as usize;
            let Some(relay) = &mut relays[index] else {
                continue;
            };
            relay.pair.take_event(&event);
            if !std::mem::replace(&mut relay.queued, true) {
                queue.push_back(index);
            }
        }
        while accepting {
            match accept(&listener, &ctx, &upstream) {
                Ok(mut relay) => {
                    relay.pair.register(&epoll, (relays.len() as u64) << 1)?;
                    queue.push_back(relays.len());
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
            match relay.pair.step(&mut scratch, &sizes) {
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
