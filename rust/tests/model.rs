//! Random programs against an oracle.
