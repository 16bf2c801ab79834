//! The endpoint: a descriptor of our own to a byte stream or a file, or a stream of
//! the caller's.

use libc::c_int;

use crate::error::OpenError;
use crate::frame::Framing;

#[cfg(any(target_os = "linux", target_os = "macos"))]
#[path = "endpoint/posix.rs"]
mod platform;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
#[path = "endpoint/elsewhere.rs"]
mod platform;

pub use platform::Endpoint;

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
    /// The end.
    Eof,
    /// A system error.
    Failed(c_int),
}

/// Interest in POLLIN.
pub const READABLE: u32 = 1;
/// Interest in POLLOUT.
pub const WRITABLE: u32 = 2;

/// The framing of a byte stream is `Raw` unless another one is `wanted`, whose packets
/// can be told apart in it.
fn framing_of_bytes(wanted: Option<Framing>) -> Result<Framing, OpenError> {
    choose(wanted, Framing::Raw, &[Framing::Ip])
}

/// `wanted` if it fits the endpoint, as its `own` and the `others` do.
fn choose(wanted: Option<Framing>, own: Framing, others: &[Framing]) -> Result<Framing, OpenError> {
    match wanted {
        None => Ok(own),
        Some(framing) if framing == own || others.contains(&framing) => Ok(framing),
        Some(_) => Err(OpenError::Framing),
    }
}
