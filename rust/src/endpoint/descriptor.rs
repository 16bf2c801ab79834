//! What the endpoints with a descriptor have in common.

use std::cell::Cell;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;

use super::system::Watch;
use super::Io;
use crate::error::{errno, OpenError};

/// How the readiness of a descriptor is learnt without changing O_NONBLOCK under other
/// holders of its open file description.
enum Poll {
    /// By polling the descriptor itself.
    Direct,
    /// By polling another descriptor that watches it. `uv_poll_init` of libuv sets
    /// O_NONBLOCK on the descriptor that it is given, and nobody else has the watching one.
    Nested(Watch),
}

/// Who may change O_NONBLOCK of the descriptor's open file description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nonblocking {
    /// Nobody changes it: the flag is set for good, or is not needed.
    Settled,
    /// The flag is needed, and others have the description, too. They may clear the flag at
    /// any time, as another splice does at its end.
    Borrowed,
}

/// A descriptor of the splice's own, which never blocks.
pub struct Descriptor {
    fd: OwnedFd,
    poll: Poll,
    nonblocking: Nonblocking,
    /// O_NONBLOCK was set here, and is cleared at the end.
    restore: Cell<bool>,
}

impl Descriptor {
    fn new(fd: OwnedFd, poll: Poll, nonblocking: Nonblocking) -> Descriptor {
        Descriptor {
            fd,
            poll,
            nonblocking,
            restore: Cell::new(false),
        }
    }

    /// A descriptor whose description nobody else has, and which is non-blocking; or one
    /// that is used for transfers alone, which may block.
    pub(super) fn settled(fd: OwnedFd) -> Descriptor {
        Descriptor::new(fd, Poll::Direct, Nonblocking::Settled)
    }

    /// A descriptor whose description others have, too. The description is made
    /// non-blocking until the descriptor is dropped.
    pub(super) fn borrowed(fd: OwnedFd) -> Result<Descriptor, OpenError> {
        let descriptor = Descriptor::new(fd, Poll::Direct, Nonblocking::Borrowed);
        descriptor.ensure_nonblocking()?;
        Ok(descriptor)
    }

    /// A socket, whose flags (F_GETFL) are `flags`. If it is blocking it stays so where
    /// the platform can do without O_NONBLOCK.
    pub(super) fn socket(fd: OwnedFd, flags: c_int) -> Result<Descriptor, OpenError> {
        if flags & libc::O_NONBLOCK != 0 {
            return Ok(Descriptor::settled(fd));
        }
        match Watch::new(fd.as_raw_fd())? {
            Some(watch) => {
                let poll = Poll::Nested(watch);
                Ok(Descriptor::new(fd, poll, Nonblocking::Settled))
            }
            None => Descriptor::borrowed(fd),
        }
    }

    /// Sets O_NONBLOCK if it is needed and not there (any more). To be called before each
    /// read and write. An errno if that fails.
    pub(super) fn ensure_nonblocking(&self) -> Result<(), OpenError> {
        if self.nonblocking == Nonblocking::Borrowed {
            let fd = self.fd();
            if flags_of(fd)? & libc::O_NONBLOCK == 0 {
                set_nonblocking(fd, Blocking::No)?;
                self.restore.set(true);
            }
        }
        Ok(())
    }

    /// The descriptor to read and write.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The descriptor to poll.
    pub fn poll_fd(&self) -> RawFd {
        match &self.poll {
            Poll::Direct => self.fd(),
            Poll::Nested(watch) => watch.fd(),
        }
    }

    /// See [`super::Endpoint::set_interest`].
    pub fn set_interest(&mut self, interest: u32) -> u32 {
        match &mut self.poll {
            Poll::Direct => interest,
            Poll::Nested(watch) => watch.set_interest(interest),
        }
    }

    /// See [`super::Endpoint::ready`].
    pub fn ready(&self, polled: u32) -> u32 {
        match &self.poll {
            Poll::Direct => polled,
            Poll::Nested(watch) => watch.ready(),
        }
    }

    /// shutdown(2) of the write side of a socket.
    pub(super) fn shutdown_write(&self) {
        // SAFETY: no memory is passed. A failure (ENOTCONN after a reset) means that the
        // peer is gone already.
        unsafe { libc::shutdown(self.fd(), libc::SHUT_WR) };
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if self.restore.get() {
            // Best effort. The descriptor is open until this returns, so that it cannot be
            // another description by now.
            let _ = set_nonblocking(self.fd(), Blocking::Yes);
        }
    }
}

/// The caller's descriptor number, handed over to be closed with the splice
/// (`autoClose`).
#[derive(Default)]
pub struct Adopted(Option<OwnedFd>);

impl Adopted {
    /// Takes over `fd`, and closes the descriptor that was taken over before. With -1
    /// nothing is taken over.
    ///
    /// # Safety
    /// `fd` must be the caller's to give away, or -1.
    pub unsafe fn replace(&mut self, fd: RawFd) {
        // SAFETY: `fd` is the caller's to give away, by the contract above, so that from now
        // on it is owned here alone.
        self.0 = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

pub(super) fn check(ret: c_int) -> Result<c_int, OpenError> {
    if ret < 0 {
        Err(OpenError::System(errno()))
    } else {
        Ok(ret)
    }
}

/// fcntl(2) with F_GETFL.
pub(super) fn flags_of(fd: RawFd) -> Result<c_int, OpenError> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd, libc::F_GETFL) })
}

/// Whether a read or write waits.
enum Blocking {
    Yes,
    No,
}

fn set_nonblocking(fd: RawFd, blocking: Blocking) -> Result<(), OpenError> {
    let flags = flags_of(fd)?;
    let wanted = match blocking {
        Blocking::Yes => flags & !libc::O_NONBLOCK,
        Blocking::No => flags | libc::O_NONBLOCK,
    };
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, wanted) }).map(drop)
}

/// A new descriptor of the open file description that `fd` has. The two share the position
/// of a file.
pub(super) fn duplicate(fd: RawFd) -> Result<OwnedFd, OpenError> {
    // SAFETY: no memory is passed; the new descriptor is ours alone.
    unsafe { check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3)).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Makes a system call until no signal interrupts it. `call` returns what the system
/// call does, and leaves errno as it is.
pub(super) fn retry(mut call: impl FnMut() -> libc::ssize_t) -> Io {
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
