#![doc = include_str!("../README.md")]
//!
//! # Map
//!
//! `layer` is the layer, `op` one use of it in candle's graph, `passes` the kernels' calls, `running` the running statistics. `device`
//! is what they need of a device's memory, which `cpu` and `cuda` have. `gradients` and `state` are what a data-parallel trainer needs
//! besides.
//!
//! Deliberately not here: kernels, which are the backends', and models.

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

mod config;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod digest;
mod error;
mod gradients;
mod group;
mod layer;
mod memory;
mod op;
mod passes;
mod running;
mod state;
mod sum;
mod value;

pub use config::SyncBatchNormConfig;
pub use error::{Difference, Error};
pub use gradients::{Reduction, all_reduce_gradients};
pub use group::Group;
pub use layer::{EvalBatchNorm, SyncBatchNorm, sync_batch_norm};
pub use op::Saved;
pub use state::{broadcast_state, check_state, sorted_vars};
