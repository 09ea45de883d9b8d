//! `cargo xtask test-python`: the wheel, built and installed, and its tests.
//!
//! Without an environment of the caller's, one is made under target/, with PyTorch from its registry: the package for Linux is the CUDA
//! build, some 3 GB to fetch and 6 GB on disk.
//!
//! Deliberately not here: the tests, which are pytest's, in python/tests.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::run;

/// The most that a wheel may weigh.
const MOST_BYTES: u64 = 8 << 20;
const FOLDER: &str = "target/python";

/// Where to test, and what.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A Python that has torch, pytest and maturin already; also `SYNCBN_PYTHON`.
    #[arg(long, value_name = "PYTHON", env = "SYNCBN_PYTHON", conflicts_with = "torch")]
    python: Option<PathBuf>,
    /// The version of PyTorch, for the environment that is made: `2.7.1` is the oldest that is promised.
    #[arg(long, value_name = "VERSION")]
    torch: Option<String>,
    /// Builds the wheel, and tests nothing.
    #[arg(long)]
    only_build: bool,
    /// For pytest: `-k NAME` and its other options.
    #[arg(last = true)]
    options: Vec<OsString>,
}

pub(crate) fn run_tests(args: &Args) -> Result<()> {
    let python = match &args.python {
        Some(python) => python.clone(),
        None => environment(args.torch.as_deref())?,
    };
    let wheel = build(&python)?;
    if args.only_build {
        return Ok(());
    }
    let site = Path::new(FOLDER).join("site");
    install(&python, &wheel, &site)?;
    let mut pytest = Command::new(&python);
    pytest.args(["-m", "pytest", "python/tests"]).args(&args.options);
    run(pytest.env("PYTHONPATH", site.canonicalize()?))
}

/// A virtual environment with PyTorch and what builds and tests the wheel.
fn environment(torch: Option<&str>) -> Result<PathBuf> {
    let folder =
        Path::new(FOLDER).join(torch.map_or_else(|| "newest".into(), |torch| format!("torch-{torch}")));
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if !python.exists() {
        let system = if cfg!(windows) { "python" } else { "python3" };
        run(Command::new(system).args(["-m", "venv"]).arg(&folder))?;
    }
    let torch = torch.map_or_else(|| "torch".into(), |version| format!("torch=={version}"));
    let wanted = [torch.as_str(), "numpy", "pytest", "maturin>=1.9,<2"];
    let quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(Command::new(&python).args(quiet).args(wanted))?;
    Ok(python)
}

/// A Python that has these modules: the one that `SYNCBN_PYTHON` names, else that of the environment made here, else the system's.
pub(crate) fn with_modules(modules: &[&str]) -> Result<PathBuf> {
    let pythons = match env::var_os("SYNCBN_PYTHON") {
        Some(named) => vec![PathBuf::from(named)],
        None => vec![Path::new(FOLDER).join("newest/bin/python"), PathBuf::from("python3")],
    };
    let has_them =
        "import sys; from importlib.util import find_spec; sys.exit(None in map(find_spec, sys.argv[1:]))";
    let found = pythons.into_iter().find(|python| {
        let status = Command::new(python).args(["-c", has_them]).args(modules).status();
        status.is_ok_and(|status| status.success())
    });
    let needs = || {
        let modules = modules.join(", ");
        format!(
            "needs a Python with {modules}, as SYNCBN_PYTHON names one and `cargo xtask test-python --only-build` makes one"
        )
    };
    found.with_context(needs)
}

pub(crate) fn build(python: &Path) -> Result<PathBuf> {
    let wheels = Path::new(FOLDER).join("wheels");
    if wheels.exists() {
        fs::remove_dir_all(&wheels)?;
    }
    run(Command::new(python)
        .args(["-m", "maturin", "build", "--release", "--locked", "--interpreter"])
        .arg(python)
        .arg("--out")
        .arg(&wheels))?;
    let mut found = fs::read_dir(&wheels)?.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = found.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.context("maturin made no wheel")?;
    let bytes = fs::metadata(&wheel)?.len();
    println!("{}: {:.1} MB", wheel.display(), bytes as f64 / 1e6);
    ensure!(bytes <= MOST_BYTES, "the wheel has {bytes} bytes, expected {MOST_BYTES} at most");
    Ok(wheel)
}

/// Unpacks the wheel into a folder of its own: the environment may be the caller's and is not changed.
pub(crate) fn install(python: &Path, wheel: &Path, site: &Path) -> Result<()> {
    if site.exists() {
        fs::remove_dir_all(site)?;
    }
    let quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"];
    run(Command::new(python).args(quiet).arg(site).arg(wheel))
}
