//! What descriptors the pump takes, and what it does to them.

#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::c_int;

use common::*;
use tls_splice::endpoint::{Access, Endpoint, Io, READABLE, WRITABLE};
use tls_splice::error::*;
use tls_splice::ffi::*;
use tls_splice::frame::Framing;

/// Descriptors are the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn flags(fd: &impl AsRawFd) -> c_int {
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    assert!(flags >= 0);
    flags
}

fn nonblocking(fd: &impl AsRawFd) -> bool {
    flags(fd) & libc::O_NONBLOCK != 0
}

fn is_open(fd: RawFd) -> bool {
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// A pseudo-terminal without line discipline: the master and the slave.
fn pty() -> (File, File) {
    unsafe {
        let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        assert!(master >= 0);
        assert_eq!(libc::grantpt(master), 0);
        assert_eq!(libc::unlockpt(master), 0);
        let mut name = [0; 64];
        assert_eq!(libc::ptsname_r(master, name.as_mut_ptr(), name.len()), 0);
        let slave = libc::open(
            name.as_ptr(),
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        );
        assert!(slave >= 0);
        let mut raw: libc::termios = std::mem::zeroed();
        libc::tcgetattr(slave, &mut raw);
        libc::cfmakeraw(&mut raw);
        assert_eq!(libc::tcsetattr(slave, libc::TCSANOW, &raw), 0);
        (File::from_raw_fd(master), File::from_raw_fd(slave))
    }
}

/// A FIFO in a folder of its own: its read and its write end.
fn fifo() -> (tempfile::TempDir, File, File) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    let name = CString::new(path.to_str().unwrap()).unwrap();
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let reader = std::thread::spawn({
        let path = path.clone();
        move || File::open(path).unwrap()
    });
    let writer = File::options().write(true).open(path).unwrap();
    (dir, reader.join().unwrap(), writer)
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn code(fd: &impl AsRawFd, directions: u32) -> c_int {
    match new_splice(fd.as_raw_fd(), directions, 1000) {
        Ok(splice) => {
            unsafe { abi::free(splice) };
            TLS_SPLICE_OK
        }
        Err(code) => code,
    }
}

/// Polls `fd` for at most a second.
fn wait(fd: RawFd, events: i16) -> bool {
    let mut pollfd = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    unsafe { libc::poll(&mut pollfd, 1, 1000) == 1 }
}

fn write_all(endpoint: &Endpoint, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match endpoint.write(bytes) {
            Io::Bytes(n) => bytes = &bytes[n..],
            io => panic!("{io:?}"),
        }
    }
}

#[test]
fn the_access_mode_must_fit() {
    let _alone = alone();
    let (reader, writer) = std::io::pipe().unwrap();
    let (_dir, fifo_reader, fifo_writer) = fifo();
    for (fd, can) in [
        (reader.as_fd(), TLS_SPLICE_ENCRYPT),
        (writer.as_fd(), TLS_SPLICE_DECRYPT),
        (fifo_reader.as_fd(), TLS_SPLICE_ENCRYPT),
        (fifo_writer.as_fd(), TLS_SPLICE_DECRYPT),
    ] {
        for directions in [TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT, DUPLEX] {
            let expected = if directions == can {
                TLS_SPLICE_OK
            } else {
                TLS_SPLICE_EACCMODE
            };
            assert_eq!(code(&fd, directions), expected);
        }
    }
    // For ioctl(2) alone, see open(2).
    let neither = unsafe {
        let fd = libc::open(c"/dev/null".as_ptr(), libc::O_ACCMODE | libc::O_CLOEXEC);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    };
    for directions in [TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT, DUPLEX] {
        assert_eq!(code(&neither, directions), TLS_SPLICE_EACCMODE);
    }
    let (near, _far) = UnixStream::pair().unwrap();
    let (master, slave) = pty();
    let (tcp, _peer) = tcp();
    for fd in [near.as_fd(), master.as_fd(), slave.as_fd(), tcp.as_fd()] {
        for directions in [TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT, DUPLEX] {
            assert_eq!(code(&fd, directions), TLS_SPLICE_OK);
        }
    }
}

#[test]
fn what_is_no_byte_stream_is_refused() {
    let _alone = alone();
    for fd in [-1, 1_000_000] {
        assert_eq!(new_splice(fd, DUPLEX, 1000), Err(-libc::EBADF));
    }
    let closed = UnixStream::pair().unwrap().0.as_raw_fd();
    assert_eq!(new_splice(closed, DUPLEX, 1000), Err(-libc::EBADF));

    let dir = File::open("/").unwrap();
    assert_eq!(code(&dir, TLS_SPLICE_ENCRYPT), -libc::EISDIR);
    let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
    assert_eq!(code(&epoll, TLS_SPLICE_ENCRYPT), TLS_SPLICE_ENOTSUP);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(code(&listener, DUPLEX), -libc::EINVAL);
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    assert_eq!(code(&listener, DUPLEX), -libc::EINVAL);
}

/// It cannot be read nor written: to reopen it would give it an access that its owner
/// may not have.
#[test]
fn what_only_names_a_file_is_refused() {
    let _alone = alone();
    let (dir, reader, writer) = fifo();
    let file = dir.path().join("file");
    std::fs::write(&file, "content").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let (_master, slave) = pty();
    let [reader, writer, slave] =
        [&reader, &writer, &slave].map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()).into());
    let names: [std::path::PathBuf; 9] = [
        reader,
        writer,
        slave,
        file,
        link,
        socket,
        "/".into(),
        "/dev/null".into(),
        "/dev/ptmx".into(),
    ];
    for name in names {
        for flags in [libc::O_PATH, libc::O_PATH | libc::O_NOFOLLOW] {
            let named = File::options().read(true).custom_flags(flags).open(&name);
            for directions in [TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT, DUPLEX] {
                let code = code(named.as_ref().unwrap(), directions);
                assert_eq!(code, -libc::EBADF, "{name:?}");
            }
        }
    }
}

/// Both directions over `near`, whose mode nobody may touch. `near` blocks.
fn runs_with_a_blocking(near: OwnedFd, far: UnixStream) {
    assert!(!nonblocking(&near));
    far.set_nonblocking(true).unwrap();
    let twin = near.try_clone().unwrap();
    let mut rig = Rig::over(Options::default(), near, far);
    rig.start();
    while rig.sent_in.at < 2_000_000 {
        rig.peer_write(64_000);
        rig.source_write(64_000);
        rig.settle();
        assert!(!nonblocking(&twin));
    }
    rig.drain();
    assert_eq!(rig.to_us.at, rig.sent_in.at);
    assert_eq!(rig.from_us.at, rig.sent_out.at);
    rig.far
        .as_ref()
        .unwrap()
        .shutdown(std::net::Shutdown::Write)
        .unwrap();
    rig.settle();
    assert!(rig.out_over);
    drop(rig);
    assert!(!nonblocking(&twin));
}

#[test]
fn a_blocking_unix_socket_stays_blocking_and_never_blocks() {
    let _alone = alone();
    let (near, far) = UnixStream::pair().unwrap();
    runs_with_a_blocking(near.into(), far);
}

#[test]
fn a_blocking_tcp_socket_stays_blocking_and_never_blocks() {
    let _alone = alone();
    let (near, far) = tcp();
    // The rig only reads and writes it.
    let far = unsafe { UnixStream::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(far)) };
    near.set_nodelay(true).unwrap();
    let twin = near.try_clone().unwrap();
    far.set_nonblocking(true).unwrap();
    let mut rig = Rig::over(Options::default(), near.into(), far);
    rig.start();
    rig.peer_write(16_000_000);
    rig.settle();
    assert!(!rig.is_reading(), "the sink is full");
    while rig.to_us.at < rig.sent_in.at {
        rig.sink_read(100_000);
        rig.settle();
        assert!(!nonblocking(&twin));
    }
    drop(rig);
    assert!(!nonblocking(&twin));
}

/// poll(2) calls a socket ready as long as something is in its error queue, which no read and
/// no write takes out.
#[test]
#[cfg(target_os = "linux")]
fn a_socket_does_not_stay_ready_for_its_error_queue() {
    let _alone = alone();
    for is_nonblocking in [true, false] {
        let (near, far) = tcp();
        near.set_nonblocking(is_nonblocking).unwrap();
        far.set_nonblocking(true).unwrap();
        // The rig only reads and writes it.
        let far = unsafe { UnixStream::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(far)) };
        let times = libc::SOF_TIMESTAMPING_TX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
        packets::set_option(
            &near,
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPING,
            times as c_int,
        );
        let twin = near.try_clone().unwrap();
        let has_report = || {
            let mut poll = libc::pollfd {
                fd: twin.as_raw_fd(),
                events: 0,
                revents: 0,
            };
            unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLERR != 0 }
        };
        let mut rig = Rig::over(Options::default(), near.into(), far);
        rig.start();
        rig.peer_write(1000);
        rig.settle();
        rig.sink_read(1000);
        assert_eq!(rig.to_us.at, 1000);
        rig.settle();
        assert!(!has_report());
        rig.source_write(1000);
        rig.settle();
        assert_eq!(rig.from_us.at, rig.sent_out.at);
    }
}

#[test]
fn pipes_fifos_and_ttys_keep_their_mode() {
    let _alone = alone();
    let (reader, writer) = std::io::pipe().unwrap();
    let (_dir, fifo_reader, fifo_writer) = fifo();
    let (_master, slave) = pty();
    for (fd, access) in [
        (reader.as_fd(), Access::Read),
        (writer.as_fd(), Access::Write),
        (fifo_reader.as_fd(), Access::Read),
        (fifo_writer.as_fd(), Access::Write),
        (slave.as_fd(), Access::Read),
        (slave.as_fd(), Access::Write),
    ] {
        for on in [false, true] {
            let before = unsafe {
                let mode = if on { libc::O_NONBLOCK } else { 0 };
                assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, mode), 0);
                flags(&fd)
            };
            let endpoint = Endpoint::open(fd.as_raw_fd(), access).unwrap();
            assert_eq!(flags(&fd), before);
            if access.reads() {
                assert_eq!(endpoint.read(&mut [0; 10]), Io::WouldBlock);
            } else {
                while let Io::Bytes(_) = endpoint.write(&[0; 4096]) {}
            }
            assert_eq!(flags(&fd), before);
            drop(endpoint);
            assert_eq!(flags(&fd), before);
        }
    }
}

#[test]
fn a_terminal_is_the_terminal_it_was() {
    let _alone = alone();
    let (mut master, mut slave) = pty();
    // The slave.
    let endpoint = Endpoint::open(slave.as_raw_fd(), Access::ReadWrite).unwrap();
    let mut buf = [0; 100];
    write_all(&endpoint, b"to the master");
    let n = master.read(&mut buf).unwrap();
    assert_eq!(&buf[..n], b"to the master");
    master.write_all(b"to the slave").unwrap();
    assert!(wait(endpoint.poll_fd(), libc::POLLIN));
    assert_eq!(endpoint.read(&mut buf), Io::Bytes(12));
    assert_eq!(&buf[..12], b"to the slave");
    drop(endpoint);

    // The master, which cannot be opened again: that makes a new pair.
    let before = flags(&master);
    let endpoint = Endpoint::open(master.as_raw_fd(), Access::ReadWrite).unwrap();
    write_all(&endpoint, b"to the slave");
    assert!(wait(slave.as_raw_fd(), libc::POLLIN), "it went elsewhere");
    let n = slave.read(&mut buf).unwrap();
    assert_eq!(&buf[..n], b"to the slave");
    slave.write_all(b"to the master").unwrap();
    assert!(wait(endpoint.poll_fd(), libc::POLLIN));
    assert_eq!(endpoint.read(&mut buf), Io::Bytes(13));
    assert_eq!(endpoint.read(&mut buf), Io::WouldBlock);
    drop(endpoint);
    assert_eq!(flags(&master), before, "put back");
}

#[test]
fn the_owner_may_close_the_number_and_use_it_for_something_else() {
    let _alone = alone();
    for blocking in [true, false] {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(!blocking).unwrap();
        let (stranger, mut strangers_far) = UnixStream::pair().unwrap();
        strangers_far.set_nonblocking(true).unwrap();
        let endpoint = Endpoint::open(near.as_raw_fd(), Access::ReadWrite).unwrap();
        // The number now refers to somebody else's socket.
        let number = near.as_raw_fd();
        assert_eq!(unsafe { libc::dup2(stranger.as_raw_fd(), number) }, number);
        write_all(&endpoint, b"hello");
        let mut buf = [0; 5];
        far.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"hello");
        far.write_all(b"world").unwrap();
        assert!(wait(endpoint.poll_fd(), libc::POLLIN) || blocking);
        assert_eq!(endpoint.read(&mut buf), Io::Bytes(5));
        let error = strangers_far.read(&mut buf).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        // And its end is ours to give.
        endpoint.shutdown_write();
        assert_eq!(far.read(&mut buf).unwrap(), 0);
        drop(endpoint);
        drop(near);
        strangers_far.set_nonblocking(false).unwrap();
        drop(stranger);
        assert_eq!(strangers_far.read(&mut buf).unwrap(), 0);
    }
}

#[test]
fn a_framing_that_does_not_fit_is_refused() {
    let _alone = alone();
    let (stream, _other) = UnixStream::pair().unwrap();
    let (dgram, _other) = UnixDatagram::pair().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let null = File::open("/dev/null").unwrap();
    let framing = |fd: &dyn AsRawFd, wanted| {
        let endpoint = Endpoint::open(fd.as_raw_fd(), Access::Read).unwrap();
        endpoint.framing(wanted)
    };
    for fd in [&stream as &dyn AsRawFd, &null] {
        assert_eq!(framing(fd, None), Ok(Framing::Raw));
        assert_eq!(framing(fd, Some(Framing::Raw)), Ok(Framing::Raw));
        for ip in [Framing::Ip, Framing::Ipv4, Framing::Ipv6] {
            assert_eq!(framing(fd, Some(ip)), Ok(ip));
        }
        assert_eq!(framing(fd, Some(Framing::U16be)), Err(OpenError::Framing));
    }
    for fd in [&dgram as &dyn AsRawFd, &udp] {
        assert_eq!(framing(fd, None), Ok(Framing::U16be));
        assert_eq!(framing(fd, Some(Framing::U16be)), Ok(Framing::U16be));
        for ip in [Framing::Ip, Framing::Ipv4, Framing::Ipv6] {
            assert_eq!(framing(fd, Some(ip)), Ok(ip));
        }
        assert_eq!(framing(fd, Some(Framing::Raw)), Err(OpenError::Framing));
    }
}

#[test]
fn what_epoll_refuses_is_a_file() {
    let _alone = alone();
    let file = tempfile::tempfile().unwrap();
    let mut files = vec![file];
    for path in ["/dev/null", "/dev/zero", "/dev/full"] {
        files.push(File::options().read(true).write(true).open(path).unwrap());
    }
    for file in &files {
        let before = flags(file);
        let mut endpoint = Endpoint::open(file.as_raw_fd(), Access::ReadWrite).unwrap();
        assert!(matches!(endpoint, Endpoint::File(_)));
        assert_eq!(endpoint.poll_fd(), -1);
        assert_eq!(endpoint.set_interest(WRITABLE), WRITABLE);
        // Not on this thread: both may take their time.
        assert_eq!(endpoint.read(&mut [0; 8]), Io::WouldBlock);
        assert_eq!(endpoint.write(b"bytes"), Io::WouldBlock);
        assert_eq!(flags(file), before);
    }
    let (stream, _other) = UnixStream::pair().unwrap();
    let endpoint = Endpoint::open(stream.as_raw_fd(), Access::ReadWrite).unwrap();
    assert!(!matches!(endpoint, Endpoint::File(_)));
}

#[test]
fn no_descriptor_is_leaked() {
    let _alone = alone();
    let before = open_fds();
    for _ in 0..3 {
        let (blocking, _a) = UnixStream::pair().unwrap();
        let (nonblocking, _b) = nonblocking_pair();
        let (reader, writer) = std::io::pipe().unwrap();
        let (master, slave) = pty();
        let file = tempfile::tempfile().unwrap();
        let made = open_fds();
        for fd in [
            blocking.as_raw_fd(),
            nonblocking.as_raw_fd(),
            master.as_raw_fd(),
            slave.as_raw_fd(),
            file.as_raw_fd(),
        ] {
            let splice = new_splice(fd, DUPLEX, 1000).unwrap();
            assert!(open_fds() > made);
            unsafe { abi::free(splice) };
            assert_eq!(open_fds(), made);
        }
        assert_eq!(code(&reader, TLS_SPLICE_ENCRYPT), TLS_SPLICE_OK);
        assert_eq!(code(&writer, TLS_SPLICE_DECRYPT), TLS_SPLICE_OK);
        // Refused ones too.
        assert_ne!(code(&reader, DUPLEX), TLS_SPLICE_OK);
        assert_eq!(open_fds(), made);
    }
    assert_eq!(open_fds(), before);
}

#[test]
fn descriptors_are_not_inherited() {
    let _alone = alone();
    let (blocking, _a) = UnixStream::pair().unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let known: Vec<RawFd> = all_fds();
    let endpoints = [
        Endpoint::open(blocking.as_raw_fd(), Access::ReadWrite).unwrap(),
        Endpoint::open(reader.as_raw_fd(), Access::Read).unwrap(),
    ];
    for fd in all_fds() {
        if !known.contains(&fd) {
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
            assert_ne!(flags & libc::FD_CLOEXEC, 0);
        }
    }
    drop(endpoints);
}

fn all_fds() -> Vec<RawFd> {
    let mut fds: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| {
            let name = entry.unwrap().file_name();
            name.to_str().unwrap().parse().unwrap()
        })
        .collect();
    // Without the folder's own.
    fds.retain(|fd| is_open(*fd));
    fds
}

#[test]
fn an_adopted_descriptor_is_closed_once() {
    let _alone = alone();
    let (near, mut far) = UnixStream::pair().unwrap();
    let fd = std::os::fd::IntoRawFd::into_raw_fd(near);
    let splice = new_splice(fd, DUPLEX, 1000).unwrap();
    unsafe {
        abi::adopt_fd(splice, fd);
        assert!(is_open(fd));
        abi::free(splice);
    }
    assert!(!is_open(fd));
    assert_eq!(far.read(&mut [0; 1]).unwrap(), 0, "the other end sees it");
    // Earlier, if it has to be.
    let (near, _far) = UnixStream::pair().unwrap();
    let fd = std::os::fd::IntoRawFd::into_raw_fd(near);
    let splice = new_splice(fd, DUPLEX, 1000).unwrap();
    unsafe {
        abi::adopt_fd(splice, fd);
        abi::adopt_fd(splice, -1);
        assert!(!is_open(fd));
        abi::free(splice);
    }
    // Not adopted: left open.
    let (near, _far) = UnixStream::pair().unwrap();
    let splice = new_splice(near.as_raw_fd(), DUPLEX, 1000).unwrap();
    unsafe { abi::free(splice) };
    assert!(is_open(near.as_raw_fd()));
}

#[test]
fn a_closed_endpoint_leaves_a_splice_without_descriptors() {
    let _alone = alone();
    let (near, mut far) = UnixStream::pair().unwrap();
    let fd = std::os::fd::IntoRawFd::into_raw_fd(near);
    let splice = new_splice(fd, DUPLEX, 1000).unwrap();
    unsafe {
        abi::start(splice, DUPLEX);
        abi::adopt_fd(splice, fd);
        assert_eq!(tls_splice_close_endpoint(splice), TLS_SPLICE_OK);
        assert_eq!(abi::poll_fd(splice), -1);
    }
    assert!(!is_open(fd));
    assert_eq!(
        far.read(&mut [0; 1]).unwrap(),
        0,
        "nobody else has the socket"
    );
    // The connection is still known, so that another splice can take a direction of it.
    unsafe {
        assert!(!abi::state(splice).owes);
        let (near, _far) = UnixStream::pair().unwrap();
        let next = new_splice(near.as_raw_fd(), TLS_SPLICE_DECRYPT, 1000).unwrap();
        assert_eq!(
            tls_splice_start(next, TLS_SPLICE_DECRYPT, splice),
            TLS_SPLICE_OK
        );
        abi::free(next);
        // The number is somebody else's now, and must not be closed with the splice.
        let reused = File::open("/dev/null").unwrap();
        assert_eq!(
            tls_splice_close_endpoint(splice),
            TLS_SPLICE_OK,
            "once more"
        );
        abi::free(splice);
        assert!(is_open(reused.as_raw_fd()));
    }
    assert_eq!(
        unsafe { tls_splice_close_endpoint(std::ptr::null_mut()) },
        TLS_SPLICE_EARG
    );
}

#[test]
fn readiness_through_either_kind_of_poll() {
    let _alone = alone();
    for blocking in [true, false] {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(!blocking).unwrap();
        let mut endpoint = Endpoint::open(near.as_raw_fd(), Access::ReadWrite).unwrap();
        let ready = |endpoint: &mut Endpoint, interest| {
            let events = endpoint.set_interest(interest);
            let mut wanted = 0;
            if events & READABLE != 0 {
                wanted |= libc::POLLIN;
            }
            if events & WRITABLE != 0 {
                wanted |= libc::POLLOUT;
            }
            let mut pollfd = libc::pollfd {
                fd: endpoint.poll_fd(),
                events: wanted,
                revents: 0,
            };
            unsafe { libc::poll(&mut pollfd, 1, 0) };
            let mut polled = 0;
            if pollfd.revents & (libc::POLLIN | libc::POLLHUP) & wanted != 0 {
                polled |= READABLE;
            }
            if pollfd.revents & libc::POLLOUT != 0 {
                polled |= WRITABLE;
            }
            if polled == 0 {
                0
            } else {
                endpoint.ready(polled)
            }
        };
        assert_eq!(endpoint.set_interest(0), 0);
        assert_eq!(ready(&mut endpoint, READABLE), 0);
        assert_eq!(ready(&mut endpoint, WRITABLE), WRITABLE);
        assert_eq!(ready(&mut endpoint, READABLE | WRITABLE), WRITABLE);
        far.write_all(b"x").unwrap();
        assert_eq!(ready(&mut endpoint, READABLE), READABLE);
        // Level-triggered.
        assert_eq!(ready(&mut endpoint, READABLE), READABLE);
        assert_eq!(
            ready(&mut endpoint, READABLE | WRITABLE),
            READABLE | WRITABLE
        );
        assert_eq!(endpoint.set_interest(0), 0);
        assert_eq!(ready(&mut endpoint, READABLE), READABLE);
        assert_eq!(endpoint.read(&mut [0; 10]), Io::Bytes(1));
        assert_eq!(ready(&mut endpoint, READABLE), 0);
        while let Io::Bytes(_) = endpoint.write(&[0; 65536]) {}
        assert_eq!(ready(&mut endpoint, WRITABLE), 0);
        // A hang-up wakes whoever waits.
        drop(far);
        assert_ne!(ready(&mut endpoint, WRITABLE) & WRITABLE, 0);
        assert_ne!(ready(&mut endpoint, READABLE) & READABLE, 0);
    }
}

/// Linux does not report the hang-up of a FIFO that was opened when its writer
/// had already gone, so the pump must read on by itself.
#[test]
fn the_end_of_a_fifo_whose_writer_has_gone_is_noticed() {
    let _alone = alone();
    for (high_water_mark, size) in [
        (600, 500),
        (262_144, 500),
        (262_144, 65_536),
        (4096, 20_000),
    ] {
        let (_dir, reader, mut writer) = fifo();
        let mut source = Pattern::new(2);
        writer.write_all(&source.take(size)).unwrap();
        drop(writer);
        let (_, unused) = nonblocking_pair();
        let mut rig = Rig::over(
            Options {
                directions: TLS_SPLICE_ENCRYPT,
                attach: false,
                high_water_mark,
                ..Options::default()
            },
            reader.into(),
            unused,
        );
        rig.start();
        rig.settle();
        assert_eq!(rig.from_us.at, size as u64);
        assert!(rig.out_over, "{high_water_mark} {size}");
    }
}

#[test]
fn the_end_of_a_pipe_whose_writer_goes_is_noticed() {
    let _alone = alone();
    for gone_before in [true, false] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut source = Pattern::new(2);
        writer.write_all(&source.take(500)).unwrap();
        let mut writer = Some(writer);
        if gone_before {
            writer = None;
        }
        let (_, unused) = nonblocking_pair();
        let mut rig = Rig::over(
            Options {
                directions: TLS_SPLICE_ENCRYPT,
                attach: false,
                high_water_mark: 600,
                ..Options::default()
            },
            reader.into(),
            unused,
        );
        rig.start();
        rig.settle();
        assert_eq!(rig.out_over, gone_before);
        drop(writer);
        rig.settle();
        assert!(rig.out_over);
        assert_eq!(rig.from_us.at, 500);
    }
}

#[test]
fn a_full_pipe_is_written_on_when_it_is_read() {
    let _alone = alone();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (_, unused) = nonblocking_pair();
    let mut rig = Rig::over(
        Options {
            directions: TLS_SPLICE_DECRYPT,
            ..Options::default()
        },
        writer.into(),
        unused,
    );
    rig.start();
    rig.peer_write(1_000_000);
    let mut got = Pattern::new(1);
    let mut buf = [0; 7000];
    while got.at < 1_000_000 {
        rig.settle();
        let n = reader.read(&mut buf).unwrap();
        got.check(&buf[..n]);
    }
    assert!(rig.stats().stalls_in > 0);
}

/// Run by the test below in a process of its own.
#[test]
#[ignore = "changes the process's signals"]
fn sigpipe_in_a_child() {
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        let pending = |set: &mut libc::sigset_t| {
            libc::sigpending(set);
            libc::sigismember(set, libc::SIGPIPE) == 1
        };
        let blocked = |set: &mut libc::sigset_t| {
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), set);
            libc::sigismember(set, libc::SIGPIPE) == 1
        };
        for round in 0..2 {
            let (reader, writer) = std::io::pipe().unwrap();
            let pipe = Endpoint::open(writer.as_raw_fd(), Access::Write).unwrap();
            drop(reader);
            assert_eq!(pipe.write(b"x"), Io::Failed(libc::EPIPE));
            assert_eq!(blocked(&mut set), round == 1, "the mask is as it was");
            assert_eq!(pending(&mut set), round == 1, "a signal of others' stays");

            let (near, far) = UnixStream::pair().unwrap();
            let socket = Endpoint::open(near.as_raw_fd(), Access::ReadWrite).unwrap();
            drop(far);
            assert_eq!(socket.write(b"x"), Io::Failed(libc::EPIPE));
            assert_eq!(pending(&mut set), round == 1);

            // The second time with one that waits, blocked, for its own reader.
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGPIPE);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::raise(libc::SIGPIPE);
        }
    }
    println!("still alive");
}

#[test]
fn a_sink_without_reader_does_not_kill_the_process() {
    let _alone = alone();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sigpipe_in_a_child", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("still alive"),
        "{:?}\n{text}",
        output.status
    );
}
