//! The endpoint: what a splice connects the TLS session to.
//!
//! [`Endpoint`] has a variant for each way in which an endpoint is read and written, and
//! a file here for each: [`Stream`], [`Packets`] and [`VnetDevice`] are polled, then read
//! and written by the splice; [`File`] and [`Caller`] are read and written by the caller, by
//! transfers.

use libc::c_int;

use crate::error::OpenError;
use crate::frame::Framing;
use crate::packets::Unit;

mod caller;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod datagram;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod descriptor;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
mod elsewhere;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod file;
#[cfg(target_os = "linux")]
mod messages;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod open;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod packet;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod stream;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod vnet;

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod system;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod system;

pub use caller::Caller;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub use elsewhere::{Adopted, Descriptor, File, Packets, Stream, VnetDevice};
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub use {
    descriptor::{Adopted, Descriptor},
    file::File,
    packet::Packets,
    stream::Stream,
    vnet::VnetDevice,
};

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
use elsewhere::open;
#[cfg(any(target_os = "linux", target_os = "macos"))]
use open::open;
#[cfg(all(test, any(target_os = "linux", target_os = "macos")))]
pub(crate) use vnet::Writev;

/// What a read or write of an endpoint has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// The call has moved this many bytes. 0 from a read is the end of file.
    Bytes(usize),
    /// EAGAIN: the endpoint is not ready, and is to be waited for.
    WouldBlock,
    /// The call has failed with this errno.
    Failed(c_int),
}

/// What a read from a byte stream has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRead {
    /// This many bytes, more than 0. There may be more to read now.
    Bytes(usize),
    /// This many bytes, more than 0. There are no more to read until poll(2) says so.
    Last(usize),
    /// The end of file.
    Eof,
    /// EAGAIN: the stream is not ready, and is to be waited for.
    WouldBlock,
    /// The read has failed with this errno.
    Failed(c_int),
}

/// How to go on with a source that may have more than was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Read again when poll(2) says that there is something to read.
    WhenReadable,
    /// Read again in the next turn of the event loop: the next read may give what poll(2) does
    /// not report, an end of file or packets that were received already.
    NextTurn,
}

/// What the read of a packet has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketIo {
    /// A packet of this length, which may be 0. There may be another one now.
    Packet(usize),
    /// A packet of this length. There is no other one until poll(2) says so.
    Last(usize),
    /// A packet that was longer than the memory for it, and was cut off.
    Truncated,
    /// No packet, but the report that a packet which was sent before was refused, with this
    /// errno.
    Refused(c_int),
    /// EAGAIN: there is no packet now, and the endpoint is to be waited for.
    WouldBlock,
    /// There will never be another packet.
    Eof,
    /// The read has failed with this errno.
    Failed(c_int),
}

/// The most packets that [`Packets::write`] takes. No version of Linux cuts a message into fewer
/// datagrams (UDP_SEGMENT).
pub const MOST_WRITTEN: usize = 64;

/// What writing packets has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// How many packets, of those at the start, were written.
    pub packets: usize,
    /// Why no more were.
    pub end: WrittenEnd,
}

/// Why no more packets were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrittenEnd {
    /// All were.
    All,
    /// EAGAIN: the endpoint is not ready, and is to be waited for.
    WouldBlock,
    /// The packet behind those that were written was refused with this errno.
    Failed(c_int),
    /// For no reason of their own: the kernel has reported that a packet which had been written
    /// before these was refused, with this errno.
    Reported(c_int),
}

/// Readiness for reading, as POLLIN of poll(2).
pub const READABLE: u32 = 1;
/// Readiness for writing, as POLLOUT of poll(2).
pub const WRITABLE: u32 = 2;

/// What an endpoint is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To be read, as the source.
    Read,
    /// To be written, as the sink.
    Write,
    /// To be read and to be written.
    ReadWrite,
}

impl Access {
    /// Whether the endpoint is to be read.
    pub fn reads(self) -> bool {
        self != Access::Write
    }

    /// Whether the endpoint is to be written.
    pub fn writes(self) -> bool {
        self != Access::Read
    }
}

/// An endpoint. It may be used on any thread, by one call at a time.
pub enum Endpoint {
    /// A byte stream that can be polled.
    Stream(Stream),
    /// Packets that can be polled.
    Packets(Packets),
    /// Packets and super-packets that can be polled.
    Vnet(VnetDevice),
    /// A file, which is always ready and may block.
    File(File),
    /// A byte stream of the caller's, or another splice.
    Caller(Caller),
}

impl Endpoint {
    /// Takes a descriptor of its own to what `fd` refers to, so that the caller may close
    /// `fd` or reuse its number at any time.
    pub fn open(fd: c_int, access: Access) -> Result<Endpoint, OpenError> {
        open(fd, access)
    }

    /// A byte stream that the caller reads and writes, by transfers.
    pub fn of_caller() -> Endpoint {
        Endpoint::Caller(Caller)
    }

    /// How packets are told apart in the TLS stream: as `wanted` if that fits the endpoint;
    /// with `None`, in the way that goes with the endpoint.
    pub fn framing(&self, wanted: Option<Framing>) -> Result<Framing, OpenError> {
        match self {
            Endpoint::Packets(packets) => packets.framing(wanted),
            Endpoint::Vnet(device) => device.framing(wanted),
            Endpoint::Stream(_) | Endpoint::File(_) | Endpoint::Caller(_) => {
                choose(wanted, Framing::Raw, &[Framing::Ip])
            }
        }
    }

    /// What the endpoint takes and gives at a time.
    pub fn unit(&self) -> Unit {
        match self {
            Endpoint::Packets(_) | Endpoint::Vnet(_) => Unit::Packets,
            Endpoint::Stream(_) | Endpoint::File(_) | Endpoint::Caller(_) => Unit::Bytes,
        }
    }

    /// Whether the caller reads and writes the endpoint, by transfers. The splice reads and
    /// writes every other endpoint itself.
    pub fn needs_transfers(&self) -> bool {
        match self {
            Endpoint::File(_) | Endpoint::Caller(_) => true,
            Endpoint::Stream(_) | Endpoint::Packets(_) | Endpoint::Vnet(_) => false,
        }
    }

    /// Whether the caller carries out a transfer in the turn of the event loop in which it is
    /// asked for. A transfer of a file takes a thread, and ends in a later turn.
    pub fn transfers_at_once(&self) -> bool {
        match self {
            Endpoint::Caller(_) => true,
            Endpoint::Stream(_) | Endpoint::Packets(_) | Endpoint::Vnet(_) | Endpoint::File(_) => {
                false
            }
        }
    }

    /// Whether packets that are delivered together may be written as one.
    pub fn joins_packets(&self) -> bool {
        match self {
            Endpoint::Vnet(_) => true,
            Endpoint::Stream(_)
            | Endpoint::Packets(_)
            | Endpoint::File(_)
            | Endpoint::Caller(_) => false,
        }
    }

    /// How to go on reading when there may be more than was read.
    pub fn resume(&self) -> Resume {
        match self {
            Endpoint::Stream(stream) => stream.resume(),
            Endpoint::Packets(packets) => packets.resume(),
            Endpoint::Vnet(_) | Endpoint::File(_) | Endpoint::Caller(_) => Resume::WhenReadable,
        }
    }

    /// How many bytes of packets the endpoint has received that are still to be read.
    pub fn unread(&self) -> usize {
        match self {
            Endpoint::Packets(packets) => packets.unread(),
            Endpoint::Stream(_) | Endpoint::Vnet(_) | Endpoint::File(_) | Endpoint::Caller(_) => 0,
        }
    }

    /// Whether a packet that is written may have been answered when the write returns: the
    /// kernel takes in what a TUN or TAP device is given, and its own answers to that, such as
    /// acknowledgements of TCP and echo replies, can be read at once.
    pub fn answers_at_once(&self) -> bool {
        match self {
            Endpoint::Packets(packets) => packets.is_device(),
            Endpoint::Vnet(_) => true,
            Endpoint::Stream(_) | Endpoint::File(_) | Endpoint::Caller(_) => false,
        }
    }

    fn descriptor(&self) -> Option<&Descriptor> {
        match self {
            Endpoint::Stream(stream) => Some(&stream.descriptor),
            Endpoint::Packets(packets) => Some(&packets.descriptor),
            Endpoint::Vnet(device) => Some(&device.descriptor),
            Endpoint::File(file) => Some(&file.descriptor),
            Endpoint::Caller(_) => None,
        }
    }

    /// The descriptor to read and write; -1 if the endpoint has none.
    pub fn fd(&self) -> c_int {
        self.descriptor().map_or(-1, Descriptor::fd)
    }

    /// The descriptor to poll; -1 if transfers take the place of polling.
    pub fn poll_fd(&self) -> c_int {
        match self {
            Endpoint::Stream(stream) => stream.descriptor.poll_fd(),
            Endpoint::Packets(packets) => packets.descriptor.poll_fd(),
            Endpoint::Vnet(device) => device.descriptor.poll_fd(),
            Endpoint::File(_) | Endpoint::Caller(_) => -1,
        }
    }

    /// Sets the interest, of [`READABLE`] and [`WRITABLE`]. Returns what to poll
    /// [`Endpoint::poll_fd`] for, or which transfers to begin; 0 for nothing.
    pub fn set_interest(&mut self, interest: u32) -> u32 {
        match self {
            Endpoint::Stream(stream) => stream.descriptor.set_interest(interest),
            Endpoint::Packets(packets) => packets.descriptor.set_interest(interest),
            Endpoint::Vnet(device) => device.descriptor.set_interest(interest),
            Endpoint::File(_) | Endpoint::Caller(_) => interest,
        }
    }

    /// What the endpoint is ready for, given what [`Endpoint::poll_fd`] is ready for.
    pub fn ready(&self, polled: u32) -> u32 {
        match self {
            Endpoint::Stream(stream) => stream.descriptor.ready(polled),
            Endpoint::Packets(packets) => packets.descriptor.ready(polled),
            Endpoint::Vnet(device) => device.descriptor.ready(polled),
            Endpoint::File(_) | Endpoint::Caller(_) => polled,
        }
    }

    /// Reads from a byte stream, never blocking. `out` must not be empty. Nothing is read
    /// from an endpoint with packets or transfers.
    pub fn read(&self, out: &mut [u8]) -> Io {
        match self {
            Endpoint::Stream(stream) => stream.read_once(out),
            Endpoint::Packets(_) | Endpoint::Vnet(_) | Endpoint::File(_) | Endpoint::Caller(_) => {
                Io::WouldBlock
            }
        }
    }

    /// Writes to a byte stream, never blocking. Nothing is written to an endpoint with
    /// packets or transfers.
    pub fn write(&self, bytes: &[u8]) -> Io {
        match self {
            Endpoint::Stream(stream) => stream.write(bytes),
            Endpoint::Packets(_) | Endpoint::Vnet(_) | Endpoint::File(_) | Endpoint::Caller(_) => {
                Io::WouldBlock
            }
        }
    }

    /// Shuts down the write side of a socket. With other endpoints nothing happens: the
    /// reader of a pipe, tty or file sees its end when it is closed, and the caller ends a
    /// stream of its own.
    pub fn shutdown_write(&self) {
        match self {
            Endpoint::Stream(stream) => stream.shutdown_write(),
            Endpoint::Packets(packets) => packets.shutdown_write(),
            Endpoint::Vnet(_) | Endpoint::File(_) | Endpoint::Caller(_) => {}
        }
    }
}

/// `wanted` if it is `own` or one of the `others`, which are the framings that fit the
/// endpoint; `own` if nothing is wanted. One version of IP fits wherever both versions do.
fn choose(wanted: Option<Framing>, own: Framing, others: &[Framing]) -> Result<Framing, OpenError> {
    match wanted {
        None => Ok(own),
        Some(framing) => {
            let kind = framing.with_any_version();
            match kind == own || others.contains(&kind) {
                true => Ok(framing),
                false => Err(OpenError::Framing),
            }
        }
    }
}
