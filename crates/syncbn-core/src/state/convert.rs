//! Conversion of values between types, with a count of roundings and overflows.

use half::{bf16, f16};

use super::error::StateError;
use super::tensor::{Change, FileDtype, NamedTensor};
use crate::scalar::{Element, Param, Scalar};

/// What the conversion of a tensor's values has changed.
#[derive(Clone, Copy, Default)]
pub(super) struct Losses {
    rounded: usize,
    overflowed: usize,
    /// The first finite value that has become infinite, and its channel.
    overflow: Option<(usize, f64)>,
}

impl Losses {
    pub(super) fn refuse_overflow(&self, name: &str, dtype: FileDtype) -> Result<(), StateError> {
        match self.overflow {
            Some((channel, value)) => {
                Err(StateError::Overflow { name: name.to_owned(), channel, value, dtype })
            }
            None => Ok(()),
        }
    }

    /// What there is to say, if the type has changed.
    pub(super) fn change(&self, name: &str, from: FileDtype, to: FileDtype) -> Option<Change> {
        let Self { rounded, overflowed, .. } = *self;
        (from != to).then(|| Change::Converted { name: name.to_owned(), from, to, rounded, overflowed })
    }
}

/// The values of a tensor of any floating-point type.
pub(super) fn read_floats<P: Param>(tensor: &NamedTensor<'_>) -> Result<(Vec<P>, Losses), StateError> {
    match tensor.dtype {
        FileDtype::F16 => Ok(convert(decode::<f16>(&tensor.bytes))),
        FileDtype::Bf16 => Ok(convert(decode::<bf16>(&tensor.bytes))),
        FileDtype::F32 => Ok(convert(decode::<f32>(&tensor.bytes))),
        FileDtype::F64 => Ok(convert(decode::<f64>(&tensor.bytes))),
        got => Err(not_float(&tensor.name, got)),
    }
}

/// The values as bytes of that type.
pub(super) fn write_floats<P: Param>(
    name: &str,
    values: &[P],
    dtype: FileDtype,
) -> Result<(Vec<u8>, Losses), StateError> {
    match dtype {
        FileDtype::F16 => Ok(encode::<P, f16>(values)),
        FileDtype::Bf16 => Ok(encode::<P, bf16>(values)),
        FileDtype::F32 => Ok(encode::<P, f32>(values)),
        FileDtype::F64 => Ok(encode::<P, f64>(values)),
        got => Err(not_float(name, got)),
    }
}

/// The value of a tensor that holds one integer of any type.
pub(super) fn read_integer(tensor: &NamedTensor<'_>) -> Result<i128, StateError> {
    let bytes = &*tensor.bytes;
    let value = match tensor.dtype {
        FileDtype::I8 => bytes.try_into().ok().map(i8::from_le_bytes).map(i128::from),
        FileDtype::I16 => bytes.try_into().ok().map(i16::from_le_bytes).map(i128::from),
        FileDtype::I32 => bytes.try_into().ok().map(i32::from_le_bytes).map(i128::from),
        FileDtype::I64 => bytes.try_into().ok().map(i64::from_le_bytes).map(i128::from),
        FileDtype::U8 => bytes.try_into().ok().map(u8::from_le_bytes).map(i128::from),
        FileDtype::U16 => bytes.try_into().ok().map(u16::from_le_bytes).map(i128::from),
        FileDtype::U32 => bytes.try_into().ok().map(u32::from_le_bytes).map(i128::from),
        FileDtype::U64 => bytes.try_into().ok().map(u64::from_le_bytes).map(i128::from),
        got => return Err(not_integer(&tensor.name, got)),
    };
    value.ok_or_else(|| tensor.wrong_bytes())
}

/// The integer as bytes of that type.
pub(super) fn write_integer(name: &str, value: i64, dtype: FileDtype) -> Result<Vec<u8>, StateError> {
    let bytes = match dtype {
        FileDtype::I8 => i8::try_from(value).ok().map(|value| value.to_le_bytes().to_vec()),
        FileDtype::I16 => i16::try_from(value).ok().map(|value| value.to_le_bytes().to_vec()),
        FileDtype::I32 => i32::try_from(value).ok().map(|value| value.to_le_bytes().to_vec()),
        FileDtype::I64 => Some(value.to_le_bytes().to_vec()),
        FileDtype::U8 => u8::try_from(value).ok().map(|value| value.to_le_bytes().to_vec()),
        FileDtype::U16 => u16::try_from(value).ok().map(|value| value.to_le_bytes().to_vec()),
        FileDtype::U32 => u32::try_from(value).ok().map(|value| value.to_le_bytes().to_vec()),
        FileDtype::U64 => u64::try_from(value).ok().map(|value| value.to_le_bytes().to_vec()),
        got => return Err(not_integer(name, got)),
    };
    bytes.ok_or_else(|| StateError::CountOverflow { name: name.to_owned(), value, dtype })
}

/// The values as little-endian bytes.
pub(super) fn to_bytes<S: Scalar>(values: &[S]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of_val(values));
    for value in values {
        bytes.extend_from_slice(value.to_le_bytes().as_ref());
    }
    bytes
}

fn decode<S: Scalar>(bytes: &[u8]) -> impl Iterator<Item = S> {
    bytes.chunks_exact(size_of::<S>()).filter_map(S::from_le_bytes)
}

fn encode<S: Element, T: Element>(values: &[S]) -> (Vec<u8>, Losses) {
    let (values, losses) = convert::<S, T>(values.iter().copied());
    (to_bytes(&values), losses)
}

fn convert<S: Element, T: Element>(values: impl Iterator<Item = S>) -> (Vec<T>, Losses) {
    let mut losses = Losses::default();
    let mut values_of_t = Vec::with_capacity(values.size_hint().0);
    for (channel, value) in values.enumerate() {
        // Of one type, the bytes are kept: those of a NaN would not survive f64.
        let same = if S::DTYPE == T::DTYPE { T::from_le_bytes(value.to_le_bytes().as_ref()) } else { None };
        let from = value.to_f64();
        let to = same.unwrap_or_else(|| T::from_f64(from));
        if from.is_finite() && !to.to_f64().is_finite() {
            losses.overflowed += 1;
            losses.overflow = losses.overflow.or(Some((channel, from)));
        } else if to.to_f64() != from && !from.is_nan() {
            losses.rounded += 1;
        }
        values_of_t.push(to);
    }
    (values_of_t, losses)
}

fn not_float(name: &str, got: FileDtype) -> StateError {
    StateError::Dtype { name: name.to_owned(), expected: "f16, bf16, f32 or f64", got }
}

fn not_integer(name: &str, got: FileDtype) -> StateError {
    StateError::Dtype { name: name.to_owned(), expected: "an integer of 8 to 64 bits", got }
}
