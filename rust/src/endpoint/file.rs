//! Files: what is always ready and may block, so that the thread pool reads and writes
//! it.
//!
//! Regular files, block devices, /dev/null and the like are of no use to epoll(7) and
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
