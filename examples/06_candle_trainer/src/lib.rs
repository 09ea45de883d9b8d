//! A data-parallel trainer in candle, with batch norm over all ranks: what a user of syncbn-candle writes.
//!
//! - [`trainer`] is the training loop of a rank; [`world`] is where the ranks are, [`resnet`] the network, [`sgd`] the optimiser, [`data`]
//!   the samples, [`checkpoint`] what a run is continued from.
//! - [`demo`] trains on one process, on ranks with local batch norm and on ranks with synchronised batch norm, and judges what comes
//!   out; [`chart`] draws it, [`parity`] and [`speed`] are its other measurements.

pub mod chart;
pub mod checkpoint;
pub mod data;
pub mod demo;
pub mod parity;
pub mod resnet;
pub mod sgd;
pub mod speed;
pub mod trainer;
pub mod world;

/// The failure of any part, in words.
pub type Result<R> = std::result::Result<R, Box<dyn std::error::Error + Send + Sync>>;
