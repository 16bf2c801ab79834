//! Datagrams through a forwarder between TLS, where a length of two bytes is before each of them,
//! and a UDP socket.
//!
//! A datagram that does not fit into the queue of a socket is lost. So no more of them are on the
//! way than fit, and every one that arrives is compared with what was sent.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use libc::c_int;

use crate::flow::{self, CHUNK, DRAIN, QUIT};
use crate::sys;
use crate::tls::{Read, Tls};

/// Of each datagram.
pub const LEN: usize = 1400;
const FRAMED: usize = 2 + LEN;
/// As many as fit into a record of 16 KiB.
const RECORD: u64 = 11;
/// As many as are sent with one call, and cut by the kernel.
const BURST: u64 = 32;
/// As many as fit into the queue of the forwarder's UDP socket, which has its size by default.
const QUEUE: u64 = 64;
/// As many as fit into the queue of the socket here, which is twice as large.
const LARGE_QUEUE: u64 = 128;
/// How long to wait for room: much less than all that are on the way take.
const FULL: Duration = Duration::from_micros(20);

/// What datagram number `number` has.
fn content(number: u64) -> &'static [u8] {
    flow::pattern(number * LEN as u64, LEN)
}

fn set_option(socket: &UdpSocket, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the value is valid for its length.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn different(number: u64) -> io::Error {
    io::Error::other(format!("datagram {number} is not what was sent"))
}

/// Both ends, and how many datagrams have been sent and have arrived.
pub struct Ends {
    /// Datagrams that were sent.
    pub sent: AtomicU64,
    /// Datagrams that have arrived.
    pub arrived: AtomicU64,
    socket: UdpSocket,
}

impl Ends {
    /// The socket that the forwarder connects one of its own to.
    pub fn bind(port: u16) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
        socket.set_read_timeout(Some(sys::PATIENCE))?;
        // The kernel doubles it, for what it needs itself, and limits it.
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 1 << 20)?;
        Ok(Ends {
            sent: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
            socket,
        })
    }

    /// Learns the address of the forwarder's socket, from a datagram that the forwarder is made to
    /// send.
    pub fn meet(&self, tls: &mut Tls) -> io::Result<()> {
        tls.write(&[0, 1, 0])?;
        tls.flush_all()?;
        let (_, address) = self.socket.recv_from(&mut [0])?;
        self.socket.connect(address)?;
        self.socket
            .set_read_timeout(Some(Duration::from_millis(10)))
    }

    /// Waits until `count` more may be on the way to a queue. False if nothing more is to be sent.
    fn has_room(&self, count: u64, queue: u64, phase: &AtomicU8) -> bool {
        while phase.load(Relaxed) < DRAIN {
            if self.sent.load(Relaxed) + count <= self.arrived.load(Relaxed) + queue {
                return true;
            }
            thread::sleep(FULL);
        }
        false
    }

    /// Sends on the TLS side.
    pub fn send_tls(&self, tls: &mut Tls, phase: &AtomicU8) -> io::Result<()> {
        sys::exact_timers();
        let mut record = Vec::with_capacity(FRAMED * RECORD as usize);
        while self.has_room(RECORD, LARGE_QUEUE, phase) {
            record.clear();
            let first = self.sent.load(Relaxed);
            for number in first..first + RECORD {
                record.extend_from_slice(&(LEN as u16).to_be_bytes());
                record.extend_from_slice(content(number));
            }
            tls.write(&record)?;
            tls.flush_all()?;
            self.sent.store(first + RECORD, Relaxed);
        }
        Ok(())
    }

    /// Receives on the UDP side.
    pub fn receive_udp(&self, phase: &AtomicU8) -> io::Result<()> {
        let mut buf = [0; LEN + 1];
        while phase.load(Relaxed) < QUIT {
            let n = match self.socket.recv(&mut buf) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => continue,
                n => n?,
            };
            let number = self.arrived.load(Relaxed);
            if buf[..n] != *content(number) {
                return Err(different(number));
            }
            self.arrived.store(number + 1, Relaxed);
        }
        Ok(())
    }

    /// Sends on the UDP side.
    pub fn send_udp(&self, phase: &AtomicU8) -> io::Result<()> {
        sys::exact_timers();
        let size = LEN as c_int;
        set_option(&self.socket, libc::SOL_UDP, libc::UDP_SEGMENT, size)?;
        while self.has_room(BURST, QUEUE, phase) {
            let first = self.sent.load(Relaxed);
            let burst = flow::pattern(first * LEN as u64, LEN * BURST as usize);
            self.socket.send(burst)?;
            self.sent.store(first + BURST, Relaxed);
        }
        Ok(())
    }

    /// Receives on the TLS side.
    pub fn receive_tls(&self, tls: &mut Tls, phase: &AtomicU8) -> io::Result<()> {
        let mut buf = vec![0; CHUNK];
        let mut len = 0;
        while phase.load(Relaxed) < QUIT {
            match tls.read(&mut buf[len..])? {
                Read::Bytes(n) => len += n,
                Read::Blocked => {
                    sys::poll_for(tls.fd(), libc::POLLIN, Duration::from_millis(10))?;
                    tls.readable();
                    continue;
                }
                Read::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            let mut number = self.arrived.load(Relaxed);
            let mut packets = buf[..len].chunks_exact(FRAMED);
            for packet in &mut packets {
                if packet[..2] != (LEN as u16).to_be_bytes() || packet[2..] != *content(number) {
                    return Err(different(number));
                }
                number += 1;
            }
            let rest = packets.remainder().len();
            buf.copy_within(len - rest..len, 0);
            len = rest;
            self.arrived.store(number, Relaxed);
        }
        Ok(())
    }
}
