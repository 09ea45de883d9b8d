//! Every crate that is for a registry can be packed, and builds from nothing but what is packed.
//!
//! Cargo packs them together, so that one can depend on another that no registry has yet.

use anyhow::Result;

use crate::cargo::{cargo, metadata, published, run};

pub(super) fn check() -> Result<()> {
    let metadata = metadata()?;
    let packages = published(&metadata).map(|package| format!("--package={}", package.name));
    // A tree with changes is packed as it is: what is checked is what will be committed.
    let package = ["package", "--quiet", "--locked", "--allow-dirty"].map(String::from);
    run(&mut cargo(package.into_iter().chain(packages)))
}
