//! Eight `f16` or `bf16` as `f32`, and `f32` rounded to them, to nearest, ties to even.
//!
//! Without a branch and without the processor's own conversions of `f16`, which not all processors with AVX2 are known to have.

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
    let bits = set.convert_u16x8_to_u32x8(bits);
    let magnitude = set.shl_const_u32x8::<13>(set.and_u32x8(bits, set.splat_u32x8(0x7fff)));
    let sign = set.shl_const_u32x8::<16>(set.and_u32x8(bits, set.splat_u32x8(0x8000)));
    let finite: u32x8 = cast(set.mul_f32x8(cast(magnitude), set.splat_f32x8(SHIFT)));
    let special = set.or_u32x8(magnitude, set.splat_u32x8(0x7f80_0000));
    let is_special = set.cmp_ge_u32x8(magnitude, set.splat_u32x8(0x7c00 << 13));
    cast(set.or_u32x8(sign, set.select_u32x8(is_special, special, finite)))
}

/// Three cases, of which the last is what adding a half of the last place, or a little less, makes of the bits; below the normal
/// numbers, adding a number whose last place is the least of an `f16` rounds.
#[inline(always)]
pub(super) fn to_f16(set: &V3, values: f32x8) -> u16x8 {
    const INFINITY: u32 = (127 + 16) << 23;
    const NORMAL: u32 = (127 - 14) << 23;
    const LAST_PLACE: u32 = (127 - 14 + 23 - 10) << 23;
    let bits = set.and_u32x8(cast(values), set.splat_u32x8(0x7fff_ffff));
    let special =
        set.select_u32x8(set.is_nan_f32x8(values), set.splat_u32x8(0x7e00), set.splat_u32x8(0x7c00));
    let raised = set.add_f32x8(cast(bits), cast(set.splat_u32x8(LAST_PLACE)));
    let subnormal = set.wrapping_sub_u32x8(cast(raised), set.splat_u32x8(LAST_PLACE));
    let odd = set.and_u32x8(set.shr_const_u32x8::<13>(bits), set.splat_u32x8(1));
    let rounded = set.wrapping_add_u32x8(bits, set.wrapping_add_u32x8(set.splat_u32x8(0xfff), odd));
    let normal =
        set.shr_const_u32x8::<13>(set.wrapping_sub_u32x8(rounded, set.splat_u32x8((127 - 15) << 23)));
    let finite = set.select_u32x8(set.cmp_lt_u32x8(bits, set.splat_u32x8(NORMAL)), subnormal, normal);
    let magnitude = set.select_u32x8(set.cmp_ge_u32x8(bits, set.splat_u32x8(INFINITY)), special, finite);
    let sign = set.and_u32x8(set.shr_const_u32x8::<16>(cast(values)), set.splat_u32x8(0x8000));
    pack(set, set.or_u32x8(magnitude, sign))
}

/// The lower halves; the upper ones are zeros.
#[inline(always)]
fn pack(set: &V3, values: u32x8) -> u16x8 {
    let [low, high]: [i32x4; 2] = cast(values);
    set.pack_with_unsigned_saturation_i32x4(low, high)
}
