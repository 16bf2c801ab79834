//! Datagram sockets, with many datagrams per system call where the system has such calls.

use std::cell::Cell;
use std::io::IoSlice;
use std::os::fd::RawFd;

use libc::{c_int, c_void};

use super::descriptor::retry;
use super::system::{self, RECEIVED_AT_ONCE, SEND_FLAGS};
use super::{Io, PacketIo, Written, WrittenEnd, MOST_WRITTEN};
use crate::frame::{MAX_PACKET, MAX_PREFIX};

/// Length in bytes of the memory for one message that is received. The longest packet fits.
/// Since this is an odd number of cache lines, the starts of short messages are spread over
/// all sets of a cache.
pub(super) const SLOT: usize = 1025 * 64;
const _: () = assert!(SLOT >= MAX_PACKET);

/// The most bytes that are sent as one message of segments. IPv4 takes 65,507 of them, and
/// less with options.
const MOST_SEGMENTED: usize = 65_000;

/// Whether several datagrams can be one message of the socket: UDP_SEGMENT and UDP_GRO of
/// udp(7), which macOS does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(target_os = "macos", allow(dead_code))]
pub(super) enum Segments {
    /// In messages that are sent, and, if the owner of the socket has set UDP_GRO, in those
    /// that are received.
    Possible,
    /// In messages that are received alone, since the owner of the socket has set UDP_SEGMENT
    /// for those that are sent.
    OnlyReceived,
    /// In none.
    Impossible,
}

/// A message that was received: one datagram, or several that the kernel has merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    /// Length in bytes, even if that is more than [`SLOT`].
    pub(super) len: usize,
    /// Length in bytes of each datagram in it. The last one may be shorter. `None` if the kernel
    /// has merged datagrams, and not said how long they were.
    pub(super) segment: Option<usize>,
}

/// What one system call has received, and what of that is still to be read.
struct Received {
    /// A [`SLOT`] for each of `messages`.
    memory: Box<[u8]>,
    messages: [Message; RECEIVED_AT_ONCE],
    /// How many of `messages` there are.
    count: usize,
    /// The message that is read next.
    next: usize,
    /// How many bytes of that message were read.
    offset: usize,
    /// The call would have received more messages if there had been more.
    is_all: bool,
}

thread_local! {
    // This is nothing but memory, so that one thread may lend it, and another thread may get it
    // back. The pages that no message has reached take no memory.
    static POOL: Cell<Option<Box<Received>>> = const { Cell::new(None) };
}

impl Received {
    /// Takes the memory that the thread keeps, or allocates some.
    fn lend() -> Box<Received> {
        let kept = POOL.try_with(Cell::take).ok().flatten();
        kept.unwrap_or_else(|| {
            Box::new(Received {
                memory: vec![0; RECEIVED_AT_ONCE * SLOT].into_boxed_slice(),
                messages: [Message::default(); RECEIVED_AT_ONCE],
                count: 0,
                next: 0,
                offset: 0,
                is_all: false,
            })
        })
    }

    /// Gives the memory to the thread. While a thread exits it is freed.
    fn give_back(self: Box<Received>) {
        let _ = POOL.try_with(|pool| pool.set(Some(self)));
    }

    /// Receives at most `most` messages. What was received before must have been read.
    fn receive(&mut self, fd: RawFd, most: usize, segments: Segments) -> Io {
        let messages = &mut self.messages[..most];
        let io = retry(|| system::receive_many(fd, &mut self.memory, messages, segments));
        if let Io::Bytes(count) = io {
            (self.count, self.next, self.offset) = (count, 0, 0);
            self.is_all = count < most;
        }
        io
    }

    /// The messages that were not read, the first of which may have been read in part.
    fn rest(&self) -> &[Message] {
        &self.messages[self.next..self.count]
    }

    /// Reads the next datagram. There must be one.
    fn read(&mut self, out: &mut [u8]) -> PacketIo {
        let message = self.messages[self.next];
        let start = self.next * SLOT + self.offset;
        let segment = message.segment.filter(|_| message.len <= SLOT);
        let len = segment.map(|segment| segment.min(message.len - self.offset));
        self.offset += len.unwrap_or(message.len);
        if self.offset >= message.len {
            self.next += 1;
            self.offset = 0;
        }
        let Some(len) = len.filter(|len| *len <= out.len()) else {
            return PacketIo::Truncated;
        };
        out[..len].copy_from_slice(&self.memory[start..start + len]);
        match self.rest().is_empty() && self.is_all {
            true => PacketIo::Last(len),
            false => PacketIo::Packet(len),
        }
    }
}

/// What a datagram socket has besides its descriptor.
pub(super) struct Datagrams {
    segments: Segments,
    /// What was received and not read. `None` if that is nothing.
    received: Option<Box<Received>>,
    /// The longest message that is expected, in bytes: the longest of those that came, which
    /// count less the longer ago they came.
    expected: usize,
    /// Datagrams that are longer than this are not sent as segments, since the kernel has
    /// refused that.
    longest_segment: usize,
}

impl Datagrams {
    pub(super) fn new(segments: Segments) -> Datagrams {
        Datagrams {
            segments,
            received: None,
            expected: MAX_PACKET,
            longest_segment: match segments {
                Segments::Possible => MOST_SEGMENTED,
                Segments::OnlyReceived | Segments::Impossible => 0,
            },
        }
    }

    /// Reads one datagram, never blocking. If none is there that was received before, it
    /// receives as many as are expected to fit into `room` bytes with their framing, and one
    /// more.
    pub(super) fn read(&mut self, fd: RawFd, out: &mut [u8], room: usize) -> PacketIo {
        if let Some(io) = self.read_received(out) {
            return io;
        }
        let most = (room / (self.expected + MAX_PREFIX) + 1).min(RECEIVED_AT_ONCE);
        let mut received = Received::lend();
        let failed = match received.receive(fd, most, self.segments) {
            Io::Bytes(1..) => {
                let longest = received.rest().iter().map(|message| message.len).max();
                self.expected = (self.expected - self.expected / 8).max(longest.unwrap_or(0));
                self.received = Some(received);
                return self.read_received(out).unwrap_or(PacketIo::WouldBlock);
            }
            Io::Bytes(0) | Io::WouldBlock => PacketIo::WouldBlock,
            // ICMP has come back for a packet that was sent before.
            Io::Failed(errno @ (libc::ECONNREFUSED | libc::EMSGSIZE)) => PacketIo::Refused(errno),
            Io::Failed(errno) => PacketIo::Failed(errno),
        };
        received.give_back();
        failed
    }

    /// Reads a datagram that was received before, if there is one.
    pub(super) fn read_received(&mut self, out: &mut [u8]) -> Option<PacketIo> {
        let received = self.received.as_mut()?;
        let io = received.read(out);
        if received.rest().is_empty() {
            if let Some(read) = self.received.take() {
                read.give_back();
            }
        }
        Some(io)
    }

    /// How many bytes of datagrams were received and not read; `None` if no datagrams were.
    pub(super) fn unread(&self) -> Option<usize> {
        let received = self.received.as_ref()?;
        let lens = received.rest().iter().map(|message| message.len.min(SLOT));
        Some(lens.sum::<usize>() - received.offset)
    }

    /// Sends at most [`MOST_WRITTEN`] datagrams, never blocking.
    pub(super) fn write(&mut self, fd: RawFd, packets: &[IoSlice<'_>]) -> Written {
        let mut sent = 0;
        let mut at_once = MOST_WRITTEN;
        while sent < packets.len() {
            let rest = &packets[sent..];
            let (messages, count) = self.messages_of(rest, at_once);
            let messages = &messages[..count];
            let end = match send_messages(fd, rest, messages) {
                Io::Bytes(n) => {
                    sent += messages[..n].iter().sum::<usize>();
                    // If that was not all, the call has not said why, and the kernel does not
                    // repeat each error. From here on one call sends one message, so that each
                    // error is known, and which message it is of.
                    at_once = 1;
                    continue;
                }
                Io::Failed(errno) if messages[0] > 1 && may_be_of_segments(errno) => {
                    // The kernel may as well have reported what became of a datagram that was
                    // sent before. It does that once.
                    match send_messages(fd, rest, messages) {
                        Io::Failed(again) if again == errno => {
                            self.give_segments_up(errno, rest[0].len());
                            at_once = MOST_WRITTEN;
                            continue;
                        }
                        Io::Bytes(n) => sent += messages[..n].iter().sum::<usize>(),
                        Io::WouldBlock | Io::Failed(_) => {}
                    }
                    WrittenEnd::Reported(errno)
                }
                Io::Failed(errno) => WrittenEnd::Failed(errno),
                Io::WouldBlock => WrittenEnd::WouldBlock,
            };
            return Written { packets: sent, end };
        }
        Written {
            packets: sent,
            end: WrittenEnd::All,
        }
    }

    /// How many of the packets each message has, and how many messages there are, which is
    /// `most` at most. A message has several packets if all of them have one length, but for the
    /// last one, which may be shorter: then the kernel can cut it into these packets.
    fn messages_of(&self, packets: &[IoSlice<'_>], most: usize) -> ([usize; MOST_WRITTEN], usize) {
        let mut messages = [0; MOST_WRITTEN];
        let mut count = 0;
        let mut at = 0;
        while at < packets.len() && count < most {
            messages[count] = self.segments_in(&packets[at..]);
            at += messages[count];
            count += 1;
        }
        (messages, count)
    }

    /// How many of the packets the first message has.
    fn segments_in(&self, packets: &[IoSlice<'_>]) -> usize {
        let len = packets[0].len();
        if len == 0 || len > self.longest_segment {
            return 1;
        }
        let most = packets.len().min(MOST_SEGMENTED / len);
        let equal = packets[..most]
            .iter()
            .take_while(|packet| packet.len() == len)
            .count();
        let has_shorter_last = packets[..most]
            .get(equal)
            .is_some_and(|last| (1..len).contains(&last.len()));
        equal + usize::from(has_shorter_last)
    }

    /// Takes note that the kernel has refused a message of several packets of `len` bytes with
    /// this errno. It is not tried again.
    fn give_segments_up(&mut self, errno: c_int, len: usize) {
        self.longest_segment = match errno {
            // The device cannot compute checksums, or IPsec is on the way.
            libc::EIO => 0,
            // The packets may be longer than the path takes without fragments. Older kernels say
            // EINVAL.
            _ => len - 1,
        };
    }
}

/// Whether a message may have failed with this errno because it has several packets.
fn may_be_of_segments(errno: c_int) -> bool {
    matches!(errno, libc::EMSGSIZE | libc::EINVAL | libc::EIO)
}

/// Sends messages of these packets, of which each has as many as `messages` says. Returns how many
/// messages were sent; an error is of the first one.
fn send_messages(fd: RawFd, packets: &[IoSlice<'_>], messages: &[usize]) -> Io {
    match messages {
        [1] => match send(fd, &packets[0]) {
            Io::Bytes(_) => Io::Bytes(1),
            io => io,
        },
        _ => retry(|| system::send_many(fd, packets, messages)),
    }
}

/// send(2) of one datagram.
fn send(fd: RawFd, packet: &[u8]) -> Io {
    let buf = packet.as_ptr().cast::<c_void>();
    // SAFETY: `packet` is readable for its length.
    retry(|| unsafe { libc::send(fd, buf, packet.len(), SEND_FLAGS) })
}
