//! Any processor: arrays, of which the compiler makes what vectors it can.

use std::array;
use std::ops::{Add, Mul, Sub};

use syncbn_core::{bf16, f16};

use super::{STRIP, Strip, Vector};

#[derive(Clone, Copy)]
pub(crate) struct Plain(Strip);

impl Vector for Plain {
    type Set = ();

    #[inline(always)]
    fn from_f64((): (), elements: &[f64; STRIP]) -> Self {
        Self(*elements)
    }
    #[inline(always)]
    fn from_f32((): (), elements: &[f32; STRIP]) -> Self {
        Self(elements.map(f64::from))
    }
    #[inline(always)]
    fn from_f16((): (), elements: &[f16; STRIP]) -> Self {
        Self(elements.map(f16::to_f64))
    }
    #[inline(always)]
    fn from_bf16((): (), elements: &[bf16; STRIP]) -> Self {
        Self(elements.map(bf16::to_f64))
    }

    #[inline(always)]
    fn to_f64(self) -> [f64; STRIP] {
        self.0
    }
    #[inline(always)]
    fn to_f32(self) -> [f32; STRIP] {
        self.0.map(|value| value as f32)
    }
    #[inline(always)]
    fn to_f16(self) -> [f16; STRIP] {
        self.to_f32().map(f16::from_f32)
    }
    #[inline(always)]
    fn to_bf16(self) -> [bf16; STRIP] {
        self.to_f32().map(bf16::from_f32)
    }

    #[inline(always)]
    fn and(self, mask: Self) -> Self {
        Self(array::from_fn(|i| f64::from_bits(self.0[i].to_bits() & mask.0[i].to_bits())))
    }
}

impl Add for Plain {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(array::from_fn(|i| self.0[i] + other.0[i]))
    }
}

impl Sub for Plain {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(array::from_fn(|i| self.0[i] - other.0[i]))
    }
}

impl Mul for Plain {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(array::from_fn(|i| self.0[i] * other.0[i]))
    }
}
