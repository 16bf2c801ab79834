//! What the pump itself costs: TLS over memory on one side, a Unix socket on the other, no event
//! loop, and no Node. Making the peer's ciphertext and emptying the sockets is not counted.
//!
//! It also counts allocations: OpenSSL's are OpenSSL's, but ours must be none once bytes flow.

#![allow(clippy::undocumented_unsafe_blocks)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{abi, connect, new_splice, nonblocking_pair, poll_splice, stats_of, Tls, TLS1_3};
use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use tls_splice::ffi::*;
use tls_splice::handle::tls_splice as Splice;

struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count() {
    if COUNTS.load(Relaxed) {
        ALLOCATIONS.fetch_add(1, Relaxed);
    }
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Moved at once: what libuv reads of a busy connection.
const BATCH: usize = 64 << 10;

struct Bench {
    ours: Tls,
    peer: Tls,
    splice: *mut Splice,
    _near: OwnedFd,
    far: UnixStream,
    content: Vec<u8>,
    buf: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let (ours, peer) = connect(TLS1_3, true);
        let (near, far) = nonblocking_pair();
        let directions = TLS_SPLICE_DECRYPT | TLS_SPLICE_ENCRYPT;
        let splice = new_splice(near.as_raw_fd(), directions, 256 << 10).unwrap();
        unsafe {
            abi::start(splice, directions);
            abi::attach(splice, TLS_SPLICE_DECRYPT, ours.0);
            abi::on(splice, TLS_SPLICE_ON_TURN, 0, ours.0);
            abi::on(splice, TLS_SPLICE_ON_CYCLED, 0, ours.0);
        }
        Bench {
            ours,
            peer,
            splice,
            _near: near,
            far,
            content: vec![b'b'; BATCH],
            buf: vec![0; 2 * BATCH],
        }
    }

    /// Runs what counts.
    fn timed(&mut self, work: impl FnOnce(&mut Self)) -> Duration {
        COUNTS.store(true, Relaxed);
        let start = Instant::now();
        work(self);
        let elapsed = start.elapsed();
        COUNTS.store(false, Relaxed);
        elapsed
    }

    /// Returns what is ordered.
    fn report(&self, event: u32) -> u32 {
        unsafe { abi::on(self.splice, event, 0, self.ours.0) }.orders
    }

    /// A batch from the peer to the endpoint.
    fn decrypt(&mut self, record: usize) -> Duration {
        for part in self.content.chunks(record) {
            assert!(self.peer.write(part));
        }
        let cipher = self.peer.take(usize::MAX);
        let elapsed = self.timed(|bench| {
            let mut rest = &cipher[..];
            while !rest.is_empty() {
                unsafe {
                    let buf = abi::alloc(bench.splice);
                    let n = rest.len().min(buf.len);
                    ptr::copy_nonoverlapping(rest.as_ptr(), buf.base, n);
                    abi::commit(bench.splice, n);
                    rest = &rest[n..];
                    while bench.report(TLS_SPLICE_ON_DECRYPT) & TLS_SPLICE_ACTION_NEXT_TURN != 0 {
                        bench.report(TLS_SPLICE_ON_TURN);
                    }
                    let state = abi::state(bench.splice);
                    assert_eq!((state.outcome, state.reading), (0, TLS_SPLICE_READING_ON));
                }
            }
        });
        let mut got = 0;
        while got < BATCH {
            got += self.far.read(&mut self.buf).unwrap();
        }
        elapsed
    }

    /// A batch from the endpoint to the peer, which drops the ciphertext.
    fn encrypt(&mut self) -> Duration {
        let goal = stats_of(self.splice).bytes_out + BATCH as u64;
        assert_eq!(self.far.write(&self.content).unwrap(), BATCH);
        let mut elapsed = Duration::ZERO;
        while stats_of(self.splice).bytes_out < goal || self.ours.pending() > 0 {
            poll_splice(self.splice, self.ours.0);
            elapsed += self.timed(|bench| {
                black_box(bench.report(TLS_SPLICE_ON_LOWER_DRAINED));
                black_box(bench.report(TLS_SPLICE_ON_TURN));
                black_box(bench.report(TLS_SPLICE_ON_CYCLED));
                black_box(bench.report(TLS_SPLICE_ON_SOURCE_READY));
            });
            self.ours.take(usize::MAX);
        }
        elapsed
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        unsafe {
            abi::detach(self.splice, self.ours.0);
            abi::free(self.splice);
        }
    }
}

/// `iterations` batches, and how many allocations that took for each megabyte is told once, from
/// the second batch on: the first one finds nothing to use again.
fn run(
    c: &mut Criterion,
    name: &str,
    id: BenchmarkId,
    mut batch: impl FnMut(&mut Bench) -> Duration,
) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes(BATCH as u64));
    let mut bench = Bench::new();
    batch(&mut bench);
    let before = ALLOCATIONS.load(Relaxed);
    let mut batches = 0;
    group.bench_function(id, |b| {
        b.iter_custom(|iterations| {
            batches += iterations;
            (0..iterations).map(|_| batch(&mut bench)).sum()
        })
    });
    if batches > 0 {
        let allocations = ALLOCATIONS.load(Relaxed) - before;
        let megabytes = (batches * BATCH as u64) as f64 / 1e6;
        println!(
            "{name}: {:.3} allocations per MB",
            allocations as f64 / megabytes
        );
        assert_eq!(allocations, 0, "the pump allocates in its steady state");
    }
    group.finish();
}

fn pump(c: &mut Criterion) {
    for record in [64, 1400, 16384] {
        let id = BenchmarkId::from_parameter(record);
        run(c, "decrypt", id, |bench| bench.decrypt(record));
    }
    run(
        c,
        "encrypt",
        BenchmarkId::from_parameter(16384),
        Bench::encrypt,
    );
}

criterion_group!(benches, pump);
criterion_main!(benches);
