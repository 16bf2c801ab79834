//! Where no descriptors are spliced to, as on Windows, which has no POSIX ones: the
//! endpoint is a stream of the caller's, or another splice.

use libc::c_int;

use super::{framing_of_bytes, Io, PacketIo};
use crate::error::OpenError;
use crate::frame::Framing;

/// A stream of the caller's, who reads and writes it by transfers. What there is to ask
/// and to do beyond that is for descriptors.
pub struct Endpoint(());

impl Endpoint {
    /// Refuses every descriptor.
    pub fn open(_fd: c_int, _readable: bool, _writable: bool) -> Result<Endpoint, OpenError> {
        Err(OpenError::Unsupported)
    }

    /// A byte stream that the caller reads and writes, by transfers.
    pub fn of_caller() -> Endpoint {
        Endpoint(())
    }

    /// How packets are told apart in the TLS stream.
    pub fn framing(&self, wanted: Option<Framing>) -> Result<Framing, OpenError> {
        framing_of_bytes(wanted)
    }

    /// Whether it takes and gives packets instead of bytes.
    pub fn has_packets(&self) -> bool {
        false
    }

    /// The descriptor to poll: there is none.
    pub fn poll_fd(&self) -> c_int {
        -1
    }

    /// Whether it is read and written by transfers.
    pub fn has_transfers(&self) -> bool {
        true
    }

    /// Whether it is a stream of the caller's.
    pub fn is_of_caller(&self) -> bool {
        true
    }

    /// The descriptor to read and write it with: there is none.
    pub fn fd(&self) -> c_int {
        -1
    }

    /// Returns what to ask the caller for, as `interest` says.
    pub fn set_interest(&mut self, interest: u32) -> u32 {
        interest
    }

    /// What the endpoint is ready for.
    pub fn ready(&self, polled: u32) -> u32 {
        polled
    }

    /// Whether the end of file may show at a read, but not in a poll.
    pub fn hides_eof(&self) -> bool {
        false
    }

    /// Reads nothing: transfers do.
    pub fn read(&self, _out: &mut [u8]) -> Io {
        Io::WouldBlock
    }

    /// Writes nothing: transfers do.
    pub fn write(&self, _bytes: &[u8]) -> Io {
        Io::WouldBlock
    }

    /// To be called before the next packets are read or written.
    pub fn begin_packets(&self) -> Result<(), c_int> {
        Ok(())
    }

    /// Reads no packet.
    pub fn read_packet(&self, _out: &mut [u8]) -> PacketIo {
        PacketIo::WouldBlock
    }

    /// Whether there will never be another packet.
    pub fn is_over(&self) -> bool {
        false
    }

    /// Writes no packet.
    pub fn write_packet(&self, _packet: &[u8]) -> Io {
        Io::WouldBlock
    }

    /// Nothing: the caller shuts his stream down.
    pub fn shutdown_write(&self) {}

    /// Nothing: a descriptor that was refused stays its owner's.
    ///
    /// # Safety
    /// None here.
    pub unsafe fn adopt(&mut self, _fd: c_int) {}
}
