//! Synchronised batch normalisation: the mathematics, the layers, and the traits of backends and communicators.
//!
//! Use it with a backend, such as `syncbn-cpu` or `syncbn-cuda`. The repository's README shows whole programs.
//!
//! Batch norm (S. Ioffe, C. Szegedy, "Batch Normalization", 2015) takes mean and variance over the samples of a batch.
//! When each device holds only a few samples, those statistics are noisy; synchronised batch norm takes them over the
//! samples of all devices. Per channel, with m the number of elements on a rank and M that on all ranks:
//!
//! ```text
//! forward   m, mean, M2 of this rank's x          one pass over x
//!           sum over the ranks of [m | m mean | M2 + m mean^2]     a few numbers of f64 per channel
//!           mean = S1/M   var = S2/M - mean^2   invstd = 1/sqrt(var + eps)
//!           y = (x - mean) invstd weight + bias
//!           running_mean <- (1-a) running_mean + a mean
//!           running_var  <- (1-a) running_var  + a var M/(M-1)
//!
//! backward  sum_dy, sum_dy_xmu = sum dy (x - mean)        one pass over x and dy
//!           d_bias = sum_dy   d_weight = sum_dy_xmu invstd         this rank's
//!           sum over the ranks of [sum_dy | sum_dy_xmu]            2 C numbers of f64
//!           dx = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M)
//! ```
//!
//! The length of the message does not depend on the number of ranks. Ranks are weighted by their counts, so batches may be uneven or
//! empty. The forward sums are sent in parts whose sums are exact ([`statistics`]), so that the variance over many ranks is as exact as
//! over one.
//!
//! # Where to start
//!
//! | you want to | read |
//! |---|---|
//! | use a layer with parameters of its own | [`SyncBatchNorm`] |
//! | write an adapter for a framework that owns its tensors and parameters | [`functional`], [`FunctionalBatchNorm`] |
//! | describe a tensor | [`View`], [`ViewMut`], [`Geometry`] |
//! | join ranks | [`Group`], [`ViaHost`], [`SingleRank`] |
//! | read and write checkpoints | [`state`], [`Checkpoint`] |
//! | handle a failure | [`Error`], [`ErrorKind`], [`CommError`] |
//! | write a backend | [`backend`], whose text is the contract and whose example is the first reading |
//! | write a communicator | [`HostCommunicator`], [`Communicator`] |
//!
//! Deliberately not here: any device, any network, any array library.

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

pub mod backend;
mod collective;
pub mod communicator;
pub mod config;
mod context;
mod double;
pub mod error;
pub mod functional;
pub mod geometry;
mod group;
mod host;
pub mod host_memory;
pub mod kernels;
pub mod layer;
pub mod meeting;
mod membership;
mod message;
#[cfg(feature = "safetensors")]
mod safetensors;
pub mod saved;
pub mod scalar;
pub mod state;
pub mod statistics;
pub mod view;

pub use half::{bf16, f16};

pub use backend::{Backend, Storage, saved_len};
pub use collective::{CollectiveId, CollectiveKind};
pub use communicator::{CommError, CommErrorKind, Communicator, HostCommunicator, Numbers};
pub use config::{Config, ConfigError};
pub use error::{Error, ErrorKind, Operation, Stage, Tensor};
pub use functional::FunctionalBatchNorm;
pub use geometry::{Geometry, Layout, MAX_AXES, Shape, ShapeError};
pub use group::Group;
pub use host::{SingleRank, ViaHost};
pub use kernels::{Kernels, RunningMut};
pub use layer::{ParamGradients, SyncBatchNorm};
pub use meeting::{Gradients, Meeting, PassError};
pub use membership::Membership;
pub use message::Pass;
pub use saved::{SavedRef, SavedStatistics, SavedToken, Scope};
pub use scalar::{Dtype, Element, Param, Scalar};
pub use state::{
    Change, Checkpoint, FileDtype, Framework, LayerEntry, LayerTensor, Loaded, NamedTensor, State, StateError,
};
pub use statistics::NonFinite;
pub use view::{GradientsError, IntoView, IntoViewMut, View, ViewMut};
