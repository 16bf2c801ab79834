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
//! It never calls back into Node. Each call takes readiness and returns a step
//! (see the `TLS_SPLICE_STEP_*` constants) that the caller carries out. Only
//! OpenSSL's own callbacks can re-enter, and [`handle`] turns that away.
//!
//! Nothing here is tied to a thread; calls on one handle must not overlap.

// First, since cbindgen writes constants in the order of the modules.
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
pub mod outbound;
pub mod packets;
mod panic;
pub mod splice;
pub mod stats;
pub mod sys;

// The tests of the modules use what those of the library do.
#[cfg(test)]
extern crate self as tls_splice;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
