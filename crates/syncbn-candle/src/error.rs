//! What can go wrong, typed, inside candle's error.
//!
//! Candle's traits return candle's [`Error`](candle_core::Error). What this crate reports travels in it, and
//! [`Error::find`] takes it out again.

use std::fmt;

use candle_core::{DType, DeviceLocation};
use syncbn_core::CommError;

/// The failure of a layer or of a collective.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A layer's operation failed.
    #[error(transparent)]
    Layer(#[from] syncbn_core::Error),
    /// A collective over variables or gradients failed.
    #[error("{operation}: {source}")]
    Group {
        /// What was asked for.
        operation: &'static str,
        /// The group's error.
        source: CommError,
    },
    /// The device has no kernels of this crate, or the group does not reach it.
    #[error("{operation} of layer `{layer}`: the tensor is on {got:?}, expected {expected}")]
    Device {
        /// What was asked for.
        operation: &'static str,
        /// The layer.
        layer: String,
        /// What there are kernels for.
        expected: &'static str,
        /// Where the tensor is.
        got: DeviceLocation,
    },
    /// The group does not reach the device of variables or gradients.
    #[error("{operation}: the variables are on {got:?}, where the group sums nothing")]
    OutOfReach {
        /// What was asked for.
        operation: &'static str,
        /// Where they are.
        got: DeviceLocation,
    },
    /// A CUDA device cannot be used.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] syncbn_cuda::CudaError),
    /// A tensor's type does not go with the layer's parameters.
    #[error("{operation} of layer `{layer}`: {tensor} holds {got:?}, expected {expected}")]
    Dtype {
        /// What was asked for.
        operation: &'static str,
        /// The layer.
        layer: String,
        /// The tensor.
        tensor: &'static str,
        /// The types that are taken.
        expected: &'static str,
        /// Its type.
        got: DType,
    },
    /// A variable has a value that no batch norm can have: a variance below 0, or a counter that is not a whole number from 0 on.
    #[error("{operation} of layer `{layer}`: {tensor} is {got} in channel {channel}, expected {expected}")]
    Value {
        /// What was asked for.
        operation: &'static str,
        /// The layer.
        layer: String,
        /// The variable.
        tensor: &'static str,
        /// The first channel with such a value; 0 for the counter.
        channel: usize,
        /// What values are possible.
        expected: &'static str,
        /// The value.
        got: f64,
    },
    /// A setting has no counterpart on the other side.
    #[error("{operation} of layer `{layer}`: {what}")]
    Unsupported {
        /// What was asked for.
        operation: &'static str,
        /// The layer.
        layer: String,
        /// What there is not.
        what: &'static str,
    },
    /// A forward pass has not run, or its statistics are on another device.
    #[error("{operation} of layer `{layer}`: there are no saved statistics on this device")]
    NothingSaved {
        /// What was asked for.
        operation: &'static str,
        /// The layer.
        layer: String,
    },
    /// Variables differ between ranks.
    #[error("variables differ from rank 0's: {}", Differences(.0))]
    StateDiffers(Vec<Difference>),
}

/// A variable that is not as rank 0 has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The rank.
    pub rank: usize,
    /// The variable's name.
    pub variable: String,
}

struct Differences<'a>(&'a [Difference]);

impl fmt::Display for Differences<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (at, Difference { rank, variable }) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}`{variable}` of rank {rank}", if at == 0 { "" } else { ", " })?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Candle prints what it wraps with `Debug`, so that this is the text for readers.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// The error of this crate that candle's error holds, if it does.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use candle_nn::{VarBuilder, VarMap};
    /// use syncbn_candle::{Error, Group, sync_batch_norm};
    ///
    /// let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
    /// let error = sync_batch_norm(8, -1.0, vb.pp("bn1"), &Group::single_rank()).unwrap_err();
    /// assert!(matches!(Error::find(&error), Some(Error::Layer(error)) if &*error.layer == "bn1"));
    /// ```
    #[must_use]
    pub fn find(error: &candle_core::Error) -> Option<&Self> {
        match error {
            candle_core::Error::WrappedContext { wrapped, .. } => wrapped.downcast_ref(),
            candle_core::Error::Context { inner, .. }
            | candle_core::Error::WithPath { inner, .. }
            | candle_core::Error::WithBacktrace { inner, .. } => Self::find(inner),
            _ => None,
        }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        Self::WrappedContext { wrapped: Box::new(error), context: env!("CARGO_PKG_NAME").into() }.bt()
    }
}

/// For `map_err`: a layer's error as candle's.
pub(crate) fn of_layer(error: syncbn_core::Error) -> candle_core::Error {
    Error::Layer(error).into()
}
