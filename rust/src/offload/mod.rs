//! Super-packets of a TUN device of Linux: up to 64 KiB of TCP or UDP that pass the device
//! and the stack of the kernel as one packet.
//!
//! A device with IFF_VNET_HDR has a [`header`] before each packet. The header says that the
//! packet is a super-packet, of which [`split`] makes the packets that go to the TLS peer,
//! or that the checksum of an ordinary packet is not complete. The other way round, [`join`]
//! finds the packets that the kernel's own GRO would join, and says how to write them to the
//! device as one. What is joined can be split into the same packets again, byte for byte but
//! for an identification of IPv4 that nobody may look at.
//!
//! Nothing here makes a system call, or allocates. Packets come from the TLS peer or from
//! whoever opened the device: no length in them is trusted.
//!
//! No crate took the place of these modules: those that split and join (tun-rs) own the
//! device and want an allocation per packet, those that parse (etherparse) know no
//! super-packets, and the sum of [`checksum`] is shorter than the use of a crate.

pub mod checksum;
pub mod header;
pub mod ip;
pub mod join;
pub mod split;

/// A super-packet, or its header, that no kernel makes: it is dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;
