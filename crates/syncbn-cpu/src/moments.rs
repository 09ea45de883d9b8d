//! Count, mean and M2 per channel: one pass over x.
//!
//! Each tile sums x - shift and its square in `f64`. The shift is the channel's first element in the tile, so that no digits cancel
//! when the mean is far from 0. Tiles are merged in order (Chan, Golub and `LeVeque` 1983).

use syncbn_core::backend::MomentsArgs;
use syncbn_core::statistics::Moments;

use crate::block::Block;
use crate::device::Cpu;
use crate::error::CpuError;
use crate::memory::{filled, scratch};
use crate::number::Number;
use crate::plan::{Dims, Tile, Tiles};
use crate::reduce::{self, Terms};
use crate::vector::Vector;
use crate::workspace::Workspace;

pub(crate) fn moments<T: Number>(args: MomentsArgs<'_, Cpu, T>) -> Result<(), CpuError> {
    let MomentsArgs { x, workspace } = args;
    let Workspace { moments, partials, .. } = workspace;
    let dims = Dims::from(x.geometry());
    let tiles = Tiles::new(dims);
    let channels = dims.channels;
    let partials = scratch(partials, tiles.splits() * channels, "sums of tiles")?;
    let x: &[T] = x.mem();
    tiles.for_each(partials, |tile, partials| {
        of_tile(dims, tile, x, partials);
    })?;

    moments.fill(Moments::default());
    for (split, partials) in partials.chunks(channels).enumerate() {
        merge(moments, tiles.count(split), partials);
    }
    Ok(())
}

/// The moments of a block's channels.
pub(crate) fn of_block<T: Number>(
    tiles: &Tiles,
    block: &Block<'_, T, 1>,
    moments: &mut [Moments],
) -> Result<(), CpuError> {
    let mut partials = filled([0.0; 2], moments.len(), "sums of tiles")?;
    moments.fill(Moments::default());
    for tile in block.tiles(tiles) {
        of_tile(block.dims, &tile, block.inputs[0], &mut partials);
        merge(moments, tile.count(), &partials);
    }
    Ok(())
}

fn merge(moments: &mut [Moments], count: f64, partials: &[[f64; 2]]) {
    for (moments, &[mean, m2]) in moments.iter_mut().zip(partials) {
        *moments = moments.merge(Moments { count, mean, m2 });
    }
}

/// `x - shift`, and its square.
#[derive(Clone, Copy)]
struct Deviations;

impl Terms<1> for Deviations {
    #[inline(always)]
    fn of<V: Vector>(self, [x]: [V; 1], shift: V) -> [V; 2] {
        let deviation = x - shift;
        [deviation, deviation * deviation]
    }
}

/// The mean and M2 of each of the tile's channels.
fn of_tile<T: Number>(dims: Dims, tile: &Tile, x: &[T], results: &mut [[f64; 2]]) {
    let first = tile.outer.start * dims.channels;
    let shift = |channel: usize| x[(first + channel) * dims.inner + tile.inner.start].to_f64();
    results.fill([0.0; 2]);
    reduce::tile(dims, tile, [x], shift, results, Deviations);

    let count = tile.count();
    for (channel, result) in tile.channels.clone().zip(results) {
        let [sum, squares] = *result;
        // In this order: the square of a sum may be infinite where the sum of squares is not.
        let m2 = squares - sum * (sum / count);
        // False for NaN, which thereby stays NaN.
        let rounded_below = m2 < 0.0;
        *result = [shift(channel) + sum / count, if rounded_below { 0.0 } else { m2 }];
    }
}
