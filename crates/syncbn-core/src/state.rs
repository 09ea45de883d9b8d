//! A layer's state on the host, and the checkpoints of any framework that it is read from and written to.
//!
//! ```text
//! file -> NamedTensor -> Checkpoint -- load  -> State -> a layer's load_state
//! file <- NamedTensor <- Checkpoint <- store -- State <- a layer's state
//! ```
//!
//! [`Checkpoint::load`] converts types and says what it changed; [`Checkpoint::store`] puts a layer's state back under the names and
//! in the types that the file had; [`Checkpoint::layers`] lists the batch norms of a file; [`Framework`] says what a framework
//! calls them.
//!
//! Deliberately not here: opening files. With the feature `safetensors` a checkpoint is made from such a file's bytes and becomes
//! them again; for another format, make [`NamedTensor`]s of what it holds.

mod checkpoint;
mod convert;
mod error;
mod framework;
mod layers;
mod load;
mod store;
mod tensor;

use crate::error::Tensor;
use crate::scalar::{Dtype, Param};

pub use checkpoint::Checkpoint;
pub use error::StateError;
pub use framework::Framework;
pub use layers::{LayerEntry, LayerTensor};
pub use load::Loaded;
pub use tensor::{Change, FileDtype, NamedTensor};

/// A snapshot of a layer: one value per channel in each vector. What a layer does not have is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State<P: Param> {
    /// The scale.
    pub weight: Option<Vec<P>>,
    /// The shift.
    pub bias: Option<Vec<P>>,
    /// The running mean.
    pub running_mean: Option<Vec<P>>,
    /// The running unbiased variance.
    pub running_var: Option<Vec<P>>,
    /// How many batches were seen.
    pub num_batches_tracked: Option<i64>,
}

/// The tensors of a layer, in the order in which files and errors have them.
const TENSORS: [Tensor; 5] =
    [Tensor::Weight, Tensor::Bias, Tensor::RunningMean, Tensor::RunningVar, Tensor::NumBatchesTracked];

impl<P: Param> State<P> {
    /// The tensors there are, each named `prefix` followed by its name in PyTorch; a prefix usually ends with a dot. Vectors have
    /// the type `P` and shape `[C]`, the counter `i64` and `[]`.
    #[must_use]
    pub fn to_tensors(&self, prefix: &str) -> Vec<NamedTensor<'static>> {
        let tensor = |tensor: Tensor| match self.vector(tensor) {
            Some(values) => Some((P::DTYPE, vec![values.len()], convert::to_bytes(values))),
            None if tensor == Tensor::NumBatchesTracked => {
                self.num_batches_tracked.map(|count| (Dtype::I64, Vec::new(), convert::to_bytes(&[count])))
            }
            None => None,
        };
        let named = |role: Tensor| {
            let (dtype, shape, bytes) = tensor(role)?;
            Some(NamedTensor {
                name: format!("{prefix}{role}"),
                dtype: dtype.into(),
                shape,
                bytes: bytes.into(),
            })
        };
        TENSORS.into_iter().filter_map(named).collect()
    }

    /// The values of one of the four vectors.
    fn vector(&self, tensor: Tensor) -> Option<&[P]> {
        match tensor {
            Tensor::Weight => self.weight.as_deref(),
            Tensor::Bias => self.bias.as_deref(),
            Tensor::RunningMean => self.running_mean.as_deref(),
            Tensor::RunningVar => self.running_var.as_deref(),
            _ => None,
        }
    }
}
