//! syncbn-core knows no device and no network: it depends on the crates named here and on what they need, and none of all these
//! links a library that is not Rust's.
//!
//! Deliberately not here: dev-dependencies, which no user builds.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, Metadata, Node, PackageId};

use crate::cargo::metadata;

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
    let nodes = &metadata.resolve.as_ref().context("no dependency graph")?.nodes;
    let nodes: BTreeMap<&PackageId, &Node> = nodes.iter().map(|node| (&node.id, node)).collect();
    let core =
        metadata.workspace_packages().into_iter().find(|package| package.name == CORE).context(CORE)?;
    let mut seen = BTreeSet::new();
    let mut waiting = vec![&core.id];
    while let Some(id) = waiting.pop() {
        if seen.insert(id) {
            let node = nodes.get(id).with_context(|| format!("{id} is not in the dependency graph"))?;
            waiting.extend(
                node.deps.iter().filter(|dependency| is_built(dependency)).map(|dependency| &dependency.pkg),
            );
        }
    }
    for id in &seen {
        if let Some(library) = &metadata[*id].links {
            anyhow::bail!("{CORE}'s tree holds {}, which links {library}", metadata[*id].name);
        }
    }
    let names: Vec<_> = seen.iter().map(|id| metadata[*id].name.as_str()).collect();
    eprintln!("{CORE}'s tree, with all features: {}", names.join(" "));
    Ok(())
}

fn is_built(dependency: &cargo_metadata::NodeDep) -> bool {
    dependency.dep_kinds.iter().any(|kind| kind.kind != DependencyKind::Development)
}
