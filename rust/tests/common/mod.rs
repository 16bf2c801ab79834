//! A TLS session in memory, and an event loop around the C ABI that reports what happens
//! and does what is ordered, and nothing else: what the loop waits for in vain is a lost
//! wake-up, and what the loop does without effect is a spin.

#![allow(dead_code, clippy::undocumented_unsafe_blocks)]

pub mod abi;
pub mod model;
pub mod packets;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::OnceLock;

use libc::{c_int, c_long, c_ulong, c_void};
use openssl_sys as ossl;
use openssl_sys::{BIO, SSL, SSL_CTX};

use tls_splice::endpoint::{READABLE, WRITABLE};
use tls_splice::error::{TLS_SPLICE_EBUSY, TLS_SPLICE_OK};
use tls_splice::ffi::*;
use tls_splice::handle::tls_splice as Splice;
use tls_splice::stats::Stats;

// What openssl-sys lacks.
extern "C" {
    pub fn SSL_key_update(ssl: *mut SSL, kind: c_int) -> c_int;
    pub fn SSL_renegotiate(ssl: *mut SSL) -> c_int;
    fn SSL_set_options(ssl: *mut SSL, options: u64) -> u64;
    pub fn SSL_set_info_callback(
        ssl: *mut SSL,
        callback: Option<unsafe extern "C" fn(*const SSL, c_int, c_int)>,
    );
    pub fn ERR_peek_error() -> c_ulong;
    fn BIO_ctrl_pending(bio: *mut BIO) -> usize;
}
const SSL_OP_ALLOW_CLIENT_RENEGOTIATION: u64 = 1 << 8;
const SSL_CTRL_MODE: c_int = 33;
const SSL_CTRL_SET_MAX_SEND_FRAGMENT: c_int = 52;
const SSL_MODE_RELEASE_BUFFERS: c_long = 0x10;

pub const TLS1_2: c_int = 0x0303;
pub const TLS1_3: c_int = 0x0304;
pub const DUPLEX: u32 = TLS_SPLICE_DECRYPT | TLS_SPLICE_ENCRYPT;
/// Ciphertext that a record adds to its cleartext, at most.
pub const RECORD_OVERHEAD: u64 = 90;

/// A stream whose every byte tells where it belongs.
#[derive(Clone, Copy)]
pub struct Pattern {
    seed: u64,
    pub at: u64,
}

impl Pattern {
    pub fn new(seed: u64) -> Pattern {
        Pattern { seed, at: 0 }
    }

    pub fn take(&mut self, n: usize) -> Vec<u8> {
        let bytes = (self.at..self.at + n as u64)
            .map(|i| self.byte(i))
            .collect();
        self.at += n as u64;
        bytes
    }

    #[track_caller]
    pub fn check(&mut self, bytes: &[u8]) {
        for (i, byte) in (self.at..).zip(bytes) {
            assert_eq!(*byte, self.byte(i), "byte {i} of stream {}", self.seed);
        }
        self.at += bytes.len() as u64;
    }

    fn byte(&self, i: u64) -> u8 {
        (i ^ (i >> 8).wrapping_mul(31) ^ (i >> 16).wrapping_mul(7) ^ self.seed) as u8
    }
}

/// A key and a certificate, as DER.
fn identity() -> &'static (Vec<u8>, Vec<u8>) {
    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::nid::Nid;
    use openssl::{hash::MessageDigest, pkey::PKey, x509};
    static IDENTITY: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut name = x509::X509NameBuilder::new().unwrap();
        name.append_entry_by_text("CN", "localhost").unwrap();
        let name = name.build();
        let mut cert = x509::X509Builder::new().unwrap();
        cert.set_version(2).unwrap();
        cert.set_subject_name(&name).unwrap();
        cert.set_issuer_name(&name).unwrap();
        cert.set_pubkey(&key).unwrap();
        cert.set_not_before(&Asn1Time::days_from_now(0).unwrap())
            .unwrap();
        cert.set_not_after(&Asn1Time::days_from_now(1).unwrap())
            .unwrap();
        cert.sign(&key, MessageDigest::sha256()).unwrap();
        (
            key.private_key_to_der().unwrap(),
            cert.build().to_der().unwrap(),
        )
    })
}

/// Made once for each kind: it takes longer than a handshake.
fn context(version: c_int, server: bool) -> *mut SSL_CTX {
    struct Context(*mut SSL_CTX);
    // Nothing changes it once it is there, but for its count of references.
    unsafe impl Send for Context {}
    unsafe impl Sync for Context {}
    static CONTEXTS: [OnceLock<Context>; 4] = [const { OnceLock::new() }; 4];
    let i = usize::from(version == TLS1_3) * 2 + usize::from(server);
    CONTEXTS[i]
        .get_or_init(|| Context(new_context(version, server)))
        .0
}

fn new_context(version: c_int, server: bool) -> *mut SSL_CTX {
    let (key, cert) = identity();
    unsafe {
        let ctx = ossl::SSL_CTX_new(ossl::TLS_method());
        assert_eq!(ossl::SSL_CTX_set_min_proto_version(ctx, version), 1);
        assert_eq!(ossl::SSL_CTX_set_max_proto_version(ctx, version), 1);
        ossl::SSL_CTX_set_options(ctx, SSL_OP_ALLOW_CLIENT_RENEGOTIATION);
        ossl::SSL_CTX_set_session_cache_mode(ctx, ossl::SSL_SESS_CACHE_OFF);
        if server {
            let mut at = cert.as_ptr();
            let cert = ossl::d2i_X509(ptr::null_mut(), &mut at, cert.len() as c_long);
            assert_eq!(ossl::SSL_CTX_use_certificate(ctx, cert), 1);
            ossl::X509_free(cert);
            let mut at = key.as_ptr();
            let key = ossl::d2i_AutoPrivateKey(ptr::null_mut(), &mut at, key.len() as c_long);
            assert_eq!(ossl::SSL_CTX_use_PrivateKey(ctx, key), 1);
            ossl::EVP_PKEY_free(key);
        }
        ctx
    }
}

/// A session over memory BIOs, as TLSWrap has it, and the one of those that it
/// writes to, by way of the splice's or itself.
pub struct Tls(pub *mut SSL, pub *mut BIO);

impl Tls {
    pub fn new(version: c_int, server: bool) -> Tls {
        unsafe {
            let ssl = ossl::SSL_new(context(version, server));
            // As Node does, but for writes with a moving buffer.
            ossl::SSL_ctrl(
                ssl,
                SSL_CTRL_MODE,
                SSL_MODE_RELEASE_BUFFERS,
                ptr::null_mut(),
            );
            let wbio = memory();
            ossl::SSL_set_bio(ssl, memory(), wbio);
            if server {
                ossl::SSL_set_accept_state(ssl);
            } else {
                ossl::SSL_set_connect_state(ssl);
            }
            Tls(ssl, wbio)
        }
    }

    pub fn set_max_send_fragment(&self, n: c_long) {
        let set =
            unsafe { ossl::SSL_ctrl(self.0, SSL_CTRL_SET_MAX_SEND_FRAGMENT, n, ptr::null_mut()) };
        assert_eq!(set, 1);
    }

    /// Ciphertext made and not yet taken with [`Tls::take`].
    pub fn pending(&self) -> usize {
        unsafe { BIO_ctrl_pending(ossl::SSL_get_wbio(self.0)) }
    }

    /// Takes at most `n` bytes of ciphertext out of its own write BIO.
    pub fn take(&self, n: usize) -> Vec<u8> {
        let mut out = vec![0; n.min(unsafe { BIO_ctrl_pending(self.1) })];
        if !out.is_empty() {
            let n = unsafe { ossl::BIO_read(self.1, out.as_mut_ptr().cast(), out.len() as c_int) };
            assert_eq!(n as usize, out.len());
        }
        out
    }

    /// Gives ciphertext to the read BIO.
    pub fn give(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let bio = unsafe { ossl::SSL_get_rbio(self.0) };
            let n = unsafe { ossl::BIO_write(bio, bytes.as_ptr().cast(), bytes.len() as c_int) };
            assert_eq!(n as usize, bytes.len());
        }
    }

    pub fn error(&self, ret: c_int) -> c_int {
        unsafe { ossl::SSL_get_error(self.0, ret) }
    }

    /// All that can be read now, and the error that ended it.
    pub fn read_all(&self) -> (Vec<u8>, c_int) {
        let mut all = Vec::new();
        let mut buf = [0u8; 20000];
        loop {
            unsafe { ossl::ERR_clear_error() };
            let n = unsafe {
                ossl::SSL_read(
                    self.0,
                    buf.as_mut_ptr().cast::<c_void>(),
                    buf.len() as c_int,
                )
            };
            if n <= 0 {
                return (all, self.error(n));
            }
            all.extend_from_slice(&buf[..n as usize]);
        }
    }

    /// Whether it was taken.
    pub fn write(&self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        unsafe { ossl::ERR_clear_error() };
        let n = unsafe { ossl::SSL_write(self.0, bytes.as_ptr().cast(), bytes.len() as c_int) };
        assert!(n == bytes.len() as c_int || n <= 0);
        n > 0
    }

    /// Sends a KeyUpdate, which may ask the other side for one too.
    pub fn update_keys(&self, request: bool) {
        unsafe {
            assert_eq!(SSL_key_update(self.0, request.into()), 1);
            assert_eq!(ossl::SSL_do_handshake(self.0), 1);
        }
    }

    /// Asks for a renegotiation: a server with a HelloRequest, and a client with a ClientHello.
    pub fn renegotiate(&self) {
        unsafe {
            assert_eq!(SSL_renegotiate(self.0), 1);
            ossl::SSL_do_handshake(self.0);
        }
    }

    /// Answers each request for a renegotiation with an alert, and goes on.
    pub fn refuse_renegotiation(&self) {
        unsafe { SSL_set_options(self.0, ossl::SSL_OP_NO_RENEGOTIATION) };
    }

    /// Sends close_notify.
    pub fn shutdown(&self) {
        unsafe { ossl::SSL_shutdown(self.0) };
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        unsafe { ossl::SSL_free(self.0) };
    }
}

fn memory() -> *mut BIO {
    unsafe { ossl::BIO_new(ossl::BIO_s_mem()) }
}

/// Two sessions that have shaken hands, and have nothing left to say.
pub fn connect(version: c_int, ours_is_server: bool) -> (Tls, Tls) {
    let ours = Tls::new(version, ours_is_server);
    let peer = Tls::new(version, !ours_is_server);
    let mut done = 0;
    for _ in 0..20 {
        done = 0;
        for (a, b) in [(&ours, &peer), (&peer, &ours)] {
            done += c_int::from(unsafe { ossl::SSL_do_handshake(a.0) } == 1);
            b.give(&a.take(usize::MAX));
        }
    }
    assert_eq!(done, 2, "the handshake failed");
    // TLS 1.3 tickets.
    for tls in [&ours, &peer] {
        assert_eq!(tls.read_all(), (vec![], ossl::SSL_ERROR_WANT_READ));
    }
    (ours, peer)
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub version: c_int,
    pub server: bool,
    pub attach: bool,
    pub high_water_mark: usize,
    pub directions: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            version: TLS1_3,
            server: true,
            attach: true,
            high_water_mark: 256 * 1024,
            directions: DUPLEX,
        }
    }
}

/// All that a test may want to run through.
pub fn variants() -> impl Iterator<Item = Options> {
    [TLS1_2, TLS1_3].into_iter().flat_map(|version| {
        [true, false].into_iter().flat_map(move |attach| {
            [true, false].into_iter().map(move |server| Options {
                version,
                attach,
                server,
                ..Options::default()
            })
        })
    })
}

pub fn new_splice(
    fd: RawFd,
    directions: u32,
    high_water_mark: usize,
) -> Result<*mut Splice, c_int> {
    let config = tls_splice_config {
        struct_size: std::mem::size_of::<tls_splice_config>(),
        fd,
        directions,
        high_water_mark,
        framing: TLS_SPLICE_FRAMING_AUTO,
        max_packet_size: 0,
    };
    let mut splice = ptr::null_mut();
    match unsafe { tls_splice_new(&config, &mut splice) } {
        TLS_SPLICE_OK => Ok(splice),
        code => Err(code),
    }
}

pub fn stats_of(splice: *mut Splice) -> Stats {
    unsafe { abi::stats(splice) }
}

/// One end of TLS ("ours"), spliced to one end of a socket pair, and what is at
/// the other ends.
pub struct Rig {
    pub options: Options,
    pub ours: Tls,
    pub peer: Tls,
    pub splice: *mut Splice,
    /// The endpoint's other end; `None` once closed.
    pub far: Option<UnixStream>,
    pub near: OwnedFd,

    /// Ciphertext between the peer and us.
    pub wire_in: VecDeque<u8>,
    pub wire_out: VecDeque<u8>,
    /// Most that one read of the stream gives.
    pub segment: usize,
    /// How often there was no room only to let the loop turn.
    pub yields: usize,
    /// Whether TCP takes what we flush.
    pub tcp_open: bool,

    /// What the peer has sent and the endpoint or JavaScript have got, and the
    /// other way round.
    pub to_us: Pattern,
    pub from_us: Pattern,
    pub sent_in: Pattern,
    pub sent_out: Pattern,
    pub peer_error: c_int,

    reading: bool,
    attached: bool,
    /// A turn of the loop was asked for.
    turn_is_due: bool,
    /// Ciphertext waits for the stream below, which is to be reported when it has gone.
    is_draining: bool,
    pub in_over: Option<(c_int, c_int, c_ulong)>,
    /// The whole error queue at that moment, as people read it.
    pub in_over_text: String,
    pub out_over: bool,
    pub in_stopped: bool,
    pub out_stopped: bool,
    pub failed: bool,
    /// What JavaScript has read from the TLS side and from the source, for the
    /// next start.
    pub before: (Vec<u8>, Vec<u8>),
    /// The error that JavaScript is told of when it has the direction again.
    pub owed: Option<(c_int, c_int, c_ulong)>,
    /// What was ordered since a test has set this to 0.
    pub orders: u32,
}

pub fn nonblocking_pair() -> (OwnedFd, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near.into(), far)
}

impl Rig {
    pub fn new(options: Options) -> Rig {
        let (near, far) = nonblocking_pair();
        Rig::over(options, near, far)
    }

    pub fn over(options: Options, near: OwnedFd, far: UnixStream) -> Rig {
        let (ours, peer) = connect(options.version, options.server);
        let mut rig = Rig {
            options,
            ours,
            peer,
            splice: ptr::null_mut(),
            far: Some(far),
            near,
            wire_in: VecDeque::new(),
            wire_out: VecDeque::new(),
            segment: 65536,
            yields: 0,
            tcp_open: true,
            to_us: Pattern::new(1),
            from_us: Pattern::new(2),
            sent_in: Pattern::new(1),
            sent_out: Pattern::new(2),
            peer_error: ossl::SSL_ERROR_WANT_READ,
            reading: false,
            attached: false,
            turn_is_due: false,
            is_draining: false,
            in_over: None,
            in_over_text: String::new(),
            out_over: false,
            in_stopped: false,
            out_stopped: false,
            failed: false,
            before: Default::default(),
            owed: None,
            orders: 0,
        };
        rig.open();
        rig
    }

    fn open(&mut self) {
        let o = self.options;
        self.splice = new_splice(self.near.as_raw_fd(), o.directions, o.high_water_mark).unwrap();
    }

    /// Starts both directions, or those there are, and gives them their first turn.
    pub fn start(&mut self) -> &mut Rig {
        self.start_quietly();
        self.loop_turn();
        self
    }

    pub fn start_quietly(&mut self) {
        unsafe { abi::start(self.splice, self.options.directions) };
        let (cleartext, from_source) = std::mem::take(&mut self.before);
        self.push_before(TLS_SPLICE_DECRYPT, &cleartext);
        self.push_before(TLS_SPLICE_ENCRYPT, &from_source);
        for direction in [TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT] {
            if self.options.attach && self.has(direction) {
                unsafe { abi::attach(self.splice, direction, self.ours.0) };
                self.attached |= direction == TLS_SPLICE_DECRYPT;
            }
        }
        self.turn_is_due = true;
        self.reading = self.in_over.is_none();
    }

    fn has(&self, direction: u32) -> bool {
        self.options.directions & direction != 0
    }

    /// In two pieces.
    fn push_before(&self, direction: u32, bytes: &[u8]) {
        let (first, second) = bytes.split_at(bytes.len() / 3);
        for piece in [first, second] {
            unsafe { abi::push_before(self.splice, direction, piece.as_ptr(), piece.len()) };
        }
    }

    pub fn stats(&self) -> Stats {
        stats_of(self.splice)
    }

    pub fn is_reading(&self) -> bool {
        self.reading
    }

    pub fn peer_write(&mut self, n: usize) {
        let bytes = self.sent_in.take(n);
        assert!(self.peer.write(&bytes));
    }

    /// At most `n` bytes into the source; returns how many it took.
    pub fn source_write(&mut self, n: usize) -> usize {
        let mut ahead = self.sent_out;
        let bytes = ahead.take(n);
        let taken = match self.far.as_ref().unwrap().write(&bytes) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
            Err(e) => panic!("{e}"),
        };
        self.sent_out.at += taken as u64;
        taken
    }

    /// At most `n` bytes from the sink, checked; `None` is its end.
    pub fn sink_read(&mut self, n: usize) -> Option<usize> {
        let mut buf = vec![0; n];
        match self.far.as_ref()?.read(&mut buf) {
            Ok(0) => None,
            Ok(n) => {
                self.to_us.check(&buf[..n]);
                Some(n)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Some(0),
            Err(e) => panic!("{e}"),
        }
    }

    pub fn state(&self) -> tls_splice_state {
        unsafe { abi::state(self.splice) }
    }

    pub fn wants_handshake(&self) -> bool {
        self.state().outcome & TLS_SPLICE_OUTCOME_WANTS_HANDSHAKE != 0
    }

    /// Reports an event, and carries out what is ordered.
    #[track_caller]
    pub fn on(&mut self, event: u32) {
        let actions = unsafe { abi::on(self.splice, event, 0, self.ours.0) };
        self.carry_out(&actions);
    }

    #[track_caller]
    fn carry_out(&mut self, actions: &tls_splice_actions) {
        self.note(actions);
        if actions.orders & TLS_SPLICE_ACTION_FLUSH != 0 {
            self.write_collected();
            self.flush();
        }
        if actions.orders & TLS_SPLICE_ACTION_CYCLE != 0 {
            self.decrypt();
            self.on(TLS_SPLICE_ON_CYCLED);
        }
    }

    /// Takes note of what is ordered, and of what has become of the splice.
    #[track_caller]
    fn note(&mut self, actions: &tls_splice_actions) {
        assert_eq!(actions.orders & TLS_SPLICE_ACTION_WAKE_OTHER, 0);
        assert_eq!(actions.orders & TLS_SPLICE_ACTION_DELIVER, 0);
        self.orders |= actions.orders;
        if actions.ssl_ret != 1 {
            let error = (actions.ssl_ret, self.ours.error(actions.ssl_ret), unsafe {
                ERR_peek_error()
            });
            assert_eq!(self.in_over, None, "the end is told twice");
            self.in_over = Some(error);
            self.in_over_text = openssl::error::ErrorStack::get().to_string();
        }
        unsafe { ossl::ERR_clear_error() };
        self.turn_is_due |= actions.orders & TLS_SPLICE_ACTION_NEXT_TURN != 0;
        let state = self.state();
        match state.reading {
            TLS_SPLICE_READING_ON => self.reading = true,
            TLS_SPLICE_READING_OFF => self.reading = false,
            _ => {}
        }
        let outcome = |bits| state.outcome & bits != 0;
        if outcome(TLS_SPLICE_OUTCOME_OUT_OVER) && !self.out_over {
            assert_eq!(
                self.ours.pending(),
                0,
                "over before the write BIO has drained"
            );
        }
        self.out_over |= outcome(TLS_SPLICE_OUTCOME_OUT_OVER);
        self.in_stopped = outcome(TLS_SPLICE_OUTCOME_IN_STOPPED);
        self.out_stopped = outcome(TLS_SPLICE_OUTCOME_OUT_STOPPED);
        // An error of the cleartext is no failure of the splice's own.
        let has_failed = TLS_SPLICE_OUTCOME_ENDPOINT_FAILED | TLS_SPLICE_OUTCOME_TLS_FAILED;
        self.failed |= outcome(has_failed) && unsafe { abi::failure(self.splice) }.is_some();
    }

    /// The TLSWrap decrypts and flushes, with or without a reason.
    #[track_caller]
    pub fn decrypt(&mut self) {
        if !self.has(TLS_SPLICE_DECRYPT) {
            return;
        }
        let actions = unsafe { abi::on(self.splice, TLS_SPLICE_ON_DECRYPT, 0, self.ours.0) };
        self.note(&actions);
        // As TLSWrap, whatever is ordered: answers of OpenSSL's own.
        self.flush();
    }

    /// The source is ready, or the handshake that is waited for may be, with or without a
    /// reason.
    #[track_caller]
    pub fn encrypt(&mut self) {
        if !self.has(TLS_SPLICE_ENCRYPT) {
            return;
        }
        self.on(TLS_SPLICE_ON_SOURCE_READY);
        if self.wants_handshake() {
            self.on(TLS_SPLICE_ON_LOWER_READ);
        }
    }

    /// The turn that was asked for. Whether one was.
    #[track_caller]
    pub fn loop_turn(&mut self) -> bool {
        let is_due = std::mem::take(&mut self.turn_is_due);
        if is_due {
            self.on(TLS_SPLICE_ON_TURN);
        }
        is_due
    }

    /// The stream below has written everything. Whether that is news.
    #[track_caller]
    fn drained(&mut self) -> bool {
        let is_news = self.is_draining && self.ours.pending() == 0;
        if is_news {
            self.is_draining = false;
            self.on(TLS_SPLICE_ON_LOWER_DRAINED);
        }
        is_news
    }

    /// As the shim does. The stream takes as much at once as it gives.
    fn write_collected(&mut self) {
        self.is_draining |= self.ours.pending() > 0;
        let mut room = if self.tcp_open { self.segment } else { 0 };
        loop {
            let mut pieces = [const { MaybeUninit::<tls_splice_buf>::uninit() }; 2];
            let n = unsafe { abi::collected(self.splice, pieces.as_mut_ptr().cast(), 2) };
            let mut written = 0;
            let mut is_all = true;
            for piece in &pieces[..n] {
                let piece = unsafe { piece.assume_init_ref() };
                let bytes = unsafe { std::slice::from_raw_parts(piece.base, piece.len) };
                let len = piece.len.min(room);
                self.wire_out.extend(&bytes[..len]);
                room -= len;
                written += len;
                is_all &= len == piece.len;
            }
            if n == 0 {
                return;
            }
            unsafe { abi::written(self.splice, written) };
            if !is_all {
                unsafe { abi::write_later(self.splice) };
            }
        }
    }

    pub fn flush(&mut self) {
        self.is_draining |= self.ours.pending() > 0;
        if self.tcp_open {
            self.wire_out.extend(self.ours.take(usize::MAX));
        }
    }

    /// The peer takes what has arrived, and its ciphertext goes on the wire.
    pub fn peer_turn(&mut self) {
        let arrived: Vec<u8> = self.wire_out.drain(..).collect();
        self.peer.give(&arrived);
        let (bytes, error) = self.peer.read_all();
        self.from_us.check(&bytes);
        // The first one: a dead session says something else the next time.
        if self.peer_error == ossl::SSL_ERROR_WANT_READ {
            self.peer_error = error;
        }
        self.wire_in.extend(self.peer.take(usize::MAX));
    }

    /// Reads the stream once, as libuv would. Whether there was anything.
    pub fn stream_read(&mut self) -> bool {
        if !self.reading || self.wire_in.is_empty() {
            return false;
        }
        let n = self.wire_in.len().min(self.segment);
        if self.in_over.is_some() {
            // As in TLSWrap, everything after the end is ignored.
            if self.attached {
                let buf = unsafe { abi::alloc(self.splice) };
                assert!(buf.len > 0, "the stream would not be read to its end");
                unsafe { abi::commit(self.splice, 0) };
            }
            self.wire_in.drain(..n);
            return true;
        }
        if self.attached {
            let mut buf = unsafe { abi::alloc(self.splice) };
            if buf.len == 0 {
                // Enough for this turn.
                self.yields += 1;
                buf = unsafe { abi::alloc(self.splice) };
            }
            assert!(buf.len > 0, "no room although the stream is not paused");
            let n = n.min(buf.len);
            let bytes: Vec<u8> = self.wire_in.drain(..n).collect();
            unsafe {
                ptr::copy_nonoverlapping(bytes.as_ptr(), buf.base, n);
                abi::commit(self.splice, n);
            }
        } else {
            let bytes: Vec<u8> = self.wire_in.drain(..n).collect();
            self.ours.give(&bytes);
        }
        self.decrypt();
        self.on(TLS_SPLICE_ON_LOWER_READ);
        true
    }

    /// What the endpoint is ready for, of what the pump asks for.
    pub fn poll(&mut self) -> u32 {
        poll_splice(self.splice, self.ours.0)
    }

    /// One turn of the loop. Whether anything was reported.
    #[track_caller]
    pub fn turn(&mut self) -> bool {
        let mut called = false;
        self.peer_turn();
        called |= self.stream_read();
        called |= self.drained();
        called |= self.loop_turn();
        let ready = if self.failed { 0 } else { self.poll() };
        if ready & WRITABLE != 0 {
            self.on(TLS_SPLICE_ON_SINK_READY);
            called = true;
        }
        if ready & READABLE != 0 {
            abi::next_turn();
            self.on(TLS_SPLICE_ON_SOURCE_READY);
            called = true;
        }
        self.flush();
        called
    }

    /// Turns until nothing is left that would call the pump.
    #[track_caller]
    pub fn settle(&mut self) {
        let mut idle = 0;
        loop {
            let before = self.fingerprint();
            let called = self.turn();
            let quiet = self.wire_out.is_empty() && (self.wire_in.is_empty() || !self.reading);
            let quiet = quiet && !self.turn_is_due;
            if !called && quiet && before == self.fingerprint() {
                return;
            }
            if before == self.fingerprint() {
                idle += 1;
                assert!(idle < 50, "the pump spins: {:?}", self.stats());
            } else {
                idle = 0;
            }
        }
    }

    fn fingerprint(&self) -> impl PartialEq {
        let stats = self.stats();
        (
            (stats.bytes_in, stats.bytes_out, stats.bytes_decrypted),
            (self.wire_in.len(), self.wire_out.len(), self.ours.pending()),
            (self.from_us.at, self.in_over.is_some(), self.out_over),
            (self.in_stopped, self.out_stopped, self.failed),
        )
    }

    /// Settles and empties the sink, again and again, until nothing comes.
    #[track_caller]
    pub fn drain(&mut self) {
        loop {
            self.settle();
            if !matches!(self.sink_read(1 << 20), Some(n) if n > 0) {
                return;
            }
        }
    }

    /// Stops and detaches, as the shim does: then everything is where JavaScript
    /// finds it, in order. Returns what it would have read.
    #[track_caller]
    pub fn stop(&mut self) -> u64 {
        self.on(TLS_SPLICE_ON_STOP);
        let outcome = self.state().outcome;
        if self.has(TLS_SPLICE_DECRYPT) {
            let finished = TLS_SPLICE_OUTCOME_IN_OVER | TLS_SPLICE_OUTCOME_IN_STOPPED;
            assert_ne!(outcome & finished, 0, "stop() has not stopped it");
        }
        self.reading = false;
        let tcp_open = std::mem::replace(&mut self.tcp_open, true);
        let mut read = 0;
        for _ in 0..100_000 {
            if self.has_finished_sending() {
                break;
            }
            self.flush();
            if self.wants_handshake() {
                self.peer_turn();
                self.ours_takes_all();
                // JavaScript has the reading back.
                read += self.read_rest();
                self.on(TLS_SPLICE_ON_LOWER_READ);
            }
            self.drained();
            self.loop_turn();
        }
        assert!(self.has_finished_sending());
        self.flush();
        self.tcp_open = tcp_open;
        read + self.give_back()
    }

    fn has_finished_sending(&self) -> bool {
        let finished = TLS_SPLICE_OUTCOME_OUT_OVER
            | TLS_SPLICE_OUTCOME_OUT_STOPPED
            | TLS_SPLICE_OUTCOME_TLS_FAILED;
        !self.has(TLS_SPLICE_ENCRYPT) || self.state().outcome & finished != 0
    }

    /// The rest of `stop`, for a splice that has ended by itself.
    #[track_caller]
    pub fn give_back(&mut self) -> u64 {
        let mut read = self.read_sink_and_undelivered();
        for direction in [TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT] {
            let release = TLS_SPLICE_ON_RELEASE;
            let actions =
                unsafe { abi::on(self.splice, release, direction as c_int, ptr::null_mut()) };
            assert_eq!((actions.orders, actions.ssl_ret), (0, 1));
        }
        unsafe { abi::detach(self.splice, self.ours.0) };
        self.attached = false;
        self.turn_is_due = false;
        self.resume();
        let before = self.to_us.at;
        self.js_read();
        read += self.to_us.at - before;
        read
    }

    /// JavaScript is told of what comes behind the bytes that it was given.
    fn resume(&mut self) {
        let owes = self.state().owes;
        assert_eq!(owes, self.state().holds_tls_error);
        if owes {
            let actions = unsafe { abi::on(self.splice, TLS_SPLICE_ON_DECRYPT, 0, self.ours.0) };
            assert_ne!(actions.ssl_ret, 1, "an error is lost");
            let error = self.ours.error(actions.ssl_ret);
            self.owed = Some((actions.ssl_ret, error, unsafe { ERR_peek_error() }));
        }
        unsafe {
            ossl::ERR_clear_error();
            let actions = abi::on(self.splice, TLS_SPLICE_ON_RESUME, 0, ptr::null_mut());
            assert_eq!((actions.ssl_ret, actions.lower_error), (1, 0));
        }
        assert!(!self.state().owes);
    }

    pub fn read_sink_and_undelivered(&mut self) -> u64 {
        // Everything that the sink was given is in its socket by now.
        if self.far.is_some() {
            while matches!(self.sink_read(1 << 20), Some(n) if n > 0) {}
        }
        self.take_undelivered() as u64
    }

    fn read_rest(&mut self) -> u64 {
        let undelivered = self.read_sink_and_undelivered();
        let before = self.to_us.at;
        self.js_read();
        undelivered + self.to_us.at - before
    }

    pub fn take_undelivered(&mut self) -> usize {
        let held = unsafe { abi::undelivered(self.splice) };
        let mut out = vec![0; held];
        // In two pieces.
        let first = unsafe { abi::take_undelivered(self.splice, out.as_mut_ptr(), held / 2) };
        assert_eq!(first, held / 2);
        let second = unsafe { abi::take_undelivered(self.splice, out[first..].as_mut_ptr(), held) };
        assert_eq!(first + second, held);
        assert_eq!(unsafe { abi::undelivered(self.splice) }, 0);
        self.to_us.check(&out);
        held
    }

    fn ours_takes_all(&mut self) {
        let bytes: Vec<u8> = self.wire_in.drain(..).collect();
        if self.attached {
            for piece in bytes.chunks(1000) {
                let buf = unsafe { abi::alloc(self.splice) };
                let n = piece.len().min(buf.len);
                assert_eq!(n, piece.len());
                unsafe {
                    ptr::copy_nonoverlapping(piece.as_ptr(), buf.base, n);
                    abi::commit(self.splice, n);
                }
            }
        } else {
            self.ours.give(&bytes);
        }
    }

    /// JavaScript has the TLS side: reads what has arrived. Returns the error
    /// that ended it.
    pub fn js_read(&mut self) -> c_int {
        let (bytes, error) = self.js_read_unchecked();
        self.to_us.check(&bytes);
        error
    }

    pub fn js_read_unchecked(&mut self) -> (Vec<u8>, c_int) {
        let bytes: Vec<u8> = self.wire_in.drain(..).collect();
        self.ours.give(&bytes);
        self.ours.read_all()
    }

    /// JavaScript reads at most `n` bytes from the source.
    pub fn js_take(&mut self, n: usize) -> Vec<u8> {
        let mut buf = vec![0u8; n];
        let near = self.near.as_raw_fd();
        let got = unsafe { libc::recv(near, buf.as_mut_ptr().cast(), n, libc::MSG_DONTWAIT) };
        buf.truncate(got.max(0) as usize);
        buf
    }

    /// JavaScript writes to the TLS side, and all of it leaves before a splice
    /// starts.
    pub fn js_write(&mut self, bytes: &[u8]) {
        assert!(self.ours.write(bytes));
        self.wire_out.extend(self.ours.take(usize::MAX));
    }

    /// JavaScript moves `n` bytes from the source itself. Returns how many came.
    pub fn js_forward(&mut self, n: usize) -> usize {
        let bytes = self.js_take(n);
        self.js_write(&bytes);
        bytes.len()
    }

    /// Drops a splice that has panicked, which cannot give the session its BIOs back.
    pub fn abandon(mut self) {
        unsafe { abi::free(std::mem::replace(&mut self.splice, ptr::null_mut())) };
    }

    /// A new splice in place of the one that was stopped.
    pub fn again(&mut self) {
        unsafe { abi::free(self.splice) };
        self.open();
        self.in_over = None;
        self.owed = None;
        self.in_stopped = false;
        self.out_stopped = false;
        self.failed = false;
        self.start();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        unsafe {
            if !std::thread::panicking() && !self.splice.is_null() {
                abi::detach(self.splice, self.ours.0);
            }
            abi::free(self.splice);
        }
    }
}

/// A splice and its session without an event loop, for tests of one direction at a time.
/// It reports what a test asks for, and what the actions then ask for at once.
pub struct Driver {
    pub splice: *mut Splice,
    pub ssl: *mut SSL,
    /// A turn of the loop was asked for.
    turn_is_due: Cell<bool>,
}

/// What an event has come to.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub orders: u32,
    pub ssl_ret: c_int,
    pub state: tls_splice_state,
    pub has_more: bool,
}

impl Run {
    fn is(&self, outcome: u32) -> bool {
        self.state.outcome & outcome != 0
    }

    pub fn flushes(&self) -> bool {
        self.orders & TLS_SPLICE_ACTION_FLUSH != 0
    }

    /// The stream below is not read, since bytes wait for the sink or the next turn.
    pub fn is_paused(&self) -> bool {
        self.state.reading == TLS_SPLICE_READING_OFF
    }

    pub fn has_failed(&self) -> bool {
        self.is(TLS_SPLICE_OUTCOME_ENDPOINT_FAILED | TLS_SPLICE_OUTCOME_TLS_FAILED)
    }

    pub fn is_in_over(&self) -> bool {
        self.is(TLS_SPLICE_OUTCOME_IN_OVER)
    }

    pub fn is_out_over(&self) -> bool {
        self.is(TLS_SPLICE_OUTCOME_OUT_OVER)
    }

    pub fn is_in_stopped(&self) -> bool {
        self.is(TLS_SPLICE_OUTCOME_IN_STOPPED)
    }

    pub fn is_out_stopped(&self) -> bool {
        self.is(TLS_SPLICE_OUTCOME_OUT_STOPPED)
    }
}

impl Driver {
    pub fn new(splice: *mut Splice, ssl: *mut SSL) -> Driver {
        let turn_is_due = Cell::new(false);
        Driver {
            splice,
            ssl,
            turn_is_due,
        }
    }

    /// Starts the directions, and gives them their first turn, with nothing to do.
    #[track_caller]
    pub fn start(&self, directions: u32) {
        unsafe { abi::start(self.splice, directions) };
        self.on(TLS_SPLICE_ON_TURN);
    }

    #[track_caller]
    pub fn on(&self, event: u32) -> Run {
        let mut actions = unsafe { abi::on(self.splice, event, 0, self.ssl) };
        let mut orders = actions.orders;
        if actions.orders & TLS_SPLICE_ACTION_CYCLE != 0 {
            for event in [TLS_SPLICE_ON_DECRYPT, TLS_SPLICE_ON_CYCLED] {
                let more = unsafe { abi::on(self.splice, event, 0, self.ssl) };
                orders |= more.orders;
                if actions.ssl_ret == 1 {
                    actions = more;
                }
            }
        }
        unsafe { ossl::ERR_clear_error() };
        let is_due = self.turn_is_due.get() || orders & TLS_SPLICE_ACTION_NEXT_TURN != 0;
        self.turn_is_due.set(is_due);
        Run {
            orders,
            ssl_ret: actions.ssl_ret,
            state: unsafe { abi::state(self.splice) },
            has_more: is_due,
        }
    }

    /// Lets the inbound pump run: in the turn that was asked for, or now.
    #[track_caller]
    pub fn decrypt(&self) -> Run {
        match self.turn_is_due.take() {
            true => self.on(TLS_SPLICE_ON_TURN),
            false => self.on(TLS_SPLICE_ON_DECRYPT),
        }
    }

    /// Lets the outbound pump run, if there is a reason: the stream below has taken
    /// everything, a turn was asked for, or the source is waited for.
    #[track_caller]
    pub fn encrypt(&self) -> Run {
        if !self.has_ciphertext() {
            self.on(TLS_SPLICE_ON_LOWER_DRAINED);
        }
        let mut orders = 0;
        if self.turn_is_due.take() {
            orders = self.on(TLS_SPLICE_ON_TURN).orders;
        }
        abi::next_turn();
        let run = self.on(TLS_SPLICE_ON_SOURCE_READY);
        Run {
            orders: orders | run.orders,
            ..run
        }
    }

    /// Whether [`Driver::encrypt`] has something to do without the source, once the peer has
    /// taken what was sent.
    pub fn has_more_to_send(&self) -> bool {
        self.on(TLS_SPLICE_ON_LOWER_DRAINED).has_more
    }

    fn has_ciphertext(&self) -> bool {
        unsafe { BIO_ctrl_pending(ossl::SSL_get_wbio(self.ssl)) > 0 }
    }

    #[track_caller]
    pub fn stop(&self) -> Run {
        self.on(TLS_SPLICE_ON_STOP)
    }
}

/// Polls as uv_poll does, without waiting.
pub fn poll_splice(splice: *mut Splice, ssl: *mut SSL) -> u32 {
    let interest = unsafe { abi::begin_wait(splice, ssl) };
    if interest == 0 {
        return 0;
    }
    let mut events = 0;
    if interest & READABLE != 0 {
        events |= libc::POLLIN;
    }
    if interest & WRITABLE != 0 {
        events |= libc::POLLOUT;
    }
    let mut pollfd = libc::pollfd {
        fd: unsafe { abi::poll_fd(splice) },
        events,
        revents: 0,
    };
    assert!(unsafe { libc::poll(&mut pollfd, 1, 0) } >= 0);
    // libuv gives POLLHUP and POLLERR as what was asked for.
    if pollfd.revents & (libc::POLLERR | libc::POLLHUP) != 0 {
        pollfd.revents |= events;
    }
    let mut ready = 0;
    if pollfd.revents & events & libc::POLLIN != 0 {
        ready |= READABLE;
    }
    if pollfd.revents & events & libc::POLLOUT != 0 {
        ready |= WRITABLE;
    }
    if ready == 0 {
        return 0;
    }
    unsafe { abi::ready(splice, ready) }
}

/// Descriptors that this process has open.
pub fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub const BUSY: c_int = TLS_SPLICE_EBUSY;
