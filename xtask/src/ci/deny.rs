//! What the dependencies may be: their licences, their sources, and which are banned, as deny.toml says.
//!
//! Deliberately not here: advisories, since a new one would fail a change that has nothing to do with it.

use anyhow::{Context, Result};

use crate::cargo::{cargo, run};

pub(super) fn check() -> Result<()> {
    let deny = ["deny", "--locked", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    run(&mut cargo(deny))
        .context("`cargo install cargo-deny --locked --debug` brings the command in a minute or two")
}
