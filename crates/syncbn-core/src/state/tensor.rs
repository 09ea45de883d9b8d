//! A file's tensors: their types, and what is changed when they become a state or come from one.

use std::borrow::Cow;
use std::fmt;

use crate::error::Tensor;
use crate::scalar::Dtype;

/// A tensor of a checkpoint: little-endian, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTensor<'a> {
    /// The full name, such as `backbone.bn1.running_mean`.
    pub name: String,
    /// The type of the values.
    pub dtype: FileDtype,
    /// The shape; [] for a scalar.
    pub shape: Vec<usize>,
    /// The values, little-endian.
    pub bytes: Cow<'a, [u8]>,
}

/// The type of a file's tensor: more than a layer's memory may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)] // each is its own name
pub enum FileDtype {
    F16,
    Bf16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    /// Any other type, by its name in the file's format: no tensor of a batch norm has it, but other tensors of the file may.
    Other(&'static str),
}

impl FileDtype {
    /// The bytes of a value; `None` for [`Other`](Self::Other).
    #[must_use]
    pub fn size(self) -> Option<usize> {
        match self {
            Self::I8 | Self::U8 => Some(1),
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => Some(2),
            Self::F32 | Self::I32 | Self::U32 => Some(4),
            Self::F64 | Self::I64 | Self::U64 => Some(8),
            Self::Other(_) => None,
        }
    }
}

impl From<Dtype> for FileDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
            Dtype::F32 => Self::F32,
            Dtype::F64 => Self::F64,
            Dtype::I64 => Self::I64,
        }
    }
}

impl fmt::Display for FileDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::Other(name) => name,
        })
    }
}

/// What differs between a file and the state that was loaded from it or stored in it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// The values have another type now.
    Converted {
        /// The full name in the file.
        name: String,
        /// The type they had.
        from: FileDtype,
        /// The type they have.
        to: FileDtype,
        /// How many values the new type does not hold exactly.
        rounded: usize,
        /// How many finite values have become infinite. Only a weight or bias that is loaded may: elsewhere it is an error.
        overflowed: usize,
    },
    /// The file does not have the tensor: each of its values in the state is this one.
    Filled {
        /// Which tensor.
        tensor: Tensor,
        /// 1 for a weight, 0 for a bias and for the counter.
        value: u8,
    },
    /// The file did not have the tensor, and has it now.
    Added {
        /// The full name in the file.
        name: String,
    },
    /// The framework has no such tensor, so that the file does not hold it.
    LeftOut {
        /// Which tensor.
        tensor: Tensor,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Converted { name, from, to, rounded: 0, overflowed: 0 } => {
                write!(f, "`{name}`: {from} to {to}, exactly")
            }
            Self::Converted { name, from, to, rounded, overflowed } => {
                write!(f, "`{name}`: {from} to {to}, {rounded} rounded, {overflowed} overflowed")
            }
            Self::Filled { tensor, value } => write!(f, "{tensor}: not in the file, filled with {value}"),
            Self::Added { name } => write!(f, "`{name}`: added"),
            Self::LeftOut { tensor } => write!(f, "{tensor}: left out, the framework has no name for it"),
        }
    }
}
