//! The kernels' sources, on a machine without a GPU.

use syncbn_cuda::{CudaError, compile_all};

#[test]
fn every_kernel_compiles_for_sm_80_and_sm_90() {
    for architecture in ["sm_80", "sm_90"] {
        match compile_all(architecture) {
            Ok(count) => assert_eq!(count, 4 * 2 * (3 + 2 + 4 + 4)),
            Err(error @ CudaError::MissingLibrary { .. }) => {
                let required = std::env::var("SYNCBN_REQUIRE").unwrap_or_default();
                assert!(!required.split(',').any(|name| name.trim() == "nvrtc"), "{error}");
                println!("skipped: {error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
