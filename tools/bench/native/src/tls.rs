//! TLS over a non-blocking socket, with as few system calls as possible: a BIO that reads straight
//! into OpenSSL's buffer, and collects what OpenSSL writes until it is flushed.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libc::{c_int, c_long, c_void, size_t};
use openssl::error::ErrorStack;
use openssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslContextRef, SslFiletype, SslMethod, SslRef, SslSession,
    SslSessionCacheMode, SslVersion,
};
use openssl_sys as ffi;
use openssl_sys::{BIO, BIO_METHOD};

use crate::sys;

extern "C" {
    /// SSL_CTX_set_default_read_buffer_len(3).
    fn SSL_CTX_set_default_read_buffer_len(ctx: *mut ffi::SSL_CTX, len: size_t);
}

/// The one cipher suite of all measurements.
pub const CIPHER: &str = "TLS_AES_256_GCM_SHA384";

/// It reads up to `read_ahead` bytes of ciphertext at once, or else one record.
fn context(read_ahead: Option<usize>) -> Result<SslContextBuilder, ErrorStack> {
    let mut ctx = SslContext::builder(SslMethod::tls())?;
    ctx.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    ctx.set_ciphersuites(CIPHER)?;
    if let Some(len) = read_ahead {
        ctx.set_read_ahead(true);
        // SAFETY: the context is valid.
        unsafe { SSL_CTX_set_default_read_buffer_len(ctx.as_ptr(), len) };
    }
    Ok(ctx)
}

/// A server's context.
pub fn server(cert: &str, key: &str, read_ahead: Option<usize>) -> Result<SslContext, ErrorStack> {
    let mut ctx = context(read_ahead)?;
    ctx.set_certificate_chain_file(cert)?;
    ctx.set_private_key_file(key, SslFiletype::PEM)?;
    Ok(ctx.build())
}

/// A client's context. It does not verify certificates: this is about what comes after.
pub fn client(read_ahead: Option<usize>) -> Result<SslContext, ErrorStack> {
    Ok(context(read_ahead)?.build())
}

/// A client's context, and the newest session that a server has given to one of its connections.
pub struct ResumingClient {
    ctx: SslContext,
    /// As DER.
    newest: Arc<Mutex<Option<Vec<u8>>>>,
}

impl ResumingClient {
    /// Without a session yet.
    pub fn new() -> Result<Self, ErrorStack> {
        let newest = Arc::new(Mutex::new(None));
        let mut ctx = context(None)?;
        ctx.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        let given = Arc::clone(&newest);
        // A connection has the session, too, and may mark it as not resumable later: only a copy
        // is sure to stay as it is.
        ctx.set_new_session_callback(move |_, session| {
            *given.lock().unwrap_or_else(PoisonError::into_inner) = session.to_der().ok();
        });
        let ctx = ctx.build();
        Ok(ResumingClient { ctx, newest })
    }

    /// Over a connected socket. It resumes the newest session, if there is one.
    pub fn connect(&self, fd: OwnedFd) -> io::Result<Tls> {
        let mut tls = Tls::new(&self.ctx, fd, false)?;
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = &*newest {
            let session = SslSession::from_der(session)?;
            // SAFETY: the session is of a connection with the same context.
            unsafe { tls.ssl.set_session(&session) }?;
        }
        Ok(tls)
    }
}

/// What the BIO works on.
struct Link {
    fd: OwnedFd,
    /// The socket had less than was asked for: another read would be in vain.
    drained: bool,
    /// The socket has taken less than it was given.
    full: bool,
    /// Bytes for one read at most.
    limit: c_int,
    out: Vec<u8>,
    /// Of `out`.
    sent: usize,
}

/// What came of a read.
pub enum Read {
    /// So many bytes.
    Bytes(usize),
    /// There is nothing at the moment.
    Blocked,
    /// The peer has ended.
    End,
}

/// A connection.
pub struct Tls {
    ssl: Ssl,
    /// Ours, but the BIO uses it inside of OpenSSL's calls.
    link: *mut Link,
}

// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Tls {}

impl Tls {
    /// Over a connected socket, as [`Ssl::set_accept_state`] or [`Ssl::set_connect_state`].
    pub fn new(ctx: &SslContextRef, fd: OwnedFd, is_server: bool) -> io::Result<Self> {
        let mut ssl = Ssl::new(ctx)?;
        if is_server {
            ssl.set_accept_state();
        } else {
            ssl.set_connect_state();
        }
        let link = Link {
            fd,
            drained: false,
            full: false,
            limit: c_int::MAX,
            out: Vec::new(),
            sent: 0,
        };
        let link = Box::into_raw(Box::new(link));
        // SAFETY: the BIO is new, and `ssl` takes it over; `link` outlives it (see `drop`).
        unsafe {
            let bio = ffi::BIO_new(method());
            ffi::BIO_set_data(bio, link.cast());
            ffi::BIO_set_init(bio, 1);
            ffi::SSL_set_bio(raw(&ssl), bio, bio);
        }
        Ok(Tls { ssl, link })
    }

    /// What openssl-sys takes.
    fn raw(&self) -> *mut ffi::SSL {
        raw(&self.ssl)
    }

    fn link(&mut self) -> &mut Link {
        // SAFETY: it lives as long as `self`, and the BIO is only used inside of calls on `self`.
        unsafe { &mut *self.link }
    }

    /// The socket.
    pub fn fd(&mut self) -> RawFd {
        self.link().fd.as_raw_fd()
    }

    /// Waits for the handshake.
    pub fn handshake(&mut self) -> io::Result<()> {
        loop {
            // SAFETY: `ssl` is valid.
            let rc = unsafe { ffi::SSL_do_handshake(self.raw()) };
            self.flush_all()?;
            if rc == 1 {
                return Ok(());
            }
            match self.failure(rc)? {
                Read::Blocked => sys::poll(self.fd(), libc::POLLIN)?,
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            self.readable();
        }
    }

    /// Whether the handshake was that of an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.ssl.session_reused()
    }

    /// The socket may have something.
    pub fn readable(&mut self) {
        self.link().drained = false;
    }

    /// The socket may have room.
    pub fn writable(&mut self) {
        self.link().full = false;
    }

    /// What waits to be sent.
    pub fn pending(&mut self) -> usize {
        let link = self.link();
        link.out.len() - link.sent
    }

    /// SSL_read(3): at most one record.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<Read> {
        let len = c_int::try_from(buf.len()).unwrap_or(c_int::MAX);
        // SAFETY: the buffer is writable for `len`.
        let rc = unsafe { ffi::SSL_read(self.raw(), buf.as_mut_ptr().cast(), len) };
        if rc > 0 {
            // A few large records at once are worth more than the cache that they take, hundreds of
            // small ones are not: found by measuring.
            let is_small = rc < 4096;
            self.link().limit = if is_small { 32 << 10 } else { c_int::MAX };
            Ok(Read::Bytes(rc as usize))
        } else {
            self.failure(rc)
        }
    }

    /// As [`Tls::read`], but waits until there is something to read.
    pub fn read_some(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.read(buf)? {
                Read::Bytes(n) => return Ok(n),
                Read::End => return Ok(0),
                Read::Blocked => sys::poll(self.fd(), libc::POLLIN)?,
            }
            self.readable();
        }
    }

    /// SSL_write(3), which makes records of at most 16 KiB. They wait to be flushed.
    pub fn write(&mut self, buf: &[u8]) -> io::Result<()> {
        let len = c_int::try_from(buf.len()).unwrap_or(c_int::MAX);
        // SAFETY: the buffer is readable for `len`.
        let rc = unsafe { ffi::SSL_write(self.raw(), buf.as_ptr().cast(), len) };
        if rc == len {
            Ok(())
        } else {
            Err(ErrorStack::get().into())
        }
    }

    /// Adds a close_notify.
    pub fn shutdown(&mut self) {
        // SAFETY: `ssl` is valid.
        unsafe { ffi::SSL_shutdown(self.raw()) };
        ErrorStack::get();
    }

    /// Sends what waits, as far as the socket takes it; whether that is all.
    pub fn flush(&mut self) -> io::Result<bool> {
        let link = self.link();
        while link.sent < link.out.len() {
            if link.full {
                return Ok(false);
            }
            let rest = link.out.len() - link.sent;
            let n = sys::write(link.fd.as_raw_fd(), &link.out[link.sent..])?.unwrap_or(0);
            link.sent += n;
            link.full = n < rest;
        }
        link.out.clear();
        link.sent = 0;
        Ok(true)
    }

    /// Sends what waits, however long it takes.
    pub fn flush_all(&mut self) -> io::Result<()> {
        while !self.flush()? {
            sys::poll(self.fd(), libc::POLLOUT)?;
            self.writable();
        }
        Ok(())
    }

    fn failure(&mut self, rc: c_int) -> io::Result<Read> {
        // SAFETY: `ssl` is valid, and this is what its last call returned.
        match unsafe { ffi::SSL_get_error(self.raw(), rc) } {
            ffi::SSL_ERROR_WANT_READ => Ok(Read::Blocked),
            ffi::SSL_ERROR_ZERO_RETURN => Ok(Read::End),
            _ => Err(io::Error::other(format!("TLS: {}", ErrorStack::get()))),
        }
    }
}

fn raw(ssl: &SslRef) -> *mut ffi::SSL {
    ptr::from_ref(ssl).cast_mut().cast()
}

impl Drop for Tls {
    fn drop(&mut self) {
        // SAFETY: nothing uses the BIO any more when `ssl` is freed after this.
        drop(unsafe { Box::from_raw(self.link) });
    }
}

fn method() -> *mut BIO_METHOD {
    struct Method(*mut BIO_METHOD);
    // SAFETY: never changed once it is made.
    unsafe impl Send for Method {}
    // SAFETY: as above.
    unsafe impl Sync for Method {}
    static METHOD: OnceLock<Method> = OnceLock::new();
    // SAFETY: the functions have the types that OpenSSL calls.
    METHOD
        .get_or_init(|| unsafe {
            let method = ffi::BIO_meth_new(ffi::BIO_TYPE_NONE, c"bench".as_ptr());
            assert!(!method.is_null());
            ffi::BIO_meth_set_read__fixed_rust(method, Some(bio_read));
            ffi::BIO_meth_set_write__fixed_rust(method, Some(bio_write));
            ffi::BIO_meth_set_ctrl__fixed_rust(method, Some(bio_ctrl));
            Method(method)
        })
        .0
}

unsafe extern "C" fn bio_read(bio: *mut BIO, buf: *mut c_char, len: c_int) -> c_int {
    // SAFETY: OpenSSL passes our BIO and a buffer of `len` bytes.
    unsafe {
        ffi::BIO_clear_retry_flags(bio);
        let link = &mut *ffi::BIO_get_data(bio).cast::<Link>();
        let asked = len.min(link.limit);
        let n = if link.drained {
            -1
        } else {
            libc::read(link.fd.as_raw_fd(), buf.cast(), asked as size_t) as c_int
        };
        if n < 0 && (link.drained || io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock)
        {
            ffi::BIO_set_retry_read(bio);
        }
        // An end is readable for ever.
        link.drained = n != 0 && n < asked;
        n
    }
}

unsafe extern "C" fn bio_write(bio: *mut BIO, buf: *const c_char, len: c_int) -> c_int {
    // SAFETY: OpenSSL passes our BIO and a buffer of `len` bytes.
    unsafe {
        let link = &mut *ffi::BIO_get_data(bio).cast::<Link>();
        link.out
            .extend_from_slice(std::slice::from_raw_parts(buf.cast(), len as usize));
    }
    len
}

unsafe extern "C" fn bio_ctrl(_: *mut BIO, cmd: c_int, _: c_long, _: *mut c_void) -> c_long {
    (cmd == ffi::BIO_CTRL_FLUSH).into()
}
