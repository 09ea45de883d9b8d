//! Everything that can go wrong, typed: which operation, of which layer, on which rank, what was expected, what came.
//!
//! Deliberately not here: the failures that an [`Error`] carries as its source: of shapes ([`ShapeError`]), of settings
//! ([`ConfigError`]), of communicators ([`CommError`]), and the devices' own.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::communicator::CommError;
use crate::config::ConfigError;
use crate::geometry::{Geometry, Shape, ShapeError};

/// The failure of an operation of a layer.
///
/// Unless a kind says otherwise, a call that fails has changed neither parameters nor running statistics.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of layer `{layer}` on rank {rank} of {world_size}: {kind}")]
pub struct Error {
    /// What was asked for.
    pub operation: Operation,
    /// The name that the layer was given.
    pub layer: Arc<str>,
    /// This process's rank in the layer's group.
    pub rank: usize,
    /// The number of ranks in the layer's group.
    pub world_size: usize,
    /// What went wrong.
    #[source]
    pub kind: Box<ErrorKind>,
}

impl Error {
    /// Whether a collective failed after work that depends on it was enqueued.
    pub(crate) fn is_late(&self) -> bool {
        matches!(&*self.kind, ErrorKind::Communicator(error) if error.late)
    }
}

/// What was asked of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Making the layer.
    Construct,
    /// Compiling and allocating ahead.
    Prepare,
    /// The forward pass.
    Forward,
    /// The forward pass again, with the statistics that the first one saved.
    Recompute,
    /// The backward pass.
    Backward,
    /// Taking a snapshot of the state.
    SaveState,
    /// Restoring the state from a snapshot.
    LoadState,
    /// Changing between batch, running and frozen statistics.
    SetMode,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Construct => "construction",
            Self::Prepare => "preparation",
            Self::Forward => "forward",
            Self::Recompute => "recomputation",
            Self::Backward => "backward",
            Self::SaveState => "saving the state",
            Self::LoadState => "loading the state",
            Self::SetMode => "setting the mode",
        })
    }
}

/// What a backend was asked to do when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Making buffers.
    Allocation,
    /// [`Kernels::prepare`](crate::Kernels::prepare).
    Preparation,
    /// [`Kernels::moments`](crate::Kernels::moments).
    Moments,
    /// [`Kernels::normalize`](crate::Kernels::normalize).
    Normalize,
    /// [`Kernels::grad_sums`](crate::Kernels::grad_sums).
    GradSums,
    /// [`Kernels::grad_input`](crate::Kernels::grad_input).
    GradInput,
    /// [`Backend::flush`](crate::Backend::flush).
    Flush,
    /// Copying to the device.
    Upload,
    /// Copying from the device.
    Download,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allocation => "allocation",
            Self::Preparation => "preparation",
            Self::Moments => "moments",
            Self::Normalize => "normalize",
            Self::GradSums => "grad_sums",
            Self::GradInput => "grad_input",
            Self::Flush => "flush",
            Self::Upload => "upload",
            Self::Download => "download",
        })
    }
}

/// A tensor or buffer among an operation's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)] // each is its own name, as the formulas have it
pub enum Tensor {
    X,
    Y,
    Dy,
    Dx,
    Weight,
    Bias,
    DWeight,
    DBias,
    RunningMean,
    RunningVar,
    NumBatchesTracked,
    Sums,
}

impl Tensor {
    /// The name in formulas and checkpoints.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X => "x",
            Self::Y => "y",
            Self::Dy => "dy",
            Self::Dx => "dx",
            Self::Weight => "weight",
            Self::Bias => "bias",
            Self::DWeight => "d_weight",
            Self::DBias => "d_bias",
            Self::RunningMean => "running_mean",
            Self::RunningVar => "running_var",
            Self::NumBatchesTracked => "num_batches_tracked",
            Self::Sums => "the scratch for sums",
        }
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A tensor's shape, strides or memory are not usable.
    #[error("{tensor}: {source}")]
    Shape {
        /// Which tensor.
        tensor: Tensor,
        /// What is wrong with it.
        source: ShapeError,
    },
    /// A tensor has another number of channels than the layer.
    #[error("{tensor} of shape {shape} has {got} channels, expected {expected}")]
    Channels {
        /// Which tensor.
        tensor: Tensor,
        /// Its shape (N, C, *spatial).
        shape: Shape,
        /// The layer's channels.
        expected: usize,
        /// The tensor's channels.
        got: usize,
    },
    /// Two tensors that belong together differ in shape or layout.
    #[error(
        "{tensor} is {} {}, expected {} {} as the forward pass's x; copy it to that layout first",
        got.layout(), got.shape(), expected.layout(), expected.shape()
    )]
    Geometry {
        /// Which tensor.
        tensor: Tensor,
        /// The shape and layout of x.
        expected: Geometry,
        /// The tensor's shape and layout.
        got: Geometry,
    },
    /// A vector of one value per channel, the counter, or the scratch was made for another number.
    #[error("{tensor} has {got} elements, expected {expected}")]
    Length {
        /// Which tensor.
        tensor: Tensor,
        /// The number of channels, or 1 for the counter.
        expected: usize,
        /// Its elements.
        got: usize,
    },
    /// Training on a single rank with one element per channel, which has no variance.
    #[error(
        "x of shape {shape} has one element per channel and this rank is alone: its batch statistics would make every y equal \
         bias; expected at least 2 elements per channel"
    )]
    OneElement {
        /// The shape of x.
        shape: Shape,
    },
    /// The layer's settings are out of range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The saved statistics come from another layer.
    #[error("the saved statistics belong to layer `{saved}`, expected those of this layer")]
    ForeignSaved {
        /// The name of the layer that saved them.
        saved: Arc<str>,
    },
    /// A state does not fit the layer.
    #[error("the state has {}{tensor}, expected {}", if *.expected { "no " } else { "a " }, if *.expected { "one" } else { "none" })]
    StateTensor {
        /// Which tensor.
        tensor: Tensor,
        /// Whether the layer has it.
        expected: bool,
    },
    /// Frozen statistics were asked of a layer that tracks none.
    #[error("the layer has no running statistics to freeze: it was made with track_running_stats off")]
    NothingToFreeze,
    /// A collective failed after work that depends on it was enqueued, so parameters' gradients and running statistics since
    /// then cannot be trusted. Load a state taken before, into a layer with a working group.
    #[error(
        "an earlier collective failed after its work was enqueued: load a state that was taken before it"
    )]
    Untrusted,
    /// The communicator failed.
    #[error("all_reduce: {0}")]
    Communicator(#[source] CommError),
    /// The device failed; the source is the backend's own error.
    #[error("{stage}: {source}")]
    Backend {
        /// What the device was asked to do.
        stage: Stage,
        /// The backend's error.
        source: Box<dyn StdError + Send + Sync>,
    },
}
