//! IP packets, and the kernel's side of a TUN device.
//!
//! What a forwarder writes to the device is dropped as soon as can be: the checksum of the header is
//! wrong, which is the first thing that IP looks at. No address, route or filter is needed for that.
//! What it reads is put into the device's queue by a packet socket, which IP has no part in either.

use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering::Relaxed};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use libc::{c_int, c_uint};

use crate::flow::{CHUNK, DRAIN};
use crate::sys::{self, PATIENCE};
use crate::tls::{Read, Tls};

/// Of each packet.
pub const LEN: usize = 1400;
/// A prime, as for other streams: so many different ones, then again from the first.
const DIFFERENT: usize = 47;
const PERIOD: usize = DIFFERENT * LEN;
/// Where the port is that a packet is from.
const SOURCE_PORT: Range<usize> = 20..22;
/// How many flows there are for each queue of a device that has more than one. The kernel puts
/// a flow into a queue by its hash.
const FLOWS: usize = 16;
/// How often each of them is compared.
const COMPARED: usize = 20;

/// What the stream of packets has at `position`: UDP over IPv4, one packet right after another.
pub fn stream(position: u64, len: usize) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        (0..DIFFERENT)
            .cycle()
            .flat_map(packet)
            .take(PERIOD + CHUNK)
            .collect()
    });
    let at = (position % PERIOD as u64) as usize;
    &bytes[at..at + len]
}

/// The same packet in a flow of its own, which the kernel tells by the port that it is from.
fn packet_of_flow(flow: usize) -> [u8; LEN] {
    let mut packet = packet(flow % DIFFERENT);
    packet[SOURCE_PORT].copy_from_slice(&(flow as u16).to_be_bytes());
    packet
}

fn packet(number: usize) -> [u8; LEN] {
    const HEADERS: usize = 28;
    let mut packet = [0; LEN];
    let length = |len: usize| (len as u16).to_be_bytes();
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length(LEN));
    packet[4..6].copy_from_slice(&length(number));
    packet[8] = 64;
    packet[9] = libc::IPPROTO_UDP as u8;
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    // From and to the port "discard".
    packet[20..24].copy_from_slice(&[0, 9, 0, 9]);
    packet[24..26].copy_from_slice(&length(LEN - 20));
    for (i, byte) in packet[HEADERS..].iter_mut().enumerate() {
        *byte = ((number * LEN + i).wrapping_mul(2_654_435_761) >> 13) as u8;
    }
    packet
}

/// How many packets the device has had.
#[derive(Clone, Copy)]
pub struct Passed {
    /// Written by the forwarder.
    pub from_forwarder: u64,
    /// Read by it.
    pub to_forwarder: u64,
}

/// A TUN device that a forwarder has.
pub struct Device {
    name: String,
    address: libc::sockaddr_ll,
}

impl Device {
    /// By its name.
    pub fn find(name: &str) -> io::Result<Self> {
        let text = CString::new(name)?;
        // SAFETY: the name is terminated; all zeros is a valid address.
        let (index, mut address): (_, libc::sockaddr_ll) =
            unsafe { (libc::if_nametoindex(text.as_ptr()), std::mem::zeroed()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
        address.sll_ifindex = index as c_int;
        Ok(Device {
            name: name.into(),
            address,
        })
    }

    /// From /proc/net/dev, which is that of our network namespace, as /sys may not be.
    pub fn counters(&self) -> io::Result<Passed> {
        let text = std::fs::read_to_string("/proc/net/dev")?;
        let line = text.lines().find_map(|line| {
            let (name, rest) = line.split_once(':')?;
            (name.trim() == self.name).then_some(rest)
        });
        let field = |i| line?.split_whitespace().nth(i)?.parse().ok();
        match (field(1), field(9)) {
            (Some(from_forwarder), Some(to_forwarder)) => Ok(Passed {
                from_forwarder,
                to_forwarder,
            }),
            _ => Err(io::Error::other("the device is gone")),
        }
    }

    /// A packet socket. One without a protocol gets nothing, and costs those nothing who write to
    /// the device.
    fn socket(&self, protocol: u16) -> io::Result<OwnedFd> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers; the descriptor is new and nobody else's.
        unsafe {
            match libc::socket(libc::AF_PACKET, kind, c_int::from(protocol)) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(OwnedFd::from_raw_fd(fd)),
            }
        }
    }

    /// One that gets what the forwarder writes.
    fn receiver(&self) -> io::Result<OwnedFd> {
        let socket = self.socket(0)?;
        let address = &raw const self.address;
        let len = size_of_val(&self.address) as libc::socklen_t;
        // SAFETY: the address is valid for its length.
        match unsafe { libc::bind(socket.as_raw_fd(), address.cast(), len) } {
            0 => Ok(socket),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The stream, or for several queues a packet of each flow, for the kernel: messages of one packet
/// each, twice as many as are different, so that there are as many in a row whichever is the first.
struct Sender {
    socket: OwnedFd,
    messages: Vec<libc::mmsghdr>,
    // What the messages point to.
    _packets: Vec<[u8; LEN]>,
    _iovecs: Vec<libc::iovec>,
    _address: Box<libc::sockaddr_ll>,
    next: usize,
}

impl Sender {
    fn new(device: &Device, queues: usize) -> io::Result<Self> {
        let socket = device.socket(0)?;
        let on: c_int = 1;
        // SAFETY: the value is valid for its length.
        let rc = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut address = Box::new(device.address);
        let packets: Vec<_> = match queues {
            1 => (0..DIFFERENT).map(packet).collect(),
            _ => (0..queues * FLOWS).map(packet_of_flow).collect(),
        };
        let mut iovecs: Vec<_> = packets
            .iter()
            .map(|packet| libc::iovec {
                // Only read from.
                iov_base: packet.as_ptr().cast_mut().cast(),
                iov_len: LEN,
            })
            .collect();
        let messages = (0..2 * packets.len())
            .map(|i| {
                // SAFETY: all zeros is a valid message.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_name = (&raw mut *address).cast();
                message.msg_hdr.msg_namelen = size_of_val(&*address) as libc::socklen_t;
                message.msg_hdr.msg_iov = &raw mut iovecs[i % packets.len()];
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        Ok(Sender {
            socket,
            messages,
            _packets: packets,
            _iovecs: iovecs,
            _address: address,
            next: 0,
        })
    }

    /// Queues up to `count` packets, and says how many there was room for.
    fn send(&mut self, count: usize) -> io::Result<usize> {
        let count = count.min(DIFFERENT);
        let messages = &mut self.messages[self.next..self.next + count];
        // SAFETY: the messages and what they point to are valid.
        let n = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count as c_uint,
                0,
            )
        };
        let n = match usize::try_from(n) {
            Ok(n) => n,
            Err(_) => match io::Error::last_os_error() {
                // The one that does not fit is dropped, and will be sent again.
                err if err.raw_os_error() == Some(libc::ENOBUFS) => 0,
                err => return Err(err),
            },
        };
        self.next = (self.next + n) % (self.messages.len() / 2);
        Ok(n)
    }
}

/// Keeps the device's queues filled, or sends at a rate in bytes per second, until `phase` says that
/// it is over. `sent` counts packets.
pub fn send(
    device: &Device,
    queues: usize,
    rate: Option<f64>,
    sent: &AtomicU64,
    phase: &AtomicU8,
) -> io::Result<()> {
    /// The queue has 500 packets by default, which last longer.
    const FULL: Duration = Duration::from_micros(100);
    sys::exact_timers();
    let mut sender = Sender::new(device, queues)?;
    let start = Instant::now();
    let mut count = 0;
    while phase.load(Relaxed) < DRAIN {
        let wait = match rate {
            Some(rate) => {
                let each = LEN as f64 / rate;
                let due = (start.elapsed().as_secs_f64() / each) as u64;
                count += sender.send((due - count) as usize)? as u64;
                let next = Duration::from_secs_f64((count + 1) as f64 * each);
                next.saturating_sub(start.elapsed())
            }
            None => match sender.send(DIFFERENT)? {
                0 => FULL,
                n => {
                    count += n as u64;
                    Duration::ZERO
                }
            },
        };
        sent.store(count, Relaxed);
        if !wait.is_zero() {
            thread::sleep(wait);
        }
    }
    Ok(())
}

fn different(packet: usize) -> io::Error {
    io::Error::other(format!("packet {packet} is not what was sent"))
}

/// Sends packets, each of which has to come out of the device.
pub fn verify_decrypt(device: &Device, tls: &mut Tls) -> io::Result<()> {
    let receiver = device.receiver()?;
    for _ in 0..COMPARED {
        // Records of 16 KiB, between packets and within them.
        tls.write(stream(0, PERIOD))?;
        tls.flush_all()?;
        for number in 0..DIFFERENT {
            receive(&receiver, number)?;
        }
    }
    Ok(())
}

/// Waits for the packet that the forwarder writes to the device next.
fn receive(receiver: &OwnedFd, number: usize) -> io::Result<()> {
    let mut buf = [0; 2 * LEN];
    let n = loop {
        match sys::read(receiver.as_raw_fd(), &mut buf)? {
            Some(n) => break n,
            None => sys::poll(receiver.as_raw_fd(), libc::POLLIN)?,
        }
    };
    if buf[..n] != *stream((number * LEN) as u64, LEN) {
        return Err(different(number));
    }
    Ok(())
}

/// Puts packets into the device, all of which have to come.
pub fn verify_encrypt(device: &Device, tls: &mut Tls) -> io::Result<()> {
    let mut sender = Sender::new(device, 1)?;
    for _ in 0..COMPARED {
        if sender.send(DIFFERENT)? < DIFFERENT {
            return Err(io::Error::other("the device's queue is too short"));
        }
        read(tls, 0, DIFFERENT)?;
    }
    Ok(())
}

/// Puts a packet of each flow into the device, which has a queue for each of `ends`. Each has to
/// come once, on any of them.
pub fn verify_spread(device: &Device, ends: &mut [Tls]) -> io::Result<()> {
    let flows = ends.len() * FLOWS;
    let mut sender = Sender::new(device, ends.len())?;
    let mut sent = 0;
    while sent < flows {
        match sender.send(flows - sent)? {
            0 => return Err(io::Error::other("a queue of the device is too short")),
            n => sent += n,
        }
    }
    let mut has_come = vec![false; flows];
    let mut parts = vec![Vec::new(); ends.len()];
    let start = Instant::now();
    while has_come.contains(&false) {
        if start.elapsed() > PATIENCE {
            return Err(io::Error::other("not all packets have come"));
        }
        for (tls, part) in ends.iter_mut().zip(&mut parts) {
            read_some(tls, part)?;
            let whole = part.len() / LEN * LEN;
            for packet in part.drain(..whole).as_slice().chunks(LEN) {
                let port = [packet[SOURCE_PORT.start], packet[SOURCE_PORT.start + 1]];
                let flow = usize::from(u16::from_be_bytes(port));
                let is_new = has_come.get(flow) == Some(&false);
                if !is_new || packet != packet_of_flow(flow) {
                    return Err(different(flow));
                }
                has_come[flow] = true;
            }
        }
    }
    Ok(())
}

/// Appends what there is to be read.
fn read_some(tls: &mut Tls, to: &mut Vec<u8>) -> io::Result<()> {
    let mut buf = [0; 1 << 14];
    loop {
        match tls.read(&mut buf)? {
            Read::Bytes(n) => to.extend_from_slice(&buf[..n]),
            Read::Blocked => {
                tls.readable();
                return Ok(());
            }
            Read::End => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Waits for `count` packets that the forwarder has read from the device.
fn read(tls: &mut Tls, first: usize, count: usize) -> io::Result<()> {
    let mut buf = vec![0; count * LEN];
    let mut len = 0;
    while len < buf.len() {
        match tls.read(&mut buf[len..])? {
            Read::Bytes(n) => len += n,
            Read::Blocked => {
                sys::poll(tls.fd(), libc::POLLIN)?;
                tls.readable();
            }
            Read::End => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    let expected = stream((first * LEN) as u64, buf.len());
    match (0..buf.len()).find(|&i| buf[i] != expected[i]) {
        Some(at) => Err(different(first + at / LEN)),
        None => Ok(()),
    }
}

/// Single packets, through the forwarder to the device and back.
pub struct Ping {
    receiver: OwnedFd,
    sender: Sender,
}

impl Ping {
    /// Through this device.
    pub fn new(device: &Device) -> io::Result<Self> {
        Ok(Ping {
            receiver: device.receiver()?,
            sender: Sender::new(device, 1)?,
        })
    }

    /// Sends a packet to the device and, when it is there, another one back.
    pub fn round_trip(&mut self, tls: &mut Tls) -> io::Result<()> {
        let number = self.sender.next;
        tls.write(stream((number * LEN) as u64, LEN))?;
        tls.flush_all()?;
        receive(&self.receiver, number)?;
        if self.sender.send(1)? != 1 {
            return Err(io::Error::other("the device's queue is full"));
        }
        read(tls, number, 1)
    }
}
