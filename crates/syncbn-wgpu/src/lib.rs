#![doc = include_str!("../README.md")]
//!
//! # The code
//!
//! ```text
//! moments -> statistics -> normalize         forward; a communicator's sum comes between the first two
//! grad_sums -> gradient_terms -> grad_input  backward; and here between the last two
//! ```
//!
//! `statistics` and `gradient_terms` work on a few numbers per channel. They are separate launches because WGSL has no fence between
//! workgroups. A shader is put together from parts, according to the type of the activations, the width of loads and the layout (see
//! `module`).
//!
//! Deliberately not here: autograd, subgroup operations, and `f64` activations.

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

mod backend;
mod copy;
mod device;
pub mod error;
mod gpu;
mod grad_input;
mod grad_sums;
mod gradient_terms;
mod lost;
mod memory;
mod message;
mod module;
mod moments;
mod normalize;
mod pairs;
mod params;
mod plan;
mod probe;
mod queue;
mod scope;
mod statistics;
mod workspace;

pub use device::Wgpu;
pub use error::WgpuError;
pub use memory::{Buffer, Mem, MemMut};
pub use queue::Queue;
pub use wgpu;
pub use workspace::{Saved, Workspace};
