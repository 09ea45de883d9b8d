//! The processor's own conversions of `f16`, which every AVX-512 has, and which `pulp` has not.
//!
//! Deliberately not here: AVX2, which does not prove that a processor has them.

#![allow(unsafe_code)]

use std::arch::x86_64::{_MM_FROUND_TO_NEAREST_INT, _mm256_cvtph_ps, _mm256_cvtps_ph};

use pulp::x86::V4;
use pulp::{cast, f32x8, u16x8};

#[inline(always)]
pub(super) fn from_f16(_: V4, bits: u16x8) -> f32x8 {
    // SAFETY: the set proves that the processor has avx512f, which implies f16c.
    cast(unsafe { _mm256_cvtph_ps(cast(bits)) })
}

/// To nearest, ties to even.
#[inline(always)]
pub(super) fn to_f16(_: V4, values: f32x8) -> u16x8 {
    // SAFETY: as above.
    cast(unsafe { _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(cast(values)) })
}
