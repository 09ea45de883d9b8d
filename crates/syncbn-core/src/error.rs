//! The errors of layers: which operation, of which layer, on which rank, what was expected and what came.
//!
//! Other types have errors of their own, which an [`Error`] of a layer may contain: [`ShapeError`] of geometries and views,
//! [`ConfigError`] of settings, [`CommError`] of communicators and groups, [`GradientsError`](crate::GradientsError),
//! [`StateError`](crate::StateError) of checkpoints, and each backend's own.

mod names;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::communicator::CommError;
use crate::config::ConfigError;
use crate::geometry::{Geometry, Shape, ShapeError};
use crate::saved::Scope;

pub use names::{Operation, Stage, Tensor};

/// The failure of an operation of a layer.
///
/// A call that fails has changed neither parameters nor running statistics, with two exceptions: a communicator's error that is late
/// ([`CommError::late`]), and a [`Backend`](ErrorKind::Backend) error of loading a state.
///
/// The text contains that of the device's or network's own error, so [`source`](StdError::source) begins with the source of that, and a
/// printed chain repeats nothing. Match [`kind`](Self::kind) to handle an error.
///
/// ```
/// use example_backend::Plain;
/// use syncbn_core::{Config, ErrorKind, SyncBatchNorm, View, ViewMut};
///
/// let mut norm = SyncBatchNorm::<Plain, f32>::local("stem.bn", Config::new(3), Plain, &())?;
/// let (x, mut y) = ([0.0_f32; 8], [0.0_f32; 8]);
/// let result =
///     norm.forward(&(), View::channels_first(&x[..], &[2, 4]), ViewMut::channels_first(&mut y[..], &[2, 4]));
/// let error = result.err().ok_or("four channels were accepted")?;
/// assert!(matches!(*error.kind, ErrorKind::Channels { expected: 3, got: 4, .. }));
/// assert_eq!(
///     error.to_string(),
///     "forward of layer `stem.bn` on rank 0 of 1: x of shape [2, 4] has 4 channels, expected 3"
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Error {
    /// The operation that failed.
    pub operation: Operation,
    /// The layer's name.
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

/// What went wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A tensor's shape, strides or memory cannot be used.
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
    /// A tensor differs from x in shape or layout.
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
    /// The saved statistics come from another group than the layer is in now, or from before it was moved back to this one.
    OtherGroup {
        /// The [`id`](crate::Group::id) of the group in which they were saved.
        saved: u64,
        /// That of the group that the layer is in.
        current: u64,
    },
    /// Weight or bias were borrowed to be changed after the forward pass, so that its gradients would be wrong now.
    ParametersChanged,
    /// Running statistics are updated from the group's statistics of a batch only, and the saved ones are others.
    NotTheGroups {
        /// Which ones they are.
        scope: Scope,
    },
    /// A state has a tensor that the layer does not have, or lacks one.
    StateTensor {
        /// Which tensor.
        tensor: Tensor,
        /// Whether the layer has it.
        expected: bool,
    },
    /// A state has a value that no layer can have reached: a variance or a counter below 0.
    StateValue {
        /// Which tensor.
        tensor: Tensor,
        /// The first channel with such a value; 0 for the counter.
        channel: usize,
        /// The value.
        got: f64,
    },
    /// A layer without running statistics was to be frozen.
    NothingToFreeze,
    /// A collective failed after work that depends on it had been enqueued, so gradients and running statistics since then may be wrong.
    /// Put the layer into a working group, and load a state from before the failure.
    Untrusted,
    /// Loading a state failed after a part was written. Load it again.
    HalfLoaded,
    /// The communicator failed.
    Communicator(CommError),
    /// The communicator wants kernels that sum by themselves ([`Meeting::Inside`](crate::Meeting::Inside)), and the backend has none.
    NoPeers,
    /// The backend ended a pass without the sum over the ranks: a mistake of the backend. What it wrote is wrong.
    SumLeftOut,
    /// The device failed; the source is the backend's own error.
    Backend {
        /// The step that failed.
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
            Self::OtherGroup { saved, current } if saved == current => write!(
                f,
                "the saved statistics are from before the layer was moved to group {current} again: run the forward pass again"
            ),
            Self::OtherGroup { saved, current } => write!(
                f,
                "the saved statistics belong to group {saved}, and the layer is in group {current} now: run the forward pass again"
            ),
            Self::ParametersChanged => f.write_str(
                "weight or bias was borrowed to be changed after the forward pass: update parameters after the last backward pass or \
                 recomputation that needs them",
            ),
            Self::NotTheGroups { scope } => {
                write!(f, "running statistics move by a batch of the group: the saved statistics are {scope:?}, expected Group")
            }
            Self::StateTensor { tensor, expected: true } => {
                write!(f, "the state has no {tensor}, expected one")
            }
            Self::StateTensor { tensor, expected: false } => {
                write!(f, "the state has a {tensor}, expected none")
            }
            Self::StateValue { tensor: Tensor::NumBatchesTracked, channel: _, got } => {
                write!(f, "num_batches_tracked of the state is {got}, expected at least 0")
            }
            Self::StateValue { tensor, channel, got } => {
                write!(f, "{tensor} of the state is {got} in channel {channel}, expected at least 0")
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
