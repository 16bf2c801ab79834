//! The payload pump behind `tlsSocket.spliceTo()` in a patched Node.js.
//!
//! Node owns the TLS session: handshake, certificates, the `SSL*`, the libuv
//! stream below it. This library only moves payload between that `SSL*` and an
//! endpoint:
//!
//! ```text
//! decrypt: ciphertext -> rbio -> SSL_read  -> held -> write(endpoint)
//! encrypt: read(endpoint)     -> held -> SSL_write -> wbio -> ciphertext
//! ```
//!
//! The library never calls Node. Node's C++ reports what happens ([`events`]), the
//! [`lifecycle`] decides, the pumps ([`inbound`], [`outbound`]) move bytes, and the C++ is
//! told what to do. Only the callbacks of OpenSSL can re-enter the library, and [`handle`]
//! keeps them apart. [`ffi`] is the C ABI of all that.
//!
//! Nothing here is tied to a thread; calls on one handle must not overlap in time.

pub mod ssl;

pub mod budget;
pub mod buf;
pub mod endpoint;
pub mod error;
pub mod events;
pub mod ffi;
pub mod frame;
pub mod handle;
pub mod inbound;
pub mod lifecycle;
pub mod offload;
pub mod outbound;
pub mod packets;
mod panic;
pub mod splice;
pub mod stats;
pub mod super_packets;
pub mod sys;

// The tests inside the modules use the helpers that the tests in rust/tests use.
#[cfg(test)]
extern crate self as tls_splice;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
#[cfg(test)]
#[path = "../tests/common/offload.rs"]
mod reference;
