//! The demo itself: both comparisons, told and judged.

use std::fs;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::Result;
use crate::device::Device;
use crate::report::{Accuracy, Digits, Parity, Report};
use crate::table::Table;
use crate::world::Way;
use crate::{chart, digits, parity};

/// Ranks of the toy model, and those that learn digits, where the device leaves it to us.
const RANKS: NonZeroUsize = NonZeroUsize::new(4).unwrap();
const DIGITS_RANKS: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// What to run, and where results go.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ranks of the toy model, if it matters; with fewer than 2 there is nothing to compare.
    pub ranks: Option<NonZeroUsize>,
    /// What weights and data are drawn from.
    pub seed: u64,
    /// Where the picture goes.
    pub svg: PathBuf,
}

/// Runs both comparisons and tells what they find.
pub fn run(device: &impl Device, options: &Options, out: &mut dyn Write) -> Result<Report> {
    let ranks = match (device.world_size(), options.ranks) {
        (Some(there), Some(wanted)) if there != wanted => {
            return Err(format!("{wanted} ranks were asked for, and there are {there}").into());
        }
        (there, wanted) => there.or(wanted).unwrap_or(RANKS),
    };
    let parity = show_parity(device, ranks, options.seed, out)?;
    let digits = show_digits(device, options, out)?;
    let svg = std::path::absolute(&options.svg)?;
    writeln!(out, "  loss curves: {}\n", svg.display())?;
    Ok(Report { parity, digits, svg })
}

/// Tells the claims, true and false. The error names those that are false.
pub fn judge(report: &Report, out: &mut dyn Write) -> Result<()> {
    let claims = report.claims();
    for claim in &claims {
        writeln!(out, "  {} {}", if claim.holds { "holds:" } else { "FAILS:" }, claim.sentence)?;
    }
    let failed = claims.iter().filter(|claim| !claim.holds).count();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} claims failed", claims.len()).into()) }
}

fn show_parity(device: &impl Device, ranks: NonZeroUsize, seed: u64, out: &mut dyn Write) -> Result<Parity> {
    writeln!(
        out,
        "A toy model after 100 steps: one process, and {ranks} ranks of one sample (rank 0 is shown)\n"
    )?;
    let parity::Parity { rows, sync_vs_single, local_vs_single } = parity::compare(device, ranks, seed)?;
    write!(out, "{}", Table(&rows))?;
    let name = "largest difference";
    writeln!(out, "{name:<22}{:48}{local_vs_single:>16.1e}{sync_vs_single:>16.1e}\n", "")?;
    Ok(Parity { sync_vs_single, local_vs_single })
}

fn show_digits(device: &impl Device, options: &Options, out: &mut dyn Write) -> Result<Digits> {
    let ranks = device.world_size().unwrap_or(DIGITS_RANKS);
    let (steps, batch) = (digits::steps(ranks), digits::batch(ranks));
    let each = digits::SAMPLES;
    let last = match batch - each * (ranks.get() - 1) {
        more if more > each => format!(", the last of {more}"),
        _ => String::new(),
    };
    writeln!(
        out,
        "Hand-written digits, {steps} steps: one process, and {ranks} ranks of {each} samples{last}\n"
    )?;
    let bar = progress(device.speaks(), steps * Way::ALL.len())?;
    let outcomes = digits::compare(device, ranks, options.seed, || bar.inc(1))?;
    bar.finish_and_clear();

    let [single, local, sync] = &outcomes;
    for (way, outcome) in Way::ALL.iter().zip(&outcomes) {
        let last = outcome.curve.last().copied().unwrap_or(f64::NAN);
        writeln!(
            out,
            "  {:<14}test accuracy {:5.1} %   last loss {last:.4}",
            way.name(),
            100.0 * outcome.accuracy
        )?;
    }
    let curve_gap = digits::gap(&single.curve, &sync.curve);
    writeln!(out, "  largest difference of the loss at any step, synchronised and single: {curve_gap:.1e}")?;

    if device.speaks() {
        make_parent(&options.svg)?;
        chart::draw(&options.svg, (ranks, batch), [&single.curve, &local.curve, &sync.curve])?;
    }
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

/// A bar on standard output; nothing where that is no terminal, or another process speaks.
fn progress(speaks: bool, steps: usize) -> Result<ProgressBar> {
    let target = if speaks { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(steps as u64), target);
    Ok(bar.with_style(ProgressStyle::with_template("  {bar:50} {pos}/{len} steps, {eta} left")?))
}
