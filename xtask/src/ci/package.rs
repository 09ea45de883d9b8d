//! Every crate that is for a registry can be packed, and builds from nothing but what is packed.
//!
//! Cargo packs them together, so that one can depend on another that no registry has yet. It puts them in a registry of its
//! own under the target folder, and takes a version there for a thing that never changes: what an earlier run unpacked or
//! compiled from the same folder is used again. Each run has a target folder of its own, so that what is built is what is packed.

use std::ffi::OsString;

use anyhow::Result;

use crate::cargo::{cargo, metadata, published, run};

pub(super) fn check() -> Result<()> {
    let metadata = metadata()?;
    let packages = published(&metadata).map(|package| format!("--package={}", package.name));
    let folder = tempfile::Builder::new().prefix("packages-").tempdir_in(&metadata.target_directory)?;
    // A tree with changes is packed as it is: what is checked is what will be committed.
    let package = ["package", "--quiet", "--locked", "--allow-dirty", "--target-dir"].map(OsString::from);
    let folder = [folder.path().into()];
    run(&mut cargo(package.into_iter().chain(folder).chain(packages.map(OsString::from))))
}
