//! Every law of the testkit, on this backend. Ranks are threads, each with its own stream, on one device.

use std::sync::OnceLock;

use syncbn_cuda::{Cuda, CudaError};
use syncbn_testkit::{Ability, Gap, Harness, Opened, Unavailable};

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
        let cuda = opened.map_err(|error| Unavailable(error.to_string()))?.clone();
        let stream = cuda.context().new_stream().map_err(|error| Unavailable(error.to_string()))?;
        Ok((cuda, stream))
    }

    fn gaps(&self) -> Vec<Gap> {
        vec![
            Gap { ability: Ability::WideRange, reason: "chains of 64 elements are summed in f32" },
            Gap {
                ability: Ability::Subnormals,
                reason: "weight invstd, above 1e38 there, is multiplied in f32",
            },
        ]
    }
}

syncbn_testkit::conformance!(cuda: CudaHarness, types: [f32, f64, f16, bf16]);
