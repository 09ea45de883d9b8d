//! Eight `f64` in the widest registers that the processor has, chosen when the program runs.
//!
//! Formulas and loops are written once, over [`Vector`], and compiled for every instruction set. No set fuses operations, and
//! none has an order of sums of its own, so that all of them give the same bits.
//!
//! Deliberately not here: loops over tensors.

mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::{Add, Mul, Sub};

use pulp::Arch;
use syncbn_core::{bf16, f16};

/// The neighbours that are worked on at a time: the widest vector, and few enough that short planes have little left over.
pub(crate) const STRIP: usize = 8;

/// What is computed with, in memory.
pub(crate) type Strip = [f64; STRIP];

/// What is computed with, in registers.
///
/// Elements become `f64` exactly. They are rounded to the nearest `f32`, ties to even, and for the halves from there.
pub(crate) trait Vector: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    /// The proof that the processor has the instructions.
    type Set: Copy;

    fn from_f64(set: Self::Set, elements: &[f64; STRIP]) -> Self;
    fn from_f32(set: Self::Set, elements: &[f32; STRIP]) -> Self;
    fn from_f16(set: Self::Set, elements: &[f16; STRIP]) -> Self;
    fn from_bf16(set: Self::Set, elements: &[bf16; STRIP]) -> Self;

    fn to_f64(self) -> [f64; STRIP];
    fn to_f32(self) -> [f32; STRIP];
    fn to_f16(self) -> [f16; STRIP];
    fn to_bf16(self) -> [bf16; STRIP];

    /// Its bits where the mask has ones.
    fn and(self, mask: Self) -> Self;

    #[inline(always)]
    fn splat(set: Self::Set, value: f64) -> Self {
        Self::from_f64(set, &[value; STRIP])
    }

    /// The sum, by halves.
    #[inline(always)]
    fn total(self) -> f64 {
        let [a, b, c, d, e, f, g, h] = self.to_f64();
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

/// Several vectors, each of one value. (`array::map` is not always inlined, as all that makes vectors must be.)
#[inline(always)]
pub(crate) fn splat<V: Vector, const N: usize>(set: V::Set, values: [f64; N]) -> [V; N] {
    let mut vectors = [V::splat(set, 0.0); N];
    for (vector, value) in vectors.iter_mut().zip(values) {
        *vector = V::splat(set, value);
    }
    vectors
}

/// Several vectors from memory.
#[inline(always)]
pub(crate) fn load<V: Vector, const N: usize>(set: V::Set, strips: &[Strip; N]) -> [V; N] {
    let mut vectors = [V::splat(set, 0.0); N];
    for (vector, strip) in vectors.iter_mut().zip(strips) {
        *vector = V::from_f64(set, strip);
    }
    vectors
}

/// What is done with vectors of any kind.
pub(crate) trait Work {
    fn run<V: Vector>(self, set: V::Set);
}

/// Does it with the best instructions that there are. All that `work` calls must be inlined into it.
#[inline]
pub(crate) fn with_vectors(work: impl Work) {
    match Arch::new() {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(set) => set.vectorize(
            #[inline(always)]
            || work.run::<x86::Avx512>(set),
        ),
        #[cfg(target_arch = "x86_64")]
        Arch::V3(set) => set.vectorize(
            #[inline(always)]
            || work.run::<x86::Avx2>(set),
        ),
        _ => work.run::<plain::Plain>(()),
    }
}

#[cfg(test)]
mod tests {
    use super::plain::Plain;
    use super::*;

    /// What every set must give the same of.
    #[derive(Clone, Copy)]
    struct Operations<'a> {
        a: Strip,
        b: Strip,
        halves: [u16; STRIP],
        results: &'a std::cell::RefCell<Vec<Vec<u64>>>,
    }

    impl Work for Operations<'_> {
        fn run<V: Vector>(self, set: V::Set) {
            let (a, b) = (V::from_f64(set, &self.a), V::from_f64(set, &self.b));
            let mut bits = vec![(a + b).total()];
            for strip in [a + b, a - b, a * b, a.and(b), V::from_f32(set, &a.to_f32())] {
                bits.extend(strip.to_f64());
            }
            bits.extend(V::from_f16(set, &self.halves.map(f16::from_bits)).to_f64());
            bits.extend(V::from_bf16(set, &self.halves.map(bf16::from_bits)).to_f64());
            // Which NaN it is may differ, also between two runs of one set.
            let number = |value: f64| if value.is_nan() { u64::MAX } else { value.to_bits() };
            let mut bits: Vec<u64> = bits.into_iter().map(number).collect();
            bits.extend(a.to_f16().map(|half| if half.is_nan() { u64::MAX } else { half.to_bits().into() }));
            bits.extend(a.to_bf16().map(|half| if half.is_nan() { u64::MAX } else { half.to_bits().into() }));
            self.results.borrow_mut().push(bits);
        }
    }

    /// Every pattern of an f32's upper bits, with lower bits at and around the ties of both halves.
    fn values() -> impl Iterator<Item = f64> {
        const LOW: [u32; 10] = [0, 1, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x7fff, 0x8000, 0x8001, 0xffff];
        (0..=u32::from(u16::MAX)).flat_map(|high| LOW.map(|low| f64::from(f32::from_bits(high << 16 | low))))
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let values: Vec<f64> = values().collect();
        let (strips, _) = values.as_chunks::<STRIP>();
        for (i, (a, b)) in strips.iter().zip(strips.iter().rev()).enumerate() {
            let halves = std::array::from_fn(|lane| (i * STRIP + lane) as u16);
            let results = std::cell::RefCell::default();
            let operations = Operations { a: *a, b: b.map(|b| b * 1.1), halves, results: &results };
            operations.run::<Plain>(());
            #[cfg(target_arch = "x86_64")]
            if let Some(set) = pulp::x86::V3::try_new() {
                operations.run::<x86::Avx2>(set);
            }
            #[cfg(target_arch = "x86_64")]
            if let Some(set) = pulp::x86::V4::try_new() {
                operations.run::<x86::Avx512>(set);
            }
            with_vectors(operations);
            let results = results.into_inner();
            assert!(results.iter().all(|result| *result == results[0]), "{a:?} {b:?} {halves:?}");
        }
    }
}
