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
    /// 1 once the peer's close_notify has been read, else 0.
    pub close_notify: u64,
}
