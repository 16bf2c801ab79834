//! OpenSSL: the session that Node owns, and the BIOs that a splice lends it.

pub mod bio;
pub mod rbio;
pub mod session;
pub mod wbio;
