//! Counters of one splice, as `handle.stats` shows them.

/// `struct tls_splice_stats`: plain counters, in bytes unless said otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Cleartext delivered to the endpoint.
    pub bytes_in: u64,
    /// Cleartext from the endpoint that OpenSSL has accepted.
    pub bytes_out: u64,
    /// Cleartext that OpenSSL has decrypted for the splice; what of it is not
    /// in `bytes_in` is held.
    pub bytes_decrypted: u64,
    /// Times that a full sink paused the TLS side.
    pub stalls_in: u64,
    /// Times that a full TLS side paused the source.
    pub stalls_out: u64,
    /// Most that was held towards the endpoint, as cleartext or ciphertext.
    pub peak_buffered_in: u64,
    /// Most that was held towards the TLS peer, as cleartext or ciphertext.
    pub peak_buffered_out: u64,
    /// Packets delivered to the endpoint; 0 where there is no framing.
    pub packets_in: u64,
    /// Packets from the endpoint.
    pub packets_out: u64,
    /// Longest of them, in bytes.
    pub largest_packet_in: u64,
    /// Longest of them, in bytes.
    pub largest_packet_out: u64,
    /// Packets that the endpoint refused.
    pub drops_in: u64,
    /// Packets from the endpoint that do not fit the framing, or were cut off.
    pub drops_out: u64,
    /// Of `drops_in`, those refused with EINVAL.
    pub drops_einval: u64,
    /// With EMSGSIZE.
    pub drops_emsgsize: u64,
    /// With ECONNREFUSED.
    pub drops_econnrefused: u64,
    /// With EIO: the interface is down.
    pub drops_eio: u64,
    /// With ENOBUFS.
    pub drops_enobufs: u64,
    /// 1 once the peer's close_notify has been read, else 0.
    pub close_notify: u64,
}

impl Stats {
    /// Takes note of so many bytes that are held towards the endpoint.
    pub fn hold_in(&mut self, held: usize) {
        self.peak_buffered_in = self.peak_buffered_in.max(held as u64);
    }

    /// Takes note of so many bytes that are held towards the TLS peer.
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

    /// Counts a packet that the endpoint refused with `errno`. Whether it is one that
    /// may be: lost, as on any link, while the tunnel goes on.
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
