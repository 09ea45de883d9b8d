//! `cargo xtask test-gpu`: all tests that need a GPU, on this machine or, as a bundle, on another.
//!
//! A bundle is a folder of stripped programs and one script, `run`; testing here is making one and running it, so both are the
//! same. It needs the driver, and the libraries that the crates' errors name, and no Rust.

use std::fs;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Artifact, Message, TargetKind};

use crate::cargo::cargo;

/// The most that a bundle may weigh.
const MOST_BYTES: u64 = 60 << 20;
/// The crates whose integration tests run on a GPU, and which of them. Those of wgpu that do not depend on what the GPU computes run
/// in CI on a software one; each would add 6 MB.
const TESTED: [(&str, &[&str]); 3] = [
    ("syncbn-cuda", &["--test=*"]),
    ("syncbn-wgpu", &["--test=conformance", "--test=numbers"]),
    ("syncbn-examples", &["--test=nccl"]),
];
/// Other programs of the bundle: package, how cargo calls it, its name.
const PROGRAMS: [(&str, &str, &str); 6] = [
    ("syncbn-cuda", "--example", "devices"),
    ("syncbn-examples", "--example", "02_cuda_nccl"),
    ("syncbn-examples", "--bin", "demo"),
    ("syncbn-examples", "--bin", "accuracy"),
    ("syncbn-bench", "--bin", "syncbn-bench"),
    ("syncbn-bench", "--bin", "bench-report"),
];
/// Features without which those programs know no GPU.
const FEATURES: [(&str, &str); 2] = [("syncbn-examples", "cuda,wgpu"), ("syncbn-bench", "cuda,wgpu")];

/// What to test, and where.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Writes the tests, the demo and the benchmarks to this folder instead, for a machine without Rust: `DIR/run test`.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Runs the kernels' laws under this tool of compute-sanitizer: memcheck, racecheck, initcheck or synccheck.
    #[arg(long, value_name = "TOOL", conflicts_with = "bundle")]
    sanitize: Option<String>,
    /// For the tests: names to filter by, and their other options.
    #[arg(last = true)]
    filters: Vec<String>,
}

pub(crate) fn run_tests(args: &Args) -> Result<ExitCode> {
    let folder = args.bundle.clone().unwrap_or_else(|| PathBuf::from("target/gpu"));
    let bytes = write(&folder)?;
    if args.bundle.is_some() {
        println!(
            "wrote {:.1} MB to {}; there: ./run test, ./run bench, ./run demo, ./run accuracy",
            bytes as f64 / 1e6,
            folder.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let sanitize = args.sanitize.iter().flat_map(|tool| ["--sanitize", tool]);
    let status = Command::new(folder.canonicalize()?.join("run"))
        .arg("test")
        .args(sanitize)
        .args(&args.filters)
        .status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Fills the folder, and returns its size.
fn write(folder: &Path) -> Result<u64> {
    for old in ["tests", "bin", "peers"].map(|name| folder.join(name)).into_iter().filter(|old| old.exists())
    {
        fs::remove_dir_all(&old).with_context(|| old.display().to_string())?;
    }
    let mut bytes = 0;
    for (package, which) in TESTED {
        let tests = build([&["test", "--no-run", "--package", package], which].concat())?;
        for test in tests.iter().filter(|test| test.target.kind.contains(&TargetKind::Test)) {
            bytes += copy(test, &folder.join("tests"), &format!("{package}-{}", test.target.name))?;
        }
    }
    for (package, kind, name) in PROGRAMS {
        let features = FEATURES
            .iter()
            .filter(|(of, _)| *of == package)
            .map(|(_, feature)| format!("--features={feature}"));
        let options =
            ["build", "--package", package, kind, name].map(String::from).into_iter().chain(features);
        for program in build(options)?.iter().filter(|program| program.target.name == name) {
            bytes += copy(program, &folder.join("bin"), name)?;
        }
    }
    bytes += copy_peers(&folder.join("peers"))?;
    let run = folder.join("run");
    fs::write(&run, include_str!("test_gpu/run.sh"))?;
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755))?;
    ensure!(bytes <= MOST_BYTES, "the bundle has {bytes} bytes, expected {MOST_BYTES} at most");
    Ok(bytes)
}

/// What cargo built that can be run.
fn build<S: Into<std::ffi::OsString>>(options: impl IntoIterator<Item = S>) -> Result<Vec<Artifact>> {
    let mut command = cargo(options);
    command
        .args(["--release", "--locked", "--message-format=json-render-diagnostics"])
        .stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut artifacts = Vec::new();
    for message in Message::parse_stream(BufReader::new(output)) {
        if let Message::CompilerArtifact(artifact) = message? {
            artifacts.extend(artifact.executable.is_some().then_some(artifact));
        }
    }
    ensure!(child.wait()?.success(), "cargo could not build what the bundle needs");
    Ok(artifacts)
}

fn copy(artifact: &Artifact, folder: &Path, name: &str) -> Result<u64> {
    fs::create_dir_all(folder)?;
    let executable = artifact.executable.as_ref().context("it was not built")?;
    fs::copy(executable, folder.join(name)).with_context(|| executable.to_string())
}

/// The peers' scripts and the lists of tensors, side by side as in the sources.
fn copy_peers(folder: &Path) -> Result<u64> {
    fs::create_dir_all(folder.join("peers"))?;
    let mut bytes = 0;
    for (from, to) in [("bench/peers", folder.join("peers")), ("bench", folder.to_path_buf())] {
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            let wanted = path.extension().is_some_and(|extension| extension == "py" || extension == "txt");
            if let Some(name) = path.file_name().filter(|_| wanted) {
                bytes += fs::copy(&path, to.join(name))?;
            }
        }
    }
    Ok(bytes)
}
