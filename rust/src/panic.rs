//! No panic crosses the C ABI.

use std::panic::{catch_unwind, AssertUnwindSafe};

/// Runs `f`; a panic becomes `fallback`.
pub(crate) fn guard<T>(fallback: T, f: impl FnOnce() -> T) -> T {
    // A handle whose call panicked stays marked busy (see handle.rs), so state
    // that the panic left half-changed is not looked at again.
    catch_unwind(AssertUnwindSafe(f)).unwrap_or(fallback)
}
