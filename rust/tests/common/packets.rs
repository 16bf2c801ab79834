//! A session that is spliced to a packet endpoint, without an event loop.

use std::cell::Cell;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use openssl_sys as ossl;

use super::*;

/// A session spliced to one end of a socket pair.
pub struct Rig {
    pub ours: Tls,
    pub peer: Tls,
    pub splice: *mut Splice,
    pub driver: Driver,
    has_had_a_turn: Cell<bool>,
    pub near: OwnedFd,
}

impl Rig {
    pub fn new(near: OwnedFd, framing: u32) -> Rig {
        Rig::with(near, framing, 256 * 1024, 0)
    }

    pub fn with(
        near: OwnedFd,
        framing: u32,
        high_water_mark: usize,
        max_packet_size: usize,
    ) -> Rig {
        let (ours, peer) = connect(TLS1_3, true);
        let config = tls_splice_config {
            struct_size: std::mem::size_of::<tls_splice_config>(),
            fd: near.as_raw_fd(),
            directions: DUPLEX,
            high_water_mark,
            framing,
            max_packet_size,
        };
        let mut splice = std::ptr::null_mut();
        assert_eq!(unsafe { tls_splice_new(&config, &mut splice) }, 0);
        unsafe { abi::start(splice, DUPLEX) };
        let driver = Driver::new(splice, ours.0);
        Rig {
            ours,
            peer,
            splice,
            driver,
            has_had_a_turn: Cell::new(false),
            near,
        }
    }

    pub fn datagrams(framing: u32) -> (Rig, UnixDatagram) {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        (Rig::new(near.into(), framing), far)
    }

    /// The peer sends this, in records of at most `record` bytes.
    pub fn peer_sends(&mut self, stream: &[u8], record: usize) -> Run {
        for piece in stream.chunks(record) {
            assert!(self.peer.write(piece));
        }
        self.ours.give(&self.peer.take(usize::MAX));
        self.decrypt()
    }

    pub fn decrypt(&mut self) -> Run {
        self.first_turn();
        self.driver.decrypt()
    }

    pub fn encrypt_only(&mut self) -> Run {
        match self.first_turn() {
            Some(run) => run,
            None => self.driver.encrypt(),
        }
    }

    /// Nothing moves before it. It sends what there is, and decrypts nothing.
    fn first_turn(&self) -> Option<Run> {
        if self.has_had_a_turn.replace(true) {
            return None;
        }
        unsafe { abi::on(self.splice, TLS_SPLICE_ON_TURN, 0, self.ours.0) };
        Some(self.driver.on(TLS_SPLICE_ON_CYCLED))
    }

    /// What the peer gets, record by record.
    pub fn encrypt(&mut self) -> (Run, Vec<Vec<u8>>) {
        let run = self.encrypt_only();
        self.peer.give(&self.ours.take(usize::MAX));
        let mut records = Vec::new();
        let mut record = vec![0; 20_000];
        loop {
            unsafe { ossl::ERR_clear_error() };
            let n = unsafe { ossl::SSL_read(self.peer.0, record.as_mut_ptr().cast(), 20_000) };
            if n <= 0 {
                return (run, records);
            }
            records.push(record[..n as usize].to_vec());
        }
    }

    /// Whether the endpoint has something to read, for all that the caller knows.
    pub fn is_readable(&mut self) -> bool {
        let interest = unsafe { abi::begin_wait(self.splice, self.ours.0) };
        let mut poll = libc::pollfd {
            fd: unsafe { abi::poll_fd(self.splice) },
            events: libc::POLLIN,
            revents: 0,
        };
        interest & READABLE != 0 && unsafe { libc::poll(&raw mut poll, 1, 0) } == 1
    }

    /// Encrypts for as long as there is something to do, which must not be for ever.
    /// Returns whether it is over, and what the peer gets.
    pub fn encrypt_all(&mut self) -> (bool, Vec<u8>) {
        let mut got = Vec::new();
        for _ in 0..10 {
            let (run, records) = self.encrypt();
            assert!(!run.has_failed());
            got.extend(records.concat());
            if run.is_out_over() {
                return (true, got);
            }
            if !self.driver.has_more_to_send() && !self.is_readable() {
                return (false, got);
            }
        }
        panic!("It spins: {:?}", self.stats());
    }

    pub fn stats(&self) -> tls_splice::stats::Stats {
        stats_of(self.splice)
    }

    pub fn desync(&self) -> Option<(u32, u64)> {
        let failure = unsafe { abi::failure(self.splice) }?;
        Some((failure.framing, failure.offset))
    }

    pub fn undelivered(&mut self) -> Vec<u8> {
        let mut rest = vec![0; unsafe { abi::undelivered(self.splice) }];
        unsafe { abi::take_undelivered(self.splice, rest.as_mut_ptr(), rest.len()) };
        rest
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        unsafe { abi::free(self.splice) };
    }
}

pub fn set_option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) {
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            std::mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0);
}

pub fn received(far: &UnixDatagram) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut packet = vec![0; 70_000];
    while let Ok(n) = far.recv(&mut packet) {
        packets.push(packet[..n].to_vec());
    }
    packets
}

pub fn framed(framing: u32, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = Vec::new();
    for packet in packets {
        if framing == TLS_SPLICE_FRAMING_U16BE {
            stream.extend((packet.len() as u16).to_be_bytes());
        }
        stream.extend(packet);
    }
    stream
}

pub fn udp_pair() -> (UdpSocket, UdpSocket) {
    let [a, b] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    a.connect(b.local_addr().unwrap()).unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    (a, b)
}
