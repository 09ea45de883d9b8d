//! The demo: batch norm on one process, on several ranks locally, and on several ranks synchronised, side by side.
//!
//! - [`demo`] runs both comparisons, prints them, and judges its claims: [`parity`] trains a toy model for a hundred steps,
//!   [`digits`] a small network on real data.
//! - [`accuracy`] measures how exact the results over several ranks are.
//! - Below them: [`world`] starts the ranks, [`network`] trains on one of them,
//!   [`layers`] is what networks are made of, [`device`] is where batch norm runs and how ranks meet (`cuda` and `wgpu` have it for GPUs, behind the features of their names).
//! - [`difference`], [`table`], [`chart`] and [`report`] say what came out.
//!
//! Everything but batch norm is the least that a training loop needs, in host memory; batch norm runs on any backend.

pub mod accuracy;
pub mod chart;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod demo;
pub mod device;
pub mod difference;
pub mod digits;
pub mod layers;
pub mod network;
pub mod parity;
pub mod processes;
pub mod report;
pub mod table;
#[cfg(feature = "wgpu")]
pub mod wgpu;
pub mod world;

/// The failure of any part, in words.
pub type Result<R> = std::result::Result<R, Box<dyn std::error::Error + Send + Sync>>;
