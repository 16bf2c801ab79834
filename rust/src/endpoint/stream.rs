//! Byte streams that can be polled: pipes, FIFOs, stream sockets, ttys.

use libc::c_void;

use super::descriptor::{retry, Descriptor};
use super::system::{self, SigpipeGuard, SEND_FLAGS};
use super::{Io, Resume, StreamRead};
use crate::error::OpenError;

/// Which system calls the descriptor takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// recv(2), send(2) and shutdown(2).
    Socket,
    /// read(2) and write(2).
    Other,
}

/// Where the end of file of a stream is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndOfFile {
    /// By poll(2), and by a read.
    Polled,
    /// By a read, but perhaps not by poll(2): Linux reports no hang-up of a FIFO whose writer
    /// had gone before the FIFO was opened.
    Hidden,
}

/// What SIGPIPE does to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sigpipe {
    /// Nothing, or nothing here can raise it.
    Harmless,
    /// It would kill the process, so it is held back around each write.
    Kills,
}

/// A byte stream that can be polled.
pub struct Stream {
    pub(super) descriptor: Descriptor,
    transport: Transport,
    end_of_file: EndOfFile,
    sigpipe: Sigpipe,
}

impl Stream {
    pub(super) fn socket(descriptor: Descriptor) -> Stream {
        Stream {
            descriptor,
            transport: Transport::Socket,
            end_of_file: EndOfFile::Polled,
            sigpipe: Sigpipe::Harmless,
        }
    }

    pub(super) fn pipe_or_tty(
        descriptor: Descriptor,
        end_of_file: EndOfFile,
        sigpipe: Sigpipe,
    ) -> Stream {
        Stream {
            descriptor,
            transport: Transport::Other,
            end_of_file,
            sigpipe,
        }
    }

    /// read(2) or recv(2), never blocking. `out` must not be empty.
    pub fn read(&self, out: &mut [u8]) -> StreamRead {
        match self.read_once(out) {
            Io::Bytes(0) => StreamRead::Eof,
            // After a short read the next read would return EAGAIN, unless the stream has
            // ended and poll(2) does not say so.
            Io::Bytes(n) if n < out.len() && self.end_of_file == EndOfFile::Polled => {
                StreamRead::Last(n)
            }
            Io::Bytes(n) => StreamRead::Bytes(n),
            Io::WouldBlock => StreamRead::WouldBlock,
            Io::Failed(errno) => StreamRead::Failed(errno),
        }
    }

    pub(super) fn read_once(&self, out: &mut [u8]) -> Io {
        if let Err(OpenError::System(errno)) = self.descriptor.ensure_nonblocking() {
            return Io::Failed(errno);
        }
        let fd = self.descriptor.fd();
        let buf = out.as_mut_ptr().cast::<c_void>();
        // SAFETY: `out` is writable for its length.
        let io = retry(|| unsafe {
            match self.transport {
                Transport::Socket => libc::recv(fd, buf, out.len(), libc::MSG_DONTWAIT),
                Transport::Other => libc::read(fd, buf, out.len()),
            }
        });
        self.without_reports(io)
    }

    /// Passes on what a call has returned. If a socket takes or has nothing at present, but
    /// has something in its error queue, for which poll(2) calls it ready in vain, that is
    /// dropped.
    fn without_reports(&self, io: Io) -> Io {
        if io == Io::WouldBlock && self.transport == Transport::Socket {
            let fd = self.descriptor.fd();
            let mut poll = libc::pollfd {
                fd,
                events: 0,
                revents: 0,
            };
            // SAFETY: `poll` is valid for the call, which does not wait.
            if unsafe { libc::poll(&raw mut poll, 1, 0) } == 1 && poll.revents & libc::POLLERR != 0
            {
                system::drop_reports(fd);
            }
        }
        io
    }

    /// write(2) or send(2), never blocking, without SIGPIPE.
    pub fn write(&self, bytes: &[u8]) -> Io {
        if let Err(OpenError::System(errno)) = self.descriptor.ensure_nonblocking() {
            return Io::Failed(errno);
        }
        let fd = self.descriptor.fd();
        let buf = bytes.as_ptr().cast::<c_void>();
        if self.transport == Transport::Socket {
            // SAFETY: `bytes` is readable for its length.
            let io = retry(|| unsafe { libc::send(fd, buf, bytes.len(), SEND_FLAGS) });
            return self.without_reports(io);
        }
        let _guard = match self.sigpipe {
            Sigpipe::Harmless => None,
            Sigpipe::Kills => Some(SigpipeGuard::new(fd)),
        };
        // SAFETY: `bytes` is readable for its length.
        retry(|| unsafe { libc::write(fd, buf, bytes.len()) })
    }

    /// How to go on when there may be more to read than was read.
    pub fn resume(&self) -> Resume {
        match self.end_of_file {
            EndOfFile::Polled => Resume::WhenReadable,
            EndOfFile::Hidden => Resume::NextTurn,
        }
    }

    /// shutdown(2) of the write side of a socket. With other streams nothing happens: their
    /// reader sees the end when they are closed.
    pub(super) fn shutdown_write(&self) {
        if self.transport == Transport::Socket {
            self.descriptor.shutdown_write();
        }
    }
}
