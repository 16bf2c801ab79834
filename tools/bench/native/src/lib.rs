//! What the floor relay and the load generator share.

pub mod args;
pub mod datagrams;
pub mod flow;
pub mod packets;
pub mod process;
pub mod sys;
pub mod tls;
