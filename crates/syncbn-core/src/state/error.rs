//! The errors of checkpoints.

use std::fmt;

use super::tensor::FileDtype;
use crate::error::Tensor;

/// A checkpoint does not fit a batch norm, or has values that are not possible.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The file does not have a tensor that the layer needs: the prefix or the framework may be another one.
    #[error("the file has no tensor `{name}`; {}", Nearest(nearest))]
    Missing {
        /// The full name that was looked for.
        name: String,
        /// The file's names that are most like it, at most three, the nearest first.
        nearest: Vec<String>,
    },
    /// The file has a tensor that a layer of these settings does not have.
    #[error("the file has `{name}`, but {setting} is off")]
    Unwanted {
        /// The full name.
        name: String,
        /// The setting, `affine` or `track_running_stats`.
        setting: &'static str,
    },
    /// The file has a tensor for which the state holds nothing.
    #[error("the file has `{name}`, but the state has no {tensor}")]
    NotInState {
        /// The full name.
        name: String,
        /// What the state does not have.
        tensor: Tensor,
    },
    /// The type is not one that can be converted.
    #[error("tensor `{name}` holds {got}, expected {expected}")]
    Dtype {
        /// The full name.
        name: String,
        /// The types that are possible.
        expected: &'static str,
        /// What the file has.
        got: FileDtype,
    },
    /// The shape differs.
    #[error("tensor `{name}` has shape {got:?}, expected {expected}")]
    Shape {
        /// The full name.
        name: String,
        /// What the layer needs.
        expected: String,
        /// What the file has.
        got: Vec<usize>,
    },
    /// Tensors of one layer have different numbers of channels.
    #[error("tensor `{name}` has {channels} channels, but `{other}` has {other_channels}")]
    Disagree {
        /// The full name.
        name: String,
        /// Its channels.
        channels: usize,
        /// The full name of another tensor of the layer.
        other: String,
        /// The other one's channels.
        other_channels: usize,
    },
    /// Shape and number of bytes disagree.
    #[error("tensor `{name}` of shape {shape:?} and type {dtype} has {bytes} bytes")]
    Bytes {
        /// The full name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: FileDtype,
        /// Its bytes.
        bytes: usize,
    },
    /// Two tensors have one name.
    #[error("two tensors are named `{name}`")]
    Duplicate {
        /// The full name.
        name: String,
    },
    /// A value that no batch norm can have.
    #[error("tensor `{name}` is {value} in channel {channel}, expected {expected}")]
    Value {
        /// The full name.
        name: String,
        /// The first channel with such a value.
        channel: usize,
        /// The value.
        value: f64,
        /// What values are possible.
        expected: &'static str,
    },
    /// A number of batches that cannot be.
    #[error("tensor `{name}` is {value}, expected 0 to {}", i64::MAX)]
    Count {
        /// The full name.
        name: String,
        /// The value.
        value: i128,
    },
    /// A value is too large for the type that it has to have.
    #[error("tensor `{name}`: {value} of channel {channel} does not fit {dtype}")]
    Overflow {
        /// The full name.
        name: String,
        /// The first channel with such a value.
        channel: usize,
        /// The value.
        value: f64,
        /// The type.
        dtype: FileDtype,
    },
    /// A number of batches is too large for the integer type that the file has.
    #[error("tensor `{name}`: {value} does not fit {dtype}")]
    CountOverflow {
        /// The full name.
        name: String,
        /// The value.
        value: i64,
        /// The type.
        dtype: FileDtype,
    },
    /// The bytes are not those of a file, or the tensors cannot be written to one.
    #[cfg(feature = "safetensors")]
    #[error(transparent)]
    Safetensors(#[from] safetensors::SafeTensorError),
}

struct Nearest<'a>(&'a [String]);

impl fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, others)) = self.0.split_first() else {
            return f.write_str("none of its names is like it");
        };
        write!(f, "the nearest names are `{first}`")?;
        others.iter().try_for_each(|name| write!(f, ", `{name}`"))
    }
}

/// The names that are most like the one that was looked for: those that share the most characters with it at both ends.
pub(super) fn nearest<'n>(name: &str, among: impl Iterator<Item = &'n str>) -> Vec<String> {
    let mut scored: Vec<_> = among.map(|other| (shared(name, other), other)).collect();
    scored.retain(|&(shared, _)| shared > 0);
    // Stable, so that equals stay in the order of names.
    scored.sort_by_key(|&(shared, other)| (std::cmp::Reverse(shared), other.len().abs_diff(name.len())));
    scored.into_iter().take(3).map(|(_, other)| other.to_owned()).collect()
}

fn shared(a: &str, b: &str) -> usize {
    let equal = |(a, b): &(char, char)| a == b;
    let start = a.chars().zip(b.chars()).take_while(equal).count();
    let end = a.chars().rev().zip(b.chars().rev()).take_while(equal).count();
    (start + end).min(a.chars().count()).min(b.chars().count())
}
