//! Files: read and written by transfers, which this does in place of a thread
//! pool.

#![allow(clippy::undocumented_unsafe_blocks)]

mod common;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;

use libc::c_int;

use common::*;
use tls_splice::endpoint::{READABLE, WRITABLE};
use tls_splice::ffi::*;
use tls_splice::handle::tls_splice as Splice;

const SIZE: usize = 300_000;

/// A session spliced to a file.
struct Rig {
    ours: Tls,
    peer: Tls,
    splice: *mut Splice,
    driver: Driver,
    file: File,
}

impl Rig {
    fn new(directions: u32) -> Rig {
        Rig::over(tempfile::tempfile().unwrap(), directions)
    }

    fn over(file: File, directions: u32) -> Rig {
        let (ours, peer) = connect(TLS1_3, true);
        let splice = new_splice(file.as_raw_fd(), directions, 256 * 1024).unwrap();
        assert_eq!(unsafe { abi::poll_fd(splice) }, -1);
        let driver = Driver::new(splice, ours.0);
        driver.start(directions);
        Rig {
            ours,
            peer,
            splice,
            driver,
            file,
        }
    }

    fn decrypt(&mut self) -> Run {
        self.driver.decrypt()
    }

    fn encrypt(&mut self) -> Run {
        self.driver.encrypt()
    }

    fn interest(&mut self) -> u32 {
        unsafe { abi::begin_wait(self.splice, self.ours.0) }
    }

    fn begin(&mut self, event: u32) -> tls_splice_transfer {
        abi::next_turn();
        let transfer = unsafe { abi::begin_transfer(self.splice, self.ours.0, event) };
        assert!(transfer.buf.len > 0);
        transfer
    }

    fn end(&mut self, event: u32, result: isize) {
        unsafe { abi::end_transfer(self.splice, event, result) };
    }

    /// Writes at most `limit` bytes to the file, with all that it takes.
    fn write(&mut self, limit: usize) -> usize {
        let transfer = self.begin(WRITABLE);
        let n = transfer.buf.len.min(limit);
        let n = unsafe { libc::write(transfer.fd, transfer.buf.base.cast(), n) };
        self.end(WRITABLE, n);
        n as usize
    }

    /// Reads at most `limit` bytes of the file.
    fn read(&mut self, limit: usize) -> usize {
        let transfer = self.begin(READABLE);
        let n = transfer.buf.len.min(limit);
        let n = unsafe { libc::read(transfer.fd, transfer.buf.base.cast(), n) };
        self.end(READABLE, n);
        n as usize
    }

    fn stats(&self) -> tls_splice::stats::Stats {
        stats_of(self.splice)
    }

    fn contents(&mut self) -> Vec<u8> {
        let mut contents = Vec::new();
        self.file.rewind().unwrap();
        self.file.read_to_end(&mut contents).unwrap();
        contents
    }

    fn failure(&self) -> Option<(c_int, bool)> {
        let failure = unsafe { abi::failure(self.splice) }?;
        Some((failure.errnum, failure.is_write))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        unsafe { abi::free(self.splice) };
    }
}

#[test]
fn what_the_peer_sends_is_written_to_the_file() {
    let mut rig = Rig::new(TLS_SPLICE_DECRYPT);
    let sent = Pattern::new(1).take(SIZE);
    for part in sent.chunks(16_000) {
        assert!(rig.peer.write(part));
    }
    rig.peer.shutdown();
    rig.ours.give(&rig.peer.take(usize::MAX));
    let mut run = rig.decrypt();
    let mut limits = [1, 70_000, 1000, 16_384].into_iter().cycle();
    while rig.interest() == WRITABLE {
        assert!(run.is_paused());
        rig.write(limits.next().unwrap());
        run = rig.decrypt();
    }
    assert!(run.is_in_over());
    assert_eq!(rig.contents(), sent);
    let stats = rig.stats();
    assert_eq!(stats.bytes_in, SIZE as u64);
    assert_eq!(stats.close_notify, 1);
    assert_eq!(stats.stalls_in, 0, "a file is not what stalls mean");
}

#[test]
fn what_the_file_has_is_sent_from_its_position_on() {
    let mut rig = Rig::new(TLS_SPLICE_ENCRYPT);
    let contents = Pattern::new(2).take(SIZE);
    rig.file.write_all(&contents).unwrap();
    rig.file.seek(std::io::SeekFrom::Start(1000)).unwrap();
    let mut got = Vec::new();
    let mut limits = [1, 70_000, 1000, 16_384].into_iter().cycle();
    loop {
        let run = rig.encrypt();
        rig.peer.give(&rig.ours.take(usize::MAX));
        got.extend(rig.peer.read_all().0);
        if run.is_out_over() {
            break;
        }
        if rig.interest() == READABLE {
            rig.read(limits.next().unwrap());
        }
    }
    assert_eq!(got, contents[1000..]);
    assert_eq!(rig.stats().bytes_out, got.len() as u64);
    assert_eq!(rig.file.stream_position().unwrap(), SIZE as u64);
}

#[test]
fn a_transfer_is_asked_for_once() {
    let mut rig = Rig::new(DUPLEX);
    rig.file.write_all(b"source").unwrap();
    rig.file.rewind().unwrap();
    rig.peer.write(b"sink");
    rig.ours.give(&rig.peer.take(usize::MAX));
    rig.decrypt();
    rig.encrypt();
    assert_eq!(rig.interest(), READABLE | WRITABLE);
    rig.begin(WRITABLE);
    assert_eq!(rig.interest(), READABLE);
    rig.begin(READABLE);
    assert_eq!(rig.interest(), 0);
    for event in [READABLE, WRITABLE] {
        let transfer = unsafe { abi::begin_transfer(rig.splice, rig.ours.0, event) };
        assert_eq!(transfer.buf.len, 0);
    }
    // Cancelled, interrupted: as if it had not begun.
    rig.end(WRITABLE, -(libc::ECANCELED as isize));
    rig.end(READABLE, -(libc::EINTR as isize));
    assert_eq!(rig.interest(), READABLE | WRITABLE);
    assert_eq!(rig.failure(), None);
}

#[test]
fn a_stop_waits_for_the_transfers() {
    let mut rig = Rig::new(DUPLEX);
    let contents = Pattern::new(2).take(1000);
    rig.file.write_all(&contents).unwrap();
    rig.file.rewind().unwrap();
    let sent = Pattern::new(1).take(1000);
    rig.peer.write(&sent);
    rig.ours.give(&rig.peer.take(usize::MAX));
    rig.decrypt();
    rig.encrypt();
    let write = rig.begin(WRITABLE);
    let read = rig.begin(READABLE);
    assert!(!rig.driver.stop().is_out_stopped());
    assert!(!rig.encrypt().is_out_stopped());

    let n = unsafe { libc::read(read.fd, read.buf.base.cast(), 400) };
    rig.end(READABLE, n);
    assert!(rig.encrypt().is_out_stopped());
    rig.peer.give(&rig.ours.take(usize::MAX));
    assert_eq!(
        rig.peer.read_all().0,
        contents[..400],
        "what was read is sent"
    );
    assert_eq!(rig.file.stream_position().unwrap(), 400);

    // Nobody knows what is undelivered before the write has returned.
    let mut rest = vec![0; 1000];
    let mut count = 7;
    let code = unsafe {
        tls_splice_take_undelivered(rig.splice, rest.as_mut_ptr(), rest.len(), &mut count)
    };
    assert_eq!((code, count), (BUSY, 0));
    assert_eq!(unsafe { abi::undelivered(rig.splice) }, 1000);
    let n = unsafe { libc::write(write.fd, write.buf.base.cast(), 300) };
    rig.end(WRITABLE, n);
    assert!(rig.decrypt().is_in_stopped());
    let n = unsafe { abi::take_undelivered(rig.splice, rest.as_mut_ptr(), rest.len()) };
    assert_eq!(
        rest[..n],
        sent[300..],
        "what was not written is handed back"
    );
    assert_eq!(rig.interest(), 0);
}

#[test]
fn the_end_of_encryption_waits_for_the_read() {
    let mut rig = Rig::new(TLS_SPLICE_ENCRYPT);
    rig.file.write_all(b"the last").unwrap();
    rig.file.rewind().unwrap();
    rig.encrypt();
    let read = rig.begin(READABLE);
    rig.driver.on(TLS_SPLICE_ON_LEAVE_SOURCE);
    assert!(!rig.encrypt().is_out_over());
    let n = unsafe { libc::read(read.fd, read.buf.base.cast(), read.buf.len) };
    rig.end(READABLE, n);
    assert!(!rig.encrypt().is_out_over());
    rig.peer.give(&rig.ours.take(usize::MAX));
    assert_eq!(rig.peer.read_all().0, b"the last");
    assert!(rig.encrypt().is_out_over());
}

#[test]
fn a_full_disk_is_a_failure() {
    let mut rig = Rig::new(TLS_SPLICE_DECRYPT);
    let sent = Pattern::new(1).take(1000);
    rig.peer.write(&sent);
    rig.ours.give(&rig.peer.take(usize::MAX));
    rig.decrypt();
    assert_eq!(rig.write(10), 10);
    rig.decrypt();
    rig.begin(WRITABLE);
    rig.end(WRITABLE, -(libc::ENOSPC as isize));
    assert!(rig.decrypt().has_failed());
    assert_eq!(rig.failure(), Some((libc::ENOSPC, true)));
    assert_eq!(unsafe { abi::undelivered(rig.splice) }, 990);
}

#[test]
fn a_write_of_nothing_is_a_failure() {
    for first in [0, 10] {
        let mut rig = Rig::new(TLS_SPLICE_DECRYPT);
        rig.peer.write(&Pattern::new(1).take(1000));
        rig.ours.give(&rig.peer.take(usize::MAX));
        rig.decrypt();
        if first > 0 {
            assert_eq!(rig.write(first), first);
            rig.decrypt();
        }
        rig.begin(WRITABLE);
        rig.end(WRITABLE, 0);
        assert!(rig.decrypt().has_failed());
        assert_eq!(rig.failure(), Some((libc::ENOSPC, true)));
        assert_eq!(rig.interest(), 0, "it is not tried again");
        assert_eq!(unsafe { abi::undelivered(rig.splice) }, 1000 - first);
    }
}

/// What /proc/PID/mem does when the process has gone.
#[test]
fn the_memory_of_a_dead_process_takes_nothing() {
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let memory = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{}/mem", child.id()))
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rig = Rig::over(memory, TLS_SPLICE_DECRYPT);
    rig.peer.write(b"x");
    rig.ours.give(&rig.peer.take(usize::MAX));
    rig.decrypt();
    assert_eq!(rig.write(1), 0);
    assert!(rig.decrypt().has_failed());
    assert_eq!(rig.failure(), Some((libc::ENOSPC, true)));
}

#[test]
fn a_file_that_cannot_be_read_is_a_failure() {
    let mut rig = Rig::new(TLS_SPLICE_ENCRYPT);
    rig.encrypt();
    rig.begin(READABLE);
    rig.end(READABLE, -(libc::EIO as isize));
    assert!(rig.encrypt().has_failed());
    assert_eq!(rig.failure(), Some((libc::EIO, false)));
}
