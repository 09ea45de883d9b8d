//! Eight `f64` in the widest registers that the processor has, chosen when the program runs.
//!
//! Formulas and loops are written once, over [`Vector`], and compiled for every instruction set. No set fuses operations, and all
//! add in the same order. So all give the same bits, except which NaN a NaN is.

mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::{Add, Mul, Sub};

use pulp::Arch;
use syncbn_core::{bf16, f16};

/// The neighbours that are worked on at a time: the lanes of the widest vector. With more, short planes would leave more lanes unused.
pub(crate) const STRIP: usize = 8;

/// A vector's values in memory.
pub(crate) type Strip = [f64; STRIP];

/// Eight `f64` in registers.
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

/// A vector of each. (Whatever makes vectors has to be inlined, and `array::map` is not always.)
#[inline(always)]
pub(crate) fn vectors<V: Vector, A, const N: usize>(
    set: V::Set,
    from: [A; N],
    make: impl Fn(V::Set, A) -> V,
) -> [V; N] {
    let mut vectors = [V::splat(set, 0.0); N];
    for (vector, from) in vectors.iter_mut().zip(from) {
        *vector = make(set, from);
    }
    vectors
}

/// Work that is written for vectors of any instruction set.
pub(crate) trait Work {
    fn run<V: Vector>(self, set: V::Set);
}

/// Runs `work` with the widest vectors that this processor has. All that it calls must be inlined into it.
#[inline]
pub(crate) fn with_vectors(work: impl Work) {
    with(Arch::new(), work);
}

/// Runs `work` with one instruction set.
#[inline]
pub(crate) fn with(arch: Arch, work: impl Work) {
    match arch {
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

/// The sets that this processor has, for tests.
#[cfg(test)]
pub(crate) fn sets() -> Vec<Arch> {
    #[cfg(target_arch = "x86_64")]
    {
        use pulp::x86::{V3, V4};
        let others = [V3::try_new().map(Arch::V3), V4::try_new().map(Arch::V4)];
        std::iter::once(Arch::Scalar).chain(others.into_iter().flatten()).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    vec![Arch::new()]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Operations<'a> {
        a: Strip,
        b: Strip,
        halves: [u16; STRIP],
        results: &'a mut Vec<f64>,
    }

    impl Work for Operations<'_> {
        #[inline(always)]
        fn run<V: Vector>(self, set: V::Set) {
            let (a, b) = (V::from_f64(set, &self.a), V::from_f64(set, &self.b));
            let results = self.results;
            results.extend([a.total(), b.total()]);
            for strip in [a + b, a - b, a * b, a.and(b)] {
                results.extend(strip.to_f64());
            }
            for strip in [a, b, a * b] {
                results.extend(V::from_f32(set, &strip.to_f32()).to_f64());
                results.extend(strip.to_f16().map(f16::to_f64));
                results.extend(strip.to_bf16().map(bf16::to_f64));
            }
            results.extend(V::from_f16(set, &self.halves.map(f16::from_bits)).to_f64());
            results.extend(V::from_bf16(set, &self.halves.map(bf16::from_bits)).to_f64());
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
        let sets = sets();
        eprintln!("{sets:?}");
        for (i, (a, b)) in strips.iter().zip(strips.iter().rev()).enumerate() {
            let halves = std::array::from_fn(|lane| (i * STRIP + lane) as u16);
            let all = sets.iter().map(|arch| {
                let mut results = Vec::new();
                // No f32: rounded twice on the way to a half.
                with(*arch, Operations { a: *a, b: b.map(|b| b * 1.1), halves, results: &mut results });
                // Which NaN it is may differ, between two runs of one set, too.
                let number = |value: f64| if value.is_nan() { f64::NAN } else { value };
                results.into_iter().map(|value| number(value).to_bits()).collect::<Vec<_>>()
            });
            let all: Vec<_> = all.collect();
            assert!(all.iter().all(|result| *result == all[0]), "{a:?} {b:?} {halves:?}");
        }
    }
}
