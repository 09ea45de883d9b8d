//! Eight `f16` or `bf16` as `f32`, and `f32` rounded to them, to nearest, ties to even, with AVX2 alone.

use pulp::x86::V3;
use pulp::{cast, f32x8, i32x4, u16x8, u32x8};

#[inline(always)]
pub(super) fn from_bf16(set: &V3, bits: u16x8) -> f32x8 {
    cast(set.shl_const_u32x8::<16>(set.convert_u16x8_to_u32x8(bits)))
}

/// The upper half of the bits, rounded.
#[inline(always)]
pub(super) fn to_bf16(set: &V3, values: f32x8) -> u16x8 {
    let bits: u32x8 = cast(values);
    let upper = set.shr_const_u32x8::<16>(bits);
    let up = set.wrapping_add_u32x8(set.splat_u32x8(0x7fff), set.and_u32x8(upper, set.splat_u32x8(1)));
    let rounded = set.shr_const_u32x8::<16>(set.wrapping_add_u32x8(bits, up));
    // A NaN must not be rounded to infinity: the bit says that it is one.
    let nan = set.or_u32x8(upper, set.splat_u32x8(0x40));
    pack(set, set.select_u32x8(set.is_nan_f32x8(values), nan, rounded))
}

/// The same fraction under the other exponent, which a multiplication shifts, for subnormal numbers too.
#[inline(always)]
pub(super) fn from_f16(set: &V3, bits: u16x8) -> f32x8 {
    const SHIFT: f32 = f32::from_bits((127 + 127 - 15) << 23);
    const LIMIT: f32 = f32::from_bits((127 + 16) << 23);
    // The sign comes in more than one copy, of which the first is kept.
    let signed = set.shl_const_i32x8::<13>(set.convert_i16x8_to_i32x8(cast(bits)));
    let small = set.and_u32x8(cast(signed), set.splat_u32x8(0x8fff_e000));
    let value = set.mul_f32x8(cast(small), set.splat_f32x8(SHIFT));
    let is_special = set.cmp_ge_f32x8(set.abs_f32x8(value), set.splat_f32x8(LIMIT));
    let exponent = set.and_u32x8(cast(is_special), set.splat_u32x8(0x7f80_0000));
    cast(set.or_u32x8(cast(value), exponent))
}

/// Three cases, of which the last is what adding a half of the last place, or a little less, makes of the bits; below the normal
/// numbers, adding a number whose last place is the least of an `f16` rounds.
#[inline(always)]
pub(super) fn to_f16(set: &V3, values: f32x8) -> u16x8 {
    const INFINITY: u32 = (127 + 16) << 23;
    const NORMAL: u32 = (127 - 14) << 23;
    const LAST_PLACE: u32 = (127 - 14 + 23 - 10) << 23;
    const REBIAS: u32 = (127 - 15) << 23;
    let bits = set.and_u32x8(cast(values), set.splat_u32x8(0x7fff_ffff));
    let is_nan = set.and_u32x8(cast(set.is_nan_f32x8(values)), set.splat_u32x8(0x200));
    let special = set.or_u32x8(is_nan, set.splat_u32x8(0x7c00));
    let raised = set.add_f32x8(cast(bits), cast(set.splat_u32x8(LAST_PLACE)));
    let subnormal = set.wrapping_sub_u32x8(cast(raised), set.splat_u32x8(LAST_PLACE));
    let odd = set.and_u32x8(set.shr_const_u32x8::<13>(bits), set.splat_u32x8(1));
    let up = set.wrapping_add_u32x8(odd, set.splat_u32x8(0xfff_u32.wrapping_sub(REBIAS)));
    let normal = set.shr_const_u32x8::<13>(set.wrapping_add_u32x8(bits, up));
    // Without their sign the bits are in the order of the numbers, whichever way they are read.
    let below_normal = set.cmp_gt_i32x8(cast(set.splat_u32x8(NORMAL)), cast(bits));
    let is_finite = set.cmp_gt_i32x8(cast(set.splat_u32x8(INFINITY)), cast(bits));
    let finite = set.select_u32x8(below_normal, subnormal, normal);
    let magnitude = set.select_u32x8(is_finite, finite, special);
    let sign = set.and_u32x8(set.shr_const_u32x8::<16>(cast(values)), set.splat_u32x8(0x8000));
    pack(set, set.or_u32x8(magnitude, sign))
}

/// The lower halves; the upper ones are zeros.
#[inline(always)]
fn pack(set: &V3, values: u32x8) -> u16x8 {
    let [low, high]: [i32x4; 2] = cast(values);
    set.pack_with_unsigned_saturation_i32x4(low, high)
}
