//! What the floor relay and the load generator share.

pub mod args;
pub mod flow;
pub mod packets;
pub mod process;
pub mod sys;
pub mod tls;
