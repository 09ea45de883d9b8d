//! `cargo xtask demo`: builds the demo and runs it where the caller is.
//!
//! Deliberately not here: the demo's options; `cargo xtask demo --help` shows them.

use anyhow::Result;

use crate::cargo::{cargo, run};

/// What is passed on to the demo.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run_demo(args: &Args) -> Result<()> {
    let demo = ["run", "--quiet", "--locked", "--package=syncbn-examples", "--bin=demo", "--"];
    run(&mut cargo(demo.into_iter().map(String::from).chain(args.args.iter().cloned())))
}
