//! The system calls that are used, as functions that return `io::Result`.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use libc::{c_int, c_void};

/// `None` for EAGAIN.
fn result(n: isize) -> io::Result<Option<usize>> {
    if n >= 0 {
        return Ok(Some(n as usize));
    }
    match io::Error::last_os_error() {
        err if err.kind() == io::ErrorKind::WouldBlock => Ok(None),
        err => Err(err),
    }
}

/// read(2); `None` if there is nothing.
pub fn read(fd: RawFd, buf: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the buffer is writable for its length.
    result(unsafe { libc::read(fd, buf.as_mut_ptr().cast(), buf.len()) })
}

/// write(2); `None` if there is no room.
pub fn write(fd: RawFd, buf: &[u8]) -> io::Result<Option<usize>> {
    // SAFETY: the buffer is readable for its length.
    result(unsafe { libc::write(fd, buf.as_ptr().cast(), buf.len()) })
}

/// shutdown(2) of the write side.
pub fn shutdown_write(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    result(unsafe { libc::shutdown(fd, libc::SHUT_WR) } as isize).map(drop)
}

/// Drops up to `len` bytes from a TCP socket without copying them out of the kernel.
pub fn discard_tcp(fd: RawFd, len: usize) -> io::Result<Option<usize>> {
    // SAFETY: with MSG_TRUNC, TCP writes nothing to the buffer.
    result(unsafe { libc::recv(fd, std::ptr::null_mut(), len, libc::MSG_TRUNC) })
}

/// The same for a pipe: to `null`, which is /dev/null.
pub fn discard_pipe(fd: RawFd, null: RawFd, len: usize) -> io::Result<Option<usize>> {
    let none = std::ptr::null_mut();
    let flags = libc::SPLICE_F_NONBLOCK;
    // SAFETY: no offsets are passed.
    result(unsafe { libc::splice(fd, none, null, none, len, flags) })
}

/// Makes the descriptor non-blocking.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: two calls without pointers.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        result(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) as isize)?;
    }
    Ok(())
}

/// What does not move for so long is an error.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until the descriptor is readable, or writable.
pub fn poll(fd: RawFd, events: i16) -> io::Result<()> {
    match poll_for(fd, events, PATIENCE)? {
        true => Ok(()),
        false => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The same, for as long as `timeout` says; whether it is.
pub fn poll_for(fd: RawFd, events: i16, timeout: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: one entry.
    let n = unsafe { libc::poll(&mut poll, 1, timeout.as_millis() as c_int) };
    Ok(result(n as isize)? == Some(1))
}

/// Lets timers of this thread be exact: by default they may be 50 microseconds late.
pub fn exact_timers() {
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// What a forwarder connects to, as both ends of it name it.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// A port of 127.0.0.1.
    Tcp(u16),
    /// The same, with TLS.
    Tls(u16),
    /// The path of a socket.
    Unix(String),
    /// A folder with two FIFOs: `in` takes what the TLS peer sends, `out` has what it is sent.
    Fifo(String),
    /// The name of a TUN device, which the forwarder has as the descriptor `TUN_FD`.
    Tun(String),
}

impl std::str::FromStr for Endpoint {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(':').ok_or(())? {
            ("tcp", port) => Ok(Endpoint::Tcp(port.parse().map_err(|_| ())?)),
            ("tls", port) => Ok(Endpoint::Tls(port.parse().map_err(|_| ())?)),
            ("unix", path) => Ok(Endpoint::Unix(path.into())),
            ("fifo", path) => Ok(Endpoint::Fifo(path.into())),
            ("tun", name) => Ok(Endpoint::Tun(name.into())),
            _ => Err(()),
        }
    }
}

/// An open endpoint, non-blocking.
pub struct Ends {
    /// Where to read.
    pub source: OwnedFd,
    /// Where to write, if that is another descriptor.
    pub sink: Option<OwnedFd>,
}

impl Ends {
    /// Where to read.
    pub fn source(&self) -> RawFd {
        self.source.as_raw_fd()
    }

    /// Where to write.
    pub fn sink(&self) -> RawFd {
        self.sink.as_ref().unwrap_or(&self.source).as_raw_fd()
    }

    /// One descriptor for both.
    pub fn socket(fd: impl Into<OwnedFd>) -> io::Result<Self> {
        let source = fd.into();
        set_nonblocking(source.as_raw_fd())?;
        Ok(Ends { source, sink: None })
    }
}

impl Endpoint {
    /// What a forwarder does: connects, without a handshake. A device is there from the beginning.
    pub fn connect(&self) -> io::Result<Ends> {
        match self {
            Endpoint::Tcp(port) | Endpoint::Tls(port) => Ends::socket(connect_tcp(*port)?),
            Endpoint::Unix(path) => Ends::socket(UnixStream::connect(path)?),
            Endpoint::Fifo(dir) => {
                let mut open = OpenOptions::new();
                let open = open.custom_flags(libc::O_NONBLOCK);
                let source = open.clone().read(true).open(Path::new(dir).join("out0"))?;
                let sink = open.clone().write(true).open(Path::new(dir).join("in0"))?;
                Ok(Ends {
                    source: source.into(),
                    sink: Some(sink.into()),
                })
            }
            Endpoint::Tun(_) => {
                let fd = std::env::var("TUN_FD").ok().and_then(|fd| fd.parse().ok());
                let fd: RawFd = fd.ok_or_else(|| io::Error::other("TUN_FD is missing"))?;
                // SAFETY: whoever started this has passed the descriptor on, and nothing else
                // here knows of it.
                Ends::socket(unsafe { OwnedFd::from_raw_fd(fd) })
            }
        }
    }
}

/// Connects to a port of 127.0.0.1, without Nagle's delays.
pub fn connect_tcp(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens a FIFO for both reading and writing, which never waits for another process.
pub fn open_fifo(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// An edge-triggered epoll instance.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// What epoll has told of a descriptor.
pub struct Event {
    /// As registered.
    pub token: u64,
    /// There may be something to read, an end included.
    pub readable: bool,
    /// There may be room to write.
    pub writable: bool,
    /// The peer has ended: behind all bytes, a read finds the end, of which epoll does not tell again.
    pub ended: bool,
}

impl Epoll {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is new and nobody else's.
        let fd = unsafe {
            let fd = result(libc::epoll_create1(libc::EPOLL_CLOEXEC) as isize)?;
            OwnedFd::from_raw_fd(fd.unwrap_or(0) as RawFd)
        };
        Ok(Epoll {
            fd,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; 256],
        })
    }

    /// Registers `fd` for everything.
    pub fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.register(fd, token, libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP)
    }

    /// Registers `fd`, which always has room, for reading.
    pub fn add_source(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.register(fd, token, libc::EPOLLIN)
    }

    fn register(&self, fd: RawFd, token: u64, events: c_int) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (events | libc::EPOLLET) as u32,
            u64: token,
        };
        // SAFETY: the event is only read.
        let rc =
            unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) };
        result(rc as isize)?;
        Ok(())
    }

    /// Waits for events, for as long as `timeout` says.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = Event> + '_> {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the array has as many entries as are passed; the others are valid or null.
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as c_int,
                timeout,
                std::ptr::null::<c_void>(),
                0usize,
            )
        };
        let n = match result(n as isize) {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => 0,
            n => n?.unwrap_or(0),
        };
        Ok(self.events[..n].iter().map(|event| {
            let flags = event.events as c_int;
            let over = libc::EPOLLERR | libc::EPOLLHUP;
            let ended = libc::EPOLLRDHUP | over;
            Event {
                token: event.u64,
                readable: flags & (libc::EPOLLIN | ended) != 0,
                writable: flags & (libc::EPOLLOUT | over) != 0,
                ended: flags & ended != 0,
            }
        }))
    }
}
