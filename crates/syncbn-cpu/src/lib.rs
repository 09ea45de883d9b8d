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
mod backward;
mod block;
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
mod vector;

use syncbn_core::backend::{
    BackwardArgs, ForwardArgs, GradInputArgs, GradSumsArgs, MomentsArgs, NormalizeArgs,
};
use syncbn_core::meeting::{backward_by_kernels, forward_by_kernels};
use syncbn_core::{Kernels, Meeting, PassError, Stage, bf16, f16};

pub use array::{ArrayGradients, backward_array, channels_last, channels_last_mut, forward_array};
pub use error::CpuError;
pub use memory::Workspace;

/// The processor that the program runs on. Its queue is `()`: a kernel has done its work when it returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu;

macro_rules! kernels {
    ($($type:ty),*) => {$(
        impl Kernels<$type> for Cpu {
            fn moments(&self, (): &(), args: MomentsArgs<'_, Self, $type>) -> Result<(), CpuError> {
                moments::moments(args)
            }

            fn normalize(&self, (): &(), args: NormalizeArgs<'_, Self, $type>) -> Result<(), CpuError> {
                normalize::normalize(args)
            }

            fn grad_sums(&self, (): &(), args: GradSumsArgs<'_, Self, $type>) -> Result<(), CpuError> {
                grad_sums::grad_sums(args)
            }

            fn grad_input(&self, (): &(), args: GradInputArgs<'_, Self, $type>) -> Result<(), CpuError> {
                grad_input::grad_input(args)
            }

            fn forward(
                &self,
                (): &(),
                args: ForwardArgs<'_, Self, $type>,
                meeting: Meeting<'_, Self>,
            ) -> Result<(), PassError<CpuError>> {
                match (meeting, forward::blocks(&args)) {
                    (Meeting::Alone, Some(blocks)) => {
                        forward::alone(args, blocks).map_err(PassError::at(Stage::Normalize))
                    }
                    (meeting, _) => forward_by_kernels(self, &(), args, meeting),
                }
            }

            fn backward(
                &self,
                (): &(),
                args: BackwardArgs<'_, Self, $type>,
                meeting: Meeting<'_, Self>,
            ) -> Result<(), PassError<CpuError>> {
                match (meeting, backward::blocks(&args)) {
                    (Meeting::Alone, Some(blocks)) => {
                        backward::alone(args, blocks).map_err(PassError::at(Stage::GradInput))
                    }
                    (meeting, _) => backward_by_kernels(self, &(), args, meeting),
                }
            }
        }
    )*};
}

kernels!(f32, f64, f16, bf16);
