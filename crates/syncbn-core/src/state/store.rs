//! From a layer's state back into its file's tensors.

use super::checkpoint::Checkpoint;
use super::convert::{to_bytes, write_floats, write_integer};
use super::error::StateError;
use super::load::{check_count_shape, check_vector_shape};
use super::tensor::{Change, FileDtype, NamedTensor};
use super::{State, TENSORS};
use crate::error::Tensor;
use crate::scalar::{Dtype, Param};

impl Checkpoint<'_> {
    /// Puts the state of a layer in the place of the tensors that have this prefix, which keep their names, types and shapes.
    ///
    /// What [`load`](Self::load) had to fill in is added once it is no longer what it was filled with; a counter for which the
    /// framework has no name is left out. The result says what was converted, with how many roundings, and what was added or left
    /// out.
    ///
    /// # Errors
    ///
    /// [`StateError`], and nothing is changed: if the file has a tensor that the state lacks, or the reverse; if the numbers of channels
    /// differ; if a finite value overflows the file's type. Values are stored as they are, those that `load` refuses among them: a running
    /// statistic that is not finite, for instance.
    pub fn store<P: Param>(&mut self, prefix: &str, state: &State<P>) -> Result<Vec<Change>, StateError> {
        let entry = self.entry(prefix);
        if entry.tensors.is_empty() {
            return Err(self.missing(prefix, Tensor::RunningMean));
        }
        let (mut tensors, mut changes) = (Vec::new(), Vec::new());
        for tensor in TENSORS {
            let (stored, change) = match self.find(prefix, tensor) {
                Some(found) => replaced(found, tensor, state)?,
                None => self.absent(prefix, tensor, state)?,
            };
            tensors.extend(stored);
            changes.extend(change);
        }
        self.tensors.extend(tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)));
        Ok(changes)
    }

    /// What becomes of a tensor that the file does not have.
    fn absent<P: Param>(&self, prefix: &str, tensor: Tensor, state: &State<P>) -> Result<Stored, StateError> {
        if let (Some(values), Some(other)) = (state.vector(tensor), self.find(prefix, Tensor::RunningMean)) {
            check_vector_shape(other, values.len())?;
        }
        let all = |values: &[P], filled: f64| values.iter().all(|value| value.to_f64() == filled);
        let apart = self.framework.parameters_apart;
        let (filled, dtype, shape, bytes) = match (tensor, state.vector(tensor), state.num_batches_tracked) {
            (Tensor::NumBatchesTracked, _, Some(count)) => {
                (count == 0, Dtype::I64, vec![], to_bytes(&[count]))
            }
            (Tensor::Weight | Tensor::Bias, Some(values), _) if apart => {
                let filled = all(values, if tensor == Tensor::Weight { 1.0 } else { 0.0 });
                (filled, P::DTYPE, vec![values.len()], to_bytes(values))
            }
            (_, Some(_), _) => return Err(self.missing(prefix, tensor)),
            (_, None, _) => return Ok((None, None)),
        };
        if filled {
            return Ok((None, None));
        }
        let Some(name) = self.framework.name(prefix, tensor) else {
            return Ok((None, Some(Change::LeftOut { tensor })));
        };
        let added = NamedTensor { name: name.clone(), dtype: dtype.into(), shape, bytes: bytes.into() };
        Ok((Some(added), Some(Change::Added { name })))
    }
}

type Stored = (Option<NamedTensor<'static>>, Option<Change>);

/// The tensor that the file has, with the state's values.
fn replaced<P: Param>(
    found: &NamedTensor<'_>,
    tensor: Tensor,
    state: &State<P>,
) -> Result<Stored, StateError> {
    let (name, dtype) = (&found.name, found.dtype);
    let not_in_state = || StateError::NotInState { name: name.clone(), tensor };
    let (bytes, change) = if tensor == Tensor::NumBatchesTracked {
        check_count_shape(found)?;
        let count = state.num_batches_tracked.ok_or_else(not_in_state)?;
        (write_integer(name, count, dtype)?, None)
    } else {
        let values = state.vector(tensor).ok_or_else(not_in_state)?;
        check_vector_shape(found, values.len())?;
        let (bytes, losses) = write_floats(name, values, dtype)?;
        losses.refuse_overflow(name, dtype)?;
        (bytes, losses.change(name, FileDtype::from(P::DTYPE), dtype))
    };
    let stored = NamedTensor { name: name.clone(), dtype, shape: found.shape.clone(), bytes: bytes.into() };
    Ok((Some(stored), change))
}
