//! Every law of the test kit, on this backend, for all four types.

#![allow(clippy::unwrap_used)] // tests panic

use std::ops::Range;

use rayon::ThreadPoolBuilder;
use syncbn_core::Scalar;
use syncbn_cpu::Cpu;
use syncbn_testkit::{Harness, Opened, Unavailable};

/// The processor, from a thread of the operating system, or from within a pool of so many threads for each rank.
#[derive(Clone)]
struct CpuHarness {
    pool: Option<usize>,
}

impl Harness for CpuHarness {
    type Backend = Cpu;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn open(&self, _rank: usize) -> Result<Opened<Cpu>, Unavailable> {
        Ok((Cpu, ()))
    }

    fn part<T: Scalar>(buffer: &Vec<T>, range: Range<usize>) -> Option<&[T]> {
        Some(&buffer[range])
    }

    fn part_mut<T: Scalar>(buffer: &mut Vec<T>, range: Range<usize>) -> Option<&mut [T]> {
        Some(&mut buffer[range])
    }

    fn variants(&self) -> Vec<Self> {
        [1, 2, 5].map(|threads| Self { pool: Some(threads) }).to_vec()
    }

    // A pool of its own for each rank: in a shared one, a rank that waits for its peers would keep a thread that they need.
    fn surround<R: Send>(&self, rank: impl FnOnce() -> R + Send) -> R {
        match self.pool {
            Some(threads) => ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(rank),
            None => rank(),
        }
    }
}

syncbn_testkit::conformance!(cpu: CpuHarness { pool: None }, types: [f32, f64, f16, bf16]);
