//! Endpoints that have no descriptor: a byte stream of the caller's, or another splice.

/// A byte stream that the caller reads and writes itself, by transfers. Another splice is
/// such a stream, too: [`crate::splice::Splice::pass`] is its transfer.
pub struct Caller;
