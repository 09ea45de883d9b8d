//! The files that a run leaves: `results.json`, the figures, and `meta.json`, what made them.
//!
//! The peers' scripts write the same two.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::shapes::Case;
use crate::timing::Times;

/// One figure: how long an implementation took for an operation on a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Who did it: `syncbn` (with its collective), `solo` (without), or a peer's name.
    #[serde(rename = "impl")]
    pub implementation: String,
    /// `forward` or `backward`, the device's time; `forward_host` or `backward_host`, the host's time to enqueue it;
    /// `forward_wall` or `backward_wall`, the time until the device has done it, for one of several ranks.
    pub op: String,
    /// `f16`, `bf16`, `f32` or `f64`.
    pub dtype: String,
    /// `nchw` or `nhwc`.
    pub layout: String,
    /// The shape (N, C, *spatial), such as `2x64x256x512`.
    pub shape: String,
    /// The median, in microseconds.
    pub median_us: f64,
    /// The least, in microseconds.
    pub min_us: f64,
    /// The median of a copy of x, measured beside it: the floor. Host times have none.
    pub copy_us: Option<f64>,
}

impl Row {
    /// The row of these times.
    #[must_use]
    pub fn new(implementation: &str, op: &str, case: &Case, times: Times, copy: Option<Times>) -> Self {
        Self {
            implementation: implementation.to_owned(),
            op: op.to_owned(),
            dtype: case.dtype.to_string(),
            layout: case.layout_name().to_owned(),
            shape: case.shape_name(),
            median_us: times.median_us,
            min_us: times.min_us,
            copy_us: copy.map(|copy| copy.median_us),
        }
    }
}

/// What made the figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The device's name; figures are compared where it is the same.
    pub device: String,
    /// What else there is to say about the machine: threads, memory.
    pub machine: String,
    /// The versions of what was measured and of what it needs: library, driver, runtime.
    pub versions: BTreeMap<String, String>,
    /// The day of the run, in UTC: `2026-11-24`.
    pub date: String,
}

impl Meta {
    /// A run of today, with syncbn's own version.
    #[must_use]
    pub fn today(device: String, machine: String) -> Self {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let versions = BTreeMap::from([("syncbn".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
        Self { device, machine, versions, date: now.chars().take_while(|&c| c != 'T').collect() }
    }
}

/// A run: what made it, and its figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// What made the figures.
    pub meta: Meta,
    /// The figures.
    pub rows: Vec<Row>,
}

impl Run {
    /// Writes both files into a directory, which is made if it is not there.
    pub fn write(&self, directory: &Path) -> Result<(), FileError> {
        fs::create_dir_all(directory).map_err(at(directory))?;
        write(&directory.join("results.json"), &self.rows)?;
        write(&directory.join("meta.json"), &self.meta)
    }

    /// Reads both files of a directory.
    pub fn read(directory: &Path) -> Result<Self, FileError> {
        Ok(Self { meta: read(&directory.join("meta.json"))?, rows: read(&directory.join("results.json"))? })
    }
}

fn write<V: Serialize>(path: &Path, value: &V) -> Result<(), FileError> {
    let mut text = serde_json::to_string_pretty(value).map_err(json(path))?;
    text.push('\n');
    fs::write(path, text).map_err(at(path))
}

fn read<V: DeserializeOwned>(path: &Path) -> Result<V, FileError> {
    let text = fs::read_to_string(path).map_err(at(path))?;
    serde_json::from_str(&text).map_err(json(path))
}

/// A file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system says no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It does not hold what it should.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: serde_json::Error,
    },
}

/// Names the path in an error of the file system.
pub fn at(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io { path: path.to_owned(), source }
}

fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> FileError {
    move |source| FileError::Json { path: path.to_owned(), source }
}
