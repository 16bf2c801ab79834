//! Endpoints on a platform where no descriptors are spliced to, such as Windows, which has
//! no POSIX descriptors. There, an endpoint is a stream of the caller's, or another splice.
//! The other endpoints are types without values.

use std::io::IoSlice;

use libc::c_int;

use super::{Access, Endpoint, Io, PacketIo, Resume, StreamRead, Written};
use crate::error::OpenError;
use crate::frame::Framing;
use crate::offload::header::Layout;
use crate::offload::ip::Protocol;
use crate::offload::join::Joinable;

/// Refuses every descriptor.
pub(super) fn open(_fd: c_int, _access: Access) -> Result<Endpoint, OpenError> {
    Err(OpenError::Unsupported)
}

/// A descriptor number that was handed over. On this platform none is.
#[derive(Default)]
pub struct Adopted(());

impl Adopted {
    /// Does nothing: a descriptor that was refused stays its owner's.
    ///
    /// # Safety
    /// There is nothing to ensure here.
    pub unsafe fn replace(&mut self, _fd: c_int) {}
}

/// A type without values: there are no descriptors.
pub enum Descriptor {}

impl Descriptor {
    /// There is no value to call this on.
    pub fn fd(&self) -> c_int {
        match *self {}
    }

    /// There is no value to call this on.
    pub fn poll_fd(&self) -> c_int {
        match *self {}
    }

    /// There is no value to call this on.
    pub fn set_interest(&mut self, _interest: u32) -> u32 {
        match *self {}
    }

    /// There is no value to call this on.
    pub fn ready(&self, _polled: u32) -> u32 {
        match *self {}
    }
}

/// A type without values: there are no streams that can be polled.
pub struct Stream {
    pub(super) descriptor: Descriptor,
}

impl Stream {
    /// There is no value to call this on.
    pub fn read(&self, _out: &mut [u8]) -> StreamRead {
        match self.descriptor {}
    }

    pub(super) fn read_once(&self, _out: &mut [u8]) -> Io {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn write(&self, _bytes: &[u8]) -> Io {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn resume(&self) -> Resume {
        match self.descriptor {}
    }

    pub(super) fn shutdown_write(&self) {
        match self.descriptor {}
    }
}

/// A type without values: there are no packet devices or datagram sockets.
pub struct Packets {
    pub(super) descriptor: Descriptor,
}

impl Packets {
    pub(super) fn framing(&self, _wanted: Option<Framing>) -> Result<Framing, OpenError> {
        match self.descriptor {}
    }

    pub(super) fn is_device(&self) -> bool {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn prepare(&self) -> Result<(), c_int> {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn read_first(&mut self, _out: &mut [u8], _room: usize) -> PacketIo {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn read(&mut self, _out: &mut [u8], _room: usize) -> PacketIo {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn read_received(&mut self, _out: &mut [u8]) -> Option<PacketIo> {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn unread(&self) -> usize {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn resume(&self) -> Resume {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn write(&mut self, _packets: &[IoSlice<'_>]) -> Written {
        match self.descriptor {}
    }

    pub(super) fn shutdown_write(&self) {
        match self.descriptor {}
    }
}

/// A type without values: there are no devices with super-packets.
pub struct VnetDevice {
    pub(super) descriptor: Descriptor,
}

impl VnetDevice {
    pub(super) fn framing(&self, _wanted: Option<Framing>) -> Result<Framing, OpenError> {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn layout(&self) -> Layout {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn joinable(&self) -> Joinable {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn joined_taken(&self, _protocol: Protocol) {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn joined_refused(&self, _protocol: Protocol, _errno: c_int) -> bool {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn prepare(&self) -> Result<(), c_int> {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn read(&self, _out: &mut [u8]) -> Io {
        match self.descriptor {}
    }

    /// There is no value to call this on.
    pub fn write(&self, _pieces: &[IoSlice]) -> Io {
        match self.descriptor {}
    }
}

/// A type without values: there are no files.
pub struct File {
    pub(super) descriptor: Descriptor,
}
