//! `cargo xtask test-emulated`: the tests of the CUDA backend on this processor, without a GPU.
//!
//! The kernels are compiled by the machine's C++ compiler, and run under `emulator/`, which stands in for the driver and for NVRTC.
//!
//! Deliberately not here: NCCL's tests, and the tests of what NVRTC compiles, which `cargo xtask test` runs.

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use anyhow::{Context, Result};
use cargo_metadata::camino::Utf8Path;

use crate::cargo::{cargo, metadata, run};

/// Tests, an option of theirs, and the order in which blocks start.
type Run = (&'static [&'static str], Option<&'static str>, &'static str);
const CUDA: &str = "--package=syncbn-cuda";
const FAULTS: &[&str] = &["--package=cuda-emulator", "--features=faults", "--test=faults"];
const RUNS: [Run; 6] = [
    (FAULTS, None, "forwards"),
    (FAULTS, None, "backwards"),
    (&[CUDA, "--test=conformance", "--test=errors", "--test=graph", "--test=memory"], None, "forwards"),
    (&[CUDA, "--test=conformance"], None, "backwards"),
    // Each of these groups needs all devices.
    (&[CUDA, "--test=peers", "--test=processes"], Some("--test-threads=1"), "forwards"),
    (&[CUDA, "--test=block_order"], None, "backwards"),
];
/// The emulator's own tests have a device each.
const DEVICES_OF_FAULTS: usize = 4;
/// Enough for ranks that meet inside their kernels.
const DEVICES: usize = 2;
/// Cases of a law, where `SYNCBN_CASES` does not say: a processor is slower than a GPU.
const CASES: &str = "0.05";

/// How to test.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many devices there are.
    #[arg(long, value_name = "N", default_value_t = DEVICES)]
    devices: usize,
    /// For the tests: a name to filter by (those of processes take one alone), and their other options.
    #[arg(last = true)]
    filters: Vec<String>,
}

impl Default for Args {
    fn default() -> Self {
        Self { devices: DEVICES, filters: Vec::new() }
    }
}

pub(crate) fn run_tests(args: &Args) -> Result<()> {
    run(&mut cargo(["build", "--locked", "--package=cuda-emulator"]))?;
    let target = metadata()?.target_directory;
    let folder = target.join("emulator");
    let cache = folder.join("kernels");
    fs::create_dir_all(&cache)?;
    // The crate trusts no folder that others could write to.
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o700))?;
    let library = folder.join("libcuda.so");
    for name in ["libcuda.so", "libcuda.so.1"] {
        link(&target.join("debug/libcuda_emulator.so"), &folder.join(name))?;
    }
    let others = env::var("LD_LIBRARY_PATH").map(|others| format!(":{others}")).unwrap_or_default();
    for (tests, option, order) in RUNS {
        let devices = if tests.contains(&CUDA) { args.devices } else { DEVICES_OF_FAULTS };
        let common = ["test", "--locked"].into_iter().chain(tests.iter().copied());
        let filters = args.filters.iter().map(String::as_str);
        let mut command = cargo(common.chain(["--"]).chain(option).chain(filters));
        command.env("LD_LIBRARY_PATH", format!("{folder}{others}"));
        command.env("SYNCBN_NVRTC", &library).env("SYNCBN_CACHE_DIR", &cache);
        command.env("SYNCBN_EMULATED_DEVICES", devices.to_string()).env("SYNCBN_EMULATED_ORDER", order);
        // NCCL would look for devices of its own.
        command.env("SYNCBN_REQUIRE", "cuda").env("SYNCBN_NCCL", "/none");
        command.env("SYNCBN_CASES", env::var("SYNCBN_CASES").unwrap_or_else(|_| CASES.into()));
        run(&mut command)?;
    }
    Ok(())
}

/// The library under the driver's name.
fn link(library: &Utf8Path, name: &Utf8Path) -> Result<()> {
    if fs::symlink_metadata(name).is_ok() {
        fs::remove_file(name)?;
    }
    symlink(library, name).with_context(|| format!("linking {name} to {library}"))
}

#[cfg(test)]
mod tests {
    use super::{CUDA, RUNS};
    use crate::cargo::tests_of;

    /// The tests of the CUDA backend that are in no run, and why.
    const LEFT_OUT: [(&str, &str); 2] =
        [("kernels", "what NVRTC compiles is not emulated"), ("nccl", "NCCL is not emulated")];

    #[test]
    fn every_test_of_the_cuda_backend_is_in_a_run_or_left_out_for_a_reason() -> anyhow::Result<()> {
        let runs = || RUNS.iter().map(|(tests, ..)| tests).filter(|tests| tests.contains(&CUDA));
        for name in tests_of("syncbn-cuda")? {
            let option = format!("--test={name}");
            let is_run = runs().any(|tests| tests.contains(&option.as_str()));
            let is_left_out = LEFT_OUT.iter().any(|(left_out, _)| *left_out == name);
            assert!(is_run != is_left_out, "{name}: is in a run: {is_run}, is left out: {is_left_out}");
        }
        Ok(())
    }
}
