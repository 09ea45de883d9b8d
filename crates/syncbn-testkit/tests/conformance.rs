//! The kit on a backend without a flaw, which every law has to accept.

mod plain;

use plain::{Flaw, Plain};
use syncbn_testkit::{Harness, Opened, Unavailable};

#[derive(Clone)]
struct PlainHarness;

impl Harness for PlainHarness {
    type Backend = Plain;

    fn name(&self) -> &'static str {
        "plain"
    }
    fn open(&self, _: usize) -> Result<Opened<Plain>, Unavailable> {
        Ok((Plain(Flaw::None), ()))
    }
}

syncbn_testkit::conformance!(plain_backend: PlainHarness, types: [f32, f64, f16, bf16]);
