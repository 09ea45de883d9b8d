//! `cargo xtask test-gpu`: all tests that need a GPU, on this machine or, as a bundle, on another.
//!
//! A bundle is a folder of stripped programs and one script, `run`; testing here is making one and running it, so both are the
//! same. It needs the driver, and the libraries that the crates' errors name, and no Rust. `parts.rs` says what is in it.

mod parts;
mod tools;

use std::fs;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Artifact, Message};
use clap::builder::PossibleValuesParser;

use self::parts::{PARTS, Part};
use crate::cargo::cargo;

/// The most that a bundle may weigh.
const MOST_BYTES: u64 = 60 << 20;
/// In every bundle: the program that says which GPUs there are.
const DEVICES: &[&str] = &["build", "--package=syncbn-cuda", "--example=devices"];
/// In every bundle: the scripts that know no part.
const SCRIPTS: [(&str, &str); 2] =
    [("run", include_str!("test_gpu/run.sh")), ("sanitize", include_str!("test_gpu/sanitize.sh"))];

/// What to test, and where.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Writes the tests, the demo and the benchmarks to this folder instead, for a machine without Rust: `DIR/run test`.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// This part alone; may be given several times. Else all parts for which this machine has the tools.
    #[arg(long, value_name = "PART", value_parser = PossibleValuesParser::new(PARTS.map(|part| part.name)))]
    only: Vec<String>,
    /// Runs the kernels' laws under this tool of compute-sanitizer: memcheck, racecheck, initcheck or synccheck.
    #[arg(long, value_name = "TOOL", conflicts_with = "bundle")]
    sanitize: Option<String>,
    /// Keeps the output of each step in this folder, in place of target/gpu/logs.
    #[arg(long, value_name = "DIR", conflicts_with = "bundle")]
    logs: Option<PathBuf>,
    /// Stops a step after so many seconds: 1800, if not given.
    #[arg(long, value_name = "SECONDS", conflicts_with = "bundle")]
    limit: Option<u32>,
    /// For the tests: names to filter by, and their other options.
    #[arg(last = true)]
    filters: Vec<String>,
}

pub(crate) fn run_tests(args: &Args) -> Result<ExitCode> {
    let parts = chosen(args)?;
    let names = parts.iter().map(|part| part.name).collect::<Vec<_>>().join(", ");
    let folder = args.bundle.clone().unwrap_or_else(|| PathBuf::from("target/gpu"));
    write(&folder, &parts)?;
    if args.bundle.is_none() {
        return test(args, &folder);
    }
    let bytes = size(&folder)?;
    println!("wrote {:.1} MB to {}: {names}; there: ./run help", bytes as f64 / 1e6, folder.display());
    ensure!(
        bytes <= MOST_BYTES,
        "the bundle has {bytes} bytes, expected {MOST_BYTES} at most: take fewer parts, with --only"
    );
    Ok(ExitCode::SUCCESS)
}

/// The parts that are asked for by name; without names, all for which there are the tools.
fn chosen(args: &Args) -> Result<Vec<Part>> {
    let named = |part: &Part| args.only.iter().any(|name| name == part.name);
    let mut chosen = Vec::new();
    for part in PARTS.into_iter().filter(|part| args.only.is_empty() || named(part)) {
        match (part.tool)(args) {
            Ok(()) => chosen.push(part),
            Err(why) if args.only.is_empty() => eprintln!("left out: {}: {why:#}", part.name),
            Err(why) => return Err(why.context(format!("part {}", part.name))),
        }
    }
    Ok(chosen)
}

/// Runs the bundle here.
fn test(args: &Args, folder: &Path) -> Result<ExitCode> {
    let mut run = Command::new(folder.canonicalize()?.join("run"));
    run.arg("test");
    run.args(args.only.iter().flat_map(|part| ["--only", part]));
    run.args(args.sanitize.iter().flat_map(|tool| ["--sanitize", tool]));
    run.args(args.limit.iter().flat_map(|limit| ["--limit".into(), limit.to_string()]));
    if let Some(logs) = &args.logs {
        run.arg("--logs").arg(logs);
    }
    if let Ok(python) = tools::python(args) {
        run.env("SYNCBN_PYTHON", python);
    }
    let status = run.args(&args.filters).status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Fills the folder.
fn write(folder: &Path, parts: &[Part]) -> Result<()> {
    for old in ["tests", "bin", "peers", "python", "steps"].map(|name| folder.join(name)) {
        if old.exists() {
            fs::remove_dir_all(&old).with_context(|| old.display().to_string())?;
        }
    }
    build(folder, "", DEVICES)?;
    fs::create_dir_all(folder.join("steps"))?;
    for (at, part) in parts.iter().enumerate() {
        for command in part.cargo {
            build(folder, part.name, command)?;
        }
        (part.files)(folder)?;
        // Numbered, so that they are tested in this order.
        fs::write(folder.join(format!("steps/{at}-{}.sh", part.name)), part.steps)?;
    }
    for (name, script) in SCRIPTS {
        let path = folder.join(name);
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Builds what the command names, and copies what of it can be run: tests as tests/PART.PACKAGE-NAME, others as bin/NAME.
fn build(folder: &Path, part: &str, command: &[&str]) -> Result<()> {
    let tests = command.first() == Some(&"test");
    let package =
        command.iter().find_map(|option| option.strip_prefix("--package=")).context("names a package")?;
    for program in artifacts(command)?.iter().filter(|artifact| artifact.profile.test == tests) {
        let name = &program.target.name;
        let place = if tests { format!("tests/{part}.{package}-{name}") } else { format!("bin/{name}") };
        let (from, to) = (program.executable.as_ref().context("it was not built")?, folder.join(place));
        fs::create_dir_all(to.parent().context("it has a folder")?)?;
        fs::copy(from, to).with_context(|| from.to_string())?;
    }
    Ok(())
}

/// What cargo built that can be run.
fn artifacts(command: &[&str]) -> Result<Vec<Artifact>> {
    let no_run = (command.first() == Some(&"test")).then_some("--no-run");
    let options = ["--release", "--locked", "--message-format=json-render-diagnostics"];
    let mut child =
        cargo(command.iter().copied().chain(no_run).chain(options)).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut artifacts = Vec::new();
    for message in Message::parse_stream(BufReader::new(output)) {
        if let Message::CompilerArtifact(artifact) = message? {
            artifacts.extend(artifact.executable.is_some().then_some(artifact));
        }
    }
    ensure!(
        child.wait()?.success(),
        "cargo could not build what the bundle needs: cargo {}",
        command.join(" ")
    );
    Ok(artifacts)
}

/// The bytes of all files in a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
