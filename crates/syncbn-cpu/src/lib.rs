#![doc = include_str!("../README.md")]
//!
//! # Design
//!
//! - **Two loops serve four kernels.** `moments` and `grad_sums` are two sums per channel (`reduce`); `normalize` and
//!   `grad_input` are one output element per element (`map`). Each runs along a plane, or across channels where a channel's
//!   neighbours are few; which of the two is `plan`'s to say, and nothing asks for a tensor's layout.
//! - **Everything is computed in `f64`**, whatever the type of the activations: memory is what limits these kernels.
//! - **Cuts depend on the shape alone** (`plan`), and their results are merged in order: any number of threads gives
//!   the same bits.
//! - **Loops over vectors of eight, compiled once per instruction set** (`vector`): every set gives the same bits, but for
//!   which NaN, since none fuses operations or has an order of its own.
//! - **Large tensors are worked on by one pool of the backend's own** (`pool`), which all ranks of a process share; small ones by
//!   the calling thread. The pool's threads never wait, so every kernel ends, whatever pool the caller is in. A rank
//!   should be a thread of the operating system all the same: it waits for its peers in a collective.
//!
//! Deliberately not here: the order of steps, running averages' formulas and errors about arguments, which are core's.

#![forbid(unsafe_code)]
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
