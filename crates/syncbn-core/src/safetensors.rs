//! A layer's state in a `.safetensors` file, by the `safetensors` crate.
//!
//! Deliberately not here: file names and whole models. One file holds many layers' tensors: chain what
//! [`State::to_tensors`] gives for each, and hand it to `safetensors::serialize`.
//!
//! ```
//! use syncbn_core::State;
//!
//! let state = State { weight: Some(vec![1.0_f32, 2.0]), num_batches_tracked: Some(7), ..State::default() };
//! let tensors = state.to_tensors("bn1.").into_iter().map(|tensor| (tensor.name.clone(), tensor));
//! let bytes = safetensors::serialize(tensors, None)?;
//! let file = safetensors::SafeTensors::deserialize(&bytes)?;
//! assert_eq!(State::from_safetensors(&file, "bn1.")?, state);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::borrow::Cow;

use safetensors::{Dtype as FileDtype, SafeTensors, View};

use crate::scalar::{Dtype, Param};
use crate::state::{NamedTensor, State, StateError};

impl View for NamedTensor {
    fn dtype(&self) -> FileDtype {
        match self.dtype {
            Dtype::F16 => FileDtype::F16,
            Dtype::Bf16 => FileDtype::BF16,
            Dtype::F32 => FileDtype::F32,
            Dtype::F64 => FileDtype::F64,
            Dtype::I64 => FileDtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

impl<P: Param> State<P> {
    /// The state whose tensors the file holds under `prefix` followed by their own names.
    pub fn from_safetensors(file: &SafeTensors<'_>, prefix: &str) -> Result<Self, StateError> {
        Self::from_tensors(prefix, |name| {
            let Ok(found) = file.tensor(name) else {
                return Ok(None);
            };
            let dtype = match found.dtype() {
                FileDtype::F16 => Dtype::F16,
                FileDtype::BF16 => Dtype::Bf16,
                FileDtype::F32 => Dtype::F32,
                FileDtype::F64 => Dtype::F64,
                FileDtype::I64 => Dtype::I64,
                other => {
                    return Err(StateError::Dtype {
                        name: name.to_owned(),
                        expected: P::DTYPE,
                        got: format!("{other:?}"),
                    });
                }
            };
            let shape = found.shape().to_vec();
            Ok(Some(NamedTensor { name: name.to_owned(), dtype, shape, bytes: found.data().to_vec() }))
        })
    }
}
