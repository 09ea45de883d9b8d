//! How the four activation types reach the arithmetic: `f32` and `f64` as they are, the halves as `f32` in a small block
//! that stays in cache. All arithmetic is in `f64`.
//!
//! Deliberately not here: loops over tensors.

use half::slice::HalfFloatSliceExt;
use syncbn_core::{Element, bf16, f16};

/// The most neighbouring elements that are worked on at a time.
pub(crate) const BLOCK: usize = 1024;

/// A vector's worth of neighbours: planes are often so short that what a wider unrolled loop leaves over would dominate.
pub(crate) const STRIP: usize = 8;

/// Room for one block.
pub(crate) type Block<L> = [L; BLOCK];

/// What the inner loops read and write: `f32` or `f64`.
pub(crate) trait Lane: Copy + Default + Send + Sync {
    /// The value in which everything is computed, exactly.
    fn widen(self) -> f64;
    /// The nearest value, ties to even.
    fn narrow(value: f64) -> Self;
}

impl Lane for f32 {
    #[inline(always)]
    fn widen(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn narrow(value: f64) -> Self {
        value as Self
    }
}

impl Lane for f64 {
    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }
    #[inline(always)]
    fn narrow(value: f64) -> Self {
        value
    }
}

/// An activation type, in blocks of at most [`BLOCK`] elements.
pub(crate) trait Number: Element {
    /// What the inner loops see of it.
    type Lane: Lane;
    /// The elements as lanes: themselves, or converted in the buffer.
    fn decode<'s>(source: &'s [Self], buffer: &'s mut Block<Self::Lane>) -> &'s [Self::Lane];
    /// The elements as lanes, in the buffer: for a source that is about to be overwritten.
    fn copy_out<'s>(source: &[Self], buffer: &'s mut Block<Self::Lane>) -> &'s [Self::Lane];
    /// Writes the elements that `write` gives as lanes.
    fn encode(target: &mut [Self], buffer: &mut Block<Self::Lane>, write: impl FnOnce(&mut [Self::Lane]));
}

macro_rules! itself {
    ($type:ty) => {
        impl Number for $type {
            type Lane = Self;
            #[inline(always)]
            fn decode<'s>(source: &'s [Self], _: &'s mut Block<Self>) -> &'s [Self] {
                source
            }
            #[inline(always)]
            fn copy_out<'s>(source: &[Self], buffer: &'s mut Block<Self>) -> &'s [Self] {
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
    ($type:ty) => {
        impl Number for $type {
            type Lane = f32;
            #[inline(always)]
            fn decode<'s>(source: &'s [Self], buffer: &'s mut Block<f32>) -> &'s [f32] {
                Self::copy_out(source, buffer)
            }
            #[inline(always)]
            fn copy_out<'s>(source: &[Self], buffer: &'s mut Block<f32>) -> &'s [f32] {
                let lanes = &mut buffer[..source.len()];
                source.convert_to_f32_slice(lanes);
                lanes
            }
            #[inline(always)]
            fn encode(target: &mut [Self], buffer: &mut Block<f32>, write: impl FnOnce(&mut [f32])) {
                let lanes = &mut buffer[..target.len()];
                write(lanes);
                target.convert_from_f32_slice(lanes);
            }
        }
    };
}

itself!(f32);
itself!(f64);
through_f32!(f16);
through_f32!(bf16);
