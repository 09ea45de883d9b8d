//! syncbn-core knows no device and no network: it depends on the crates named here and on what they need, and none of all these
//! links a library that is not Rust's.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::{DependencyKind, Metadata, Package};

use crate::cargo::{cargo, metadata};

const CORE: &str = "syncbn-core";
const ALWAYS: [&str; 2] = ["half", "thiserror"];
const OPTIONAL: [&str; 1] = ["safetensors"];

pub(super) fn check() -> Result<()> {
    let metadata = metadata()?;
    check_direct(&metadata)?;
    check_links(&metadata)
}

fn check_direct(metadata: &Metadata) -> Result<()> {
    let core = metadata.packages.iter().find(|package| package.name == CORE).context(CORE)?;
    let direct = core.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
    for dependency in direct {
        let name = dependency.name.as_str();
        let allowed = ALWAYS.contains(&name) || (dependency.optional && OPTIONAL.contains(&name));
        ensure!(
            allowed,
            "{CORE} depends on {name}, which is not among {ALWAYS:?} and, optional, {OPTIONAL:?}"
        );
    }
    Ok(())
}

fn check_links(metadata: &Metadata) -> Result<()> {
    let tree = built_packages()?;
    for package in metadata.packages.iter().filter(|package| tree.contains(&name_and_version(package))) {
        if let Some(library) = &package.links {
            bail!("{CORE}'s tree holds {}, which links {library}", package.name);
        }
    }
    eprintln!("{CORE}'s tree, with all features: {}", Vec::from_iter(tree).join(", "));
    Ok(())
}

/// What is built for core alone. The workspace's own graph would not do: there, other crates switch features on in what core depends on.
fn built_packages() -> Result<BTreeSet<String>> {
    let options =
        ["--locked", "--all-features", "--edges=no-dev", "--target=all", "--prefix=none", "--no-dedupe"];
    let output = cargo(["tree", "--package", CORE, "--format={p}"].into_iter().chain(options)).output()?;
    ensure!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let package = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let tree: BTreeSet<String> = text.lines().map(package).collect();
    ensure!(!tree.is_empty(), "{CORE} has no tree");
    Ok(tree)
}

fn name_and_version(package: &Package) -> String {
    format!("{} v{}", package.name, package.version)
}
