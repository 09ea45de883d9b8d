//! AVX2 and AVX-512, through `pulp`, which makes their instructions safe.
//!
//! The conversions of halves are in `halves` and `f16c`. What AVX2 has, AVX-512 has too: a `&V4` dereferences to a `V3`.

mod f16c;
mod halves;

use std::ops::{Add, Mul, Sub};

use pulp::x86::{V3, V4};
use pulp::{Simd, cast, f32x4, f32x8, f64x4, f64x8};
use syncbn_core::{bf16, f16};

use super::{STRIP, Vector};

/// Two registers of 256 bits.
#[derive(Clone, Copy)]
pub(crate) struct Avx2 {
    set: V3,
    parts: [f64x4; 2],
}

impl Avx2 {
    #[inline(always)]
    fn widen(set: V3, elements: f32x8) -> Self {
        let [low, high]: [f32x4; 2] = cast(elements);
        Self { set, parts: [set.convert_f32x4_to_f64x4(low), set.convert_f32x4_to_f64x4(high)] }
    }

    #[inline(always)]
    fn narrow(self) -> f32x8 {
        let [low, high] = self.parts;
        cast([self.set.convert_f64x4_to_f32x4(low), self.set.convert_f64x4_to_f32x4(high)])
    }

    #[inline(always)]
    fn zip(self, other: Self, of: impl Fn(V3, f64x4, f64x4) -> f64x4) -> Self {
        let ([a, b], [c, d]) = (self.parts, other.parts);
        Self { set: self.set, parts: [of(self.set, a, c), of(self.set, b, d)] }
    }
}

/// One register of 512 bits.
#[derive(Clone, Copy)]
pub(crate) struct Avx512 {
    set: V4,
    parts: f64x8,
}

impl Avx512 {
    #[inline(always)]
    fn widen(set: V4, elements: f32x8) -> Self {
        Self { set, parts: set.convert_f32x8_to_f64x8(elements) }
    }

    #[inline(always)]
    fn narrow(self) -> f32x8 {
        self.set.convert_f64x8_to_f32x8(self.parts)
    }

    #[inline(always)]
    fn zip(self, other: Self, of: impl Fn(V4, f64x8, f64x8) -> f64x8) -> Self {
        Self { set: self.set, parts: of(self.set, self.parts, other.parts) }
    }
}

macro_rules! vector {
    ($vector:ident, $set:ident, $from_f16:path, $to_f16:path) => {
        impl Vector for $vector {
            type Set = $set;

            #[inline(always)]
            fn from_f64(set: $set, elements: &[f64; STRIP]) -> Self {
                Self { set, parts: cast(*elements) }
            }
            #[inline(always)]
            fn from_f32(set: $set, elements: &[f32; STRIP]) -> Self {
                Self::widen(set, cast(*elements))
            }
            #[inline(always)]
            fn from_f16(set: $set, elements: &[f16; STRIP]) -> Self {
                Self::widen(set, $from_f16(&set, cast(*elements)))
            }
            #[inline(always)]
            fn from_bf16(set: $set, elements: &[bf16; STRIP]) -> Self {
                Self::widen(set, halves::from_bf16(&set, cast(*elements)))
            }

            #[inline(always)]
            fn to_f64(self) -> [f64; STRIP] {
                cast(self.parts)
            }
            #[inline(always)]
            fn to_f32(self) -> [f32; STRIP] {
                cast(self.narrow())
            }
            #[inline(always)]
            fn to_f16(self) -> [f16; STRIP] {
                cast($to_f16(&self.set, self.narrow()))
            }
            #[inline(always)]
            fn to_bf16(self) -> [bf16; STRIP] {
                cast(halves::to_bf16(&self.set, self.narrow()))
            }

            #[inline(always)]
            fn and(self, mask: Self) -> Self {
                self.zip(
                    mask,
                    #[inline(always)]
                    |set, value, mask| cast(set.and_u64s(cast(value), cast(mask))),
                )
            }
        }

        operator!($vector, Add, add, Simd::add_f64s);
        operator!($vector, Sub, sub, Simd::sub_f64s);
        operator!($vector, Mul, mul, Simd::mul_f64s);
    };
}

macro_rules! operator {
    ($vector:ident, $trait:ident, $name:ident, $of:path) => {
        impl $trait for $vector {
            type Output = Self;
            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                self.zip(other, $of)
            }
        }
    };
}

vector!(Avx2, V3, halves::from_f16, halves::to_f16);
vector!(Avx512, V4, f16c::from_f16, f16c::to_f16);
