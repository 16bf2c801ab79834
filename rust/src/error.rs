//! Result codes of the C ABI, and what made a splice fail.

use libc::c_int;

use crate::splice::Direction;

/// The call did what it says.
pub const TLS_SPLICE_OK: c_int = 0;
/// `struct_size` is not that of this ABI version.
pub const TLS_SPLICE_EABI: c_int = 1;
/// A required pointer is NULL, or a value is out of range.
pub const TLS_SPLICE_EARG: c_int = 2;
/// The handle is inside another call: an OpenSSL callback re-entered. Nothing has
/// happened.
pub const TLS_SPLICE_EBUSY: c_int = 3;
/// The access mode of the fd (F_GETFL) does not fit the directions.
pub const TLS_SPLICE_EACCMODE: c_int = 4;
/// The fd is of a kind that this version does not splice to.
pub const TLS_SPLICE_ENOTSUP: c_int = 5;
/// A bug in this library: a panic was caught at the boundary, in this call or in an
/// earlier one on the handle, which can only be freed.
pub const TLS_SPLICE_EPANIC: c_int = 6;
/// OpenSSL could not allocate.
pub const TLS_SPLICE_ENOMEM: c_int = 7;

/// The framing does not fit the fd.
pub const TLS_SPLICE_EFRAMING: c_int = 8;
/// The fd is a TUN or TAP device with IFF_VNET_HDR.
pub const TLS_SPLICE_EVNETHDR: c_int = 9;
/// There is none of what was asked for.
pub const TLS_SPLICE_NOTHING: c_int = 10;

/// Why [`crate::endpoint::Endpoint::open`] refuses an fd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// A system call failed with this errno.
    System(c_int),
    /// See [`TLS_SPLICE_EACCMODE`].
    AccessMode,
    /// See [`TLS_SPLICE_ENOTSUP`].
    Unsupported,
    /// See [`TLS_SPLICE_EFRAMING`].
    Framing,
    /// See [`TLS_SPLICE_EVNETHDR`].
    VnetHeader,
}

impl OpenError {
    /// The code the C ABI returns: a system error is `-errno`, as in libuv.
    pub fn code(self) -> c_int {
        match self {
            OpenError::System(errno) => -errno,
            OpenError::AccessMode => TLS_SPLICE_EACCMODE,
            OpenError::Unsupported => TLS_SPLICE_ENOTSUP,
            OpenError::Framing => TLS_SPLICE_EFRAMING,
            OpenError::VnetHeader => TLS_SPLICE_EVNETHDR,
        }
    }
}

/// The system call on the endpoint that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syscall {
    /// `read(2)` or `recv(2)` on the source.
    Read,
    /// `write(2)` or `send(2)` on the sink.
    Write,
}

/// Why a running splice ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The endpoint failed.
    Endpoint {
        /// What was tried.
        syscall: Syscall,
        /// Its errno.
        errno: c_int,
    },
    /// The packets in one direction are out of step.
    Framing {
        /// Which.
        direction: Direction,
        /// Bytes of that stream before the packet that is none.
        offset: u64,
    },
    /// `SSL_write` failed; the packed OpenSSL error, 0 when the queue was empty.
    Tls(libc::c_ulong),
}

/// The current thread's errno.
pub fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
