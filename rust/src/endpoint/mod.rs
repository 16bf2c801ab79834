//! The endpoint: what a splice connects the TLS session to.
//!
//! [`Endpoint`] has a variant for each way in which an endpoint is read and written, and
//! a file here for each: [`Stream`] and [`Packets`] are polled, then read and written by
//! the splice; [`File`] and [`Caller`] are read and written by the caller, by transfers.

use libc::c_int;

use crate::error::OpenError;
use crate::frame::Framing;
use crate::packets::Unit;

mod caller;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod descriptor;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
mod elsewhere;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod file;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod open;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod packet;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod stream;

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod system;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod system;

pub use caller::Caller;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub use elsewhere::{Adopted, Descriptor, File, Packets, Stream};
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub use {
    descriptor::{Adopted, Descriptor},
    file::File,
    packet::Packets,
    stream::Stream,
};

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
use elsewhere::open;
#[cfg(any(target_os = "linux", target_os = "macos"))]
use open::open;

/// What a read or write gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// This many bytes; 0 from a read is the end of file.
    Bytes(usize),
    /// EAGAIN: wait for readiness.
    WouldBlock,
    /// A system error.
    Failed(c_int),
}

/// What a read from a byte stream gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRead {
    /// This many bytes, more than 0, and there may be more.
    Bytes(usize),
    /// This many bytes, more than 0, and no others until poll(2) says so.
    Last(usize),
    /// The end of file.
    Eof,
    /// EAGAIN: wait for readiness.
    WouldBlock,
    /// A system error, as errno.
    Failed(c_int),
}

/// How to go on with a source that may have more than was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// poll(2) tells when.
    WhenReadable,
    /// Read again in the next turn of the event loop: what is next may be an end that
    /// poll(2) does not tell.
    NextTurn,
}

/// What a packet read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketIo {
    /// A packet of this length, which may be 0.
    Packet(usize),
    /// A packet that did not fit.
    Truncated,
    /// No packet, but the report of one that was refused.
    Refused(c_int),
    /// EAGAIN: wait for readiness.
    WouldBlock,
    /// There will never be another packet.
    Eof,
    /// A system error.
    Failed(c_int),
}

/// Interest in POLLIN.
pub const READABLE: u32 = 1;
/// Interest in POLLOUT.
pub const WRITABLE: u32 = 2;

/// An endpoint. It may be used on any thread, by one call at a time.
pub enum Endpoint {
    /// A byte stream that can be polled.
    Stream(Stream),
    /// Packets that can be polled.
    Packets(Packets),
    /// A file, which is always ready and may block.
    File(File),
    /// A byte stream of the caller's, or another splice.
    Caller(Caller),
}

impl Endpoint {
    /// Takes a descriptor of its own to what `fd` refers to, so that the caller may close
    /// `fd` or reuse its number at any time. `readable` says that the endpoint is to be
    /// read, `writable` that it is to be written.
    pub fn open(fd: c_int, readable: bool, writable: bool) -> Result<Endpoint, OpenError> {
        open(fd, readable, writable)
    }

    /// A byte stream that the caller reads and writes, by transfers.
    pub fn of_caller() -> Endpoint {
        Endpoint::Caller(Caller)
    }

    /// How packets are told apart in the TLS stream: as `wanted`, or in the way that goes
    /// with the endpoint.
    pub fn framing(&self, wanted: Option<Framing>) -> Result<Framing, OpenError> {
        match self {
            Endpoint::Packets(packets) => packets.framing(wanted),
            Endpoint::Stream(_) | Endpoint::File(_) | Endpoint::Caller(_) => {
                choose(wanted, Framing::Raw, &[Framing::Ip])
            }
        }
    }

    /// What the endpoint takes and gives at a time.
    pub fn unit(&self) -> Unit {
        match self {
            Endpoint::Packets(_) => Unit::Packets,
            Endpoint::Stream(_) | Endpoint::File(_) | Endpoint::Caller(_) => Unit::Bytes,
        }
    }

    /// Whether the caller reads and writes the endpoint, by transfers.
    pub fn has_transfers(&self) -> bool {
        matches!(self, Endpoint::File(_) | Endpoint::Caller(_))
    }

    /// How to go on reading when there may be more than was read.
    pub fn resume(&self) -> Resume {
        match self {
            Endpoint::Stream(stream) => stream.resume(),
            Endpoint::Packets(_) | Endpoint::File(_) | Endpoint::Caller(_) => Resume::WhenReadable,
        }
    }

    fn descriptor(&self) -> Option<&Descriptor> {
        match self {
            Endpoint::Stream(stream) => Some(&stream.descriptor),
            Endpoint::Packets(packets) => Some(&packets.descriptor),
            Endpoint::File(file) => Some(&file.descriptor),
            Endpoint::Caller(_) => None,
        }
    }

    /// The descriptor to read and write; -1 if the endpoint has none.
    pub fn fd(&self) -> c_int {
        self.descriptor().map_or(-1, Descriptor::fd)
    }

    /// The descriptor to poll; -1 if transfers take its place.
    pub fn poll_fd(&self) -> c_int {
        match self {
            Endpoint::Stream(stream) => stream.descriptor.poll_fd(),
            Endpoint::Packets(packets) => packets.descriptor.poll_fd(),
            Endpoint::File(_) | Endpoint::Caller(_) => -1,
        }
    }

    /// Sets the interest, of [`READABLE`] and [`WRITABLE`]. Returns what to poll
    /// [`Endpoint::poll_fd`] for, or which transfers to begin; 0 for nothing.
    pub fn set_interest(&mut self, interest: u32) -> u32 {
        match self {
            Endpoint::Stream(stream) => stream.descriptor.set_interest(interest),
            Endpoint::Packets(packets) => packets.descriptor.set_interest(interest),
            Endpoint::File(_) | Endpoint::Caller(_) => interest,
        }
    }

    /// What the endpoint is ready for, given what [`Endpoint::poll_fd`] is ready for.
    pub fn ready(&self, polled: u32) -> u32 {
        match self {
            Endpoint::Stream(stream) => stream.descriptor.ready(polled),
            Endpoint::Packets(packets) => packets.descriptor.ready(polled),
            Endpoint::File(_) | Endpoint::Caller(_) => polled,
        }
    }

    /// Reads from a byte stream, never blocking. `out` must not be empty. From what has
    /// transfers or packets nothing is read.
    pub fn read(&self, out: &mut [u8]) -> Io {
        match self {
            Endpoint::Stream(stream) => stream.read_once(out),
            Endpoint::Packets(_) | Endpoint::File(_) | Endpoint::Caller(_) => Io::WouldBlock,
        }
    }

    /// Writes to a byte stream, never blocking. To what has transfers or packets nothing
    /// is written.
    pub fn write(&self, bytes: &[u8]) -> Io {
        match self {
            Endpoint::Stream(stream) => stream.write(bytes),
            Endpoint::Packets(_) | Endpoint::File(_) | Endpoint::Caller(_) => Io::WouldBlock,
        }
    }

    /// Shuts the write side of a socket down. Nothing for other endpoints: a reader sees
    /// their end when they are closed, and the caller ends its own stream.
    pub fn shutdown_write(&self) {
        match self {
            Endpoint::Stream(stream) => stream.shutdown_write(),
            Endpoint::Packets(packets) => packets.shutdown_write(),
            Endpoint::File(_) | Endpoint::Caller(_) => {}
        }
    }
}

/// `wanted` if it fits the endpoint, as its `own` and the `others` do.
fn choose(wanted: Option<Framing>, own: Framing, others: &[Framing]) -> Result<Framing, OpenError> {
    match wanted {
        None => Ok(own),
        Some(framing) if framing == own || others.contains(&framing) => Ok(framing),
        Some(_) => Err(OpenError::Framing),
    }
}
