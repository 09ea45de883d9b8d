//! Joins directories of results into `table.md` and one chart for each device, and prints the table.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use syncbn_bench::report;
use syncbn_bench::results::Run;

/// Joins directories of results into one table and a chart for each device.
#[derive(Parser)]
struct Arguments {
    /// Directories with `results.json` and `meta.json`, ours and the peers'.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where the table and the charts go.
    #[arg(long, default_value = "target/bench/report")]
    out: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runs = arguments.runs.iter().map(|directory| Run::read(directory)).collect::<Result<Vec<_>, _>>()?;
    let table = report::write(&report::join(runs)?, &arguments.out)?;
    println!("{table}");
    println!("wrote table.md and charts to {}", arguments.out.display());
    Ok(())
}
