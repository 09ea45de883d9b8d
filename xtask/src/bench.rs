//! `cargo xtask bench` and `cargo xtask bench-report`: build the bench with optimisation and run it where the caller is.

use anyhow::Result;

use crate::cargo::{backend_feature, cargo, run};

/// What is passed on to the bench.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run_bench(args: &Args) -> Result<()> {
    run_bin("--bin=syncbn-bench", args)
}

pub(crate) fn run_report(args: &Args) -> Result<()> {
    run_bin("--bin=bench-report", args)
}

fn run_bin(bin: &str, args: &Args) -> Result<()> {
    let bench = ["run", "--quiet", "--locked", "--release", "--package=syncbn-bench", bin].map(String::from);
    let passed_on = ["--".to_owned()].into_iter().chain(args.args.iter().cloned());
    run(&mut cargo(bench.into_iter().chain(backend_feature(&args.args)).chain(passed_on)))
}
