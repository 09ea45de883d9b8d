//! Two sums per channel over the elements of one tile, in `f64`: what `moments` and `grad_sums` have in common.
//!
//! Deliberately not here: how tiles' sums are put together.

use std::array;
use std::ops::Range;

use syncbn_core::Geometry;

use crate::number::{Number, STRIP, Strip, padded};
use crate::partition::{LANES, Tile, merged_rows, sums_by_planes};
use crate::prefetch;

/// The independent strips of sums along a plane: enough to hide how long an addition takes.
const CHAINS: usize = 4;

/// Two sums, each in as many parts as a strip has elements.
type Sums = [Strip; 2];

/// Adds, for every element of the tile, the two numbers that `term` makes of the inputs' elements and the channel's
/// `shift`, to the channel's sums. `shifts` and `sums` have one entry per channel of the tile.
#[inline(always)]
pub(crate) fn tile<T: Number, const N: usize>(
    geometry: &Geometry,
    tile: &Tile,
    inputs: [&[T]; N],
    shifts: impl Fn(usize) -> f64,
    sums: &mut [[f64; 2]],
    term: impl Fn([f64; N], f64) -> [f64; 2],
) {
    if sums_by_planes(geometry) {
        planes(geometry, tile, inputs, shifts, sums, term);
    } else if N == 1 {
        // Rows that share one look at the sums: four sequences of memory are as many as the processor keeps up with.
        rows::<T, N, 4>(geometry, tile, inputs, shifts, sums, term);
    } else {
        rows::<T, N, 1>(geometry, tile, inputs, shifts, sums, term);
    }
}

#[inline(always)]
fn planes<T: Number, const N: usize>(
    geometry: &Geometry,
    tile: &Tile,
    inputs: [&[T]; N],
    shifts: impl Fn(usize) -> f64,
    sums: &mut [[f64; 2]],
    term: impl Fn([f64; N], f64) -> [f64; 2],
) {
    for outer in tile.outer.clone() {
        for (channel, sums) in tile.channels.clone().zip(&mut *sums) {
            let plane = (outer * geometry.channels() + channel) * geometry.inner();
            let range = plane + tile.inner.start..plane + tile.inner.end;
            let [first, second] = along(inputs.map(|input| &input[range.clone()]), shifts(channel), &term);
            *sums = [sums[0] + first, sums[1] + second];
        }
    }
}

/// Along one channel: strip i belongs to chain i modulo their number, but for the last few.
#[inline(always)]
fn along<T: Number, const N: usize>(
    inputs: [&[T]; N],
    shift: f64,
    term: &impl Fn([f64; N], f64) -> [f64; 2],
) -> [f64; 2] {
    let shift = [shift; STRIP];
    let strips = inputs.map(|input| input.as_chunks::<STRIP>().0);
    let whole = inputs[0].len() / STRIP;
    let strips = strips.map(|strips| &strips[..whole]);
    let mut chains = [[[0.0; STRIP]; 2]; CHAINS];
    let mut i = 0;
    while i + CHAINS <= whole {
        for (k, chain) in chains.iter_mut().enumerate() {
            add(
                chain,
                terms(widened(strips.map(|strips| &strips[i + k]), prefetch::elements::<T>()), &shift, term),
            );
        }
        i += CHAINS;
    }
    let [mut sums, others @ ..] = chains;
    for i in i..whole {
        add(
            &mut sums,
            terms(widened(strips.map(|strips| &strips[i]), prefetch::elements::<T>()), &shift, term),
        );
    }
    let rest = inputs[0].len() % STRIP;
    if rest > 0 {
        // The last strip's elements, of which those that are in a whole strip count for nothing.
        let (values, lanes) = match inputs[0].last_chunk::<STRIP>() {
            Some(last) => {
                (inputs.map(|input| T::widen(input.last_chunk().unwrap_or(last))), STRIP - rest..STRIP)
            }
            None => (inputs.map(|input| T::widen(&padded(input))), 0..rest),
        };
        add(&mut sums, only(lanes, terms(values, &shift, term)));
    }
    for other in others {
        add(&mut sums, other);
    }
    sums.map(total)
}

#[inline(always)]
fn rows<T: Number, const N: usize, const R: usize>(
    geometry: &Geometry,
    tile: &Tile,
    inputs: [&[T]; N],
    shifts: impl Fn(usize) -> f64,
    sums: &mut [[f64; 2]],
    term: impl Fn([f64; N], f64) -> [f64; 2],
) {
    let inner = geometry.inner();
    let (row, stride) = (tile.channels.len() * inner, geometry.channels() * inner);
    // Rows that lie one behind the other are added as one.
    let merged = if row == stride { merged_rows(row, STRIP) } else { 1 };
    let (len, step) = (row * merged, stride * merged);
    let channels = || tile.channels.clone().flat_map(|channel| (0..inner).map(move |_| channel));

    let mut shift = [[0.0; STRIP]; LANES / STRIP];
    let lanes = shift.as_flattened_mut()[..len].chunks_mut(row);
    for row in lanes {
        row.iter_mut().zip(channels()).for_each(|(lane, channel)| *lane = shifts(channel));
    }
    let mut strips = [[[0.0; STRIP]; 2]; LANES / STRIP];
    let distance = (prefetch::elements::<T>() / len).max(R) * step;
    let mut at = tile.outer.start * stride + tile.channels.start * inner;
    let end = at + tile.outer.len() * stride;
    let cut = |at: usize, len: usize| inputs.map(|input| &input[at..at + len]);
    while at + R * step <= end {
        across(array::from_fn::<_, R, _>(|k| cut(at + k * step, len)), &shift, &mut strips, distance, &term);
        at += R * step;
    }
    while at < end {
        let len = len.min((end - at) / stride * row);
        across([cut(at, len)], &shift, &mut strips, distance, &term);
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

/// Across channels: every lane has sums and a shift of its own, which several rows share one look at.
#[inline(always)]
fn across<T: Number, const N: usize, const R: usize>(
    rows: [[&[T]; N]; R],
    shift: &[Strip],
    sums: &mut [Sums],
    distance: usize,
    term: &impl Fn([f64; N], f64) -> [f64; 2],
) {
    let whole = rows[0][0].len() / STRIP;
    let strips = rows.map(|row| row.map(|input| &input.as_chunks::<STRIP>().0[..whole]));
    for (i, (sums, shift)) in sums[..whole].iter_mut().zip(shift).enumerate() {
        let mut sum = *sums;
        for row in &strips {
            add(&mut sum, terms(widened(row.map(|strips| &strips[i]), distance), shift, term));
        }
        *sums = sum;
    }
    for row in rows {
        let rest = row.map(|input| &input[whole * STRIP..]);
        if !rest[0].is_empty() {
            let values = rest.map(|rest| T::widen(&padded(rest)));
            add(&mut sums[whole], only(0..rest[0].len(), terms(values, &shift[whole], term)));
        }
    }
}

/// The same strip of every input.
#[inline(always)]
fn widened<T: Number, const N: usize>(strips: [&[T; STRIP]; N], distance: usize) -> [Strip; N] {
    strips.map(|strip| {
        prefetch::ahead(strip, distance);
        T::widen(strip)
    })
}

#[inline(always)]
fn terms<const N: usize>(
    values: [Strip; N],
    shift: &Strip,
    term: &impl Fn([f64; N], f64) -> [f64; 2],
) -> Sums {
    let mut terms = [[0.0; STRIP]; 2];
    for i in 0..STRIP {
        [terms[0][i], terms[1][i]] = term(array::from_fn(|n| values[n][i]), shift[i]);
    }
    terms
}

/// Zeros instead of the terms of other lanes.
#[inline(always)]
fn only(lanes: Range<usize>, terms: Sums) -> Sums {
    terms.map(|strip| array::from_fn(|i| if lanes.contains(&i) { strip[i] } else { 0.0 }))
}

#[inline(always)]
fn add(sums: &mut Sums, terms: Sums) {
    for (sums, terms) in sums.iter_mut().zip(terms) {
        for (sum, term) in sums.iter_mut().zip(terms) {
            *sum += term;
        }
    }
}

/// By halves, as vectors are added.
#[inline(always)]
fn total(strip: Strip) -> f64 {
    let half: [f64; STRIP / 2] = array::from_fn(|i| strip[i] + strip[i + STRIP / 2]);
    (half[0] + half[2]) + (half[1] + half[3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_of_a_tile_is_added_once_to_its_channel() {
        for [outer, channels, inner] in [
            [1, 1, 1],
            [2, 3, 1],
            [77, 5, 1],
            [9, 64, 1],
            [6, 513, 1],
            [3, 7, 9],
            [5, 9, 31],
            [3, 4, 32],
            [2, 3, 49],
            [30, 3, 49],
            [2, 5, 196],
        ] {
            let geometry = Geometry::channels_first(&[outer, channels, inner]).unwrap();
            let (outer, channels, inner) = (geometry.outer(), geometry.channels(), geometry.inner());
            let x: Vec<f64> = (0..geometry.len()).map(|i| (i * 7 % 1000) as f64).collect();
            let dy: Vec<f64> = (0..geometry.len()).map(|i| (i * 13 % 500) as f64).collect();
            let from = |len: usize| [0, len / 3];
            for (o, c, i) in from(outer)
                .into_iter()
                .flat_map(|o| from(channels).map(|c| (o, c)))
                .flat_map(|(o, c)| from(inner).map(|i| (o, c, i)))
            {
                // Only planes are cut.
                let i = if sums_by_planes(&geometry) { i } else { 0 };
                let part = Tile { outer: o..outer, channels: c..channels, inner: i..inner };
                let shift = |channel: usize| channel as f64;
                let mut one = vec![[1.0; 2]; channels - c];
                let mut two = one.clone();
                tile(&geometry, &part, [&x], shift, &mut one, |[x], shift| [x - shift, x]);
                tile(&geometry, &part, [&x, &dy], shift, &mut two, |[x, dy], shift| [dy, dy * (x - shift)]);
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
}
