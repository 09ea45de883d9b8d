//! Every law of the testkit, on this backend. Ranks are threads, each with its own stream, on one device.

mod common;

use std::sync::OnceLock;

use common::{device_gaps, open_rank};
use syncbn_cuda::{Cuda, CudaError};
use syncbn_testkit::{Gap, Harness, Opened, Unavailable};

#[derive(Clone)]
struct CudaHarness;

impl Harness for CudaHarness {
    type Backend = Cuda;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn open(&self, _rank: usize) -> Result<Opened<Cuda>, Unavailable> {
        static CUDA: OnceLock<Result<Cuda, CudaError>> = OnceLock::new();
        let opened = CUDA.get_or_init(|| Cuda::open(0)).as_ref();
        let cuda = opened.map_err(|error| Unavailable(error.to_string()))?;
        open_rank(std::slice::from_ref(cuda), 0)
    }

    fn gaps(&self) -> Vec<Gap> {
        device_gaps()
    }
}

syncbn_testkit::conformance!(cuda: CudaHarness, types: [f32, f64, f16, bf16]);
