//! What errors name: operations of a layer, steps of a backend, and tensors.

use std::fmt;

/// An operation of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Making the layer.
    Construct,
    /// Compiling and allocating ahead.
    Prepare,
    /// The forward pass.
    Forward,
    /// The forward pass again, with saved statistics.
    Recompute,
    /// Updating running statistics from saved statistics.
    UpdateRunning,
    /// The backward pass.
    Backward,
    /// Saving the state.
    SaveState,
    /// Loading a state.
    LoadState,
    /// Freezing statistics, or changing the momentum.
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

/// The step of a backend that failed.
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
    pub(super) fn is_result(self) -> bool {
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
