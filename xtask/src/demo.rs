//! `cargo xtask demo` and `cargo xtask accuracy`: build a program of the examples and run it where the caller is.
//!
//! Deliberately not here: their options; `cargo xtask demo --help` shows them.

use anyhow::Result;

use crate::cargo::{backend_feature, cargo, run};

/// What is passed on to the program.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run_demo(args: &Args) -> Result<()> {
    run_bin("--bin=demo", args)
}

pub(crate) fn run_accuracy(args: &Args) -> Result<()> {
    run_bin("--bin=accuracy", args)
}

fn run_bin(bin: &str, args: &Args) -> Result<()> {
    let program = ["run", "--quiet", "--locked", "--package=syncbn-examples", bin].map(String::from);
    let passed_on = ["--".to_owned()].into_iter().chain(args.args.iter().cloned());
    run(&mut cargo(program.into_iter().chain(backend_feature(&args.args)).chain(passed_on)))
}
