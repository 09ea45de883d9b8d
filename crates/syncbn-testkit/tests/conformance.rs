//! All laws on a backend without a flaw: every one passes.

mod plain;

use std::num::NonZeroUsize;
use std::ops::Range;

use plain::{Flaw, Part, Plain, Shared};
use syncbn_core::Scalar;
use syncbn_testkit::{Harness, Join, Opened, Unavailable};

/// With this number of threads.
#[derive(Clone)]
struct PlainHarness(usize);

impl Harness for PlainHarness {
    type Backend = Plain;

    fn name(&self) -> &'static str {
        "plain"
    }
    fn open(&self, _: usize) -> Result<Opened<Plain>, Unavailable> {
        Ok((Plain::new(Flaw::None).with_threads(self.0), ()))
    }
    fn part<T: Scalar>(buffer: &Shared<T>, range: Range<usize>) -> Option<Part<'_, T>> {
        Some(Part::new(buffer, range))
    }
    fn part_mut<T: Scalar>(buffer: &mut Shared<T>, range: Range<usize>) -> Option<Part<'_, T>> {
        Some(Part::new(buffer, range))
    }
    fn variants(&self) -> Vec<Self> {
        vec![Self(3), Self(8)]
    }
}

syncbn_testkit::conformance!(plain_backend: PlainHarness(1), types: [f32, f64, f16, bf16]);

/// With ranks that meet inside their kernels.
#[derive(Clone)]
struct InsideHarness;

impl Harness for InsideHarness {
    type Backend = Plain;

    fn name(&self) -> &'static str {
        "inside"
    }
    fn open(&self, _: usize) -> Result<Opened<Plain>, Unavailable> {
        Ok((Plain::new(Flaw::None), ()))
    }
    fn group(&self, world_size: NonZeroUsize) -> Vec<Join<Plain>> {
        plain::inside_group(world_size)
    }
}

syncbn_testkit::conformance!(inside_kernels: InsideHarness, types: [f32, f64, f16, bf16]);
