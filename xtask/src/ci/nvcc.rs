//! candle's `cuda` feature compiles kernels with NVIDIA's compiler, also where types alone are checked.
//!
//! Where `SYNCBN_REQUIRE` names `nvcc`, the real one does it. Else a stub stands in for it, which is enough for lints and
//! documentation: syncbn-candle's `cuda` feature is checked on every machine.
//!
//! Deliberately not here: linking, which needs a CUDA toolkit.

use std::env;
use std::path::Path;
use std::process::Command;

/// Gives cargo the stub, unless the real compiler is asked for.
pub(super) fn or_stub(command: &mut Command) -> &mut Command {
    let required = env::var("SYNCBN_REQUIRE").unwrap_or_default();
    if required.split(',').any(|name| name.trim() == "nvcc") {
        return command;
    }
    let stub = Path::new(env!("CARGO_MANIFEST_DIR")).join("nvcc");
    command.env("NVCC", stub).env("CUDA_COMPUTE_CAP", "80")
}
