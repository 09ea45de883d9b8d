//! syncbn-cuda compiles beside candle's `cuda` feature, which has cudarc link CUDA instead of loading it.
//!
//! The crate that has both is no member of the workspace, so that nothing else builds candle. A stub stands in for candle's compiler
//! of kernels.
//!
//! Deliberately not here: linking, which needs a CUDA toolkit.

use anyhow::Result;

use crate::cargo::{cargo, metadata, run};

pub(super) fn check() -> Result<()> {
    let metadata = metadata()?;
    let folder = metadata.workspace_root.join("xtask/candle");
    let manifest = format!("--manifest-path={}", folder.join("Cargo.toml"));
    let target = format!("--target-dir={}", metadata.target_directory.join("candle"));
    // Not --locked: the lock file pins candle, and gets what our own crates have come to depend on since.
    let mut check = cargo(["check", "--quiet", &manifest, &target]);
    run(check.env("NVCC", folder.join("nvcc")).env("CUDA_COMPUTE_CAP", "80"))
}
