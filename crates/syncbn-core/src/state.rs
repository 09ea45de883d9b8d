//! A layer's state on the host, as the named tensors that every framework's checkpoints have.
//!
//! Deliberately not here: files. With the feature `safetensors`, [`NamedTensor`] is what that crate writes and
//! [`State::from_safetensors`] reads what it has read; other formats need no more than [`State::to_tensors`] and
//! [`State::from_tensors`].

use crate::error::Tensor;
use crate::scalar::{Dtype, Param, Scalar};

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

/// A tensor of a checkpoint: little-endian, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTensor {
    /// The full name, such as `backbone.bn1.running_mean`.
    pub name: String,
    /// The type of the values.
    pub dtype: Dtype,
    /// The shape; [] for a scalar.
    pub shape: Vec<usize>,
    /// The values, little-endian.
    pub bytes: Vec<u8>,
}

/// A checkpoint's tensor does not have the type or shape that batch norm's has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The type differs.
    #[error("tensor `{name}` holds {got}, expected {expected}")]
    Dtype {
        /// The full name.
        name: String,
        /// What the layer needs.
        expected: Dtype,
        /// What the checkpoint has.
        got: String,
    },
    /// The shape differs.
    #[error("tensor `{name}` has shape {got:?}, expected {expected}")]
    Shape {
        /// The full name.
        name: String,
        /// What the layer needs.
        expected: &'static str,
        /// What the checkpoint has.
        got: Vec<usize>,
    },
    /// Shape and number of bytes disagree.
    #[error("tensor `{name}` of shape {shape:?} and type {dtype} has {bytes} bytes")]
    Bytes {
        /// The full name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: Dtype,
        /// Its bytes.
        bytes: usize,
    },
}

impl<P: Param> State<P> {
    /// The tensors there are, each named `prefix` followed by its own name; a prefix usually ends with a dot.
    #[must_use]
    pub fn to_tensors(&self, prefix: &str) -> Vec<NamedTensor> {
        let vector = |tensor: Tensor, values: &Option<Vec<P>>| {
            values.as_ref().map(|values| NamedTensor {
                name: full_name(prefix, tensor),
                dtype: P::DTYPE,
                shape: vec![values.len()],
                bytes: values.iter().flat_map(|value| value.to_le_bytes().as_ref().to_vec()).collect(),
            })
        };
        let count = self.num_batches_tracked.map(|count| NamedTensor {
            name: full_name(prefix, Tensor::NumBatchesTracked),
            dtype: Dtype::I64,
            shape: Vec::new(),
            bytes: count.to_le_bytes().to_vec(),
        });
        [
            vector(Tensor::Weight, &self.weight),
            vector(Tensor::Bias, &self.bias),
            vector(Tensor::RunningMean, &self.running_mean),
            vector(Tensor::RunningVar, &self.running_var),
            count,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The state whose tensors `find` knows by their full names. Absent tensors are `None`: whether the layer needs them is
    /// for [`load_state`](crate::SyncBatchNorm::load_state) to say.
    pub fn from_tensors(
        prefix: &str,
        mut find: impl FnMut(&str) -> Result<Option<NamedTensor>, StateError>,
    ) -> Result<Self, StateError> {
        let mut vector = |tensor| match find(&full_name(prefix, tensor))? {
            Some(found) => values::<P>(&found, 1, "one value per channel").map(Some),
            None => Ok(None),
        };
        let weight = vector(Tensor::Weight)?;
        let bias = vector(Tensor::Bias)?;
        let running_mean = vector(Tensor::RunningMean)?;
        let running_var = vector(Tensor::RunningVar)?;
        let num_batches_tracked = match find(&full_name(prefix, Tensor::NumBatchesTracked))? {
            Some(found) => values::<i64>(&found, 0, "[]")?.first().copied(),
            None => None,
        };
        Ok(Self { weight, bias, running_mean, running_var, num_batches_tracked })
    }
}

fn full_name(prefix: &str, tensor: Tensor) -> String {
    format!("{prefix}{tensor}")
}

fn values<S: Scalar>(
    tensor: &NamedTensor,
    axes: usize,
    expected: &'static str,
) -> Result<Vec<S>, StateError> {
    let name = || tensor.name.clone();
    if tensor.dtype != S::DTYPE {
        return Err(StateError::Dtype { name: name(), expected: S::DTYPE, got: tensor.dtype.to_string() });
    }
    if tensor.shape.len() != axes {
        return Err(StateError::Shape { name: name(), expected, got: tensor.shape.clone() });
    }
    let values: Option<Vec<S>> = tensor.bytes.chunks(size_of::<S>()).map(S::from_le_bytes).collect();
    let expected_len: usize = tensor.shape.iter().product();
    values.filter(|values| values.len() == expected_len).ok_or_else(|| StateError::Bytes {
        name: name(),
        shape: tensor.shape.clone(),
        dtype: tensor.dtype,
        bytes: tensor.bytes.len(),
    })
}
