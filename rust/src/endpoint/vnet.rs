//! TUN devices with IFF_VNET_HDR, which give and take super-packets: see [`crate::offload`].

use std::cell::Cell;
use std::io::IoSlice;

use libc::c_int;

use super::descriptor::{retry, Descriptor};
use super::{choose, Io};
use crate::error::OpenError;
use crate::frame::Framing;
use crate::offload::header::Layout;
use crate::offload::ip::Protocol;
use crate::offload::join::Joinable;

/// A TUN device with IFF_VNET_HDR.
pub struct VnetDevice {
    pub(super) descriptor: Descriptor,
    layout: Layout,
    tcp: Cell<Joining>,
    udp: Cell<Joining>,
    /// What takes the place of writev(2).
    #[cfg(test)]
    writev: std::cell::RefCell<Option<Writev>>,
}

/// What takes the pieces of one packet or super-packet in place of writev(2).
#[cfg(test)]
pub(crate) type Writev = Box<dyn FnMut(&[IoSlice]) -> Io + Send>;

/// What is known of whether the kernel takes packets of a protocol that are written as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Joining {
    /// The kernel has taken the last joined packets, or there were none yet.
    #[default]
    Trusted,
    /// The kernel has refused the last joined packets, perhaps because the link was down.
    Doubted,
    /// The kernel takes no joined packets.
    GivenUp,
}

impl VnetDevice {
    pub(super) fn new(descriptor: Descriptor, layout: Layout) -> VnetDevice {
        VnetDevice {
            descriptor,
            layout,
            tcp: Cell::default(),
            udp: Cell::default(),
            #[cfg(test)]
            writev: Default::default(),
        }
    }

    /// A socket in place of a device, which reads and writes as one does.
    #[cfg(test)]
    pub(crate) fn over(socket: std::os::fd::OwnedFd, layout: Layout) -> VnetDevice {
        VnetDevice::new(Descriptor::settled(socket), layout)
    }

    /// Calls `writev` in place of writev(2) from now on.
    #[cfg(test)]
    pub(crate) fn write_with(self, writev: Writev) -> VnetDevice {
        self.writev.replace(Some(writev));
        self
    }

    /// See [`super::Endpoint::framing`].
    pub(super) fn framing(&self, wanted: Option<Framing>) -> Result<Framing, OpenError> {
        choose(wanted, Framing::Ip, &[Framing::U16be])
    }

    /// The header before each packet.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Which packets may be written as one. Only the first write of joined packets shows whether
    /// the kernel takes them: some kernels refuse them, and Linux before 6.2 refuses those of UDP.
    pub fn joinable(&self) -> Joinable {
        Joinable {
            tcp: self.tcp.get() != Joining::GivenUp,
            udp: self.udp.get() != Joining::GivenUp,
        }
    }

    fn joining(&self, protocol: Protocol) -> &Cell<Joining> {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }

    /// Takes note that packets of that protocol were taken as one.
    pub fn joined_taken(&self, protocol: Protocol) {
        self.joining(protocol).set(Joining::Trusted);
    }

    /// Takes note that packets of that protocol were refused as one with that errno, and that
    /// the first of them was then taken by itself. Returns whether no more packets of that
    /// protocol are written as one because of that.
    pub fn joined_refused(&self, protocol: Protocol, errno: c_int) -> bool {
        let joining = self.joining(protocol);
        let now = match (errno, joining.get()) {
            (libc::EINVAL, _) | (libc::EIO, Joining::Doubted) => Joining::GivenUp,
            // EIO is also what the kernel says while the link is down, which may have come up
            // between the two writes.
            (libc::EIO, _) => Joining::Doubted,
            _ => return false,
        };
        joining.set(now);
        now == Joining::GivenUp
    }

    /// To be called before the next packets are read or written. An errno if they cannot
    /// be.
    pub fn prepare(&self) -> Result<(), c_int> {
        match self.descriptor.ensure_nonblocking() {
            Err(OpenError::System(errno)) => Err(errno),
            _ => Ok(()),
        }
    }

    /// Reads a packet or super-packet and the header before it, never blocking.
    pub fn read(&self, out: &mut [u8]) -> Io {
        let fd = self.descriptor.fd();
        // SAFETY: `out` is writable for its length.
        retry(|| unsafe { libc::read(fd, out.as_mut_ptr().cast(), out.len()) })
    }

    /// Writes a packet or super-packet and the header before it, which are in pieces, never
    /// blocking.
    pub fn write(&self, pieces: &[IoSlice]) -> Io {
        #[cfg(test)]
        if let Some(writev) = &mut *self.writev.borrow_mut() {
            return writev(pieces);
        }
        let fd = self.descriptor.fd();
        // SAFETY: an IoSlice is an iovec, and each is readable for its length. There are
        // fewer than IOV_MAX.
        retry(|| unsafe { libc::writev(fd, pieces.as_ptr().cast(), pieces.len() as c_int) })
    }
}
