//! What some parts need beside Rust, and what to do where it is missing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::Args;
use crate::test_python;

/// CUDA's compiler, looked for as candle's build does, and the kind of GPU that it compiles for.
pub(super) fn nvcc() -> Result<()> {
    let folder = |name| env::var_os(name).map(|home| Path::new(&home).join("bin/nvcc"));
    let named = env::var_os("NVCC").map(PathBuf::from);
    let on_path = Some(PathBuf::from("nvcc"));
    let mut places = [named, on_path, folder("CUDA_HOME"), folder("CUDA_PATH")].into_iter().flatten();
    ensure!(
        places.any(|nvcc| runs(&nvcc, "--version")),
        "needs nvcc: `nvcc` does not run, and neither NVCC nor CUDA_HOME leads to it; docs/candle.md says how to install it"
    );
    ensure!(
        env::var_os("CUDA_COMPUTE_CAP").is_some() || runs(Path::new("nvidia-smi"), "--list-gpus"),
        "needs a GPU or CUDA_COMPUTE_CAP, to know what to compile for: 90 for an H100"
    );
    Ok(())
}

fn runs(program: &Path, option: &str) -> bool {
    let command = Command::new(program).arg(option).stdout(Stdio::null()).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}

/// A Python that can build the wheel, and test it if that is done here.
pub(super) fn python(args: &Args) -> Result<PathBuf> {
    let modules: &[&str] = if args.bundle.is_some() { &["maturin"] } else { &["maturin", "torch", "pytest"] };
    test_python::with_modules(modules)
}
