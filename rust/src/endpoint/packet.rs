//! Packet endpoints: TUN and TAP devices, with one packet per system call, and datagram
//! sockets.

use std::cell::Cell;
use std::io::IoSlice;

use libc::c_int;

use super::datagram::Datagrams;
use super::descriptor::{retry, Descriptor};
use super::stream::Transport;
use super::system::{self, SHUT_DOWN};
use super::{choose, Io, PacketIo, Resume, Written, WrittenEnd};
use crate::error::OpenError;
use crate::frame::{DeviceHeader, Framing, DEVICE_HEADER};
use crate::offload::header::Layout;

/// What a packet endpoint is.
pub(super) enum Kind {
    /// A socket of type SOCK_DGRAM.
    Datagrams(Datagrams),
    /// A TUN or TAP device.
    Device(Device),
}

/// A device file that takes packets, of which macOS has none.
#[cfg_attr(target_os = "macos", allow(dead_code))]
pub(super) enum DeviceFile {
    /// A device without IFF_VNET_HDR.
    Packets(Device),
    /// A device with IFF_VNET_HDR, and that header.
    Vnet(Layout),
}

/// A TUN or TAP device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// The header that the device has before each packet; `None` while it is not known which
    /// that is. See [`Packets::write`].
    pub(super) header: Option<DeviceHeader>,
    pub(super) layer: Layer,
}

/// What the packets of a device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    /// IP packets (TUN).
    Ip,
    /// Ethernet frames (TAP), of which macOS has no device.
    #[cfg_attr(target_os = "macos", allow(dead_code))]
    Ethernet,
}

/// A packet endpoint.
pub struct Packets {
    pub(super) descriptor: Descriptor,
    transport: Transport,
    kind: Kind,
    /// The header that a device has before each packet; `None` while it is not known which
    /// that is.
    header: Cell<Option<DeviceHeader>>,
}

impl Packets {
    pub(super) fn new(descriptor: Descriptor, transport: Transport, kind: Kind) -> Packets {
        let header = match &kind {
            Kind::Device(device) => device.header,
            Kind::Datagrams(_) => Some(DeviceHeader::None),
        };
        Packets {
            descriptor,
            transport,
            kind,
            header: Cell::new(header),
        }
    }

    /// A socket in place of a TUN device, which reads and writes as one does.
    #[cfg(test)]
    pub(crate) fn device_over(socket: std::os::fd::OwnedFd) -> Packets {
        let device = Device {
            header: Some(DeviceHeader::None),
            layer: Layer::Ip,
        };
        let descriptor = Descriptor::settled(socket);
        Packets::new(descriptor, Transport::Other, Kind::Device(device))
    }

    /// See [`super::Endpoint::framing`].
    pub(super) fn framing(&self, wanted: Option<Framing>) -> Result<Framing, OpenError> {
        match &self.kind {
            Kind::Datagrams(_) => choose(wanted, Framing::U16be, &[Framing::Ip]),
            Kind::Device(device) => match device.layer {
                // An Ethernet frame does not say how long it is.
                Layer::Ethernet => choose(wanted, Framing::U16be, &[]),
                Layer::Ip => choose(wanted, Framing::Ip, &[Framing::U16be]),
            },
        }
    }

    /// Whether this is a TUN or TAP device, and no socket.
    pub(super) fn is_device(&self) -> bool {
        matches!(self.kind, Kind::Device(_))
    }

    /// To be called before the next packets are read or written. An errno if they cannot
    /// be.
    pub fn prepare(&self) -> Result<(), c_int> {
        match self.descriptor.ensure_nonblocking() {
            Err(OpenError::System(errno)) => Err(errno),
            _ => Ok(()),
        }
    }

    /// Reads one packet as [`Packets::read`] does, when poll(2) has said that there is
    /// something to read. If there is no packet this finds out why: because a socket was
    /// shut down, which is [`PacketIo::Eof`], or because of error reports, which are
    /// dropped so that poll(2) does not go on about them.
    pub fn read_first(&mut self, out: &mut [u8], room: usize) -> PacketIo {
        match self.read(out, room) {
            PacketIo::WouldBlock => self.explain_readiness(),
            io => io,
        }
    }

    fn explain_readiness(&self) -> PacketIo {
        if let Kind::Device(_) = self.kind {
            return PacketIo::WouldBlock;
        }
        let mut poll = libc::pollfd {
            fd: self.descriptor.fd(),
            events: SHUT_DOWN,
            revents: 0,
        };
        // SAFETY: `poll` is valid for the call, which does not wait.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } != 1 {
            return PacketIo::WouldBlock;
        }
        if poll.revents & libc::POLLERR != 0 {
            system::drop_reports(self.descriptor.fd());
        }
        match poll.revents & SHUT_DOWN {
            0 => PacketIo::WouldBlock,
            _ => PacketIo::Eof,
        }
    }

    /// Reads one packet, never blocking. `room` bytes of packets with their framing may be
    /// held. A datagram socket may receive other packets, too, for the next reads: as many as
    /// fit, if they are not longer than those that came before.
    pub fn read(&mut self, out: &mut [u8], room: usize) -> PacketIo {
        if let Kind::Datagrams(datagrams) = &mut self.kind {
            return datagrams.read(self.descriptor.fd(), out, room);
        }
        match self.header.get() {
            Some(header) => self.read_from_device(header, out),
            None => match self.read_from_device(DeviceHeader::None, out) {
                PacketIo::Packet(n) => self.find_header(out, n),
                other => other,
            },
        }
    }

    /// Reads a packet that was received with one that [`Packets::read`] has read, if there is
    /// one.
    pub fn read_received(&mut self, out: &mut [u8]) -> Option<PacketIo> {
        match &mut self.kind {
            Kind::Datagrams(datagrams) => datagrams.read_received(out),
            Kind::Device(_) => None,
        }
    }

    /// How many bytes of packets [`Packets::read_received`] gives.
    pub fn unread(&self) -> usize {
        match &self.kind {
            Kind::Datagrams(datagrams) => datagrams.unread().unwrap_or(0),
            Kind::Device(_) => 0,
        }
    }

    /// How to go on when there may be more to read than was read.
    pub fn resume(&self) -> Resume {
        match &self.kind {
            Kind::Datagrams(datagrams) if datagrams.unread().is_some() => Resume::NextTurn,
            Kind::Datagrams(_) | Kind::Device(_) => Resume::WhenReadable,
        }
    }

    fn read_from_device(&self, layout: DeviceHeader, out: &mut [u8]) -> PacketIo {
        let mut header = [0u8; DEVICE_HEADER];
        let iov = [
            libc::iovec {
                iov_base: header.as_mut_ptr().cast(),
                iov_len: layout.size(),
            },
            libc::iovec {
                iov_base: out.as_mut_ptr().cast(),
                iov_len: out.len(),
            },
        ];
        let fd = self.descriptor.fd();
        // SAFETY: each piece is writable for its length.
        match retry(|| unsafe {
            match layout {
                DeviceHeader::None => libc::read(fd, iov[1].iov_base, iov[1].iov_len),
                _ => libc::readv(fd, iov.as_ptr(), 2),
            }
        }) {
            Io::Bytes(n) if n < layout.size() => PacketIo::Eof,
            Io::Bytes(_) if layout.is_truncated(header) => PacketIo::Truncated,
            Io::Bytes(n) => PacketIo::Packet(n - layout.size()),
            Io::WouldBlock => PacketIo::WouldBlock,
            Io::Failed(errno) => PacketIo::Failed(errno),
        }
    }

    /// Takes the header off the first packet of a TUN device, which shows whether it
    /// has one.
    fn find_header(&self, out: &mut [u8], n: usize) -> PacketIo {
        let found = DeviceHeader::of_tun(&out[..n]);
        self.header.set(found);
        match found {
            Some(header) => {
                out.copy_within(header.size()..n, 0);
                PacketIo::Packet(n - header.size())
            }
            // The bytes are no IP packet, with or without a header. Only a raw socket can
            // send such a packet.
            None => PacketIo::Truncated,
        }
    }

    /// Writes at most [`super::MOST_WRITTEN`] packets in this order, never blocking.
    pub fn write(&mut self, packets: &[IoSlice<'_>]) -> Written {
        if let Kind::Datagrams(datagrams) = &mut self.kind {
            return datagrams.write(self.descriptor.fd(), packets);
        }
        for (i, packet) in packets.iter().enumerate() {
            let end = match self.write_one(packet) {
                Io::Bytes(_) => continue,
                Io::WouldBlock => WrittenEnd::WouldBlock,
                Io::Failed(errno) => WrittenEnd::Failed(errno),
            };
            return Written { packets: i, end };
        }
        Written {
            packets: packets.len(),
            end: WrittenEnd::All,
        }
    }

    fn write_one(&self, packet: &[u8]) -> Io {
        if let Some(header) = self.header.get() {
            return self.write_to_device(header, packet);
        }
        // A TUN device without headers refuses a header, which is of no IP version.
        for header in [DeviceHeader::PacketInfo, DeviceHeader::None] {
            match self.write_to_device(header, packet) {
                Io::Failed(libc::EINVAL) => {}
                io => {
                    if let Io::Bytes(_) = io {
                        self.header.set(Some(header));
                    }
                    return io;
                }
            }
        }
        Io::Failed(libc::EINVAL)
    }

    fn write_to_device(&self, layout: DeviceHeader, packet: &[u8]) -> Io {
        let mut header = layout.for_packet(packet);
        let iov = [
            libc::iovec {
                iov_base: header.as_mut_ptr().cast(),
                iov_len: layout.size(),
            },
            libc::iovec {
                iov_base: packet.as_ptr().cast_mut().cast(),
                iov_len: packet.len(),
            },
        ];
        let fd = self.descriptor.fd();
        // SAFETY: each piece is readable for its length, and only read.
        retry(|| unsafe {
            match layout {
                DeviceHeader::None => libc::write(fd, iov[1].iov_base, iov[1].iov_len),
                _ => libc::writev(fd, iov.as_ptr(), 2),
            }
        })
    }

    /// shutdown(2) of the write side of a socket. With a device nothing happens.
    pub(super) fn shutdown_write(&self) {
        if self.transport == Transport::Socket {
            self.descriptor.shutdown_write();
        }
    }
}
