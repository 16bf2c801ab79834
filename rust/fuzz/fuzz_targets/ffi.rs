//! Calls of the C ABI in any order that its contract allows, with NULL for the
//! handle too, on endpoints of every kind, and from inside OpenSSL's callbacks.

#![no_main]
#![allow(clippy::undocumented_unsafe_blocks)]

#[allow(dead_code)]
#[path = "../../tests/common/mod.rs"]
mod common;

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::ptr;
use std::sync::Once;

use libc::c_int;
use libfuzzer_sys::fuzz_target;
use openssl_sys as ossl;
use openssl_sys::SSL;

use common::{abi, connect, SSL_set_info_callback, Tls, DUPLEX, TLS1_2, TLS1_3};
use tls_splice::endpoint::{READABLE, WRITABLE};
use tls_splice::error::*;
use tls_splice::ffi::*;
use tls_splice::handle::tls_splice as Splice;
use tls_splice::stats::Stats;
use tls_splice_fuzz::{Counter, Input};

const DIRECTIONS: [u32; 2] = [TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT];

/// What `new` must say of an endpoint, for either direction.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Stream,
    ReadOnly,
    WriteOnly,
    Datagrams,
    Unsupported,
    Invalid(c_int),
}

struct Endpoint {
    fd: RawFd,
    kind: Kind,
    /// What is at its other end, if anything.
    far: Option<File>,
    _owned: Option<OwnedFd>,
}

impl Endpoint {
    fn open(input: &mut Input) -> Endpoint {
        let nonblocking = input.flag();
        let (owned, kind, far): (OwnedFd, _, Option<OwnedFd>) = match input.byte() % 11 {
            0..=2 => {
                let (near, far) = UnixStream::pair().unwrap();
                near.set_nonblocking(nonblocking).unwrap();
                (near.into(), Kind::Stream, Some(far.into()))
            }
            3 => {
                let (read, write) = pipe();
                (read, Kind::ReadOnly, Some(write))
            }
            4 => {
                let (read, write) = pipe();
                (write, Kind::WriteOnly, Some(read))
            }
            5 => {
                let fd = unsafe { libc::memfd_create(c"file".as_ptr(), libc::MFD_CLOEXEC) };
                assert!(fd >= 0);
                let mut file = unsafe { File::from_raw_fd(fd) };
                file.write_all(&[7; 5000]).unwrap();
                let at = input.size(6000) as libc::off_t;
                assert_eq!(unsafe { libc::lseek(fd, at, libc::SEEK_SET) }, at);
                (file.into(), Kind::Stream, None)
            }
            6 => {
                let null = File::options().read(true).write(true).open("/dev/null");
                (null.unwrap().into(), Kind::Stream, None)
            }
            7 => {
                let (near, far) = UnixDatagram::pair().unwrap();
                (near.into(), Kind::Datagrams, Some(far.into()))
            }
            8 => {
                let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
                let owned = unsafe { OwnedFd::from_raw_fd(fd) };
                (owned, Kind::Unsupported, None)
            }
            9 => {
                return Endpoint {
                    fd: TLS_SPLICE_FD_NONE,
                    kind: Kind::Stream,
                    far: None,
                    _owned: None,
                }
            }
            _ => return Endpoint::invalid(input),
        };
        if let Some(far) = &far {
            let fd = far.as_raw_fd();
            assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) }, 0);
        }
        Endpoint {
            fd: owned.as_raw_fd(),
            kind,
            far: far.map(File::from),
            _owned: Some(owned),
        }
    }

    fn invalid(input: &mut Input) -> Endpoint {
        let (fd, errno, owned): (RawFd, _, Option<OwnedFd>) = match input.byte() % 4 {
            0 => {
                let listener = UnixListener::bind_addr(&unnamed()).unwrap();
                (listener.as_raw_fd(), libc::EINVAL, Some(listener.into()))
            }
            1 => {
                let folder = File::open("/").unwrap();
                (folder.as_raw_fd(), libc::EISDIR, Some(folder.into()))
            }
            2 => (-1, libc::EBADF, None),
            _ => (c_int::MAX - c_int::from(input.byte()), libc::EBADF, None),
        };
        Endpoint {
            fd,
            kind: Kind::Invalid(errno),
            far: None,
            _owned: owned,
        }
    }

    /// What `new` answers to a config that is in order.
    fn answer(&self, directions: u32, framing: u32, max_packet_size: usize) -> c_int {
        const AUTO: u32 = TLS_SPLICE_FRAMING_AUTO;
        const RAW: u32 = TLS_SPLICE_FRAMING_RAW;
        let encrypts = directions & TLS_SPLICE_ENCRYPT != 0;
        let decrypts = directions & TLS_SPLICE_DECRYPT != 0;
        match self.kind {
            Kind::ReadOnly if decrypts => TLS_SPLICE_EACCMODE,
            Kind::WriteOnly if encrypts => TLS_SPLICE_EACCMODE,
            Kind::Unsupported => TLS_SPLICE_ENOTSUP,
            // A folder can only be opened for reading.
            Kind::Invalid(libc::EISDIR) if decrypts => TLS_SPLICE_EACCMODE,
            Kind::Invalid(errno) => -errno,
            Kind::Datagrams if framing == RAW => TLS_SPLICE_EFRAMING,
            Kind::Datagrams => TLS_SPLICE_OK,
            _ if framing == TLS_SPLICE_FRAMING_U16BE => TLS_SPLICE_EFRAMING,
            _ if max_packet_size != 0 && matches!(framing, AUTO | RAW) => TLS_SPLICE_ENOPACKETS,
            _ => TLS_SPLICE_OK,
        }
    }
}

fn unnamed() -> std::os::unix::net::SocketAddr {
    // Linux chooses an abstract name that nobody has (autobind, unix(7)): no file is left behind.
    std::os::unix::net::SocketAddr::from_pathname("").unwrap()
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) }
}

/// One handle, and what is known of it.
struct Handle {
    splice: *mut Splice,
    started: u32,
    released: u32,
    /// Directions that have moved bytes, perhaps.
    moved: u32,
    attached: bool,
    /// Transfers that have begun: the event, and how much at most.
    transfers: Vec<(u32, usize)>,
    /// Cleartext handed over for the endpoint, and taken back.
    before: u64,
    taken: u64,
    last: Stats,
}

thread_local! {
    /// The handle that is inside a call, for the callback.
    static INSIDE: Cell<*mut Splice> = const { Cell::new(ptr::null_mut()) };
    /// What the callback reports, once in each call.
    static REPORTS: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Whatever is called from inside a callback is refused, but for what a callback may
/// call.
unsafe extern "C" fn reenter(ssl: *const SSL, _: c_int, _: c_int) {
    let splice = INSIDE.get();
    if splice.is_null() {
        return;
    }
    let ssl = ssl.cast_mut();
    unsafe {
        abi::refused(splice, ssl, TLS_SPLICE_EBUSY);
        abi::state(splice);
        if let Some(event) = REPORTS.take() {
            let actions = abi::on(splice, event, TLS_SPLICE_DECRYPT as c_int, ssl);
            assert_eq!((actions.orders, actions.ssl_ret, actions.lower_error), (0, 1, 0));
        }
    }
}

struct World {
    ours: Tls,
    peer: Tls,
    endpoint: Endpoint,
    handles: [Option<Handle>; 2],
    stream: Counter,
    /// What a callback reports.
    callback: Option<u32>,
}

impl World {
    fn new(input: &mut Input) -> World {
        let flags = input.byte();
        let version = if flags & 1 == 0 { TLS1_3 } else { TLS1_2 };
        let server = flags & 2 != 0;
        // With the handshake behind it, as a rule.
        let (ours, peer) = if flags & 0x1c == 0x1c {
            (Tls::new(version, server), Tls::new(version, !server))
        } else {
            connect(version, server)
        };
        if flags & 0x20 == 0 {
            unsafe { SSL_set_info_callback(ours.0, Some(reenter)) };
        }
        let callback = match flags & 0x40 {
            0 => Some(TLS_SPLICE_ON_LEAVE_SOURCE),
            _ => Some(input.pick(&[
                TLS_SPLICE_ON_STOP,
                TLS_SPLICE_ON_LOWER_EOF,
                TLS_SPLICE_ON_LOWER_READ_FAILED,
                TLS_SPLICE_ON_LOWER_WRITE_FAILED,
                TLS_SPLICE_ON_DECRYPT,
                TLS_SPLICE_ON_SOURCE_READY,
                TLS_SPLICE_ON_GONE,
            ])),
        };
        World {
            ours,
            peer,
            endpoint: Endpoint::open(input),
            handles: [None, None],
            stream: Counter::default(),
            callback,
        }
    }

    fn create(&mut self, i: usize, input: &mut Input) {
        let directions = input.pick(&[DUPLEX, TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT, 0, 4, 7]);
        let high_water_mark = input.pick(&[1 << 18, 1, 37, 5000, 65_536, 0, usize::MAX]);
        let framing = input.pick(&[0, 0, 0, 1, 2, 3, 4, 5, 6u32]);
        let max_packet_size = input.pick(&[0, 0, 0, 1, 1280, usize::MAX]);
        let right = size_of::<tls_splice_config>();
        // Without framing, and without a largest packet.
        let oldest = offset_of!(tls_splice_config, framing);
        let older = offset_of!(tls_splice_config, max_packet_size);
        let struct_size = match input.byte() {
            n @ 1..=7 => [0, size_of::<usize>(), right - 1, right + 1][usize::from(n) % 4],
            8 => oldest,
            9 => older,
            _ => right,
        };
        // As large as it says and no larger, as from another version's header; the
        // first field is always there.
        let mut config = vec![0u8; struct_size.max(size_of::<usize>())].into_boxed_slice();
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(to) = config.get_mut(at..at + bytes.len()) {
                to.copy_from_slice(bytes);
            }
        };
        put(0, &struct_size.to_ne_bytes());
        put(offset_of!(tls_splice_config, fd), &self.endpoint.fd.to_ne_bytes());
        put(offset_of!(tls_splice_config, directions), &directions.to_ne_bytes());
        put(
            offset_of!(tls_splice_config, high_water_mark),
            &high_water_mark.to_ne_bytes(),
        );
        put(offset_of!(tls_splice_config, framing), &framing.to_ne_bytes());
        put(
            offset_of!(tls_splice_config, max_packet_size),
            &max_packet_size.to_ne_bytes(),
        );
        let config: *const tls_splice_config = config.as_ptr().cast();
        let mut splice = ptr::null_mut();
        unsafe {
            assert_eq!(tls_splice_new(ptr::null(), &mut splice), TLS_SPLICE_EARG);
            assert_eq!(tls_splice_new(config, ptr::null_mut()), TLS_SPLICE_EARG);
        }
        let framing = if struct_size == oldest { 0 } else { framing };
        let max_packet_size = if struct_size == right { max_packet_size } else { 0 };
        let expected = if ![oldest, older, right].contains(&struct_size) {
            TLS_SPLICE_EABI
        } else if directions == 0 || directions > DUPLEX || high_water_mark == 0 || framing > 5 {
            TLS_SPLICE_EARG
        } else {
            self.endpoint.answer(directions, framing, max_packet_size)
        };
        assert_eq!(unsafe { tls_splice_new(config, &mut splice) }, expected);
        assert_eq!(splice.is_null(), expected != TLS_SPLICE_OK);
        if !splice.is_null() {
            self.handles[i] = Some(Handle {
                splice,
                started: 0,
                released: 0,
                moved: 0,
                attached: false,
                transfers: Vec::new(),
                before: 0,
                taken: 0,
                last: Stats::default(),
            });
        }
    }

    fn free(&mut self, i: usize) {
        let Some(mut handle) = self.handles[i].take() else {
            return;
        };
        handle.end_transfers();
        unsafe {
            if handle.attached {
                abi::detach(handle.splice, self.ours.0);
            }
            abi::free(handle.splice);
        }
    }

    /// One of the two attaches at a time, as only one can have the direction.
    fn attach(&mut self, i: usize) {
        if self.handles.iter().flatten().any(|handle| handle.attached) {
            return;
        }
        if let Some(handle) = &mut self.handles[i] {
            let attach = |direction| unsafe {
                tls_splice_attach(handle.splice, direction, self.ours.0)
            };
            let rc = attach(TLS_SPLICE_DECRYPT);
            let in_init = unsafe { tls_splice::sys::SSL_in_init(self.ours.0) } != 0;
            assert_eq!(rc, if in_init { TLS_SPLICE_EBUSY } else { TLS_SPLICE_OK });
            assert_eq!(attach(TLS_SPLICE_ENCRYPT), rc);
            handle.attached = rc == TLS_SPLICE_OK;
        }
    }

    /// Ciphertext arrives, whatever it is, at whoever reads it.
    fn stream_read(&mut self, i: usize, garbage: bool, most: usize) {
        let bytes = if garbage {
            self.stream.take(most)
        } else {
            self.peer.take(most)
        };
        match &self.handles[i] {
            Some(handle) if handle.attached => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let buf = unsafe { abi::alloc(handle.splice) };
                    let n = rest.len().min(buf.len);
                    unsafe {
                        if n > 0 {
                            ptr::copy_nonoverlapping(rest.as_ptr(), buf.base, n);
                        }
                        abi::commit(handle.splice, n);
                    }
                    // Full: the wire would wait, and here it breaks.
                    if n == 0 {
                        return;
                    }
                    rest = &rest[n..];
                }
            }
            _ if self.handles.iter().flatten().any(|handle| handle.attached) => {}
            _ => self.ours.give(&bytes),
        }
    }

    fn step(&mut self, input: &mut Input) {
        let op = input.byte();
        let i = usize::from(op >> 7);
        let ssl = self.ours.0;
        if self.handles[i].is_none() && op & 3 == 0 {
            return self.create(i, input);
        }
        match op & 31 {
            0 => self.free(i),
            1 => self.attach(i),
            2 | 3 => self.stream_read(i, false, input.size(100_000)),
            4 => self.stream_read(i, true, input.size(1000)),
            5 | 6 => {
                let bytes = self.stream.take(input.size(60_000));
                self.peer.write(&bytes);
            }
            7 => {
                self.peer.give(&self.ours.take(usize::MAX));
                self.peer.read_all();
            }
            8 => {
                self.ours.take(input.size(60_000));
            }
            9 => self.peer.shutdown(),
            10 => self.far(input),
            11 => {
                self.peer.give(&self.ours.take(usize::MAX));
                unsafe { ossl::SSL_do_handshake(self.peer.0) };
            }
            12 => unsafe { abi::refused(ptr::null_mut(), ssl, TLS_SPLICE_EARG) },
            13 => {
                unsafe { abi::free(ptr::null_mut()) };
                self.pass(i);
            }
            _ => {
                let stream = &self.stream;
                let taken = self.taken_by_the_other(i);
                let [one, two] = &mut self.handles;
                let (handle, other) = if i == 0 { (one, two) } else { (two, one) };
                if let Some(handle) = handle {
                    INSIDE.set(handle.splice);
                    REPORTS.set(self.callback);
                    if op & 31 == 14 {
                        let before = other.as_ref().map_or(ptr::null_mut(), |other| other.splice);
                        return handle.start(taken, before, input);
                    }
                    handle.step(op & 31, ssl, stream, input);
                    INSIDE.set(ptr::null_mut());
                }
            }
        }
        unsafe { ossl::ERR_clear_error() };
        for handle in self.handles.iter_mut().flatten() {
            handle.check();
        }
    }

    /// A direction belongs to one of the two at a time.
    fn taken_by_the_other(&self, i: usize) -> u32 {
        let other = self.handles[1 - i].as_ref();
        other.map_or(0, |other| other.started & !other.released)
    }

    /// From one of the two to the other, or to itself.
    fn pass(&mut self, i: usize) {
        let ssl = self.ours.0;
        let [from, to] = [i, 1 - i].map(|i| self.handles[i].as_ref().map(|handle| handle.splice));
        let Some(from) = from else {
            return;
        };
        unsafe {
            assert_eq!(tls_splice_pass(from, from, ssl), TLS_SPLICE_EBUSY);
            let Some(to) = to else {
                assert_eq!(tls_splice_pass(from, ptr::null_mut(), ssl), TLS_SPLICE_EARG);
                return;
            };
            if abi::pass(from, to, ssl) {
                self.handles[1 - i].as_mut().unwrap().moved |= TLS_SPLICE_ENCRYPT;
            }
        }
    }

    fn far(&mut self, input: &mut Input) {
        let n = input.size(100_000);
        let Some(far) = &mut self.endpoint.far else {
            return;
        };
        // A full one, or one whose other end has gone, is an error like another.
        match input.byte() % 4 {
            0 => drop(far.write(&self.stream.take(n))),
            1 => drop(far.read(&mut vec![0; n])),
            2 => {
                unsafe { libc::shutdown(far.as_raw_fd(), libc::SHUT_WR) };
            }
            _ => self.endpoint.far = None,
        }
    }
}

impl Handle {
    /// Any part of it; the rest may stay for the next call.
    fn write_collected(&mut self, input: &mut Input) {
        let mut piece = tls_splice_buf {
            base: ptr::null_mut(),
            len: 0,
        };
        unsafe {
            if abi::collected(self.splice, &mut piece, 1) == 1 {
                assert!(!piece.base.is_null() && piece.len > 0);
                let n = input.size(2 * piece.len);
                abi::written(self.splice, n.min(piece.len));
                if input.byte() & 1 != 0 {
                    abi::write_later(self.splice);
                }
            }
        }
    }

    fn step(&mut self, op: u8, ssl: *mut SSL, stream: &Counter, input: &mut Input) {
        let splice = self.splice;
        match op {
            15 => self.push_before(stream, input),
            16 => drop(self.on(TLS_SPLICE_ON_STOP, input, ssl)),
            17 => drop(self.on(TLS_SPLICE_ON_LEAVE_SOURCE, input, ptr::null_mut())),
            18 => self.release(input, ssl),
            19 | 20 => drop(self.on(TLS_SPLICE_ON_DECRYPT, input, ssl)),
            21 | 22 => {
                let events = [
                    TLS_SPLICE_ON_SOURCE_READY,
                    TLS_SPLICE_ON_CYCLED,
                    TLS_SPLICE_ON_LOWER_READ,
                    TLS_SPLICE_ON_LOWER_DRAINED,
                ];
                let event = input.pick(&events);
                self.on(event, input, ssl);
                self.write_collected(input);
            }
            23 => unsafe { abi::shutdown_write(splice) },
            24 => self.take_undelivered(input),
            25 => {
                let (polled, interest) = (input.u32(), unsafe { abi::begin_wait(splice, ssl) });
                assert!(interest <= (READABLE | WRITABLE));
                unsafe { abi::ready(splice, polled) };
            }
            26 | 27 => self.begin_transfer(ssl, input),
            28 => self.end_transfer(input),
            29 => {
                let fd = File::open("/dev/null").unwrap().into_raw_fd();
                unsafe { abi::adopt_fd(splice, fd) };
            }
            30 => {
                unsafe { abi::detach(splice, ssl) };
                self.attached = false;
            }
            _ => {
                // What comes seldom, and a turn, which is a turn of both directions.
                let events = [
                    TLS_SPLICE_ON_TURN,
                    TLS_SPLICE_ON_TURN,
                    TLS_SPLICE_ON_TURN,
                    TLS_SPLICE_ON_SINK_READY,
                    TLS_SPLICE_ON_SOURCE_GAVE,
                    TLS_SPLICE_ON_LOWER_EOF,
                    TLS_SPLICE_ON_LOWER_READ_FAILED,
                    TLS_SPLICE_ON_LOWER_WRITE_FAILED,
                    TLS_SPLICE_ON_RESUME,
                ];
                let event = input.pick(&events);
                let actions = self.on(event, input, ptr::null_mut());
                if actions.orders & TLS_SPLICE_ACTION_CYCLE != 0 {
                    self.on(TLS_SPLICE_ON_DECRYPT, input, ssl);
                    self.on(TLS_SPLICE_ON_CYCLED, input, ssl);
                }
            }
        }
    }

    /// A direction that nobody has, of a connection that the other handle may share.
    fn start(&mut self, taken: u32, before: *mut Splice, input: &mut Input) {
        let direction = input.u32();
        let code = unsafe { tls_splice_start(self.splice, direction & !taken, before) };
        let is_one = DIRECTIONS.contains(&(direction & !taken));
        let expected = match is_one && direction & self.started == 0 {
            true => TLS_SPLICE_OK,
            false => TLS_SPLICE_EARG,
        };
        assert_eq!(code, expected);
        if code == TLS_SPLICE_OK {
            self.started |= direction & !taken;
        }
    }

    /// Reports an event; the stream below takes a write or not.
    fn on(&mut self, event: u32, input: &mut Input, ssl: *mut SSL) -> tls_splice_actions {
        self.moved |= DUPLEX;
        let failed = [TLS_SPLICE_ON_LOWER_READ_FAILED, TLS_SPLICE_ON_LOWER_WRITE_FAILED];
        let value = match failed.contains(&event) {
            true => -libc::ECONNRESET,
            false => c_int::from(input.byte() & 7 == 7),
        };
        let actions = unsafe { abi::on(self.splice, event, value, ssl) };
        assert!(actions.ssl_ret <= 1 && actions.orders < 2 * TLS_SPLICE_ACTION_LOWER_EOF);
        assert!(actions.lower_error <= 0);
        let state = unsafe { abi::state(self.splice) };
        assert!(state.reading <= TLS_SPLICE_READING_OFF);
        if state.outcome & TLS_SPLICE_OUTCOME_ENDPOINT_FAILED != 0 {
            let failure = unsafe { abi::failure(self.splice) }.unwrap();
            assert!(!failure.is_tls);
            assert!(failure.framing != 0 || failure.errnum != 0);
        }
        actions
    }

    fn release(&mut self, input: &mut Input, ssl: *mut SSL) {
        let direction = input.pick(&DIRECTIONS);
        unsafe {
            abi::on(self.splice, TLS_SPLICE_ON_RELEASE, direction as c_int, ssl);
            if input.flag() {
                abi::on(self.splice, TLS_SPLICE_ON_RESUME, 0, ptr::null_mut());
            }
        }
        self.released |= direction & self.started;
    }

    /// Only right after the start.
    fn push_before(&mut self, stream: &Counter, input: &mut Input) {
        let direction = input.pick(&DIRECTIONS);
        let bytes = stream.take(input.size(100_000));
        unsafe {
            let null = tls_splice_push_before(self.splice, direction, ptr::null(), 5);
            assert_eq!(null, TLS_SPLICE_EARG);
            abi::push_before(self.splice, direction, bytes.as_ptr(), 0);
        }
        if self.moved & direction != 0 {
            return;
        }
        unsafe { abi::push_before(self.splice, direction, bytes.as_ptr(), bytes.len()) };
        if direction & self.started & TLS_SPLICE_DECRYPT != 0 {
            self.before += bytes.len() as u64;
        }
    }

    fn take_undelivered(&mut self, input: &mut Input) {
        if self.transfers.iter().any(|(event, _)| *event == WRITABLE) {
            return;
        }
        let held = unsafe { abi::undelivered(self.splice) };
        let mut out = vec![0; input.size(100_000)];
        let n = unsafe {
            abi::take_undelivered(self.splice, out.as_mut_ptr(), out.len())
        };
        assert_eq!(n, held.min(out.len()));
        self.taken += n as u64;
    }

    fn begin_transfer(&mut self, ssl: *mut SSL, input: &mut Input) {
        let event = input.pick(&[READABLE, WRITABLE]);
        let splice = self.splice;
        if unsafe { abi::poll_fd(splice) } != -1
            || unsafe { abi::begin_wait(splice, ssl) } & event == 0
        {
            return;
        }
        if event == READABLE {
            self.moved |= TLS_SPLICE_ENCRYPT;
        }
        let transfer = unsafe { abi::begin_transfer(splice, ssl, event) };
        if transfer.buf.len > 0 {
            assert!(transfer.fd >= -1 && !transfer.buf.base.is_null());
            assert!(self.transfers.iter().all(|(begun, _)| *begun != event));
            self.transfers.push((event, transfer.buf.len));
            if event == READABLE {
                // What the other thread does.
                unsafe { ptr::write_bytes(transfer.buf.base, 9, transfer.buf.len) };
            }
        }
    }

    fn end_transfer(&mut self, input: &mut Input) {
        if self.transfers.is_empty() {
            return;
        }
        let (event, len) = self.transfers.remove(0);
        let result = match input.byte() % 8 {
            0 => -(libc::ECANCELED as isize),
            1 => -(libc::EIO as isize),
            2 => 0,
            _ => input.size(len) as isize,
        };
        unsafe { abi::end_transfer(self.splice, event, result) };
    }

    fn end_transfers(&mut self) {
        for (event, _) in self.transfers.drain(..) {
            let result = -(libc::ECANCELED as isize);
            unsafe { abi::end_transfer(self.splice, event, result) };
        }
    }

    /// Every byte is counted, and counters do not go back.
    fn check(&mut self) {
        let stats = unsafe { abi::stats(self.splice) };
        let held = unsafe { abi::undelivered(self.splice) } as u64;
        let decrypted = stats.bytes_decrypted + self.before;
        // But for those of packets that the endpoint has refused.
        let known = stats.bytes_in + self.taken + held;
        assert!(decrypted == known || stats.drops_in > 0 && decrypted > known);
        let last = std::mem::replace(&mut self.last, stats);
        assert!(stats.bytes_in >= last.bytes_in && stats.bytes_out >= last.bytes_out);
        assert!(stats.bytes_decrypted >= last.bytes_decrypted);
        assert!(stats.peak_buffered_in >= last.peak_buffered_in);
        assert!(stats.stalls_in >= last.stalls_in && stats.stalls_out >= last.stalls_out);
        if let Some(failure) = unsafe { abi::failure(self.splice) } {
            assert_eq!(failure.is_tls || failure.framing != 0, failure.errnum == 0);
        }
    }
}

/// Which of the first 256 numbers are open.
fn open_files() -> [bool; 256] {
    std::array::from_fn(|fd| unsafe { libc::fcntl(fd as c_int, libc::F_GETFD) } != -1)
}

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    while !input.is_empty() {
        world.step(&mut input);
    }
    if bytes.len() % 2 == 0 {
        world.free(0);
        world.free(1);
    } else {
        // The session goes first.
        for handle in world.handles.iter_mut().flatten() {
            handle.end_transfers();
        }
        drop(world.ours);
        for handle in world.handles.into_iter().flatten() {
            unsafe { abi::free(handle.splice) };
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    // What is opened once and stays open.
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(connect(TLS1_3, true)));
    assert_eq!(tls_splice_abi_version(), TLS_SPLICE_ABI_VERSION);

    let before = open_files();
    run(bytes);
    assert!(open_files() == before, "a descriptor is left open");
});
