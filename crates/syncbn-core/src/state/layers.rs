//! The batch norms of a file, and their settings as far as the file has them.

use std::collections::BTreeSet;
use std::fmt;

use super::TENSORS;
use super::checkpoint::Checkpoint;
use super::error::StateError;
use super::tensor::{FileDtype, NamedTensor};
use crate::config::Config;
use crate::error::Tensor;

/// A batch norm of a file. As text: its prefix, its channels, and the types of its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerEntry {
    /// What comes before the tensors' own names, such as `backbone.bn1.`; a collection's name is not part of it.
    pub prefix: String,
    /// The tensors that the file has, in the order weight, bias, running mean, running variance, counter.
    pub tensors: Vec<LayerTensor>,
}

/// A tensor of a batch norm, without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerTensor {
    /// What it is to the layer.
    pub tensor: Tensor,
    /// The full name.
    pub name: String,
    /// The type.
    pub dtype: FileDtype,
    /// The shape.
    pub shape: Vec<usize>,
}

impl LayerEntry {
    /// The tensor, if the file has it.
    #[must_use]
    pub fn get(&self, tensor: Tensor) -> Option<&LayerTensor> {
        self.tensors.iter().find(|found| found.tensor == tensor)
    }

    /// The number of channels: the length that all vectors have; `None` where they have no one length, or another shape.
    #[must_use]
    pub fn channels(&self) -> Option<usize> {
        self.common_channels().ok().flatten()
    }

    fn common_channels(&self) -> Result<Option<usize>, StateError> {
        let mut common: Option<(&LayerTensor, usize)> = None;
        for vector in self.tensors.iter().filter(|found| found.tensor != Tensor::NumBatchesTracked) {
            let channels = vector.channels()?;
            match common {
                Some((other, other_channels)) if other_channels != channels => {
                    let (name, other) = (vector.name.clone(), other.name.clone());
                    return Err(StateError::Disagree { name, channels, other, other_channels });
                }
                _ => common = Some((vector, channels)),
            }
        }
        Ok(common.map(|(_, channels)| channels))
    }
}

impl LayerTensor {
    fn new(tensor: Tensor, found: &NamedTensor<'_>) -> Self {
        Self { tensor, name: found.name.clone(), dtype: found.dtype, shape: found.shape.clone() }
    }

    fn channels(&self) -> Result<usize, StateError> {
        match self.shape[..] {
            [channels] if channels > 0 => Ok(channels),
            _ => Err(StateError::Shape {
                name: self.name.clone(),
                expected: "[C] with at least one channel".to_owned(),
                got: self.shape.clone(),
            }),
        }
    }
}

impl fmt::Display for LayerEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: ", self.prefix)?;
        match self.channels() {
            Some(channels) => write!(f, "{channels} channels")?,
            None => f.write_str("no one number of channels")?,
        }
        self.tensors.iter().try_for_each(|found| write!(f, ", {} {}", found.tensor, found.dtype))
    }
}

impl Checkpoint<'_> {
    /// The batch norms of the file, in the order of their prefixes: whatever has a running mean, a running variance or a counter.
    ///
    /// Other layers have a weight and a bias, too, so a batch norm that keeps no running statistics is not listed. An instance norm
    /// that keeps them looks the same, and is.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerEntry> {
        let tracked = [Tensor::RunningMean, Tensor::RunningVar, Tensor::NumBatchesTracked];
        let prefixes: BTreeSet<&str> = self
            .tensors
            .keys()
            .flat_map(|name| tracked.into_iter().filter_map(|tensor| self.framework.prefix(tensor, name)))
            .collect();
        prefixes.into_iter().map(|prefix| self.entry(prefix)).collect()
    }

    /// The settings of the batch norm whose tensors have this prefix. Channels, affine and running statistics are taken from the file; eps
    /// and momentum, which no file has, are the framework's defaults ([`Framework`](crate::Framework)).
    ///
    /// For a batch norm without running statistics, write the [`Config`] yourself.
    ///
    /// # Errors
    ///
    /// If the file lacks a running statistic, or if its tensors have different numbers of channels.
    pub fn config(&self, prefix: &str) -> Result<Config, StateError> {
        let entry = self.entry(prefix);
        for needed in [Tensor::RunningMean, Tensor::RunningVar] {
            if entry.get(needed).is_none() {
                return Err(self.missing(prefix, needed));
            }
        }
        let channels = entry.common_channels()?.ok_or_else(|| self.missing(prefix, Tensor::RunningMean))?;
        let mut config = Config::new(channels);
        config.affine = entry.get(Tensor::Weight).or(entry.get(Tensor::Bias)).is_some();
        config.eps = self.framework.eps;
        config.momentum = Some(self.framework.momentum);
        Ok(config)
    }

    pub(super) fn entry(&self, prefix: &str) -> LayerEntry {
        let found = |tensor| self.find(prefix, tensor).map(|found| LayerTensor::new(tensor, found));
        LayerEntry { prefix: prefix.to_owned(), tensors: TENSORS.into_iter().filter_map(found).collect() }
    }
}
