//! From a file's tensors to a state that a layer can load.

use super::State;
use super::checkpoint::Checkpoint;
use super::convert::{Losses, read_floats, read_integer};
use super::error::StateError;
use super::tensor::{Change, NamedTensor};
use crate::config::Config;
use crate::error::Tensor;
use crate::scalar::{Dtype, Param};

/// A state from a file, and how it differs from what the file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded<P: Param> {
    /// What [`SyncBatchNorm::load_state`](crate::SyncBatchNorm::load_state) takes.
    pub state: State<P>,
    /// What was converted or filled in; empty where the state is the file's, bit for bit.
    pub changes: Vec<Change>,
}

impl Checkpoint<'_> {
    /// The state of a layer with these settings, from the tensors that have this prefix.
    ///
    /// | tensor | shape | types | values |
    /// |---|---|---|---|
    /// | weight, bias | `[C]` | f16, bf16, f32, f64 | any |
    /// | running mean | `[C]` | f16, bf16, f32, f64 | finite |
    /// | running variance | `[C]` | f16, bf16, f32, f64 | finite, at least 0 |
    /// | counter | `[]` or `[1]` | i8 to i64, u8 to u64 | 0 to 2^63 - 1 |
    ///
    /// Values become `P` or `i64`, rounded to the nearest. [`Loaded::changes`] names each tensor whose type was another one. A missing
    /// counter is filled with 0; where the framework has weight and bias apart, so is one of the two, with 1 or 0.
    ///
    /// # Errors
    ///
    /// [`StateError`], if the file has fewer or more tensors than the settings need, if a shape or type is not in the table, if a value
    /// is not possible, or if a running statistic overflows `P`. The error for a missing tensor lists similar names.
    pub fn load<P: Param>(&self, prefix: &str, config: &Config) -> Result<Loaded<P>, StateError> {
        let mut reader = Reader { file: self, prefix, config, changes: Vec::new() };
        // First what only batch norms have, so that the names near a missing one are theirs.
        let running_mean = reader.statistic(Tensor::RunningMean, f64::is_finite, "a finite number")?;
        let is_variance = |value: f64| value.is_finite() && value >= 0.0;
        let running_var =
            reader.statistic(Tensor::RunningVar, is_variance, "a finite number of at least 0")?;
        let num_batches_tracked = reader.count()?;
        let (weight, bias) = reader.parameters()?;
        let state = State { weight, bias, running_mean, running_var, num_batches_tracked };
        Ok(Loaded { state, changes: reader.changes })
    }
}

struct Reader<'f> {
    file: &'f Checkpoint<'f>,
    prefix: &'f str,
    config: &'f Config,
    changes: Vec<Change>,
}

type Vector<P> = Option<Vec<P>>;

impl<'f> Reader<'f> {
    fn parameters<P: Param>(&mut self) -> Result<(Vector<P>, Vector<P>), StateError> {
        let weight = self.parameter(Tensor::Weight)?;
        let bias = self.parameter(Tensor::Bias)?;
        let apart = self.file.framework.parameters_apart;
        Ok(match (weight, bias) {
            (None, None) if self.config.affine => return Err(self.missing(Tensor::Weight)),
            (None, Some(_)) if !apart => return Err(self.missing(Tensor::Weight)),
            (Some(_), None) if !apart => return Err(self.missing(Tensor::Bias)),
            (None, Some(bias)) => (Some(self.filled(Tensor::Weight, 1, bias.len())), Some(bias)),
            (Some(weight), None) => {
                let bias = self.filled(Tensor::Bias, 0, weight.len());
                (Some(weight), Some(bias))
            }
            both => both,
        })
    }

    fn parameter<P: Param>(&mut self, tensor: Tensor) -> Result<Vector<P>, StateError> {
        let Some(found) = self.find(tensor)? else {
            return Ok(None);
        };
        let (values, losses) = self.values(found)?;
        self.changes.extend(losses.change(&found.name, found.dtype, P::DTYPE.into()));
        Ok(Some(values))
    }

    fn statistic<P: Param>(
        &mut self,
        tensor: Tensor,
        possible: impl Fn(f64) -> bool,
        expected: &'static str,
    ) -> Result<Vector<P>, StateError> {
        let Some(found) = self.find(tensor)? else {
            return if self.config.track_running_stats { Err(self.missing(tensor)) } else { Ok(None) };
        };
        // As f64, which holds what the file has: a negative variance may round to 0.
        let (exact, _) = self.values::<f64>(found)?;
        if let Some((channel, &value)) = exact.iter().enumerate().find(|&(_, &value)| !possible(value)) {
            return Err(StateError::Value { name: found.name.clone(), channel, value, expected });
        }
        let (values, losses) = self.values(found)?;
        losses.refuse_overflow(&found.name, P::DTYPE.into())?;
        self.changes.extend(losses.change(&found.name, found.dtype, P::DTYPE.into()));
        Ok(Some(values))
    }

    fn count(&mut self) -> Result<Option<i64>, StateError> {
        let Some(found) = self.find(Tensor::NumBatchesTracked)? else {
            if self.config.track_running_stats {
                self.changes.push(Change::Filled { tensor: Tensor::NumBatchesTracked, value: 0 });
            }
            return Ok(self.config.track_running_stats.then_some(0));
        };
        check_count_shape(found)?;
        let value = read_integer(found)?;
        let count = i64::try_from(value).ok().filter(|&count| count >= 0);
        let count = count.ok_or_else(|| StateError::Count { name: found.name.clone(), value })?;
        self.changes.extend(Losses::default().change(&found.name, found.dtype, Dtype::I64.into()));
        Ok(Some(count))
    }

    /// The tensor, if the file has it; the settings have to want it then.
    fn find(&self, tensor: Tensor) -> Result<Option<&'f NamedTensor<'f>>, StateError> {
        let (setting, on) = match tensor {
            Tensor::Weight | Tensor::Bias => ("affine", self.config.affine),
            _ => ("track_running_stats", self.config.track_running_stats),
        };
        match self.file.find(self.prefix, tensor) {
            Some(found) if !on => Err(StateError::Unwanted { name: found.name.clone(), setting }),
            found => Ok(found),
        }
    }

    fn missing(&self, tensor: Tensor) -> StateError {
        self.file.missing(self.prefix, tensor)
    }

    fn values<P: Param>(&self, found: &NamedTensor<'_>) -> Result<(Vec<P>, Losses), StateError> {
        check_vector_shape(found, self.config.channels)?;
        read_floats(found)
    }

    fn filled<P: Param>(&mut self, tensor: Tensor, value: u8, channels: usize) -> Vec<P> {
        self.changes.push(Change::Filled { tensor, value });
        vec![P::from_f64(f64::from(value)); channels]
    }
}

pub(super) fn check_vector_shape(tensor: &NamedTensor<'_>, channels: usize) -> Result<(), StateError> {
    check_shape(tensor, tensor.shape == [channels], || format!("[{channels}]"))
}

pub(super) fn check_count_shape(tensor: &NamedTensor<'_>) -> Result<(), StateError> {
    check_shape(tensor, matches!(tensor.shape[..], [] | [1]), || "[] or [1]".to_owned())
}

fn check_shape(
    tensor: &NamedTensor<'_>,
    fits: bool,
    expected: impl Fn() -> String,
) -> Result<(), StateError> {
    if fits {
        return Ok(());
    }
    Err(StateError::Shape { name: tensor.name.clone(), expected: expected(), got: tensor.shape.clone() })
}
