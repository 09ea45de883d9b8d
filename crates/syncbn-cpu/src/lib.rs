#![doc = include_str!("../README.md")]
//!
//! # Design
//!
//! - **Two loops serve four kernels.** `moments` and `grad_sums` are two sums per channel (`reduce`); `normalize` and
//!   `grad_input` are one output element per element (`map`). Each runs along a plane, or across channels where planes are short.
//!   `plan` decides which, from the sizes alone.
//! - **Everything is computed in `f64`**, whatever the type of the activations: memory is what limits these kernels.
//! - **How a tensor is cut for sums depends on its shape alone** (`plan`), and the parts are merged in order: any number of threads
//!   gives the same bits.
//! - **Loops over vectors of eight, compiled once per instruction set** (`vector`): every set gives the same bits, except which
//!   NaN a NaN is, since none fuses operations and all add in the same order.
//! - **A group of one rank takes whole passes** (`forward`, `backward`): a block of channels at a time (`block`), while it is in the
//!   cache.
//! - **Large tensors are worked on by one pool of the backend's own** (`pool`), which all ranks of a process share; small ones by
//!   the calling thread. The pool's threads never wait, so every kernel ends, whatever pool the caller is in. A rank
//!   should be a thread of the operating system all the same: it waits for its peers in a collective.
//!
//! The order of steps, the formulas of running averages and errors about arguments are core's.

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]
// The inner loops have to be compiled inside the function that has the vector instructions.
#![allow(clippy::inline_always)]

mod array;
mod backend;
mod backward;
mod block;
mod device;
mod error;
mod forward;
mod grad_input;
mod grad_sums;
mod map;
mod memory;
mod moments;
mod normalize;
mod number;
mod plan;
mod pool;
mod prefetch;
mod reduce;
mod slice;
#[cfg(test)]
mod tests;
mod vector;
mod workspace;

pub use array::{ArrayGradients, backward_array, channels_last, channels_last_mut, forward_array};
pub use device::Cpu;
pub use error::CpuError;
pub use workspace::Workspace;
