//! The part of the endpoints that is for macOS: kqueue, utun, and flags of descriptions.
//! tools/check compiles this file; it was never tried on a Mac.

use std::ffi::c_char;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;

use super::datagram::{Datagrams, Message, Segments};
use super::descriptor::check;
use super::packet::{Device, DeviceFile, Kind, Layer};
use crate::error::OpenError;
use crate::frame::DeviceHeader;

/// Whether a descriptor only names a file, which none does on macOS.
pub(super) fn only_names(_: c_int) -> bool {
    false
}

/// The flags for send(2): never blocking, and without SIGPIPE.
pub(super) const SEND_FLAGS: c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// The event that poll(2) reports for a socket that will give nothing more.
pub(super) const SHUT_DOWN: libc::c_short = libc::POLLHUP;

/// PATH_MAX, with the NUL.
const PATH_SIZE: usize = 1024;

/// Opens the tty behind `fd` again, which gives a non-blocking open file description of our
/// own. `None` for a pipe, since opening /dev/fd gives the description that `fd` has. Refuses
/// a descriptor that kqueue cannot poll.
pub(super) fn reopen(fd: RawFd, flags: c_int) -> Result<Option<OwnedFd>, OpenError> {
    let mut path: [c_char; PATH_SIZE] = [0; PATH_SIZE];
    // SAFETY: no memory is passed.
    if unsafe { libc::isatty(fd) } == 0 {
        // SAFETY: `path` has the size that F_GETPATH asks for.
        return match unsafe { libc::fcntl(fd, libc::F_GETPATH, path.as_mut_ptr()) } {
            // A FIFO. kqueue does not tell when its last writer closes it, for which
            // reason libuv refuses to poll one.
            0 => Err(OpenError::Unsupported),
            _ => Ok(None),
        };
    }
    // /dev/tty, another name of the terminal.
    if !is_pollable(fd)? {
        return Err(OpenError::Unsupported);
    }
    let flags = flags & libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: `path` is larger than the 128 bytes of TIOCPTYGNAME, and writable for
    // the size that ttyname_r(3) is told, which ends it with a NUL; the new descriptor
    // is ours alone.
    unsafe {
        let request = libc::c_ulong::from(libc::TIOCPTYGNAME);
        if libc::ioctl(fd, request, path.as_mut_ptr()) == 0 {
            // The master of a pseudo-terminal: opening it makes another one.
            return Ok(None);
        }
        if libc::ttyname_r(fd, path.as_mut_ptr(), path.len()) != 0 {
            return Ok(None);
        }
        let fd = libc::open(path.as_ptr(), flags);
        Ok((fd >= 0).then(|| OwnedFd::from_raw_fd(fd)))
    }
}

/// Whether kqueue can poll `fd`, which must not be a regular file: of regular files kqueue
/// reports a readiness that read(2) does not agree with.
pub(super) fn is_pollable(fd: RawFd) -> Result<bool, OpenError> {
    let change = libc::kevent {
        ident: fd as libc::uintptr_t,
        filter: libc::EVFILT_READ,
        flags: libc::EV_ADD,
        fflags: 0,
        data: 0,
        udata: std::ptr::null_mut(),
    };
    // SAFETY: the new descriptor is ours alone; `change` is valid for the call, which
    // has no room for events and so does not wait.
    let added = unsafe {
        let kqueue = OwnedFd::from_raw_fd(check(libc::kqueue())?);
        check(libc::kevent(
            kqueue.as_raw_fd(),
            &raw const change,
            1,
            std::ptr::null_mut(),
            0,
            std::ptr::null(),
        ))
    };
    match added {
        Ok(_) => Ok(true),
        Err(OpenError::System(libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A type without values: a kqueue that watches a descriptor is ready also when the
/// descriptor is not. So O_NONBLOCK is set on a socket instead, and put back at the end.
pub(super) enum Watch {}

impl Watch {
    pub(super) fn new(_: RawFd) -> Result<Option<Watch>, OpenError> {
        Ok(None)
    }

    pub(super) fn fd(&self) -> RawFd {
        match *self {}
    }

    pub(super) fn set_interest(&mut self, _: u32) -> u32 {
        match *self {}
    }

    pub(super) fn ready(&self) -> u32 {
        match *self {}
    }
}

/// The device that `fd` is. On macOS no device file takes packets: utun is a socket.
pub(super) fn device(_: RawFd) -> Result<Option<DeviceFile>, OpenError> {
    Ok(None)
}

/// The kind of a SOCK_DGRAM socket, which may be a utun device. A read(2) of one, which is what
/// `fs.read()` does, gives one packet behind the 4 bytes of its address family. Of a packet that is
/// longer than the memory the rest is lost in silence, so there is room for the longest one. A
/// write(2) takes one packet, behind the same 4 bytes.
pub(super) fn datagrams(fd: RawFd) -> Kind {
    let mut name = [0u8; libc::IFNAMSIZ];
    let mut len = name.len() as libc::socklen_t;
    // SAFETY: `name` is writable for `len`.
    let ret = unsafe {
        libc::getsockopt(
            fd,
            libc::SYSPROTO_CONTROL,
            libc::UTUN_OPT_IFNAME,
            name.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if ret != 0 || !name.starts_with(b"utun") {
        return Kind::Datagrams(Datagrams::new(Segments::Impossible));
    }
    Kind::Device(Device {
        header: Some(DeviceHeader::Utun),
        layer: Layer::Ip,
    })
}

/// There is no call that receives more.
pub(super) const RECEIVED_AT_ONCE: usize = 1;

/// recvmsg(2) of one datagram, whose length is more than fits if it does not fit, which recv(2)
/// would not tell. Returns 1, or -1 with errno.
pub(super) fn receive_many(
    fd: RawFd,
    memory: &mut [u8],
    messages: &mut [Message],
    _: Segments,
) -> libc::ssize_t {
    let mut iov = libc::iovec {
        iov_base: memory.as_mut_ptr().cast(),
        iov_len: memory.len(),
    };
    // SAFETY: all of `message` is valid for the call, and `memory` writable for its
    // length.
    let (n, flags) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        let n = libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT);
        (n, message.msg_flags)
    };
    if n < 0 {
        return n;
    }
    let len = match flags & libc::MSG_TRUNC {
        0 => n as usize,
        _ => memory.len() + 1,
    };
    messages[0] = Message {
        len,
        segment: Some(len),
    };
    1
}

/// send(2) of the first packet. Returns 1, or -1 with errno.
pub(super) fn send_many(fd: RawFd, packets: &[IoSlice<'_>], _: &[usize]) -> libc::ssize_t {
    let (buf, len) = (packets[0].as_ptr().cast(), packets[0].len());
    // SAFETY: the packet is readable for its length.
    match unsafe { libc::send(fd, buf, len, SEND_FLAGS) } {
        n if n < 0 => n,
        _ => 1,
    }
}

/// Does nothing: sockets have no error queue.
pub(super) fn drop_reports(_: RawFd) {}

/// Keeps a write from raising SIGPIPE. On macOS that signal is one of the process, so that
/// it is not enough to block it in this thread.
pub(super) struct SigpipeGuard {
    fd: RawFd,
    silent_before: bool,
}

impl SigpipeGuard {
    pub(super) fn new(fd: RawFd) -> SigpipeGuard {
        // SAFETY: no memory is passed.
        let silent_before = unsafe { libc::fcntl(fd, libc::F_GETNOSIGPIPE) } == 1;
        let guard = SigpipeGuard { fd, silent_before };
        guard.silence(true);
        guard
    }

    fn silence(&self, on: bool) {
        if !self.silent_before {
            // SAFETY: no memory is passed.
            unsafe { libc::fcntl(self.fd, libc::F_SETNOSIGPIPE, c_int::from(on)) };
        }
    }
}

impl Drop for SigpipeGuard {
    fn drop(&mut self) {
        self.silence(false);
    }
}
