//! `sum_dy` and `sum_dy_xmu = sum dy (x - mean)` per channel, and this rank's gradients of weight and bias: one pass over
//! x and dy.

use syncbn_core::Element;
use syncbn_core::backend::GradSumsArgs;
use syncbn_core::host_memory::saved_channel;

use crate::block::Block;
use crate::device::Cpu;
use crate::error::CpuError;
use crate::memory::{filled, scratch};
use crate::number::Number;
use crate::plan::{Dims, Tile, Tiles};
use crate::reduce::{self, Terms};
use crate::vector::Vector;
use crate::workspace::Workspace;

pub(crate) fn grad_sums<T: Number>(args: GradSumsArgs<'_, Cpu, T>) -> Result<(), CpuError> {
    let GradSumsArgs { x, dy, saved, d_weight, d_bias, workspace } = args;
    let dims = Dims::from(x.geometry());
    let tiles = Tiles::new(dims);
    let Workspace { sums, partials, .. } = workspace;
    let partials = scratch(partials, tiles.splits() * dims.channels, "sums of tiles")?;
    let inputs: [&[T]; 2] = [x.mem(), dy.mem()];
    let mean = |channel: usize| saved_channel(saved, channel).0.mean;
    tiles.for_each(partials, |tile, partials| of_tile(dims, tile, inputs, mean, partials))?;
    finish::<T>(partials, saved, sums, d_weight, d_bias);
    Ok(())
}

/// The sums over a block's channels, whose mean is given by their number within the block.
pub(crate) fn of_block<T: Number>(
    tiles: &Tiles,
    block: &Block<'_, T, 2>,
    mean: impl Fn(usize) -> f64,
    sums: &mut [[f64; 2]],
) -> Result<(), CpuError> {
    let mut partials = filled([0.0; 2], sums.len(), "sums of tiles")?;
    sums.fill([0.0; 2]);
    for tile in block.tiles(tiles) {
        let first = tile.channels.start;
        of_tile(block.dims, &tile, block.inputs, |channel| mean(channel - first), &mut partials);
        for (sums, partial) in sums.iter_mut().zip(&partials) {
            *sums = [sums[0] + partial[0], sums[1] + partial[1]];
        }
    }
    Ok(())
}

fn of_tile<T: Number>(
    dims: Dims,
    tile: &Tile,
    inputs: [&[T]; 2],
    mean: impl Fn(usize) -> f64,
    results: &mut [[f64; 2]],
) {
    results.fill([0.0; 2]);
    reduce::tile(dims, tile, inputs, mean, results, Products);
}

/// Adds up the rows of sums, and writes the gradients of weight and bias.
pub(crate) fn finish<T: Element>(
    rows: &[[f64; 2]],
    saved: &[f64],
    sums: &mut [f64],
    d_weight: Option<&mut [T::Param]>,
    d_bias: Option<&mut [T::Param]>,
) {
    let channels = sums.len() / 2;
    let (sum_dy, sum_dy_xmu) = sums.split_at_mut(channels);
    sum_dy.fill(0.0);
    sum_dy_xmu.fill(0.0);
    for row in rows.chunks(channels) {
        for ((of_row, sum_dy), sum_dy_xmu) in row.iter().zip(&mut *sum_dy).zip(&mut *sum_dy_xmu) {
            *sum_dy += of_row[0];
            *sum_dy_xmu += of_row[1];
        }
    }
    if let Some(d_bias) = d_bias {
        for (d_bias, sum_dy) in d_bias.iter_mut().zip(sum_dy) {
            *d_bias = T::Param::from_f64(*sum_dy);
        }
    }
    if let Some(d_weight) = d_weight {
        for (channel, (d_weight, sum_dy_xmu)) in d_weight.iter_mut().zip(sum_dy_xmu).enumerate() {
            let (_, invstd) = saved_channel(saved, channel);
            *d_weight = T::Param::from_f64(*sum_dy_xmu * invstd);
        }
    }
}

/// `dy` and `dy (x - mean)`.
#[derive(Clone, Copy)]
struct Products;

impl Terms<2> for Products {
    #[inline(always)]
    fn of<V: Vector>(self, [x, dy]: [V; 2], mean: V) -> [V; 2] {
        [dy, dy * (x - mean)]
    }
}
