//! Files: endpoints that are always ready, and may block when they are read or written, so
//! that a thread pool does that.
//!
//! Regular files, block devices, /dev/null and the like cannot be polled with epoll(7) or
//! kqueue(2).

use super::descriptor::Descriptor;

/// A file, which the caller reads and writes by transfers.
pub struct File {
    pub(super) descriptor: Descriptor,
}

impl File {
    pub(super) fn new(descriptor: Descriptor) -> File {
        File { descriptor }
    }
}
