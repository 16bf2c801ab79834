//! Counters of one splice, as `handle.stats` shows them.

use libc::size_t;

/// `struct tls_splice_stats`: the counters of one splice. They count from 0 on, bytes unless
/// said otherwise, and never go down.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// `sizeof(struct tls_splice_stats)`, which the caller sets before the call. Fields that
    /// lie behind it are not written; the fields from `packets_in` on may.
    pub struct_size: size_t,
    /// Cleartext delivered to the endpoint.
    pub bytes_in: u64,
    /// Cleartext from the endpoint that SSL_write(3) has accepted.
    pub bytes_out: u64,
    /// Cleartext that SSL_read(3) has decrypted for the splice. What is in
    /// `bytes_decrypted` and not in `bytes_in` is held, was taken by
    /// `tls_splice_take_undelivered`, or was part of a dropped packet.
    pub bytes_decrypted: u64,
    /// How many times a full sink has paused the TLS side.
    pub stalls_in: u64,
    /// How many times a full TLS side has paused the source.
    pub stalls_out: u64,
    /// The most bytes that were held towards the endpoint at a time, as cleartext and as
    /// ciphertext, without those of `tls_splice_push_before`.
    pub peak_buffered_in: u64,
    /// The most bytes that were held towards the TLS peer at a time, as cleartext and as
    /// ciphertext, without those of `tls_splice_push_before`.
    pub peak_buffered_out: u64,
    /// How many packets were delivered to the endpoint. 0 without framing.
    pub packets_in: u64,
    /// How many packets came from the endpoint. 0 without framing.
    pub packets_out: u64,
    /// Length of the longest packet that was delivered to the endpoint.
    pub largest_packet_in: u64,
    /// Length of the longest packet that came from the endpoint.
    pub largest_packet_out: u64,
    /// How many packets the endpoint has refused, which are lost.
    pub drops_in: u64,
    /// How many packets from the endpoint were lost, since they do not fit the framing, or
    /// were cut off, or contradict the header that the device puts before them.
    pub drops_out: u64,
    /// How many of `drops_in` were refused with EINVAL.
    pub drops_einval: u64,
    /// How many of `drops_in` were refused with EMSGSIZE.
    pub drops_emsgsize: u64,
    /// How many of `drops_in` were refused with ECONNREFUSED.
    pub drops_econnrefused: u64,
    /// How many of `drops_in` were refused with EIO: the network interface is down.
    pub drops_eio: u64,
    /// How many of `drops_in` were refused with ENOBUFS.
    pub drops_enobufs: u64,
    /// 1 once the peer's close_notify has been read, else 0.
    pub close_notify: u64,
    /// How many times several packets were written to a TUN device with IFF_VNET_HDR as one.
    pub super_packets_in: u64,
    /// How many times several packets were read as one from a TUN device with IFF_VNET_HDR.
    pub super_packets_out: u64,
    /// The number of protocols (TCP, UDP) whose packets are not written as one any more, since a
    /// TUN device with IFF_VNET_HDR has refused that, and has taken the same packets one by one.
    pub super_packets_refused: u64,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            struct_size: size_of::<Stats>(),
            bytes_in: 0,
            bytes_out: 0,
            bytes_decrypted: 0,
            stalls_in: 0,
            stalls_out: 0,
            peak_buffered_in: 0,
            peak_buffered_out: 0,
            packets_in: 0,
            packets_out: 0,
            largest_packet_in: 0,
            largest_packet_out: 0,
            drops_in: 0,
            drops_out: 0,
            drops_einval: 0,
            drops_emsgsize: 0,
            drops_econnrefused: 0,
            drops_eio: 0,
            drops_enobufs: 0,
            close_notify: 0,
            super_packets_in: 0,
            super_packets_out: 0,
            super_packets_refused: 0,
        }
    }
}

impl Stats {
    /// Takes note that `held` bytes are held towards the endpoint.
    pub fn hold_in(&mut self, held: usize) {
        self.peak_buffered_in = self.peak_buffered_in.max(held as u64);
    }

    /// Takes note that `held` bytes are held towards the TLS peer.
    pub fn hold_out(&mut self, held: usize) {
        self.peak_buffered_out = self.peak_buffered_out.max(held as u64);
    }

    /// Counts a packet for the endpoint.
    pub fn count_in(&mut self, len: usize) {
        self.packets_in += 1;
        self.largest_packet_in = self.largest_packet_in.max(len as u64);
    }

    /// Counts a packet from the endpoint.
    pub fn count_out(&mut self, len: usize) {
        self.packets_out += 1;
        self.largest_packet_out = self.largest_packet_out.max(len as u64);
    }

    /// Counts a packet that the endpoint has refused, if `errno` is a reason to lose one
    /// packet and to go on, as on any link. Returns whether it is.
    pub fn count_drop(&mut self, errno: libc::c_int) -> bool {
        let cause = match errno {
            libc::EINVAL => &mut self.drops_einval,
            libc::EMSGSIZE => &mut self.drops_emsgsize,
            libc::ECONNREFUSED => &mut self.drops_econnrefused,
            libc::EIO => &mut self.drops_eio,
            libc::ENOBUFS => &mut self.drops_enobufs,
            _ => return false,
        };
        *cause += 1;
        self.drops_in += 1;
        true
    }
}
