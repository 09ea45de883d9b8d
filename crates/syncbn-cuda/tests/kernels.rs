//! The kernels' sources, on a machine without a GPU.

use syncbn_cuda::{CudaError, compile_all};
use syncbn_testkit::report::absent;

#[test]
fn every_kernel_compiles_for_sm_80_and_sm_90() {
    let compile = |architecture| match compile_all(architecture) {
        Ok(count) => assert_eq!(count, 6 * 4 * (3 + 2 + 4 + 4) + 1),
        Err(error @ CudaError::MissingLibrary { .. }) => absent("nvrtc", "kernels::kernels", &error),
        Err(error) => panic!("{error}"),
    };
    std::thread::scope(|scope| {
        for architecture in ["sm_80", "sm_90"] {
            scope.spawn(move || compile(architecture));
        }
    });
}
