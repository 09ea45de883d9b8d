//! The number types that a tensor may hold, and which parameters go with which activations.

use std::fmt;

use half::{bf16, f16};

use crate::backend::Backend;
use crate::communicator::Numbers;

mod sealed {
    pub trait Sealed {}
}

/// The name of a [`Scalar`] type at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE 754 binary16.
    F16,
    /// The upper half of an [`f32`].
    Bf16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
    /// Signed 64-bit integer: the type of `num_batches_tracked`.
    I64,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I64 => "i64",
        })
    }
}

/// A type of numbers in device memory: `f16`, `bf16`, `f32`, `f64`, and `i64` for the counter.
///
/// No other type can implement it, so backends may match on [`Scalar::DTYPE`].
pub trait Scalar: sealed::Sealed + Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The type's name at run time.
    const DTYPE: Dtype;
    /// The value's little-endian bytes, as a safetensors file holds them.
    type Bytes: AsRef<[u8]>;
    /// The value as little-endian bytes.
    fn to_le_bytes(self) -> Self::Bytes;
    /// The value of exactly as many little-endian bytes as the type has; `None` for any other number of bytes.
    fn from_le_bytes(bytes: &[u8]) -> Option<Self>;
}

/// The type of an activation: `f16`, `bf16`, `f32` or `f64`.
pub trait Element: Scalar {
    /// The type of the parameters, their gradients and the running statistics: `f64` for `f64`, else `f32`.
    type Param: Param;
    /// The value as `f64`, exactly.
    fn to_f64(self) -> f64;
    /// The nearest value of this type, ties to even.
    fn from_f64(value: f64) -> Self;
}

/// The type of parameters and running statistics: `f32` or `f64`.
pub trait Param: Element<Param = Self> {
    /// Memory of this type, as a communicator takes it.
    fn numbers<B: Backend>(mem: B::MemMut<'_, Self>) -> Numbers<'_, B>;
}

impl Param for f32 {
    fn numbers<B: Backend>(mem: B::MemMut<'_, Self>) -> Numbers<'_, B> {
        Numbers::F32(mem)
    }
}

impl Param for f64 {
    fn numbers<B: Backend>(mem: B::MemMut<'_, Self>) -> Numbers<'_, B> {
        Numbers::F64(mem)
    }
}

/// Evaluates an expression with a type alias for the activations' type that a [`Dtype`] names, for callers that know it only at run
/// time. `None` if activations cannot have that type.
///
/// The expression has to compile for all four types. Code that needs `T: Element<Param = f32>` does not compile for `f64`: match on the
/// [`Dtype`] instead.
///
/// ```
/// use syncbn_core::{Dtype, Scalar, with_element};
///
/// let bytes = with_element!(Dtype::Bf16, T => size_of::<T>());
/// assert_eq!(bytes, Some(2));
/// assert_eq!(with_element!(Dtype::I64, T => T::DTYPE), None);
/// ```
#[macro_export]
macro_rules! with_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::Dtype::F16 => {
                type $element = $crate::f16;
                Some($body)
            }
            $crate::Dtype::Bf16 => {
                type $element = $crate::bf16;
                Some($body)
            }
            $crate::Dtype::F32 => {
                type $element = f32;
                Some($body)
            }
            $crate::Dtype::F64 => {
                type $element = f64;
                Some($body)
            }
            _ => None,
        }
    };
}

macro_rules! scalar {
    ($type:ty, $dtype:ident) => {
        impl sealed::Sealed for $type {}
        impl Scalar for $type {
            const DTYPE: Dtype = Dtype::$dtype;
            type Bytes = [u8; size_of::<$type>()];
            fn to_le_bytes(self) -> Self::Bytes {
                <$type>::to_le_bytes(self)
            }
            fn from_le_bytes(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(<$type>::from_le_bytes)
            }
        }
    };
}

scalar!(f16, F16);
scalar!(bf16, Bf16);
scalar!(f32, F32);
scalar!(f64, F64);
scalar!(i64, I64);

macro_rules! element {
    ($type:ty, $param:ty, $to:expr, $from:expr) => {
        impl Element for $type {
            type Param = $param;
            #[inline]
            fn to_f64(self) -> f64 {
                $to(self)
            }
            #[inline]
            fn from_f64(value: f64) -> Self {
                $from(value)
            }
        }
    };
}

element!(f16, f32, f16::to_f64, f16::from_f64);
element!(bf16, f32, bf16::to_f64, bf16::from_f64);
element!(f32, f32, f64::from, |value| value as f32);
element!(f64, f64, |value| value, |value| value);
