//! Running cargo, and asking it about the workspace.

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand, Package};

/// The cargo that runs us, with these arguments.
pub(crate) fn cargo(args: impl IntoIterator<Item = impl Into<OsString>>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args.into_iter().map(Into::into));
    command
}

/// Runs it to its end, with our own input and output.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let program = command.get_program().to_string_lossy().into_owned();
    let name =
        Path::new(&program).file_stem().map_or(program.clone(), |name| name.to_string_lossy().into_owned());
    let line = format!("{name} {}", args.join(" "));
    eprintln!("$ {line}");
    let status = command.status().with_context(|| line.clone())?;
    ensure!(status.success(), "`{line}` failed: {status}");
    Ok(())
}

/// The feature of the demo and the bench that `--backend NAME` asks for; the processor needs none.
pub(crate) fn backend_feature(args: &[String]) -> Option<String> {
    let named = args.iter().find_map(|arg| arg.strip_prefix("--backend="));
    let next = args.iter().position(|arg| arg == "--backend").and_then(|at| args.get(at + 1));
    let backend = named.or(next.map(String::as_str)).filter(|backend| ["cuda", "wgpu"].contains(backend))?;
    Some(format!("--features={backend}"))
}

/// The workspace, with every optional dependency.
pub(crate) fn metadata() -> Result<Metadata> {
    use cargo_metadata::CargoOpt::AllFeatures;
    Ok(MetadataCommand::new().features(AllFeatures).other_options(vec!["--locked".into()]).exec()?)
}

/// The names of a crate's integration tests; an error if it has none.
#[cfg(test)]
pub(crate) fn tests_of(package: &str) -> Result<Vec<String>> {
    let metadata = metadata()?;
    let package = metadata.packages.iter().find(|found| found.name == package);
    let targets = package.into_iter().flat_map(|package| &package.targets);
    let tests: Vec<_> = targets.filter(|target| target.is_test()).map(|target| target.name.clone()).collect();
    ensure!(!tests.is_empty(), "no tests");
    Ok(tests)
}

/// The crates that are for a registry.
pub(crate) fn published(metadata: &Metadata) -> impl Iterator<Item = &Package> {
    let kept_back = |package: &Package| package.publish.as_ref().is_some_and(Vec::is_empty);
    metadata.workspace_packages().into_iter().filter(move |package| !kept_back(package))
}
