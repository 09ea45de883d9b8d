//! `cargo xtask demo` and `cargo xtask accuracy`: build a program of the examples and run it where the caller is.

use anyhow::{Result, ensure};

use crate::cargo::{backend_feature, cargo, run};

/// What is passed on to the program.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run_demo(args: &Args) -> Result<()> {
    let Some((framework, others)) = framework(&args.args) else { return run_bin("--bin=demo", args) };
    ensure!(framework == "candle", "no framework `{framework}`, expected candle");
    let program = ["run", "--quiet", "--locked", "--package=candle-trainer", "--", "demo"].map(String::from);
    run(&mut cargo(program.into_iter().chain(others)))
}

/// What `--framework` names, and the arguments without it.
fn framework(args: &[String]) -> Option<(String, Vec<String>)> {
    const NAME: &str = "--framework";
    let at = args.iter().position(|arg| arg.split('=').next() == Some(NAME))?;
    let mut others = args.to_vec();
    let arg = others.remove(at);
    let named = match arg.split_once('=') {
        Some((_, named)) => named.to_owned(),
        None if at < others.len() => others.remove(at),
        None => String::new(),
    };
    Some((named, others))
}

pub(crate) fn run_accuracy(args: &Args) -> Result<()> {
    run_bin("--bin=accuracy", args)
}

fn run_bin(bin: &str, args: &Args) -> Result<()> {
    let program = ["run", "--quiet", "--locked", "--package=syncbn-examples", bin].map(String::from);
    let passed_on = ["--".to_owned()].into_iter().chain(args.args.iter().cloned());
    run(&mut cargo(program.into_iter().chain(backend_feature(&args.args)).chain(passed_on)))
}
