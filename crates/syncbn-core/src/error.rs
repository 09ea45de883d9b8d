//! Everything that can go wrong, typed: which operation, of which layer, on which rank, what was expected, what came.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::communicator::CommError;
use crate::config::ConfigError;
use crate::geometry::{Geometry, Shape, ShapeError};
use crate::saved::Scope;

/// The failure of an operation of a layer.
///
/// Unless a kind says otherwise, a call that fails has changed neither parameters nor running statistics.
///
/// Its text says all that is known, down to the device's or the network's own error;
/// [`source`](StdError::source) goes on behind what the text has said, so that a printed chain says nothing twice. What failed
/// underneath is in [`kind`](Self::kind), to be matched.
#[derive(Debug)]
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
    pub kind: Box<ErrorKind>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, layer, rank, world_size, kind } = self;
        write!(f, "{operation} of layer `{layer}` on rank {rank} of {world_size}: {kind}")
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &*self.kind {
            ErrorKind::Shape { source, .. } => source.source(),
            ErrorKind::Config(source) => source.source(),
            ErrorKind::Communicator(source) => source.source(),
            ErrorKind::Backend { source, .. } => source.source(),
            _ => None,
        }
    }
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
    /// Moving running statistics by what a forward pass has saved.
    UpdateRunning,
    /// The backward pass.
    Backward,
    /// Taking a snapshot of the state.
    SaveState,
    /// Restoring the state from a snapshot.
    LoadState,
    /// Changing between batch, running and frozen statistics, or the momentum.
    SetMode,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Construct => "construction",
            Self::Prepare => "preparation",
            Self::Forward => "forward",
            Self::Recompute => "recomputation",
            Self::UpdateRunning => "update of the running statistics",
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
    Saved,
}

impl Tensor {
    /// Whether the operation writes it.
    fn is_result(self) -> bool {
        matches!(self, Self::Y | Self::Dx | Self::DWeight | Self::DBias)
    }

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
            Self::Saved => "the memory for saved statistics",
        }
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What went wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A tensor's shape, strides or memory are not usable.
    Shape {
        /// Which tensor.
        tensor: Tensor,
        /// What is wrong with it.
        source: ShapeError,
    },
    /// A tensor has another number of channels than the layer.
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
    Geometry {
        /// Which tensor.
        tensor: Tensor,
        /// The shape and layout of x.
        expected: Geometry,
        /// The tensor's shape and layout.
        got: Geometry,
    },
    /// A vector of one value per channel, the counter, or the memory for saved statistics has another length.
    Length {
        /// Which tensor.
        tensor: Tensor,
        /// The number of channels; 1 for the counter; [`saved_len`](crate::backend::saved_len) for saved statistics.
        expected: usize,
        /// Its elements.
        got: usize,
    },
    /// Training on a single rank with one element per channel, which has no variance.
    OneElement {
        /// The shape of x.
        shape: Shape,
    },
    /// The layer's settings are out of range.
    Config(ConfigError),
    /// The saved statistics come from another layer.
    ForeignSaved,
    /// The saved statistics come from another group than the layer is in now: their count and their peers are that group's.
    OtherGroup {
        /// The [`id`](crate::Group::id) of the group in which they were saved.
        saved: u64,
        /// That of the group that the layer is in.
        current: u64,
    },
    /// The weight or bias was lent to be changed after the forward pass, whose gradient or bits would be others now.
    ParametersChanged,
    /// Running statistics cannot move by what was saved: it is not the group's statistics of a batch.
    NotTheGroups {
        /// Whose statistics they are.
        scope: Scope,
    },
    /// A state does not fit the layer.
    StateTensor {
        /// Which tensor.
        tensor: Tensor,
        /// Whether the layer has it.
        expected: bool,
    },
    /// Frozen statistics were asked of a layer that tracks none.
    NothingToFreeze,
    /// A collective failed after work that depends on it was enqueued, so parameters' gradients and running statistics since
    /// then cannot be trusted. Load a state taken before, into a layer with a working group.
    Untrusted,
    /// Loading a state failed half-way: load it again.
    HalfLoaded,
    /// The communicator failed.
    Communicator(CommError),
    /// The communicator lets kernels meet their peers, and the backend has no such kernels.
    NoPeers,
    /// The backend ended a pass without the sum over the ranks. Nothing that it wrote can be believed.
    SumLeftOut,
    /// The device failed; the source is the backend's own error.
    Backend {
        /// What the device was asked to do.
        stage: Stage,
        /// The backend's error.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl From<ConfigError> for ErrorKind {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { tensor, source } => write!(f, "{tensor}: {source}"),
            Self::Channels { tensor, shape, expected, got } => {
                write!(f, "{tensor} of shape {shape} has {got} channels, expected {expected}")
            }
            Self::Geometry { tensor, expected, got } => geometry(f, *tensor, expected, got),
            Self::Length { tensor, expected, got } => {
                write!(f, "{tensor} has {got} elements, expected {expected}")
            }
            Self::OneElement { shape } => write!(
                f,
                "x of shape {shape} has one element per channel and this rank is alone: its batch statistics would make every y \
                 equal bias; expected at least 2 elements per channel"
            ),
            Self::Config(source) => source.fmt(f),
            Self::ForeignSaved => f.write_str("the saved statistics belong to another layer"),
            Self::OtherGroup { saved, current } => write!(
                f,
                "the saved statistics belong to group {saved}, and the layer is in group {current} now: run the forward pass again"
            ),
            Self::ParametersChanged => f.write_str(
                "weight or bias was lent to be changed after the forward pass: update parameters after the last backward pass or \
                 recomputation that needs them",
            ),
            Self::NotTheGroups { scope } => {
                write!(f, "running statistics move by a batch of the group, and what was saved is {scope:?}")
            }
            Self::StateTensor { tensor, expected: true } => {
                write!(f, "the state has no {tensor}, expected one")
            }
            Self::StateTensor { tensor, expected: false } => {
                write!(f, "the state has a {tensor}, expected none")
            }
            Self::NothingToFreeze => f.write_str(
                "the layer has no running statistics to freeze: it was made with track_running_stats off",
            ),
            Self::Untrusted => f.write_str(
                "an earlier collective failed after its work was enqueued: load a state that was taken before it",
            ),
            Self::HalfLoaded => {
                f.write_str("an earlier load of a state failed half-way: load a state again")
            }
            Self::Communicator(source) => write!(f, "all_reduce: {source}"),
            Self::NoPeers => f.write_str(
                "the communicator lets kernels meet their peers, and this backend has no such kernels",
            ),
            Self::SumLeftOut => f.write_str("the backend ended the pass without the sum over the ranks"),
            Self::Backend { stage, source } => write!(f, "{stage}: {source}"),
        }
    }
}

/// How a tensor differs from x, and what to do about it: copy what is read, make what is written as x is.
fn geometry(f: &mut fmt::Formatter<'_>, tensor: Tensor, expected: &Geometry, got: &Geometry) -> fmt::Result {
    if expected.shape() != got.shape() {
        return write!(
            f,
            "{tensor} has shape {}, expected {}, the shape of the forward pass's x",
            got.shape(),
            expected.shape()
        );
    }
    let (got, expected) = (got.layout(), expected.layout());
    write!(f, "{tensor} is {got}, expected {expected} as the forward pass's x: ")?;
    if tensor.is_result() {
        write!(f, "allocate it in that layout")
    } else {
        write!(f, "copy it to that layout first")
    }
}
