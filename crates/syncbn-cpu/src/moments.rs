//! Count, mean and M2 per channel: one pass over x.
//!
//! Each tile sums x - shift and its square in `f64`, the shift being the first of the channel's elements in the tile, so
//! that nothing cancels however far the mean is from 0; tiles are merged in order (Chan, Golub and `LeVeque` 1983).

use pulp::Simd;
use syncbn_core::statistics::Moments;
use syncbn_core::{Geometry, Pass, View};

use crate::memory::{Sums, scratch};
use crate::number::Number;
use crate::partition::Cut;
use crate::sums::{Terms, reduce};
use crate::{Cpu, CpuError};

pub(crate) fn moments<T: Number>(x: &View<'_, Cpu, T>, out: &mut Sums) -> Result<(), CpuError> {
    let geometry = x.geometry();
    out.local.fill(Moments::default());
    if !geometry.is_empty() {
        let cut = Cut::new(geometry);
        let partials = scratch(&mut out.partials, (1 + cut.splits()) * cut.columns(), "sums of tiles")?;
        let (columns, tiles) = partials.split_at_mut(cut.columns());
        reduce(&cut, [x.mem()], tiles, &Deviations);
        let count = merge_tiles(&cut, tiles, columns);
        merge_columns(&cut, geometry, x.mem(), count, columns, &mut out.local);
    }
    write_message(&out.local, geometry.per_channel() as f64, &mut out.message);
    Ok(())
}

/// Sums of x - shift and its square; mean and M2 of a tile.
struct Deviations;

impl Terms<1> for Deviations {
    #[inline(always)]
    fn shift(&self, _: usize, first: f64) -> f64 {
        first
    }

    #[inline(always)]
    fn padding(&self, shift: f64) -> [f64; 1] {
        [shift]
    }

    #[inline(always)]
    fn add<S: Simd>(&self, simd: S, sums: [S::f64s; 2], [x]: [S::f64s; 1], shift: S::f64s) -> [S::f64s; 2] {
        let deviation = simd.sub_f64s(x, shift);
        [simd.add_f64s(sums[0], deviation), simd.mul_add_e_f64s(deviation, deviation, sums[1])]
    }

    #[inline(always)]
    fn result(&self, [sum, squares]: [f64; 2], shift: f64, count: f64) -> [f64; 2] {
        let mean = sum / count;
        let m2 = squares - sum * mean;
        // False for NaN, which thereby stays NaN.
        let rounded_below = m2 < 0.0;
        [shift + mean, if rounded_below { 0.0 } else { m2 }]
    }
}

/// Mean and M2 of each column, by the same sums: of its tiles' means' deviations from the first one's. Returns the count.
fn merge_tiles(cut: &Cut, tiles: &[[f64; 2]], columns: &mut [[f64; 2]]) -> f64 {
    columns.fill([0.0; 2]);
    let first = &tiles[..columns.len()];
    let mut counted = 0.0;
    for (split, tiles) in tiles.chunks(columns.len()).enumerate() {
        let count = cut.count(split);
        counted += count;
        for ((column, &[shift, _]), &[mean, m2]) in columns.iter_mut().zip(first).zip(tiles) {
            let deviation = mean - shift;
            column[0] += count * deviation;
            column[1] += m2 + count * deviation * deviation;
        }
    }
    for (column, &[shift, _]) in columns.iter_mut().zip(first) {
        *column = Deviations.result(*column, shift, counted);
    }
    counted
}

/// Merges the columns, and the rest, channel by channel, in the same way.
fn merge_columns<T: Number>(
    cut: &Cut,
    geometry: &Geometry,
    x: &[T],
    count: f64,
    columns: &[[f64; 2]],
    local: &mut [Moments],
) {
    let shift = |channel: usize| x[channel * geometry.inner()].to_f64();
    // Until the end, `mean` and `m2` are the sums.
    let mut add = |channel: usize, part: Moments| {
        let deviation = part.mean - shift(channel);
        let local = &mut local[channel];
        local.count += part.count;
        local.mean += part.count * deviation;
        local.m2 += part.m2 + part.count * deviation * deviation;
    };
    for (channel, &[mean, m2]) in cut.channels().zip(columns) {
        add(channel, Moments { count, mean, m2 });
    }
    for (channel, i) in cut.channels().zip(cut.rest(geometry)) {
        add(channel, Moments { count: 1.0, mean: x[i].to_f64(), m2: 0.0 });
    }
    for (channel, local) in local.iter_mut().enumerate() {
        let [mean, m2] = Deviations.result([local.mean, local.m2], shift(channel), local.count);
        *local = Moments { count: local.count, mean, m2 };
    }
}

fn write_message(local: &[Moments], count: f64, message: &mut [f64]) {
    debug_assert_eq!(message.len(), Pass::Forward.message_len(local.len()));
    let (first, sums) = message.split_at_mut(1);
    first.fill(count);
    let (sum, sum_of_squares) = sums.split_at_mut(local.len());
    for ((local, sum), sum_of_squares) in local.iter().zip(sum).zip(sum_of_squares) {
        (*sum, *sum_of_squares) = local.to_sums();
    }
}
