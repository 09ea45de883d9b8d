//! Every law of the kit, on this backend: ranks are threads with a queue of work each, on one device.

use std::sync::OnceLock;

use syncbn_testkit::{Harness, Opened, Unavailable};
use syncbn_wgpu::{Wgpu, WgpuError};

#[derive(Clone)]
struct WgpuHarness;

impl Harness for WgpuHarness {
    type Backend = Wgpu;

    fn name(&self) -> &'static str {
        "wgpu"
    }

    fn open(&self, _rank: usize) -> Result<Opened<Wgpu>, Unavailable> {
        static WGPU: OnceLock<Result<Wgpu, WgpuError>> = OnceLock::new();
        let opened = WGPU.get_or_init(Wgpu::open).as_ref();
        let wgpu = opened.map_err(|error| Unavailable(error.to_string()))?.clone();
        let queue = wgpu.queue();
        Ok((wgpu, queue))
    }
}

syncbn_testkit::conformance!(
    wgpu: WgpuHarness,
    types: [f32, f16, bf16],
    missing: [f64: "WGSL has no f64"],
);
