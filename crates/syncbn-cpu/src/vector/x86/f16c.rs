//! The conversions of `f16` that every processor with AVX-512 has.
//!
//! AVX2 alone does not prove that a processor has them.

use std::arch::x86_64::_MM_FROUND_TO_NEAREST_INT;

use pulp::x86::V4;
use pulp::{cast, f32x8, u16x8};

/// All eight: `pulp` has only the forms with a mask.
const ALL: u8 = 0xff;

#[inline(always)]
pub(super) fn from_f16(set: &V4, bits: u16x8) -> f32x8 {
    cast(set.avx512f._mm256_maskz_cvtph_ps(ALL, cast(bits)))
}

/// To nearest, ties to even.
#[inline(always)]
pub(super) fn to_f16(set: &V4, values: f32x8) -> u16x8 {
    cast(set.avx512f._mm256_maskz_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(ALL, cast(values)))
}
