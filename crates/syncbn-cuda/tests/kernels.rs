//! The kernels' sources, on a machine without a GPU.

use syncbn_cuda::{CudaError, compile_all};
use syncbn_testkit::report::absent;

#[test]
fn every_kernel_compiles_for_sm_80_and_sm_90() {
    for architecture in ["sm_80", "sm_90"] {
        match compile_all(architecture) {
            Ok(count) => assert_eq!(count, 4 * 2 * (3 + 2 + 4 + 4)),
            Err(error @ CudaError::MissingLibrary { .. }) => absent("nvrtc", "kernels::kernels", &error),
            Err(error) => panic!("{error}"),
        }
    }
}
