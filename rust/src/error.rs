//! Result codes of the C ABI, and what made a splice fail.

use libc::c_int;

use crate::splice::Direction;

/// Result: the call did what its description says.
pub const TLS_SPLICE_OK: c_int = 0;
/// Result: `struct_size` is no size that the struct has in this version of the ABI, or had
/// in an earlier one. The call had no effect.
pub const TLS_SPLICE_EABI: c_int = 1;
/// Result: a required pointer is NULL, or a value is out of range. The call had no effect.
pub const TLS_SPLICE_EARG: c_int = 2;
/// Result: the handle is inside another call, because a callback of OpenSSL has re-entered
/// the library; or the call is not possible at present, as its description says. The call
/// had no effect.
pub const TLS_SPLICE_EBUSY: c_int = 3;
/// Result of `tls_splice_new`: the access mode of the file descriptor (F_GETFL in fcntl(2))
/// does not fit the directions.
pub const TLS_SPLICE_EACCMODE: c_int = 4;
/// Result of `tls_splice_new`: the file descriptor is of a kind that the library does not
/// splice to.
pub const TLS_SPLICE_ENOTSUP: c_int = 5;
/// Result: a bug in the library. A panic was caught, in this call or in an earlier call on
/// the handle. From then on the handle can only be freed, and asked for its state and its
/// last counters.
pub const TLS_SPLICE_EPANIC: c_int = 6;
/// Result of `tls_splice_attach`: OpenSSL could not allocate memory.
pub const TLS_SPLICE_ENOMEM: c_int = 7;
/// Result of `tls_splice_new`: the framing does not fit the file descriptor.
pub const TLS_SPLICE_EFRAMING: c_int = 8;
/// Result of `tls_splice_new`: the file descriptor is a device with IFF_VNET_HDR that is not
/// supported: a TAP device, or one with packet information before the header (no IFF_NO_PI),
/// or with a header of another length than 10 or 12 bytes.
pub const TLS_SPLICE_EVNETHDR: c_int = 9;
/// Result: nothing is there of what the call gives or moves. This is no error.
pub const TLS_SPLICE_NOTHING: c_int = 10;
/// Result of `tls_splice_new`: there is a largest size for packets, but the TLS stream has no
/// packets.
pub const TLS_SPLICE_ENOPACKETS: c_int = 11;

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
        /// The system call that failed.
        syscall: Syscall,
        /// The errno of the system call.
        errno: c_int,
    },
    /// The packets in one direction are out of step.
    Framing {
        /// The direction.
        direction: Direction,
        /// Bytes of the direction's stream before the place where a packet would have to
        /// begin, and none does.
        offset: u64,
    },
    /// `SSL_write` failed; the packed OpenSSL error.
    Tls(libc::c_ulong),
}

/// The current thread's errno.
pub fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
