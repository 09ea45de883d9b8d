//! Every law of the test kit, on the example backend.

use std::ops::Range;

use example_backend::Plain;
use syncbn_core::Scalar;
use syncbn_testkit::{Harness, Opened, Unavailable};

#[derive(Clone)]
struct PlainHarness;

impl Harness for PlainHarness {
    type Backend = Plain;

    fn name(&self) -> &'static str {
        "plain"
    }

    fn open(&self, _rank: usize) -> Result<Opened<Plain>, Unavailable> {
        Ok((Plain, ()))
    }

    fn part<T: Scalar>(buffer: &Vec<T>, range: Range<usize>) -> Option<&[T]> {
        Some(&buffer[range])
    }

    fn part_mut<T: Scalar>(buffer: &mut Vec<T>, range: Range<usize>) -> Option<&mut [T]> {
        Some(&mut buffer[range])
    }
}

syncbn_testkit::conformance!(plain: PlainHarness, types: [f32], missing: [
    f64: "the example shows one type",
    f16: "the example shows one type",
    bf16: "the example shows one type",
]);
