//! The values and structs that cross the C ABI, and how its structs grow.

use libc::{c_int, c_ulong, size_t};

use crate::endpoint::{READABLE, WRITABLE};
use crate::error::{TLS_SPLICE_EABI, TLS_SPLICE_EARG};
use crate::splice::Direction;
use crate::stats::Stats;

/// Version of this ABI. A caller checks at its start that `tls_splice_abi_version` returns
/// the value that the caller was compiled with. The version goes up whenever a call, a
/// value or a field changes its meaning. A field that is added at the end of a struct does
/// not change the version, see `struct_size` of `struct tls_splice_config`.
pub const TLS_SPLICE_ABI_VERSION: u32 = 8;

/// Direction: what the TLS peer sends goes to the endpoint, which is the sink.
pub const TLS_SPLICE_DECRYPT: u32 = 1;
/// Direction: what the endpoint, which is the source, gives is sent to the TLS peer.
pub const TLS_SPLICE_ENCRYPT: u32 = 2;

/// Readiness: the endpoint can be read, as UV_READABLE of uv_poll_start().
pub const TLS_SPLICE_READABLE: u32 = 1;
/// Readiness: the endpoint can be written, as UV_WRITABLE of uv_poll_start().
pub const TLS_SPLICE_WRITABLE: u32 = 2;

const _: () = assert!(TLS_SPLICE_READABLE == READABLE && TLS_SPLICE_WRITABLE == WRITABLE);

/// Framing: the one that goes with the endpoint, which is TLS_SPLICE_FRAMING_IP for a TUN
/// device, TLS_SPLICE_FRAMING_U16BE for a TAP device and a datagram socket, and
/// TLS_SPLICE_FRAMING_RAW for every other endpoint.
pub const TLS_SPLICE_FRAMING_AUTO: u32 = 0;
/// Framing: none. The TLS stream is a stream of bytes.
pub const TLS_SPLICE_FRAMING_RAW: u32 = 1;
/// Framing: the TLS stream is a sequence of IPv4 (RFC 791) and IPv6 (RFC 8200) packets,
/// back to back. Their own length fields tell them apart.
pub const TLS_SPLICE_FRAMING_IP: u32 = 2;
/// Framing: as TLS_SPLICE_FRAMING_IP, but IPv4 packets only.
pub const TLS_SPLICE_FRAMING_IPV4: u32 = 4;
/// Framing: as TLS_SPLICE_FRAMING_IP, but IPv6 packets only.
pub const TLS_SPLICE_FRAMING_IPV6: u32 = 5;
/// Framing: in the TLS stream, the length of each packet in bytes comes before the packet,
/// as two bytes, the high byte first.
pub const TLS_SPLICE_FRAMING_U16BE: u32 = 3;

/// Endpoint that has no file descriptor: a byte stream of the caller's, or another splice.
/// The caller moves its bytes with `tls_splice_begin_transfer` or `tls_splice_pass`, in
/// place of polling a file descriptor.
pub const TLS_SPLICE_FD_NONE: c_int = -2;

/// What `tls_splice_new` makes a splice of.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct tls_splice_config {
    /// Size of the struct in bytes, as the caller knows the struct: `sizeof` of the struct.
    /// Each struct of this ABI that may grow begins with this field. New fields are added
    /// at the end, so that a smaller size is that of an earlier version, and is accepted:
    /// the library neither reads nor writes a field that lies behind `struct_size`. A size
    /// that no version has had, or one that is larger than the library knows, is
    /// TLS_SPLICE_EABI.
    pub struct_size: size_t,
    /// File descriptor of the endpoint, or TLS_SPLICE_FD_NONE. The library takes a
    /// descriptor of its own (F_DUPFD_CLOEXEC in fcntl(2)), and leaves this one to the
    /// caller, who may close it when `tls_splice_new` has returned.
    pub fd: c_int,
    /// Bits TLS_SPLICE_DECRYPT and TLS_SPLICE_ENCRYPT, at least one of them: the directions
    /// that may be started. The file descriptor must be open for writing to decrypt, and for
    /// reading to encrypt.
    pub directions: u32,
    /// The splice holds at most this many bytes in each direction, as cleartext or as
    /// ciphertext, except that it always has room for one packet. At least 1.
    pub high_water_mark: size_t,
    /// One of the values TLS_SPLICE_FRAMING_*. TLS_SPLICE_FRAMING_AUTO if the field lies
    /// behind `struct_size`.
    pub framing: u32,
    /// The longest packet in bytes, without the framing before it: what is longer is no
    /// packet. 0, or a field that lies behind `struct_size`, is whatever the framing allows.
    /// Another value without packets is TLS_SPLICE_ENOPACKETS.
    pub max_packet_size: size_t,
}

/// Some bytes in memory that belongs to the splice. Like `struct iovec` of readv(2) this
/// struct comes in arrays, has no `struct_size`, and does not grow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tls_splice_buf {
    /// Address of the first byte. Not to be used if `len` is 0.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: size_t,
}

impl tls_splice_buf {
    pub(super) const NOTHING: tls_splice_buf = tls_splice_buf {
        base: std::ptr::null_mut(),
        len: 0,
    };
}

/// A read or write of the endpoint that the caller carries out for the splice: of a file on
/// a thread of its own, since that may block; of a byte stream of the caller's in the turns
/// of the event loop.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tls_splice_transfer {
    /// `sizeof(struct tls_splice_transfer)`, which the caller sets before the call.
    pub struct_size: size_t,
    /// File descriptor to read or write at the position of the file. It belongs to the
    /// splice. -1 for a byte stream of the caller's.
    pub fd: c_int,
    /// The memory to read into or to write from.
    pub buf: tls_splice_buf,
}

/// What the caller has to do after an event.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tls_splice_actions {
    /// `sizeof(struct tls_splice_actions)`, which the caller sets before the call.
    pub struct_size: size_t,
    /// Bits TLS_SPLICE_ACTION_*, which the caller carries out from the lowest to the highest.
    pub orders: u32,
    /// What SSL_read(3) has returned, 0 or less, if JavaScript is to be told of the end of
    /// the cleartext: the error queue of the calling thread is then as SSL_get_error(3)
    /// wants it. Otherwise 1.
    pub ssl_ret: c_int,
    /// A failure of the stream below that JavaScript is to be told of, as a libuv error
    /// code, which is negative. Otherwise 0.
    pub lower_error: c_int,
}

/// What has become of a splice.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct tls_splice_state {
    /// `sizeof(struct tls_splice_state)`, which the caller sets before the call.
    pub struct_size: size_t,
    /// Bits TLS_SPLICE_OUTCOME_* of the directions that were started.
    pub outcome: u32,
    /// One of the values TLS_SPLICE_READING_*: whether the stream below is to be read.
    pub reading: u32,
    /// SSL_read(3) has failed, and nobody has been told of it yet.
    pub holds_tls_error: bool,
    /// The stream below has ended or failed, and nobody has been told of it yet.
    pub has_untold_lower_end: bool,
    /// The decrypt direction was given back, and JavaScript has yet to be told of an error
    /// or an end that follows the bytes it was given. TLS_SPLICE_ON_RESUME tells which. The
    /// splice must not be freed before.
    pub owes: bool,
    /// A write to the stream below has failed, whether JavaScript knows of that or not, or the
    /// connection has failed otherwise: TLS_SPLICE_ON_LOWER_WRITE_FAILED need not be reported.
    pub has_write_failed: bool,
    /// The libuv error code of the write to the stream below with which the connection has
    /// failed, or 0.
    pub write_error: c_int,
}

/// Why a splice has failed. At most one of `errnum`, `framing` and `is_tls` is not 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct tls_splice_failure {
    /// `sizeof(struct tls_splice_failure)`, which the caller sets before the call.
    pub struct_size: size_t,
    /// The errno of a system call on the endpoint that has failed, or that the caller has
    /// reported with `tls_splice_end_transfer`. Otherwise 0.
    pub errnum: c_int,
    /// Whether the failed system call was a write(2) or send(2).
    pub is_write: bool,
    /// TLS_SPLICE_DECRYPT or TLS_SPLICE_ENCRYPT if something in the stream of that direction
    /// is no packet, or only a part of one. Otherwise 0.
    pub framing: u32,
    /// With `framing`: offset in the stream of that direction, in bytes, at which a whole
    /// packet would have to begin.
    pub offset: u64,
    /// Whether SSL_write(3) has failed.
    pub is_tls: bool,
    /// With `is_tls`: the OpenSSL error, packed as by ERR_get_error(3). If OpenSSL has given
    /// the error of the session to somebody else, it is SSL_R_PROTOCOL_IS_SHUTDOWN.
    pub tls_error: c_ulong,
}

/// A struct of the C ABI that begins with `struct_size` and may grow at its end.
///
/// A new field goes behind the previous end of the struct, and never into the padding there:
/// otherwise two versions would have one size. The previous size stays in [`Grows::SIZES`].
///
/// # Safety
/// The type is `repr(C)`, its first field is `struct_size: size_t`, and each of its fields
/// may be zero bytes.
pub(super) unsafe trait Grows: Copy {
    /// Sizes of the struct in bytes in the versions that callers may know, this one
    /// included.
    const SIZES: &'static [size_t];
}

// SAFETY: the requirements are those of the declaration above: numbers only.
unsafe impl Grows for tls_splice_config {
    const SIZES: &'static [size_t] = &[
        // A version without `framing`.
        std::mem::offset_of!(tls_splice_config, framing),
        // A version without `max_packet_size`.
        std::mem::offset_of!(tls_splice_config, max_packet_size),
        size_of::<tls_splice_config>(),
    ];
}

// SAFETY: as above; a pointer may be NULL.
unsafe impl Grows for tls_splice_transfer {
    const SIZES: &'static [size_t] = &[size_of::<tls_splice_transfer>()];
}

// SAFETY: as for the config.
unsafe impl Grows for tls_splice_actions {
    const SIZES: &'static [size_t] = &[size_of::<tls_splice_actions>()];
}

// SAFETY: as for the config; zero is `false`.
unsafe impl Grows for tls_splice_state {
    const SIZES: &'static [size_t] = &[size_of::<tls_splice_state>()];
}

// SAFETY: as for the state.
unsafe impl Grows for tls_splice_failure {
    const SIZES: &'static [size_t] = &[size_of::<tls_splice_failure>()];
}

// SAFETY: as for the config.
unsafe impl Grows for Stats {
    const SIZES: &'static [size_t] = &[
        // A version without packets.
        std::mem::offset_of!(Stats, packets_in),
        // A version without super-packets.
        std::mem::offset_of!(Stats, super_packets_in),
        size_of::<Stats>(),
    ];
}

/// The size that the caller's struct has, if a version has that size.
///
/// # Safety
/// `at` is NULL, or points to a readable `struct_size`.
pub(super) unsafe fn size_at<T: Grows>(at: *const T) -> Result<size_t, c_int> {
    if at.is_null() {
        return Err(TLS_SPLICE_EARG);
    }
    // SAFETY: `at` is not NULL, so the first field is readable by the contract above.
    let size = unsafe { at.cast::<size_t>().read() };
    match T::SIZES.contains(&size) {
        true => Ok(size),
        false => Err(TLS_SPLICE_EABI),
    }
}

/// Copies the caller's struct. The fields that the caller does not know are as in `rest`.
///
/// # Safety
/// `from` is NULL, or points to a struct that is readable for its `struct_size`.
pub(super) unsafe fn read<T: Grows>(from: *const T, rest: T) -> Result<T, c_int> {
    let mut value = rest;
    // SAFETY: `from` is checked. The caller's struct is readable for `size`, which is not
    // more than the size of `value`; whole fields are copied, from one version of the
    // struct to another.
    unsafe {
        let size = size_at(from)?;
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast::<u8>(), size);
    }
    Ok(value)
}

/// Fills in the caller's struct: the fields that the caller knows, but for `struct_size`.
///
/// # Safety
/// `to` points to a struct that is writable for `size`, which [`size_at`] has given.
pub(super) unsafe fn write<T: Grows>(to: *mut T, size: size_t, value: T) {
    let after = size_of::<size_t>();
    // SAFETY: `size` is one of `T::SIZES`, which is at least that of the first field, and
    // at most that of `value`. Both structs have that many bytes, and `value` is a copy of
    // our own, so that they do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            (&raw const value).cast::<u8>().add(after),
            to.cast::<u8>().add(after),
            size - after,
        );
    }
}

/// The direction that a value of the C ABI means.
pub(super) fn direction_of(direction: u32) -> Result<Direction, c_int> {
    match direction {
        TLS_SPLICE_DECRYPT => Ok(Direction::Inbound),
        TLS_SPLICE_ENCRYPT => Ok(Direction::Outbound),
        _ => Err(TLS_SPLICE_EARG),
    }
}

/// The value of the C ABI that means the direction.
pub(super) fn value_of(direction: Direction) -> u32 {
    match direction {
        Direction::Inbound => TLS_SPLICE_DECRYPT,
        Direction::Outbound => TLS_SPLICE_ENCRYPT,
    }
}

#[cfg(test)]
#[allow(clippy::undocumented_unsafe_blocks)]
mod tests {
    use super::*;

    /// A struct in its third version.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Third {
        struct_size: size_t,
        first: u64,
        second: u64,
        third: u64,
    }

    unsafe impl Grows for Third {
        const SIZES: &'static [size_t] = &[
            std::mem::offset_of!(Third, second),
            std::mem::offset_of!(Third, third),
            size_of::<Third>(),
        ];
    }

    fn third(struct_size: size_t) -> Third {
        Third {
            struct_size,
            first: 1,
            second: 2,
            third: 3,
        }
    }

    const REST: Third = Third {
        struct_size: 0,
        first: 7,
        second: 8,
        third: 9,
    };

    #[test]
    fn what_an_older_caller_does_not_know_is_not_read() {
        for (size, expected) in Third::SIZES.iter().zip([(1, 8, 9), (1, 2, 9), (1, 2, 3)]) {
            let older = third(*size);
            let value = unsafe { read(&raw const older, REST) }.unwrap();
            assert_eq!((value.first, value.second, value.third), expected);
        }
    }

    #[test]
    fn what_an_older_caller_does_not_know_is_not_written() {
        for (size, expected) in Third::SIZES.iter().zip([(7, 2, 3), (7, 8, 3), (7, 8, 9)]) {
            let mut value = third(*size);
            unsafe { write(&raw mut value, *size, REST) };
            assert_eq!(value.struct_size, *size);
            assert_eq!((value.first, value.second, value.third), expected);
        }
    }

    #[test]
    fn a_size_of_no_version_is_refused() {
        for size in (0..64).filter(|size| !Third::SIZES.contains(size)) {
            let value = third(size);
            assert_eq!(unsafe { size_at(&raw const value) }, Err(TLS_SPLICE_EABI));
            assert_eq!(
                unsafe { read(&raw const value, REST) },
                Err(TLS_SPLICE_EABI)
            );
        }
        assert_eq!(
            unsafe { size_at::<Third>(std::ptr::null()) },
            Err(TLS_SPLICE_EARG)
        );
    }

    #[test]
    fn the_sizes_are_in_order_and_each_of_another_version() {
        fn check<T: Grows>() {
            assert!(T::SIZES.is_sorted_by(|a, b| a < b));
            assert!(T::SIZES[0] > size_of::<size_t>());
            assert_eq!(T::SIZES.last(), Some(&size_of::<T>()));
        }
        check::<tls_splice_config>();
        check::<tls_splice_transfer>();
        check::<tls_splice_actions>();
        check::<tls_splice_state>();
        check::<tls_splice_failure>();
        check::<Stats>();
    }
}
