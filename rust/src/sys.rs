//! OpenSSL functions that openssl-sys does not declare.

#![allow(missing_docs)]

use libc::{c_int, c_ulong, size_t};
use openssl_sys::{BIO, SSL};

extern "C" {
    /// SSL_set0_rbio(3): takes over one reference to `rbio`, drops the old one's.
    pub fn SSL_set0_rbio(ssl: *mut SSL, rbio: *mut BIO);
    /// SSL_set0_wbio(3): takes over one reference to `wbio`, drops the old one's.
    pub fn SSL_set0_wbio(ssl: *mut SSL, wbio: *mut BIO);
    /// SSL_in_init(3).
    pub fn SSL_in_init(ssl: *const SSL) -> c_int;
    /// SSL_get_state(3).
    pub fn SSL_get_state(ssl: *const SSL) -> c_int;
    /// SSL_renegotiate_pending(3).
    pub fn SSL_renegotiate_pending(ssl: *const SSL) -> c_int;
    /// BIO_up_ref(3).
    pub fn BIO_up_ref(bio: *mut BIO) -> c_int;
    /// BIO_free(3): drops one reference.
    pub fn BIO_free(bio: *mut BIO) -> c_int;
    /// BIO_ctrl_pending(3).
    pub fn BIO_ctrl_pending(bio: *mut BIO) -> size_t;
    /// BIO_get_new_index(3).
    pub fn BIO_get_new_index() -> c_int;
    /// ERR_peek_error(3): the oldest entry of this thread's queue.
    pub fn ERR_peek_error() -> c_ulong;
}
