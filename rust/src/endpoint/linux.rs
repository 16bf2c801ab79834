//! The part of the endpoints that is for Linux: epoll, /proc, TUN and TAP devices, and
//! flags.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;

use super::datagram::Datagrams;
use super::descriptor::{check, retry};
use super::messages::segments;
pub(super) use super::messages::{receive_many, send_many, RECEIVED_AT_ONCE};
use super::open::socket_option;
use super::packet::{Device, DeviceFile, Kind, Layer};
use crate::endpoint::{Io, READABLE, WRITABLE};
use crate::error::{errno, OpenError};
use crate::frame::DeviceHeader;
use crate::offload::header::{ByteOrder, Layout};

/// Whether a descriptor with these flags only names a file, and has not opened it (O_PATH).
pub(super) fn only_names(flags: c_int) -> bool {
    flags & libc::O_PATH != 0
}

/// The flags for send(2): never blocking, and without SIGPIPE.
pub(super) const SEND_FLAGS: c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// The event that poll(2) reports for a socket that will give nothing more.
pub(super) const SHUT_DOWN: libc::c_short = libc::POLLRDHUP;

/// Opens the pipe or tty behind `fd` again, by way of /proc (see proc_pid_fd(5)), which
/// gives a non-blocking open file description of our own. `None` where /proc is missing, or
/// the permissions have changed.
pub(super) fn reopen(fd: RawFd, flags: c_int) -> Result<Option<OwnedFd>, OpenError> {
    let mut number: c_int = 0;
    // SAFETY: `number` is valid for the call, which only fills it in.
    if unsafe { libc::ioctl(fd, libc::TIOCGPTN, &raw mut number) } == 0 {
        // The master of a pseudo-terminal: opening it makes another one.
        return Ok(None);
    }
    let path = format!("/proc/self/fd/{fd}\0");
    let flags = flags & libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: `path` ends with a NUL; the new descriptor is ours alone.
    unsafe {
        let fd = libc::open(path.as_ptr().cast(), flags);
        Ok((fd >= 0).then(|| OwnedFd::from_raw_fd(fd)))
    }
}

/// A new epoll descriptor that watches `fd`, with no event to report yet.
fn epoll_on(fd: RawFd) -> Result<OwnedFd, OpenError> {
    // SAFETY: no memory is passed; the new descriptor is ours alone.
    let epoll = unsafe {
        let epoll = check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?;
        OwnedFd::from_raw_fd(epoll)
    };
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: `event` is valid for the call.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
    Ok(epoll)
}

/// Whether epoll(7) can watch `fd`.
pub(super) fn is_pollable(fd: RawFd) -> Result<bool, OpenError> {
    match epoll_on(fd) {
        Ok(_) => Ok(true),
        Err(OpenError::System(libc::EPERM)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// An epoll descriptor that watches another one.
pub(super) struct Watch {
    epoll: OwnedFd,
    watched: RawFd,
    events: u32,
}

impl Watch {
    /// Watches a blocking socket, which is then read and written with MSG_DONTWAIT.
    pub(super) fn new(watched: RawFd) -> Result<Option<Watch>, OpenError> {
        Ok(Some(Watch {
            epoll: epoll_on(watched)?,
            watched,
            events: 0,
        }))
    }

    /// The descriptor to poll.
    pub(super) fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Watches for the readiness `interest`. Returns what to poll [`Watch::fd`] for.
    pub(super) fn set_interest(&mut self, interest: u32) -> u32 {
        if interest == 0 {
            return 0;
        }
        let mut events = 0;
        if interest & READABLE != 0 {
            events |= libc::EPOLLIN as u32;
        }
        if interest & WRITABLE != 0 {
            events |= libc::EPOLLOUT as u32;
        }
        if events != self.events {
            let mut event = libc::epoll_event { events, u64: 0 };
            // SAFETY: `event` is valid for the call. It cannot fail: the descriptor
            // was added and both are ours.
            unsafe {
                let change = libc::EPOLL_CTL_MOD;
                libc::epoll_ctl(self.fd(), change, self.watched, &raw mut event);
            }
            self.events = events;
        }
        READABLE
    }

    /// What the watched descriptor is ready for. This changes nothing.
    pub(super) fn ready(&self) -> u32 {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: `event` is valid for the call, which does not wait.
        let n = unsafe { libc::epoll_wait(self.fd(), &raw mut event, 1, 0) };
        let events = if n == 1 { event.events } else { 0 };
        // The next read or write says what the error or hang-up is.
        let both = events & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0;
        let mut ready = 0;
        if both || events & libc::EPOLLIN as u32 != 0 {
            ready |= READABLE;
        }
        if both || events & libc::EPOLLOUT as u32 != 0 {
            ready |= WRITABLE;
        }
        ready
    }
}

/// The flags of a TUN or TAP device, by `TUNGETIFF`: see
/// Documentation/networking/tuntap.rst of Linux.
fn device_flags(fd: RawFd) -> Result<c_int, OpenError> {
    // SAFETY: `request` is valid for the call, which only fills it in.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        check(libc::ioctl(fd, libc::TUNGETIFF as _, &raw mut request))?;
        Ok(request.ifr_ifru.ifru_flags.into())
    }
}

/// The device that `fd` is, if it is one.
pub(super) fn device(fd: RawFd) -> Result<Option<DeviceFile>, OpenError> {
    let flags = match device_flags(fd) {
        Ok(flags) => flags,
        // /dev/net/tun was opened, and is not attached to a device yet.
        Err(OpenError::System(libc::EBADFD)) => return Err(OpenError::System(libc::EBADFD)),
        Err(_) => return Ok(None),
    };
    if flags & libc::IFF_VNET_HDR != 0 {
        return vnet_layout(fd, flags).map(|layout| Some(DeviceFile::Vnet(layout)));
    }
    let layer = match flags & libc::IFF_TAP {
        0 => Layer::Ip,
        _ => Layer::Ethernet,
    };
    Ok(Some(DeviceFile::Packets(Device {
        // IFF_NO_PI is the same bit as IFF_NOFILTER, so it is set for each device
        // without a filter, which no TUN device has.
        header: match (flags & libc::IFF_NO_PI, layer) {
            (0, Layer::Ip) => Some(DeviceHeader::PacketInfo),
            (0, Layer::Ethernet) => Some(DeviceHeader::PacketInfoEthernet),
            (_, Layer::Ip) => None,
            (_, Layer::Ethernet) => Some(match has_packet_info(fd)? {
                true => DeviceHeader::PacketInfoEthernet,
                false => DeviceHeader::None,
            }),
        },
        layer,
    })))
}

/// The header of a device with IFF_VNET_HDR.
fn vnet_layout(fd: RawFd, flags: c_int) -> Result<Layout, OpenError> {
    if flags & libc::IFF_TAP != 0 || has_packet_info(fd)? {
        return Err(OpenError::VnetHeader);
    }
    let is_set = |request| matches!(number_of(fd, request), Ok(1));
    // TUNSETVNETLE goes before TUNSETVNETBE, which not every kernel has. Without either, the
    // header has the byte order of the machine.
    let order = if is_set(libc::TUNGETVNETLE) {
        ByteOrder::Little
    } else if is_set(libc::TUNGETVNETBE) {
        ByteOrder::Big
    } else {
        ByteOrder::NATIVE
    };
    let size = number_of(fd, libc::TUNGETVNETHDRSZ)?;
    Layout::new(size as usize, order).ok_or(OpenError::VnetHeader)
}

/// The number that an ioctl(2) of a device gives.
fn number_of(fd: RawFd, request: libc::Ioctl) -> Result<c_int, OpenError> {
    let mut number: c_int = 0;
    // SAFETY: `number` is valid for the call, which only fills it in.
    check(unsafe { libc::ioctl(fd, request, &raw mut number) })?;
    Ok(number)
}

/// Whether a TAP device, or any device with IFF_VNET_HDR, has packet information before each
/// packet, which the flags do not tell.
///
/// A write(2) of eight bytes from an address where there is no memory shows it. The write neither
/// reaches the device nor changes the counters of the device. A device with packet information
/// reads that first, and fails with EFAULT. A device without packet information refuses, before
/// it reads anything, what is shorter than an Ethernet header or the header of IFF_VNET_HDR. So
/// does macvtap(4), which never has packet information. It makes no difference whether the link
/// is up, or who has attached a filter.
fn has_packet_info(fd: RawFd) -> Result<bool, OpenError> {
    const SHORTER: usize = 8;
    // SAFETY: the new mapping is ours alone, and nobody may read it: the kernel
    // cannot either.
    let (ret, error) = unsafe {
        let protection = libc::PROT_NONE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let nothing = libc::mmap(std::ptr::null_mut(), SHORTER, protection, flags, -1, 0);
        if nothing == libc::MAP_FAILED {
            return Err(OpenError::System(errno()));
        }
        let ret = libc::write(fd, nothing, SHORTER);
        let error = errno();
        libc::munmap(nothing, SHORTER);
        (ret, error)
    };
    match error {
        _ if ret >= 0 => Err(OpenError::Unsupported),
        libc::EFAULT => Ok(true),
        libc::EINVAL => Ok(false),
        // Open for reading alone.
        libc::EBADF => Err(OpenError::AccessMode),
        error => Err(OpenError::System(error)),
    }
}

/// The kind of a SOCK_DGRAM socket. On Linux no device is such a socket.
pub(super) fn datagrams(fd: RawFd) -> Kind {
    Kind::Datagrams(Datagrams::new(segments(fd)))
}

/// Empties the error queue of a socket, so that the socket does not stay ready for it. The
/// queue has reports of IP_RECVERR, whose errors sends and receives return as well, and of
/// SO_TIMESTAMPING.
///
/// Only sockets of the internet protocols and packet(7) sockets are asked. A Unix socket does
/// not know MSG_ERRQUEUE, and would give what the peer has sent, and the error of the
/// connection.
pub(super) fn drop_reports(fd: RawFd) {
    let domain = socket_option(fd, libc::SO_DOMAIN);
    if !matches!(domain, Ok(libc::AF_INET | libc::AF_INET6 | libc::AF_PACKET)) {
        return;
    }
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    let mut byte = 0u8;
    loop {
        // SAFETY: `byte` is writable for the call.
        let report = retry(|| unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, flags) });
        if !matches!(report, Io::Bytes(_)) {
            return;
        }
    }
}

/// Blocks SIGPIPE for the calling thread, and takes away the SIGPIPE that a write has
/// raised.
pub(super) struct SigpipeGuard {
    old: libc::sigset_t,
    pending_before: bool,
}

impl SigpipeGuard {
    pub(super) fn new(_: RawFd) -> SigpipeGuard {
        // SAFETY: the sets are valid for the calls.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            let mut old: libc::sigset_t = std::mem::zeroed();
            let mut pending: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGPIPE);
            libc::sigpending(&raw mut pending);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut old);
            SigpipeGuard {
                old,
                pending_before: libc::sigismember(&raw const pending, libc::SIGPIPE) == 1,
            }
        }
    }
}

impl Drop for SigpipeGuard {
    fn drop(&mut self) {
        // SAFETY: the sets are valid for the calls. sigwait(3) does not block: it
        // is only called when SIGPIPE is pending and blocked.
        unsafe {
            let mut pending: libc::sigset_t = std::mem::zeroed();
            libc::sigpending(&raw mut pending);
            if !self.pending_before && libc::sigismember(&raw const pending, libc::SIGPIPE) == 1 {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, libc::SIGPIPE);
                let mut signal: c_int = 0;
                libc::sigwait(&raw const set, &raw mut signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.old, std::ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    // What poll(2) says of a descriptor for which no event is asked.
    fn poll(fd: RawFd, timeout: c_int) -> i16 {
        let mut polled = libc::pollfd {
            fd,
            events: 0,
            revents: 0,
        };
        // SAFETY: `polled` is one valid pollfd.
        unsafe { libc::poll(&raw mut polled, 1, timeout) };
        polled.revents
    }

    #[test]
    fn the_timestamps_of_a_packet_socket_are_reports() {
        // SAFETY: plain calls; the descriptor is new, and `lo` is a valid string.
        let (fd, index) = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0);
            // Not every kernel has such sockets, and only root may have one.
            if fd < 0 {
                assert!(matches!(errno(), libc::EPERM | libc::EAFNOSUPPORT));
                return;
            }
            (
                OwnedFd::from_raw_fd(fd),
                libc::if_nametoindex(c"lo".as_ptr()),
            )
        };
        let flags = libc::SOF_TIMESTAMPING_TX_SCHED | libc::SOF_TIMESTAMPING_SOFTWARE;
        // SAFETY: `flags` and `address` are valid for the calls, with their lengths; zeroes are
        // valid for the fields of an address that are not set.
        unsafe {
            assert_eq!(
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_TIMESTAMPING,
                    (&raw const flags).cast(),
                    4,
                ),
                0
            );
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
            address.sll_ifindex = index as c_int;
            address.sll_halen = 6;
            let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            let bytes = [0x45u8; 20];
            let sent = libc::sendto(
                fd.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const address).cast(),
                length,
            );
            // A new network namespace has no other device, and `lo` is down.
            if sent < 0 && errno() == libc::ENETDOWN {
                return;
            }
            assert_eq!(sent, 20, "{}", errno());
        }
        assert_eq!(poll(fd.as_raw_fd(), 5000), libc::POLLERR);
        drop_reports(fd.as_raw_fd());
        assert_eq!(poll(fd.as_raw_fd(), 0), 0);
    }

    #[test]
    fn what_a_unix_socket_has_received_is_no_report() {
        let (stream, other) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        std::io::Write::write_all(&mut &other, b"bytes").unwrap();
        drop_reports(stream.as_raw_fd());
        let mut bytes = [0; 8];
        let read = std::io::Read::read(&mut &stream, &mut bytes).unwrap();
        assert_eq!(&bytes[..read], b"bytes");

        let (socket, other) = UnixDatagram::pair().unwrap();
        other.send(b"datagram").unwrap();
        drop_reports(socket.as_raw_fd());
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut bytes).unwrap(), 8);
    }
}
