//! Measures every backend of syncbn the same way, and joins the figures with its peers'.
//!
//! ```text
//! shapes.txt -> shapes -> measure (a backend's Device: cpu, wgpu) -> results.json, meta.json
//!                                                peers/*.py -> results.json, meta.json
//! all of them -> report (join, means) -> table.md, chart.svg
//! ```
//!
//! What is timed is what users call: a layer's `forward` and `backward`, with a communicator in the middle.

#![deny(unsafe_code)]

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod measure;
pub mod report;
pub mod results;
pub mod shapes;
pub mod step;
pub mod timing;
#[cfg(feature = "wgpu")]
pub mod wgpu;
