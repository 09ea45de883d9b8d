//! The demo's command line. It exits with a failure when one of the demo's claims does not hold.
//!
//! Deliberately not here: what is run.

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use syncbn_examples::{Result, demo, device};

/// Batch norm on one process, on local ranks and on synchronised ranks, side by side.
#[derive(Parser)]
struct Args {
    /// Ranks of the toy model, each a thread with one sample; at least 2.
    #[arg(long, default_value = "4", value_parser = at_least_two)]
    ranks: NonZeroUsize,
    /// Writes what was found to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the picture of the loss curves to this file.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/demo/loss.svg"))]
    svg: PathBuf,
    /// What weights and data are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let Args { ranks, json, svg, seed } = args;
    let report = demo::run(&device::Host, &demo::Options { ranks, seed, svg })?;
    if let Some(path) = json {
        demo::make_parent(&path)?;
        fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    demo::judge(&report)
}

fn at_least_two(text: &str) -> Result<NonZeroUsize> {
    let ranks: NonZeroUsize = text.parse()?;
    if ranks.get() >= 2 { Ok(ranks) } else { Err("one rank has nothing to synchronise with".into()) }
}
