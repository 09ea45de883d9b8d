//! `cargo xtask demo`: builds the demo and runs it where the caller is.
//!
//! Deliberately not here: the demo's options; `cargo xtask demo --help` shows them.

use anyhow::Result;

use crate::cargo::{backend_feature, cargo, run};

/// What is passed on to the demo.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run_demo(args: &Args) -> Result<()> {
    let demo = ["run", "--quiet", "--locked", "--package=syncbn-examples", "--bin=demo"].map(String::from);
    let passed_on = ["--".to_owned()].into_iter().chain(args.args.iter().cloned());
    run(&mut cargo(demo.into_iter().chain(backend_feature(&args.args)).chain(passed_on)))
}
