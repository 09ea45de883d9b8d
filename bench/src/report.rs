//! Joins runs of one device, ours and the peers', line by line.

mod chart;
mod means;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::results::{Meta, Row, Run, at};

/// The name of our path with its collective in the results: what ratios are taken of.
const OURS: &str = "syncbn";

/// Peers that normalise one device's batch, and so have less to do.
const LOCAL_PEERS: [&str; 3] = ["cudnn", "inductor", "torch-cpu"];

/// What runs measured on one device.
#[derive(Debug)]
pub struct Comparison {
    device: String,
    sources: Vec<Meta>,
    lines: Vec<Line>,
}

/// One operation on one tensor, by all who did it.
#[derive(Debug)]
struct Line {
    what: What,
    by: BTreeMap<String, Row>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct What {
    op: String,
    dtype: String,
    layout: String,
    shape: String,
}

impl What {
    fn of(row: &Row) -> Self {
        let Row { op, dtype, layout, shape, .. } = row.clone();
        Self { op, dtype, layout, shape }
    }

    /// The bytes of x.
    fn bytes(&self) -> f64 {
        let element = match self.dtype.as_str() {
            "f16" | "bf16" => 2.0,
            "f64" => 8.0,
            _ => 4.0,
        };
        self.shape.split('x').filter_map(|size| size.parse::<f64>().ok()).product::<f64>() * element
    }
}

impl Line {
    fn time(&self, implementation: &str) -> Option<f64> {
        self.by.get(implementation).map(|row| row.median_us)
    }

    /// How often the time of a copy of x, as it was measured in the same run.
    fn over_copy(&self, implementation: &str) -> Option<f64> {
        let row = self.by.get(implementation)?;
        row.copy_us.map(|copy| row.median_us / copy)
    }

    /// How often our time a peer takes.
    fn over_ours(&self, peer: &str) -> Option<f64> {
        Some(self.time(peer)? / self.time(OURS)?)
    }

    /// How often our time the best of the local peers takes.
    fn best_local_over_ours(&self) -> Option<f64> {
        LOCAL_PEERS.iter().filter_map(|peer| self.over_ours(peer)).min_by(f64::total_cmp)
    }

    /// Our copy of x, or whose there is.
    fn copy(&self) -> Option<f64> {
        self.by.get(OURS).or_else(|| self.by.values().next())?.copy_us
    }
}

impl Comparison {
    /// Who is in it: ours first, then the others by name.
    fn implementations(&self) -> Vec<&str> {
        let mut names: Vec<_> =
            self.lines.iter().flat_map(|line| line.by.keys().map(String::as_str)).collect();
        names.sort_by_key(|&name| (name != OURS, name != "solo", name));
        names.dedup();
        names
    }
}

/// Joins the runs by device. The same measurement in two runs is an error: which would hold?
pub fn join(runs: Vec<Run>) -> Result<Vec<Comparison>> {
    let mut comparisons: Vec<Comparison> = Vec::new();
    for Run { meta, rows } in runs {
        let known = comparisons.iter().position(|comparison| comparison.device == meta.device);
        let at = known.unwrap_or_else(|| {
            comparisons.push(Comparison { device: meta.device.clone(), sources: vec![], lines: vec![] });
            comparisons.len() - 1
        });
        comparisons[at].sources.push(meta);
        for row in rows {
            add(&mut comparisons[at].lines, row)?;
        }
    }
    Ok(comparisons)
}

fn add(lines: &mut Vec<Line>, row: Row) -> Result<()> {
    let what = What::of(&row);
    let at = lines.iter().position(|line| line.what == what).unwrap_or_else(|| {
        lines.push(Line { what, by: BTreeMap::new() });
        lines.len() - 1
    });
    let before = lines[at].by.insert(row.implementation.clone(), row);
    if let Some(Row { implementation, op, dtype, layout, shape, .. }) = before {
        ensure!(false, "measured twice: {implementation}, {op} of {dtype} {layout} {shape}");
    }
    Ok(())
}

/// Writes `table.md`, and a chart for each device, into a directory; returns the table.
pub fn write(comparisons: &[Comparison], directory: &Path) -> Result<String> {
    fs::create_dir_all(directory).map_err(at(directory))?;
    let mut text = String::new();
    for comparison in comparisons {
        let name = format!("chart-{}.svg", slug(&comparison.device));
        chart::draw(&directory.join(&name), comparison)?;
        text += &table::markdown(comparison, &name);
    }
    let path = directory.join("table.md");
    fs::write(&path, &text).map_err(at(&path))?;
    Ok(text)
}

/// A device's name as part of a file's.
fn slug(device: &str) -> String {
    let words = device.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}
