//! How the four activation types reach the arithmetic: `f32` and `f64` as they are, the halves as `f32` in a small block
//! that stays in cache.
//!
//! Deliberately not here: loops over tensors.

use std::ops::{Add, Mul, Sub};

use syncbn_core::{Element, bf16, f16};

use crate::halves;

/// The most neighbouring elements that are worked on at a time: two inputs and an output fit the first-level cache.
pub(crate) const BLOCK: usize = 1024;

/// The neighbours that a step of an inner loop works on: the widest vectors have as many lanes of `f64`.
pub(crate) const STRIP: usize = 8;

/// Room for one block.
pub(crate) type Block<L> = [L; BLOCK];

/// What the arithmetic is done in: `f32` or `f64`.
pub(crate) trait Real:
    Copy + Default + Send + Sync + Into<f64> + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
{
    /// The nearest value, ties to even.
    fn nearest(value: f64) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn nearest(value: f64) -> Self {
        value as Self
    }
}

impl Real for f64 {
    #[inline(always)]
    fn nearest(value: f64) -> Self {
        value
    }
}

/// What rounding to `L` takes away from a value: a mean is subtracted as the sum of the two.
pub(crate) fn rest<L: Real>(value: f64) -> f64 {
    value - L::nearest(value).into()
}

/// An activation type, in blocks of at most [`BLOCK`] elements.
pub(crate) trait Number: Element {
    /// What the inner loops see of it.
    type Lane: Real;
    /// The elements as lanes: themselves, or converted in the buffer.
    fn decode<'s>(source: &'s [Self], buffer: &'s mut Block<Self::Lane>) -> &'s [Self::Lane];
    /// The elements as lanes, in the buffer: for a source that is about to be overwritten.
    fn copy_out<'s>(source: &[Self], buffer: &'s mut [Self::Lane]) -> &'s [Self::Lane];
    /// The elements as `f64`.
    fn widen(source: &[Self], target: &mut [f64]);
    /// Writes the elements that `write` gives as lanes.
    fn encode(target: &mut [Self], buffer: &mut Block<Self::Lane>, write: impl FnOnce(&mut [Self::Lane]));
}

macro_rules! itself {
    ($type:ty) => {
        impl Number for $type {
            type Lane = Self;
            #[inline(always)]
            fn widen(source: &[Self], target: &mut [f64]) {
                for (target, &source) in target.iter_mut().zip(source) {
                    *target = source.into();
                }
            }
            #[inline(always)]
            fn decode<'s>(source: &'s [Self], _: &'s mut Block<Self>) -> &'s [Self] {
                source
            }
            #[inline(always)]
            fn copy_out<'s>(source: &[Self], buffer: &'s mut [Self]) -> &'s [Self] {
                let lanes = &mut buffer[..source.len()];
                lanes.copy_from_slice(source);
                lanes
            }
            #[inline(always)]
            fn encode(target: &mut [Self], _: &mut Block<Self>, write: impl FnOnce(&mut [Self])) {
                write(target);
            }
        }
    };
}

macro_rules! through_f32 {
    ($type:ty, $from:path, $to:path) => {
        impl Number for $type {
            type Lane = f32;
            #[inline(always)]
            fn widen(source: &[Self], target: &mut [f64]) {
                for (target, &source) in target.iter_mut().zip(source) {
                    *target = $from(source).into();
                }
            }
            #[inline(always)]
            fn decode<'s>(source: &'s [Self], buffer: &'s mut Block<f32>) -> &'s [f32] {
                Self::copy_out(source, buffer)
            }
            #[inline(always)]
            fn copy_out<'s>(source: &[Self], buffer: &'s mut [f32]) -> &'s [f32] {
                let lanes = &mut buffer[..source.len()];
                for (lane, &source) in lanes.iter_mut().zip(source) {
                    *lane = $from(source);
                }
                lanes
            }
            #[inline(always)]
            fn encode(target: &mut [Self], buffer: &mut Block<f32>, write: impl FnOnce(&mut [f32])) {
                let lanes = &mut buffer[..target.len()];
                write(lanes);
                for (target, &lane) in target.iter_mut().zip(&*lanes) {
                    *target = $to(lane);
                }
            }
        }
    };
}

itself!(f32);
itself!(f64);
through_f32!(f16, halves::from_f16, halves::to_f16);
through_f32!(bf16, halves::from_bf16, halves::to_bf16);
