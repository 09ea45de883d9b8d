//! The demo itself: both comparisons, printed and judged.
//!
//! Deliberately not here: the command line.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::Result;
use crate::device::Device;
use crate::report::{Accuracy, Digits, Parity, Report};
use crate::table::Table;
use crate::world::Way;
use crate::{chart, digits, parity};

/// What to run, and where results go.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ranks of the toy model; with fewer than 2 there is nothing to compare.
    pub ranks: NonZeroUsize,
    /// What weights and data are drawn from.
    pub seed: u64,
    /// Where the picture goes.
    pub svg: PathBuf,
}

/// Runs both comparisons and prints what they find.
pub fn run(device: &impl Device, options: &Options) -> Result<Report> {
    let parity = show_parity(device, options)?;
    let digits = show_digits(device, options)?;
    let svg = fs::canonicalize(&options.svg)?;
    println!("  loss curves: {}\n", svg.display());
    Ok(Report { parity, digits, svg })
}

/// Prints the claims, true and false. The error names those that are false.
pub fn judge(report: &Report) -> Result<()> {
    let claims = report.claims();
    for claim in &claims {
        println!("  {} {}", if claim.holds { "holds:" } else { "FAILS:" }, claim.sentence);
    }
    let failed = claims.iter().filter(|claim| !claim.holds).count();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} claims failed", claims.len()).into()) }
}

fn show_parity(device: &impl Device, options: &Options) -> Result<Parity> {
    println!(
        "A toy model after 100 steps: one process, and {} ranks of one sample (rank 0 is shown)\n",
        options.ranks
    );
    let parity::Parity { rows, sync_vs_single, local_vs_single } =
        parity::compare(device, options.ranks, options.seed)?;
    print!("{}", Table(&rows));
    let name = "largest difference";
    println!("{name:<22}{:48}{local_vs_single:>16.1e}{sync_vs_single:>16.1e}\n", "");
    Ok(Parity { sync_vs_single, local_vs_single })
}

fn show_digits(device: &impl Device, options: &Options) -> Result<Digits> {
    println!(
        "Hand-written digits, {} steps: one process, and {} ranks of two samples\n",
        digits::STEPS,
        digits::RANKS
    );
    let bar = progress(digits::STEPS * Way::ALL.len())?;
    let outcomes = digits::compare(device, options.seed, || bar.inc(1))?;
    bar.finish_and_clear();

    let [single, local, sync] = &outcomes;
    for (way, outcome) in Way::ALL.iter().zip(&outcomes) {
        let last = outcome.curve.last().copied().unwrap_or(f64::NAN);
        println!(
            "  {:<14}test accuracy {:5.1} %   last loss {last:.4}",
            way.name(),
            100.0 * outcome.accuracy
        );
    }
    let curve_gap = digits::gap(&single.curve, &sync.curve);
    println!("  largest difference of the loss at any step, synchronised and single: {curve_gap:.1e}");

    make_parent(&options.svg)?;
    chart::draw(&options.svg, [&single.curve, &local.curve, &sync.curve])?;
    let accuracy = Accuracy { single: single.accuracy, local: local.accuracy, sync: sync.accuracy };
    Ok(Digits { accuracy, curve_gap })
}

/// Makes the folder that the file goes to.
pub fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => Ok(fs::create_dir_all(parent)?),
        None => Ok(()),
    }
}

/// A bar on standard output; nothing where that is no terminal.
fn progress(steps: usize) -> Result<ProgressBar> {
    let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stdout());
    Ok(bar.with_style(ProgressStyle::with_template("  {bar:50} {pos}/{len} steps, {eta} left")?))
}
