//! Where there are POSIX descriptors. What Linux and macOS have different is in the
//! module `system`.

use std::cell::Cell;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void};

use super::{choose, framing_of_bytes, Io, PacketIo};
use crate::error::{errno, OpenError};
use crate::frame::{DeviceHeader, Framing, DEVICE_HEADER};

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod system;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod system;

use system::{SigpipeGuard, Watch, SEND_FLAGS, SHUT_DOWN};

/// How readiness is learnt without changing O_NONBLOCK under other holders of
/// the same open file description.
enum Poll {
    /// The descriptor itself: its description is ours, was non-blocking, or is
    /// made so for the time of the splice.
    Direct,
    /// Not at all: epoll(7) and kqueue(2) have no use for regular files, /dev/null,
    /// block devices. They are always ready, and block. So the caller reads and
    /// writes them on other threads. And what is the caller's he reads and writes
    /// anyway.
    Never,
    /// A descriptor that watches it: libuv's `uv_poll_init` sets O_NONBLOCK on what
    /// it is given, and this one is nobody else's.
    Nested(Watch),
}

/// Where boundaries are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nowhere: a byte stream or a file.
    Bytes,
    /// SOCK_DGRAM.
    Datagrams,
    /// A TUN or TAP device.
    Device(Device),
}

/// A pollable byte stream (pipe, FIFO, stream socket, tty), a file, or a stream of
/// the caller's.
pub struct Endpoint {
    /// `None` for a stream of the caller's.
    fd: Option<OwnedFd>,
    socket: bool,
    kind: Kind,
    /// What a device has before each packet; `None` while that is not known.
    header: Cell<Option<DeviceHeader>>,
    poll: Poll,
    /// The description is shared, and its O_NONBLOCK is needed. Others may clear
    /// it at any time: another splice at its end, for one.
    borrowed: bool,
    /// Clear O_NONBLOCK again at the end, since it was set here.
    restore: Cell<bool>,
    /// The caller's number (`autoClose`), here only to be closed.
    owned: Option<OwnedFd>,
    /// See [`Endpoint::hides_eof`].
    hides_eof: bool,
    /// SIGPIPE would kill the process, so it is held back around each write.
    guard_sigpipe: bool,
}

fn check(ret: c_int) -> Result<c_int, OpenError> {
    if ret < 0 {
        Err(OpenError::System(errno()))
    } else {
        Ok(ret)
    }
}

/// fcntl(2) with F_GETFL.
fn flags_of(fd: RawFd) -> Result<c_int, OpenError> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd, libc::F_GETFL) })
}

fn set_nonblocking(fd: RawFd, on: bool) -> Result<(), OpenError> {
    let flags = flags_of(fd)?;
    let wanted = if on {
        flags | libc::O_NONBLOCK
    } else {
        flags & !libc::O_NONBLOCK
    };
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, wanted) }).map(drop)
}

fn duplicate(fd: RawFd) -> Result<OwnedFd, OpenError> {
    // SAFETY: no memory is passed; the new descriptor is ours alone.
    unsafe { check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3)).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// A TUN or TAP device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Device {
    /// What it has before each packet; `None` while that is not known, see
    /// [`Endpoint::write_packet`].
    header: Option<DeviceHeader>,
    /// Whether the packets are Ethernet frames (TAP).
    ethernet: bool,
}

fn socket_option(fd: RawFd, option: c_int) -> Result<c_int, OpenError> {
    let mut value: c_int = 0;
    let mut len = std::mem::size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `value` and `len` are valid for the call and of the right size.
    let ret = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    check(ret).map(|_| value)
}

/// Whether SIGPIPE still has its default action, which ends the process. Node
/// ignores it; an embedder may not.
fn sigpipe_kills() -> bool {
    // SAFETY: `action` is valid for the call, which only fills it in.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_DFL
    }
}

impl Endpoint {
    /// Takes a descriptor of its own to what `fd` refers to, so that the caller
    /// may close `fd` or reuse its number at any time.
    pub fn open(fd: RawFd, readable: bool, writable: bool) -> Result<Endpoint, OpenError> {
        let flags = flags_of(fd)?;
        // As read(2) and write(2) say. A description of our own would be one more
        // than its owner has, who may not be allowed to open the file.
        if system::only_names(flags) {
            return Err(OpenError::System(libc::EBADF));
        }
        let access = flags & libc::O_ACCMODE;
        let may = |mode| access == mode || access == libc::O_RDWR;
        if readable && !may(libc::O_RDONLY) || writable && !may(libc::O_WRONLY) {
            return Err(OpenError::AccessMode);
        }
        // SAFETY: `stat` is valid for the call, which only fills it in.
        let mode = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            check(libc::fstat(fd, &raw mut stat))?;
            stat.st_mode & libc::S_IFMT
        };
        // SAFETY: no memory is passed.
        let tty = mode == libc::S_IFCHR && unsafe { libc::isatty(fd) } == 1;
        let socket = mode == libc::S_IFSOCK;
        let device = match mode {
            libc::S_IFCHR if !tty => system::device(fd)?,
            _ => None,
        };
        let mut kind = Kind::Bytes;
        if let Some(device) = device {
            kind = Kind::Device(device);
        } else if socket {
            match socket_option(fd, libc::SO_TYPE)? {
                libc::SOCK_STREAM => {}
                libc::SOCK_DGRAM => kind = system::datagrams(fd),
                _ => return Err(OpenError::Unsupported),
            }
            if socket_option(fd, libc::SO_ACCEPTCONN)? != 0 {
                return Err(OpenError::System(libc::EINVAL));
            }
        } else if mode == libc::S_IFDIR {
            return Err(OpenError::System(libc::EISDIR));
        }
        let file = !socket && mode != libc::S_IFIFO && !tty && device.is_none();
        // Some that the kernel makes up, as /proc/mounts, tell by poll(2) that they
        // have changed; they are read like any other.
        if file && mode != libc::S_IFREG && system::is_pollable(fd)? {
            return Err(OpenError::Unsupported);
        }

        let mut borrowed = false;
        let fd_of_own;
        let mut poll = if file { Poll::Never } else { Poll::Direct };
        let reopened = if socket || file || device.is_some() {
            None
        } else {
            system::reopen(fd, flags)?
        };
        let hides_eof = mode == libc::S_IFIFO && readable && reopened.is_some();
        if let Some(reopened) = reopened {
            fd_of_own = reopened;
        } else {
            // Of a file this shares the position.
            fd_of_own = duplicate(fd)?;
            if socket && flags & libc::O_NONBLOCK == 0 {
                if let Some(watch) = Watch::new(fd_of_own.as_raw_fd())? {
                    poll = Poll::Nested(watch);
                }
            }
            borrowed = matches!(poll, Poll::Direct) && (!socket || flags & libc::O_NONBLOCK == 0);
        }
        let header = match kind {
            Kind::Device(device) => device.header,
            _ => Some(DeviceHeader::None),
        };
        let endpoint = Endpoint {
            fd: Some(fd_of_own),
            socket,
            kind,
            header: Cell::new(header),
            poll,
            borrowed,
            restore: Cell::new(false),
            owned: None,
            hides_eof,
            guard_sigpipe: writable && !socket && sigpipe_kills(),
        };
        endpoint.ensure_nonblocking()?;
        Ok(endpoint)
    }

    /// A byte stream that the caller reads and writes, by transfers.
    pub fn of_caller() -> Endpoint {
        Endpoint {
            fd: None,
            socket: false,
            kind: Kind::Bytes,
            header: Cell::new(Some(DeviceHeader::None)),
            poll: Poll::Never,
            borrowed: false,
            restore: Cell::new(false),
            owned: None,
            hides_eof: false,
            guard_sigpipe: false,
        }
    }

    /// How packets are told apart in the TLS stream: as `wanted`, or in the way that
    /// goes with the endpoint.
    pub fn framing(&self, wanted: Option<Framing>) -> Result<Framing, OpenError> {
        match self.kind {
            Kind::Bytes => framing_of_bytes(wanted),
            Kind::Datagrams => choose(wanted, Framing::U16be, &[Framing::Ip]),
            // Ethernet says nothing of its length.
            Kind::Device(device) if device.ethernet => choose(wanted, Framing::U16be, &[]),
            Kind::Device(_) => choose(wanted, Framing::Ip, &[Framing::U16be]),
        }
    }

    /// Whether it takes and gives packets instead of bytes.
    pub fn has_packets(&self) -> bool {
        self.kind != Kind::Bytes
    }

    /// Sets O_NONBLOCK if it is needed and not there (any more).
    fn ensure_nonblocking(&self) -> Result<(), OpenError> {
        let fd = self.fd();
        if self.borrowed && flags_of(fd)? & libc::O_NONBLOCK == 0 {
            set_nonblocking(fd, true)?;
            self.restore.set(true);
        }
        Ok(())
    }

    /// The descriptor to poll; -1 if transfers take its place.
    pub fn poll_fd(&self) -> RawFd {
        match &self.poll {
            Poll::Direct => self.fd(),
            Poll::Never => -1,
            Poll::Nested(watch) => watch.fd(),
        }
    }

    /// Whether it is read and written by transfers, see [`crate::splice`].
    pub fn has_transfers(&self) -> bool {
        matches!(self.poll, Poll::Never)
    }

    /// Whether it is a stream of the caller's.
    pub fn is_of_caller(&self) -> bool {
        self.fd.is_none()
    }

    /// The descriptor to read and write it with; -1 if it is the caller's.
    pub fn fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Sets the interest ([`READABLE`], [`WRITABLE`]); returns what to poll
    /// [`Endpoint::poll_fd`] for, 0 for nothing.
    pub fn set_interest(&mut self, interest: u32) -> u32 {
        match &mut self.poll {
            Poll::Direct | Poll::Never => interest,
            Poll::Nested(watch) => watch.set_interest(interest),
        }
    }

    /// What the endpoint is ready for, given what `poll_fd` is.
    pub fn ready(&self, polled: u32) -> u32 {
        match &self.poll {
            Poll::Direct | Poll::Never => polled,
            Poll::Nested(watch) => watch.ready(),
        }
    }

    /// Whether the end of file may show at a read, but not in a poll: Linux
    /// reports no hang-up of a FIFO whose writer had gone before it was opened.
    pub fn hides_eof(&self) -> bool {
        self.hides_eof
    }

    /// read(2) or recv(2), never blocking. `out` must not be empty.
    pub fn read(&self, out: &mut [u8]) -> Io {
        if self.has_transfers() {
            return Io::WouldBlock;
        }
        if let Err(OpenError::System(errno)) = self.ensure_nonblocking() {
            return Io::Failed(errno);
        }
        let fd = self.fd();
        let buf = out.as_mut_ptr().cast::<c_void>();
        retry(|| {
            // SAFETY: `out` is writable for its length.
            unsafe {
                if self.socket {
                    libc::recv(fd, buf, out.len(), libc::MSG_DONTWAIT)
                } else {
                    libc::read(fd, buf, out.len())
                }
            }
        })
    }

    /// write(2) or send(2), never blocking, without SIGPIPE.
    pub fn write(&self, bytes: &[u8]) -> Io {
        if self.has_transfers() {
            return Io::WouldBlock;
        }
        if let Err(OpenError::System(errno)) = self.ensure_nonblocking() {
            return Io::Failed(errno);
        }
        let fd = self.fd();
        let buf = bytes.as_ptr().cast::<c_void>();
        if self.socket {
            // SAFETY: `bytes` is readable for its length.
            return retry(|| unsafe { libc::send(fd, buf, bytes.len(), SEND_FLAGS) });
        }
        let _guard = self.guard_sigpipe.then(|| SigpipeGuard::new(fd));
        // SAFETY: as above.
        retry(|| unsafe { libc::write(fd, buf, bytes.len()) })
    }

    /// To be called before the next packets are read or written, with an errno if
    /// they cannot be.
    pub fn begin_packets(&self) -> Result<(), c_int> {
        match self.ensure_nonblocking() {
            Err(OpenError::System(errno)) => Err(errno),
            _ => Ok(()),
        }
    }

    /// Reads one packet, never blocking.
    pub fn read_packet(&self, out: &mut [u8]) -> PacketIo {
        match self.header.get() {
            _ if self.kind == Kind::Datagrams => self.receive(out),
            Some(header) => self.read_from_device(header, out),
            None => match self.read_from_device(DeviceHeader::None, out) {
                PacketIo::Packet(n) => self.find_header(out, n),
                other => other,
            },
        }
    }

    fn receive(&self, out: &mut [u8]) -> PacketIo {
        match retry(|| system::receive(self.fd(), out)) {
            Io::Bytes(n) if n > out.len() => PacketIo::Truncated,
            Io::Bytes(n) => PacketIo::Packet(n),
            Io::WouldBlock => PacketIo::WouldBlock,
            // ICMP has come back for a packet that was sent before.
            Io::Failed(errno @ (libc::ECONNREFUSED | libc::EMSGSIZE)) => PacketIo::Refused(errno),
            Io::Failed(errno) => PacketIo::Failed(errno),
        }
    }

    /// Whether there will never be another packet. To be asked when a poll says that
    /// there is one, and [`Endpoint::read_packet`] that there is not.
    pub fn is_over(&self) -> bool {
        if self.kind != Kind::Datagrams {
            return false;
        }
        let mut poll = libc::pollfd {
            fd: self.fd(),
            events: SHUT_DOWN,
            revents: 0,
        };
        // SAFETY: `poll` is valid for the call, which does not wait.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } != 1 {
            return false;
        }
        if poll.revents & libc::POLLERR != 0 {
            system::drop_reports(self.fd());
        }
        poll.revents & SHUT_DOWN != 0
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
        let fd = self.fd();
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
            // Neither: no IP packet, which only a raw socket can send.
            None => PacketIo::Truncated,
        }
    }

    /// Writes one packet, never blocking.
    pub fn write_packet(&self, packet: &[u8]) -> Io {
        if self.kind == Kind::Datagrams {
            let (fd, buf) = (self.fd(), packet.as_ptr().cast::<c_void>());
            // SAFETY: `packet` is readable for its length.
            return retry(|| unsafe { libc::send(fd, buf, packet.len(), SEND_FLAGS) });
        }
        if let Some(header) = self.header.get() {
            return self.write_to_device(header, packet);
        }
        // A TUN device without headers refuses them: they are of no IP version.
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
        let fd = self.fd();
        // SAFETY: each piece is readable for its length, and only read.
        retry(|| unsafe {
            match layout {
                DeviceHeader::None => libc::write(fd, iov[1].iov_base, iov[1].iov_len),
                _ => libc::writev(fd, iov.as_ptr(), 2),
            }
        })
    }

    /// shutdown(2) of a socket's write side; nothing for other endpoints, whose
    /// end a reader sees when they are closed.
    pub fn shutdown_write(&self) {
        if self.socket {
            // SAFETY: no memory is passed. A failure (ENOTCONN after a reset)
            // means that the peer is gone already.
            unsafe { libc::shutdown(self.fd(), libc::SHUT_WR) };
        }
    }

    /// Takes over the caller's number too (`autoClose`): it is closed on drop. With
    /// -1 it is closed now.
    ///
    /// # Safety
    /// `fd` must be the caller's to give away.
    pub unsafe fn adopt(&mut self, fd: RawFd) {
        // SAFETY: by the contract above.
        self.owned = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if self.restore.get() {
            // Best effort: the description may be closed on the other side only,
            // never under us.
            let _ = set_nonblocking(self.fd(), false);
        }
    }
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> Io {
    loop {
        let ret = call();
        if ret >= 0 {
            return Io::Bytes(ret as usize);
        }
        match errno() {
            libc::EINTR => {}
            // Equal on Linux, not everywhere.
            #[allow(unreachable_patterns)]
            libc::EAGAIN | libc::EWOULDBLOCK => return Io::WouldBlock,
            errno => return Io::Failed(errno),
        }
    }
}
