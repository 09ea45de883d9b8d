//! `f16` and `bf16` to and from `f32`, without branches or calls, so that loops over them become vector instructions. The bits
//! are those of the `half` crate, which the tests hold; its own conversions of slices call a function for every few elements.
//!
//! Deliberately not here: arithmetic.

use syncbn_core::{bf16, f16};

/// 2^112, the quotient of the two types' smallest normal numbers.
const REBIAS: f32 = f32::from_bits(0x7780_0000);
/// The bits of infinity, whose exponent NaN has too.
const INFINITY: u32 = 0x7f80_0000;
/// The bits of 2^-14: numbers below are subnormal as `f16`.
const NORMAL_F16: u32 = 0x3880_0000;
/// The bits of 65520: numbers from here on round to infinity as `f16`.
const OVERFLOW_F16: u32 = 0x477f_f000;

#[inline(always)]
pub(crate) fn from_f16(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let magnitude = bits & 0x7fff;
    let scaled = (f32::from_bits(magnitude << 13) * REBIAS).to_bits();
    let finite = magnitude < 0x7c00;
    f32::from_bits((bits & 0x8000) << 16 | if finite { scaled } else { scaled | INFINITY })
}

/// The nearest, ties to even.
#[inline(always)]
pub(crate) fn to_f16(value: f32) -> f16 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let even = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(NORMAL_F16 - 0x0080_0000).wrapping_add(0xfff + even) >> 13;
    // The last place of a number between 0.5 and 1 is that of a subnormal `f16`.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let finite = if magnitude < NORMAL_F16 { subnormal } else { normal };
    let infinite = if magnitude > INFINITY { 0x7e00 | magnitude >> 13 & 0x3ff } else { 0x7c00 };
    let result = if magnitude < OVERFLOW_F16 { finite } else { infinite };
    f16::from_bits((bits >> 16 & 0x8000 | result & 0x7fff) as u16)
}

#[inline(always)]
pub(crate) fn from_bf16(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// The nearest, ties to even.
#[inline(always)]
pub(crate) fn to_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let nan = bits >> 16 | 0x40;
    bf16::from_bits(if bits & 0x7fff_ffff > INFINITY { nan } else { rounded } as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_becomes_the_f32_that_the_half_crate_makes_of_it() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (from_f16(f16::from_bits(bits)), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "f16 {bits:#x}");
            let (ours, theirs) = (from_bf16(bf16::from_bits(bits)), bf16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "bf16 {bits:#x}");
        }
    }

    /// A prime step through all bits, and the neighbours of every half and of every tie between two.
    #[test]
    fn f32_is_rounded_as_the_half_crate_rounds_it() {
        let halves = (0..=u16::MAX).flat_map(|bits| {
            let values = [f16::from_bits(bits).to_f32().to_bits(), u32::from(bits) << 16];
            let ties = [values[0] ^ 0x1000, values[1] ^ 0x8000];
            [values, ties]
                .concat()
                .into_iter()
                .flat_map(|bits| [bits.wrapping_sub(1), bits, bits.wrapping_add(1)])
        });
        for bits in halves.chain((0..=u32::MAX).step_by(997)) {
            let value = f32::from_bits(bits);
            let (ours, theirs) = (to_f16(value), f16::from_f32(value));
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "f16 {bits:#x}");
            let (ours, theirs) = (to_bf16(value), bf16::from_f32(value));
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "bf16 {bits:#x}");
        }
    }
}
