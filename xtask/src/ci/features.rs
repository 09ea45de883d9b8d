//! Features only add: each crate builds, without warnings, with none of them, with each alone, and with all.
//!
//! Deliberately not here: pairs.

use anyhow::Result;

use super::nvcc;
use crate::cargo::{cargo, metadata, published, run};

pub(super) fn check() -> Result<()> {
    let metadata = metadata()?;
    for package in published(&metadata) {
        let features = package.features.keys().filter(|feature| *feature != "default");
        let alone = features.map(|feature| format!("--features={feature}"));
        lint(&package.name, &["--no-default-features"])?;
        for feature in alone {
            lint(&package.name, &["--no-default-features", &feature])?;
        }
        lint(&package.name, &["--all-features"])?;
    }
    Ok(())
}

/// Clippy, since it has built the dependencies already.
fn lint(package: &str, features: &[&str]) -> Result<()> {
    let package = ["clippy", "--quiet", "--locked", "--no-deps", "--package", package];
    run(nvcc::or_stub(&mut cargo([&package, features, &["--", "--deny=warnings"]].concat())))
}
