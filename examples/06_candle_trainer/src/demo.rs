//! The three ways of training side by side, and the claims that are made of them.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::data::{Data, digits};
use crate::speed::{SHAPES, Times};
use crate::trainer::{Outcome, Settings, Way, train};
use crate::{Result, chart, parity, speed};

/// The whole report, as the JSON that is written.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was found.
    pub candle: Found,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The part of the test samples that is classified rightly after the last epoch.
    pub accuracy: Accuracy,
    /// The largest relative difference of a variable after 200 steps in `f64` between two ranks and one process.
    pub parity: f64,
    /// candle's time over ours, `f32` of 8 x 64 x 56 x 56.
    pub speed: Speed,
    /// Times of all shapes.
    pub times: Vec<Times>,
    /// How long the three trainings took, in seconds.
    pub training_seconds: f64,
    /// The picture.
    pub svg: PathBuf,
}

/// The same for each way of training, 0 to 1.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)] // each is its own name
pub struct Accuracy {
    pub single: f64,
    pub local: f64,
    pub sync: f64,
}

/// candle's time over ours.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)] // each is its own name
pub struct Speed {
    pub forward: f64,
    pub backward: f64,
}

/// Trains in the three ways, measures, and tells what it finds.
pub fn run(settings: &Settings, svg: &Path, out: &mut dyn Write) -> Result<Report> {
    let (start, data) = (Instant::now(), digits(settings.dtype)?);
    let mut outcomes = Vec::new();
    for way in [Way::Single, Way::Local, Way::Sync] {
        let outcome = with_progress(&Settings { way, ..settings.clone() }, &data)?;
        let last = outcome.accuracies.last().copied().ok_or("no epoch was trained")?;
        writeln!(out, "  {:<30} accuracy {:5.1} %", describe(way, settings), 100.0 * last)?;
        outcomes.push((outcome, last));
    }
    let training_seconds = start.elapsed().as_secs_f64();
    let [(single, a), (local, b), (sync, c)] = &outcomes[..] else {
        return Err("three ways were trained".into());
    };
    if let Some(parent) = svg.parent() {
        fs::create_dir_all(parent)?;
    }
    chart::draw(svg, [single, local, sync])?;
    let parity = parity::largest_difference()?;
    let times = SHAPES.map(|shape| speed::measure(shape, 5)).into_iter().collect::<Result<Vec<_>>>()?;
    show_times(&times, out)?;
    let [forward, backward] = times.first().ok_or("no shape was measured")?.ratios();
    let (accuracy, speed) = (Accuracy { single: *a, local: *b, sync: *c }, Speed { forward, backward });
    let svg = std::path::absolute(svg)?;
    writeln!(out, "  picture: {}\n", svg.display())?;
    Ok(Report { candle: Found { accuracy, parity, speed, times, training_seconds, svg } })
}

fn describe(way: Way, settings: &Settings) -> String {
    let (ranks, samples) = (settings.world.size(), settings.samples);
    match way {
        Way::Single => format!("one process with {}", samples * ranks.get()),
        Way::Candle => format!("{ranks} ranks with {samples}, candle's own"),
        Way::Local => format!("{ranks} ranks with {samples}, local"),
        Way::Sync => format!("{ranks} ranks with {samples}, synchronised"),
    }
}

/// Trains with a progress bar of loss and images per second, where standard output is a terminal.
pub fn with_progress(settings: &Settings, data: &Data) -> Result<Outcome> {
    let shows = settings.world.speaks() && io::stdout().is_terminal();
    let target = if shows { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(ProgressStyle::with_template("  {msg} {wide_bar} {pos}/{len} steps, {eta}")?);
    let batch = settings.samples * settings.world.size().get();
    let (start, way) = (Instant::now(), format!("{:?}", settings.way).to_lowercase());
    let outcome = train(settings, data, |progress| {
        let (step, steps) = progress.step;
        bar.set_length(steps as u64);
        bar.set_position(step as u64 + 1);
        let images = (batch * bar.position() as usize) as f64 / start.elapsed().as_secs_f64();
        bar.set_message(format!("{way:<6} loss {:.3}, {images:.0} images/s", progress.loss));
    })?;
    bar.finish_and_clear();
    Ok(outcome)
}

/// Tells times, and what candle adds to ours.
pub fn show_times(times: &[Times], out: &mut dyn Write) -> Result<()> {
    writeln!(
        out,
        "\n  ms, f32             candle_nn   syncbn-candle   on slices    candle_nn over ours   added to slices"
    )?;
    for times in times {
        for (at, pass) in ["forward", "backward"].into_iter().enumerate() {
            let Times { shape, candle, ours, slices } = times;
            let shape = shape.map(|size| size.to_string()).join("x");
            writeln!(
                out,
                "  {shape:<13} {pass:<8} {:>7.1} {:>15.2} {:>11.2} {:>20.1} x {:>15.2}",
                candle[at],
                ours[at],
                slices[at],
                times.ratios()[at],
                times.added()[at]
            )?;
        }
    }
    Ok(writeln!(out)?)
}

impl Found {
    /// What the demo sets out to show, and whether it holds. A comparison with a NaN is false, so that a NaN holds no claim.
    #[must_use]
    pub fn claims(&self) -> Vec<(String, bool)> {
        let Self { accuracy: Accuracy { single, local, sync }, parity, speed, training_seconds, .. } = self;
        let percent = |part: &f64| format!("{:.1} %", 100.0 * part);
        let (of_single, of_local, of_sync) = (percent(single), percent(local), percent(sync));
        vec![
            (
                format!(
                    "synchronised ranks are as accurate as one process, to 1 %: {of_sync} and {of_single}"
                ),
                single - sync <= 0.01,
            ),
            (format!("local ranks are at least 5 % below: {of_local}"), single - local >= 0.05),
            (
                format!("after 200 steps in f64 two ranks are one process, to 1e-12: {parity:.1e}"),
                *parity <= 1e-12,
            ),
            (
                format!("forward is at least 3 times as fast as candle_nn: {:.1}", speed.forward),
                speed.forward >= 3.0,
            ),
            (
                format!("backward is at least 12 times as fast as candle_nn: {:.1}", speed.backward),
                speed.backward >= 12.0,
            ),
            (
                format!("the trainings take less than five minutes: {training_seconds:.0} s"),
                *training_seconds < 300.0,
            ),
        ]
    }
}

/// Tells the claims, true and false. The error says how many are false.
pub fn judge(report: &Report, out: &mut dyn Write) -> Result<()> {
    let claims = report.candle.claims();
    for (sentence, holds) in &claims {
        writeln!(out, "  {} {sentence}", if *holds { "holds:" } else { "FAILS:" })?;
    }
    let failed = claims.iter().filter(|(_, holds)| !holds).count();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} claims failed", claims.len()).into()) }
}
