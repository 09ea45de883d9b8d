//! How the four activation types reach the arithmetic, which is all in `f64`: eight neighbours at a time.
//!
//! The halves are converted without a branch, so that the loops around become vectors. The library that has the types converts long
//! slices as fast, but takes 10 ns for eight elements, which is more than all the arithmetic.
//!
//! Deliberately not here: loops over tensors.

use syncbn_core::{Element, bf16, f16};

/// The neighbours that are worked on at a time: the widest vector, and few enough that short planes have little left over.
pub(crate) const STRIP: usize = 8;

/// What is computed with.
pub(crate) type Strip = [f64; STRIP];

/// An activation type.
pub(crate) trait Number: Element {
    /// The values, exactly.
    fn widen(elements: &[Self; STRIP]) -> Strip;
    /// The nearest elements, ties to even.
    fn narrow(values: Strip) -> [Self; STRIP];
}

impl Number for f64 {
    #[inline(always)]
    fn widen(elements: &[Self; STRIP]) -> Strip {
        *elements
    }
    #[inline(always)]
    fn narrow(values: Strip) -> [Self; STRIP] {
        values
    }
}

impl Number for f32 {
    #[inline(always)]
    fn widen(elements: &[Self; STRIP]) -> Strip {
        elements.map(f64::from)
    }
    #[inline(always)]
    fn narrow(values: Strip) -> [Self; STRIP] {
        values.map(|value| value as Self)
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn widen(elements: &[Self; STRIP]) -> Strip {
        f32::widen(&elements.map(|element| u32::from(element.to_bits()) << 16).map(f32::from_bits))
    }
    #[inline(always)]
    fn narrow(values: Strip) -> [Self; STRIP] {
        f32::narrow(values).map(bf16_bits).map(Self::from_bits)
    }
}

impl Number for f16 {
    #[inline(always)]
    fn widen(elements: &[Self; STRIP]) -> Strip {
        f32::widen(&elements.map(Self::to_bits).map(f16_value))
    }
    #[inline(always)]
    fn narrow(values: Strip) -> [Self; STRIP] {
        f32::narrow(values).map(f16_bits).map(Self::from_bits)
    }
}

/// The upper half of the bits, rounded.
#[inline(always)]
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A NaN must not be rounded to infinity: the bit says that it is one.
    (if value.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// The same fraction under the other exponent, which a multiplication shifts, for subnormal numbers too.
#[inline(always)]
fn f16_value(bits: u16) -> f32 {
    const SHIFT: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    let finite = (f32::from_bits(magnitude) * SHIFT).to_bits();
    let special = magnitude | 0x7f80_0000;
    f32::from_bits(sign | if bits & 0x7c00 == 0x7c00 { special } else { finite })
}

/// Three cases, of which the last is what adding a half of the last place, or a little less, makes of the bits; below the normal
/// numbers, adding a number whose last place is the least of an `f16` rounds.
#[inline(always)]
fn f16_bits(value: f32) -> u16 {
    const INFINITY: u32 = (127 + 16) << 23;
    const NORMAL: u32 = (127 - 14) << 23;
    const LAST_PLACE: f32 = f32::from_bits((127 - 14 + 23 - 10) << 23);
    let bits = value.to_bits() & 0x7fff_ffff;
    let special = if value.is_nan() { 0x7e00 } else { 0x7c00 };
    let subnormal = (f32::from_bits(bits) + LAST_PLACE).to_bits().wrapping_sub(LAST_PLACE.to_bits());
    let rounded = bits.wrapping_add(0xfff + (bits >> 13 & 1));
    let normal = rounded.wrapping_sub((127 - 15) << 23) >> 13;
    let magnitude = if bits >= INFINITY {
        special
    } else if bits < NORMAL {
        subnormal
    } else {
        normal
    };
    (magnitude | value.to_bits() >> 16 & 0x8000) as u16
}

/// The elements that do not fill a strip, with zeros behind them.
#[inline(always)]
pub(crate) fn padded<T: Number>(elements: &[T]) -> [T; STRIP] {
    let mut strip = [T::default(); STRIP];
    for (target, element) in strip.iter_mut().zip(elements) {
        *target = *element;
    }
    strip
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pattern of the upper bits, with lower bits at and around the ties.
    fn values() -> impl Iterator<Item = f32> {
        const LOW: [u32; 10] = [0, 1, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x7fff, 0x8000, 0x8001, 0xffff];
        (0..=u32::from(u16::MAX)).flat_map(|high| LOW.map(|low| f32::from_bits(high << 16 | low)))
    }

    #[test]
    fn halves_are_widened_as_their_library_does() {
        for bits in 0..=u16::MAX {
            let f16 = f16::from_bits(bits);
            let [ours, ..] = f16::widen(&[f16; STRIP]);
            assert!(ours == f16.to_f64() || ours.is_nan() && f16.is_nan(), "{bits:#x}");
            assert_eq!(ours.is_sign_negative(), f16.is_sign_negative());
            let bf16 = bf16::from_bits(bits);
            let [ours, ..] = bf16::widen(&[bf16; STRIP]);
            assert!(ours == bf16.to_f64() || ours.is_nan() && bf16.is_nan(), "{bits:#x}");
            assert_eq!(ours.is_sign_negative(), bf16.is_sign_negative());
        }
    }

    #[test]
    fn halves_are_narrowed_as_their_library_does() {
        for value in values() {
            let [ours, ..] = f16::narrow([f64::from(value); STRIP]);
            let theirs = f16::from_f32(value);
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{value:e}");
            let [ours, ..] = bf16::narrow([f64::from(value); STRIP]);
            let theirs = bf16::from_f32(value);
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{value:e}");
        }
    }
}
