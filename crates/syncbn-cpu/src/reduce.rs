//! Two sums per channel over the elements of one tile, in `f64`: what `moments` and `grad_sums` have in common.

use std::array;

use crate::number::{Number, padded};
use crate::plan::{Dims, LANES, Tile};
use crate::prefetch;
use crate::vector::{STRIP, Strip, Vector, Work, vectors, with_vectors};

/// The independent vectors of sums along a plane: an addition need not wait for the one before it. Two were as fast, but each would
/// sum twice as many terms, which costs accuracy.
const CHAINS: usize = 4;

/// The two numbers that are summed.
pub(crate) trait Terms<const N: usize>: Copy {
    /// Of the inputs' elements and the channel's shift.
    fn of<V: Vector>(self, inputs: [V; N], shift: V) -> [V; 2];
}

/// Adds the terms of every element of the tile to the channel's sums. `shifts` gives a channel's shift, and `sums` has one entry
/// per channel of the tile.
pub(crate) fn tile<T: Number, const N: usize>(
    dims: Dims,
    tile: &Tile,
    inputs: [&[T]; N],
    shifts: impl Fn(usize) -> f64,
    sums: &mut [[f64; 2]],
    terms: impl Terms<N>,
) {
    with_vectors(Sum { dims, tile, inputs, shifts, sums, terms });
}

struct Sum<'a, T, const N: usize, S, F> {
    dims: Dims,
    tile: &'a Tile,
    inputs: [&'a [T]; N],
    shifts: S,
    sums: &'a mut [[f64; 2]],
    terms: F,
}

impl<T: Number, const N: usize, S: Fn(usize) -> f64, F: Terms<N>> Work for Sum<'_, T, N, S, F> {
    #[inline(always)]
    fn run<V: Vector>(self, set: V::Set) {
        if self.dims.sums_by_planes() {
            self.planes::<V>(set);
        } else if N == 1 {
            // Four rows share one load of the sums. More sequences of memory at once are slower to read.
            self.rows::<V, 4>(set);
        } else {
            self.rows::<V, 1>(set);
        }
    }
}

impl<T: Number, const N: usize, S: Fn(usize) -> f64, F: Terms<N>> Sum<'_, T, N, S, F> {
    #[inline(always)]
    fn planes<V: Vector>(self, set: V::Set) {
        let Self { dims, tile, inputs, shifts, sums, terms } = self;
        for outer in tile.outer.clone() {
            for (channel, sums) in tile.channels.clone().zip(&mut *sums) {
                let plane = (outer * dims.channels + channel) * dims.inner;
                let range = plane + tile.inner.start..plane + tile.inner.end;
                let inputs = inputs.map(|input| &input[range.clone()]);
                let [first, second] = along::<T, V, N>(set, inputs, shifts(channel), terms);
                *sums = [sums[0] + first, sums[1] + second];
            }
        }
    }

    #[inline(always)]
    fn rows<V: Vector, const R: usize>(self, set: V::Set) {
        let Self { dims, tile, inputs, shifts, sums, terms } = self;
        let inner = dims.inner;
        let (row, stride) = (tile.channels.len() * inner, dims.channels * inner);
        let merged = tile.merged_rows;
        let (len, step) = (row * merged, stride * merged);
        let channels = || tile.channels.clone().flat_map(|channel| (0..inner).map(move |_| channel));

        let mut shift = [[0.0; STRIP]; LANES / STRIP];
        let lanes = shift.as_flattened_mut()[..len].chunks_mut(row);
        for row in lanes {
            row.iter_mut().zip(channels()).for_each(|(lane, channel)| *lane = shifts(channel));
        }
        let mut strips = [[[0.0; STRIP]; 2]; LANES / STRIP];
        // At least past the rows that are being added.
        let distance = (prefetch::elements::<T>(N) / len).max(R).saturating_mul(step);
        let mut at = tile.outer.start * stride + tile.channels.start * inner;
        let end = at + tile.outer.len() * stride;
        let cut = |at: usize, len: usize| inputs.map(|input| &input[at..at + len]);
        while at + R * step <= end {
            let rows = array::from_fn::<_, R, _>(|k| cut(at + k * step, len));
            across::<T, V, N, R>(set, rows, &shift, &mut strips, distance, terms);
            at += R * step;
        }
        while at < end {
            let len = len.min((end - at) / stride * row);
            across::<T, V, N, 1>(set, [cut(at, len)], &shift, &mut strips, distance, terms);
            at += step;
        }
        for copy in 0..merged {
            for (k, channel) in channels().enumerate() {
                let (strip, lane) = ((copy * row + k) / STRIP, (copy * row + k) % STRIP);
                let sums = &mut sums[channel - tile.channels.start];
                *sums = [sums[0] + strips[strip][0][lane], sums[1] + strips[strip][1][lane]];
            }
        }
    }
}

/// Along one channel: vector i is added to chain i modulo their number; the last few go to the first chain.
#[inline(always)]
fn along<T: Number, V: Vector, const N: usize>(
    set: V::Set,
    inputs: [&[T]; N],
    shift: f64,
    terms: impl Terms<N>,
) -> [f64; 2] {
    let shift = V::splat(set, shift);
    let distance = prefetch::elements::<T>(N);
    let whole = inputs[0].len() / STRIP;
    let strips = inputs.map(|input| &input.as_chunks::<STRIP>().0[..whole]);
    let mut chains = [[V::splat(set, 0.0); 2]; CHAINS];
    let mut i = 0;
    while i + CHAINS <= whole {
        for (k, chain) in chains.iter_mut().enumerate() {
            let values = read(set, strips.map(|strips| &strips[i + k]), distance);
            add(chain, terms.of(values, shift));
        }
        i += CHAINS;
    }
    let [mut sums, others @ ..] = chains;
    for i in i..whole {
        let values = read(set, strips.map(|strips| &strips[i]), distance);
        add(&mut sums, terms.of(values, shift));
    }
    let rest = inputs[0].len() % STRIP;
    if rest > 0 {
        // The last strip overlaps a whole one: the mask zeroes what has been added already.
        let last = inputs.map(|input| input.last_chunk().copied().unwrap_or_else(|| padded(input)));
        let mask = if whole > 0 { &LAST[rest] } else { &FIRST[rest] };
        add(&mut sums, only(set, mask, terms.of(vectors(set, last.each_ref(), T::widen), shift)));
    }
    for other in others {
        add(&mut sums, other);
    }
    [sums[0].total(), sums[1].total()]
}

/// Across channels: every lane has sums and a shift of its own, which are loaded once for `R` rows.
#[inline(always)]
fn across<T: Number, V: Vector, const N: usize, const R: usize>(
    set: V::Set,
    rows: [[&[T]; N]; R],
    shift: &[Strip],
    sums: &mut [[Strip; 2]],
    distance: usize,
    terms: impl Terms<N>,
) {
    let whole = rows[0][0].len() / STRIP;
    let strips = rows.map(|row| row.map(|input| &input.as_chunks::<STRIP>().0[..whole]));
    for (i, (sums, shift)) in sums[..whole].iter_mut().zip(shift).enumerate() {
        let mut sum = vectors(set, sums.each_ref(), V::from_f64);
        let shift = V::from_f64(set, shift);
        for row in &strips {
            add(&mut sum, terms.of(read(set, row.map(|strips| &strips[i]), distance), shift));
        }
        *sums = store(sum);
    }
    let rest = rows[0][0].len() % STRIP;
    if rest > 0 {
        let mut sum = vectors(set, sums[whole].each_ref(), V::from_f64);
        let shift = V::from_f64(set, &shift[whole]);
        for row in rows {
            let last = row.map(|input| padded(&input[whole * STRIP..]));
            let values = vectors(set, last.each_ref(), T::widen);
            add(&mut sum, only(set, &FIRST[rest], terms.of(values, shift)));
        }
        sums[whole] = store(sum);
    }
}

/// The same strip of every input; prefetches those to come.
#[inline(always)]
fn read<T: Number, V: Vector, const N: usize>(
    set: V::Set,
    strips: [&[T; STRIP]; N],
    distance: usize,
) -> [V; N] {
    for strip in strips {
        prefetch::ahead(strip, distance);
    }
    vectors(set, strips, T::widen)
}

#[inline(always)]
fn store<V: Vector>(sums: [V; 2]) -> [Strip; 2] {
    [sums[0].to_f64(), sums[1].to_f64()]
}

#[inline(always)]
fn add<V: Vector>(sums: &mut [V; 2], terms: [V; 2]) {
    *sums = [sums[0] + terms[0], sums[1] + terms[1]];
}

/// The terms of the lanes in the mask, zero in the others.
#[inline(always)]
fn only<V: Vector>(set: V::Set, mask: &Strip, terms: [V; 2]) -> [V; 2] {
    let mask = V::from_f64(set, mask);
    [terms[0].and(mask), terms[1].and(mask)]
}

/// Entry n selects the first n lanes: all their bits are ones.
static FIRST: [Strip; STRIP] = masks(0);

/// Entry n selects the last n lanes.
static LAST: [Strip; STRIP] = masks(STRIP);

/// For each number of lanes a mask of that many, the last before `end`, or the first if that is 0.
const fn masks(end: usize) -> [Strip; STRIP] {
    let mut masks = [[0.0; STRIP]; STRIP];
    let mut lanes = 0;
    while lanes < STRIP {
        let mut lane = 0;
        while lane < lanes {
            masks[lanes][if end > 0 { end - 1 - lane } else { lane }] = f64::from_bits(u64::MAX);
            lane += 1;
        }
        lanes += 1;
    }
    masks
}

#[cfg(test)]
mod tests {
    use syncbn_core::Geometry;

    use super::*;
    use crate::plan::merged_rows;
    use crate::vector::{sets, with};

    #[derive(Clone, Copy)]
    struct Deviation;

    impl Terms<1> for Deviation {
        fn of<V: Vector>(self, [x]: [V; 1], shift: V) -> [V; 2] {
            [x - shift, x]
        }
    }

    #[derive(Clone, Copy)]
    struct Product;

    impl Terms<2> for Product {
        fn of<V: Vector>(self, [x, dy]: [V; 2], shift: V) -> [V; 2] {
            [dy, dy * (x - shift)]
        }
    }

    #[test]
    fn every_element_of_a_tile_is_added_once_to_its_channel() {
        for [outer, channels, inner] in [
            [1, 1, 1],
            [2, 3, 1],
            [77, 5, 1],
            [9, 64, 1],
            [6, 513, 1],
            [3, LANES, 1],
            [3, 7, 9],
            [5, 9, 31],
            [3, 4, 32],
            [2, 3, 49],
            [30, 3, 49],
            [2, 5, 196],
        ] {
            let geometry = Geometry::channels_first(&[outer, channels, inner]).unwrap();
            let dims = Dims::from(&geometry);
            let Dims { outer, channels, inner } = dims;
            let x: Vec<f64> = (0..geometry.len()).map(|i| (i * 7 % 1000) as f64).collect();
            let dy: Vec<f64> = (0..geometry.len()).map(|i| (i * 13 % 500) as f64).collect();
            let from = |len: usize| [0, len / 3];
            for (o, c, i) in from(outer)
                .into_iter()
                .flat_map(|o| from(channels).map(|c| (o, c)))
                .flat_map(|(o, c)| [0, inner / 3, inner.saturating_sub(3)].map(|i| (o, c, i)))
            {
                // Only planes are cut.
                let i = if dims.sums_by_planes() { i } else { 0 };
                let merged_rows = if c == 0 { merged_rows(channels * inner, STRIP) } else { 1 };
                let part = Tile { outer: o..outer, channels: c..channels, inner: i..inner, merged_rows };
                let shift = |channel: usize| channel as f64;
                let mut one = vec![[1.0; 2]; channels - c];
                let mut two = one.clone();
                tile(dims, &part, [&x], shift, &mut one, Deviation);
                tile(dims, &part, [&x, &dy], shift, &mut two, Product);
                for channel in c..channels {
                    let elements: Vec<usize> = (o..outer)
                        .flat_map(|outer| (i..inner).map(move |at| (outer * channels + channel) * inner + at))
                        .collect();
                    let sum =
                        |of: &dyn Fn(usize) -> f64| 1.0 + elements.iter().map(|&at| of(at)).sum::<f64>();
                    let shift = shift(channel);
                    assert_eq!(
                        one[channel - c],
                        [sum(&|at| x[at] - shift), sum(&|at| x[at])],
                        "{geometry:?}"
                    );
                    let expected = [sum(&|at| dy[at]), sum(&|at| dy[at] * (x[at] - shift))];
                    assert_eq!(two[channel - c], expected, "{geometry:?}");
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_sums_to_the_same_bits() {
        for shape in [[3, 1, 1003], [2, 3, 49], [77, 5, 1], [9, 64, 1], [6, 513, 1], [5, 2, 196]] {
            let geometry = Geometry::channels_first(&shape).unwrap();
            let x: Vec<f32> = (0..geometry.len()).map(|i| 1.0 / (i + 1) as f32).collect();
            let inputs: [&[f32]; 2] = [&x, &x];
            let whole = Tile {
                outer: 0..geometry.outer(),
                channels: 0..shape[1],
                inner: 0..geometry.inner(),
                merged_rows: merged_rows(shape[1] * geometry.inner(), STRIP),
            };
            let of = |arch| {
                let mut sums = vec![[0.0; 2]; shape[1]];
                let shifts = |channel| 0.1 * channel as f64;
                let (dims, tile) = (Dims::from(&geometry), &whole);
                with(arch, Sum { dims, tile, inputs, shifts, sums: &mut sums, terms: Product });
                sums
            };
            let all: Vec<_> = sets().into_iter().map(of).collect();
            assert!(all.iter().all(|sums| *sums == all[0]), "{shape:?}: {all:?}");
        }
    }
}
