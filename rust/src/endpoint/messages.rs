//! recvmmsg(2) and sendmmsg(2) of Linux, with the segments of udp(7).

use std::io::IoSlice;
use std::mem::{size_of, zeroed, MaybeUninit};
use std::os::fd::RawFd;
use std::ptr::null_mut;

use libc::c_int;

use super::datagram::{Message, Segments, SLOT};
use super::system::SEND_FLAGS;
use super::MOST_WRITTEN;

/// The most messages that one call receives. With more of them, what a system call costs for
/// each message would hardly be less.
pub(super) const RECEIVED_AT_ONCE: usize = 16;

/// Memory for the control messages of one message that is received. The owner of the socket
/// may have asked for others, of which those on times, marks and lost datagrams, 200 bytes in
/// all, come before the one that is of interest here.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([MaybeUninit<u8>; 256]);

/// The control message that has the kernel cut a message into datagrams.
#[derive(Clone, Copy)]
#[repr(C)]
struct SegmentSize {
    header: libc::cmsghdr,
    size: u16,
}

/// Whether several datagrams can be one message of the socket.
pub(super) fn segments(fd: RawFd) -> Segments {
    match udp_option(fd, libc::UDP_SEGMENT) {
        Some(0) => Segments::Possible,
        Some(_) => Segments::OnlyReceived,
        None => Segments::Impossible,
    }
}

/// An option of a UDP socket; `None` if it is no such socket, or does not know the option.
fn udp_option(fd: RawFd, name: c_int) -> Option<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `value` and `len` are valid for the call and of the right size.
    let ret = unsafe {
        let value = (&raw mut value).cast();
        libc::getsockopt(fd, libc::SOL_UDP, name, value, &raw mut len)
    };
    (ret == 0).then_some(value)
}

/// recvmmsg(2) of at most as many messages as there is room for in `messages`, of which there
/// may be [`RECEIVED_AT_ONCE`]. Message number n is put at n times [`SLOT`] in `memory`. Never
/// blocks. Returns how many messages were received, or -1 with errno. An error that comes
/// after the first message is one of the next call.
pub(super) fn receive_many(
    fd: RawFd,
    memory: &mut [u8],
    messages: &mut [Message],
    segments: Segments,
) -> libc::ssize_t {
    // SAFETY: all zeros is a valid value of these structures of C.
    let (mut headers, mut parts): (
        [libc::mmsghdr; RECEIVED_AT_ONCE],
        [libc::iovec; RECEIVED_AT_ONCE],
    ) = unsafe { (zeroed(), zeroed()) };
    let mut controls = [Control([MaybeUninit::uninit(); 256]); RECEIVED_AT_ONCE];
    let slots = memory.chunks_exact_mut(SLOT).take(messages.len());
    for (i, slot) in slots.enumerate() {
        parts[i] = libc::iovec {
            iov_base: slot.as_mut_ptr().cast(),
            iov_len: SLOT,
        };
        let header = &mut headers[i].msg_hdr;
        header.msg_iov = &raw mut parts[i];
        header.msg_iovlen = 1;
        // A Unix socket would pass descriptors to this process if it could.
        if segments != Segments::Impossible {
            header.msg_control = (&raw mut controls[i]).cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
    }
    // SAFETY: the first `messages.len()` headers are valid, or `headers` has no more; they point
    // to a slot each and to memory for control messages, which are writable and live on.
    let count = unsafe {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let most = messages.len().min(RECEIVED_AT_ONCE) as _;
        libc::recvmmsg(fd, headers.as_mut_ptr(), most, flags as _, null_mut())
    };
    for (message, header) in messages
        .iter_mut()
        .zip(&headers)
        .take(count.max(0) as usize)
    {
        let len = header.msg_len as usize;
        // SAFETY: the kernel has filled the header in.
        let merged = unsafe { merged_size(&header.msg_hdr) };
        let may_lack = header.msg_hdr.msg_flags & libc::MSG_CTRUNC != 0;
        let segment = match merged {
            // Most of the time it is another control message that there was no room for.
            None if may_lack && udp_option(fd, libc::UDP_GRO) == Some(1) => None,
            merged => Some(merged.unwrap_or(len)),
        };
        *message = Message { len, segment };
    }
    count as libc::ssize_t
}

/// The length in bytes of each of the datagrams that the kernel has merged in a message, since
/// the owner of the socket has set UDP_GRO.
///
/// # Safety
/// recvmmsg(2) must have filled `header` in, and what it points to must be there.
unsafe fn merged_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: by the contract above, the headers of the control messages are valid. The last one
    // may be cut off, so that it has fewer bytes than it should: the int is read only if it is
    // there whole.
    unsafe {
        let whole = libc::CMSG_LEN(size_of::<c_int>() as _) as usize;
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            let is_size =
                (*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == libc::UDP_GRO;
            if is_size && (*control).cmsg_len as usize >= whole {
                let size = libc::CMSG_DATA(control).cast::<c_int>().read_unaligned();
                return usize::try_from(size).ok().filter(|size| *size > 0);
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}

/// sendmmsg(2) of packets. `messages` says how many of them each message has; a message with
/// several is cut into packets of the length of its first one by the kernel, as
/// [`segments`] must have said that it can. Never blocks. Returns how many messages were sent,
/// or -1 with errno, which is of the first message. The call does not say why it has not sent
/// another one.
pub(super) fn send_many(fd: RawFd, packets: &[IoSlice<'_>], messages: &[usize]) -> libc::ssize_t {
    // SAFETY: all zeros is a valid value of these structures of C.
    let (mut headers, mut sizes): ([libc::mmsghdr; MOST_WRITTEN], [SegmentSize; MOST_WRITTEN]) =
        unsafe { (zeroed(), zeroed()) };
    let mut rest = packets;
    for ((message, header), size) in messages.iter().zip(&mut headers).zip(&mut sizes) {
        let (packets, others) = rest.split_at(*message);
        let header = &mut header.msg_hdr;
        // An IoSlice is an iovec, whose memory is only read.
        header.msg_iov = packets.as_ptr().cast_mut().cast();
        header.msg_iovlen = packets.len() as _;
        if packets.len() > 1 {
            size.header.cmsg_level = libc::SOL_UDP;
            size.header.cmsg_type = libc::UDP_SEGMENT;
            // SAFETY: it only computes.
            size.header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<u16>() as _) } as _;
            size.size = packets[0].len() as u16;
            header.msg_control = (&raw mut *size).cast();
            header.msg_controllen = size_of::<SegmentSize>() as _;
        }
        rest = others;
    }
    // SAFETY: the first headers are valid, one for each message or all of them; what they point
    // to lives on, and is only read.
    unsafe {
        let count = messages.len().min(MOST_WRITTEN) as _;
        libc::sendmmsg(fd, headers.as_mut_ptr(), count, SEND_FLAGS as _) as libc::ssize_t
    }
}
