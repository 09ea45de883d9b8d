//! Synchronised batch normalisation: the mathematics, the layer, and what a device and a network must be able to do.
//!
//! Batch norm (S. Ioffe, C. Szegedy, "Batch Normalization", 2015) takes mean and variance over the samples of a batch.
//! When each device holds only a few samples, those statistics are noise; synchronised batch norm takes them over the
//! samples of all devices. Per channel, with m the elements of a rank and M those of all ranks:
//!
//! ```text
//! forward   m, mean, M2 of this rank's x          one pass over x
//!           all_reduce_sum [m | m mean | M2 + m mean^2]            2 C + 1 numbers of f64
//!           mean = S1/M   var = S2/M - mean^2   invstd = 1/sqrt(var + eps)
//!           y = (x - mean) invstd weight + bias
//!           running_mean <- (1-a) running_mean + a mean
//!           running_var  <- (1-a) running_var  + a var M/(M-1)
//!
//! backward  sum_dy, sum_dy_xmu = sum dy (x - mean)        one pass over x and dy
//!           d_bias = sum_dy   d_weight = sum_dy_xmu invstd         this rank's
//!           all_reduce_sum [sum_dy | sum_dy_xmu]                   2 C numbers of f64
//!           dx = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M)
//! ```
//!
//! The message does not grow with the number of ranks, and counts weigh the ranks: batches may be uneven or empty.
//!
//! # Two levels
//!
//! [`SyncBatchNorm`] owns its parameters and running statistics. Below it, [`forward()`], [`recompute()`] and
//! [`backward()`] work on borrowed memory, for frameworks that own the parameters themselves.
//!
//! # Two traits
//!
//! A [`Backend`] is four [`Kernels`]; a [`Communicator`] is one sum. Their documentation says how to write another.
//!
//! Deliberately not here: any device, any network, any array library.

#![forbid(unsafe_code)]

pub mod backend;
pub mod backward;
pub mod communicator;
pub mod config;
pub mod error;
pub mod forward;
pub mod geometry;
pub mod layer;
#[cfg(feature = "safetensors")]
mod safetensors;
pub mod scalar;
pub mod site;
pub mod state;
pub mod statistics;
pub mod view;

pub use half::{bf16, f16};

pub use backend::{Backend, Kernels, Pass, RunningMut, Storage};
pub use backward::{Backward, Gradients, backward};
pub use communicator::{Call, CommError, CommErrorKind, Communicator, HostCommunicator, Solo, Staged};
pub use config::{Config, ConfigError};
pub use error::{Error, ErrorKind, Operation, Stage, Tensor};
pub use forward::{Forward, Recompute, Saved, Scope, Statistics, forward, recompute};
pub use geometry::{Geometry, Layout, MAX_AXES, Shape, ShapeError};
pub use layer::{ParamGradients, SyncBatchNorm};
pub use scalar::{Dtype, Element, Param, Scalar};
pub use site::{LayerTag, Site, Sums};
pub use state::{
    Change, Checkpoint, FileDtype, Framework, LayerEntry, LayerTensor, Loaded, NamedTensor, State, StateError,
};
pub use view::{IntoView, IntoViewMut, View, ViewMut};
