//! Enqueues `shaders/statistics.wgsl`, which turns sums into the statistics that `normalize` and messages need.

use crate::error::WgpuError;
use crate::gpu::{Dispatch, Gpu};
use crate::memory::Slice;
use crate::module::{Kernel, Key};
use crate::pairs::halves;
use crate::params::{MERGE, Params};
use crate::plan::per_channel;
use crate::queue::Queue;
use crate::workspace::{Parts, Workspace};

/// What the kernel reads and writes besides the sums.
#[derive(Clone, Copy, Default)]
pub(crate) struct Places<'a> {
    pub(crate) saved: Option<Slice<'a>>,
    pub(crate) running_mean: Option<Slice<'a>>,
    pub(crate) running_var: Option<Slice<'a>>,
    pub(crate) num_batches_tracked: Option<Slice<'a>>,
}

/// Merges the splits' moments for a message.
pub(crate) fn merge(gpu: &Gpu, queue: &Queue, workspace: &Workspace, parts: Parts) -> Result<(), WgpuError> {
    let params = Params { source: MERGE, ..Params::default() };
    let places = Places::default();
    queue.dispatch(&[bind(gpu, workspace.channels, params, Some((workspace, parts)), places)?])
}

/// The kernel for `params.source`.
pub(crate) fn bind(
    gpu: &Gpu,
    channels: usize,
    params: Params,
    sums: Option<(&Workspace, Parts)>,
    places: Places<'_>,
) -> Result<Dispatch, WgpuError> {
    let Parts { splits, count } = sums.map_or(Parts { splits: 1, count: 0 }, |(_, parts)| parts);
    let workspace = sums.map(|(workspace, _)| workspace);
    let shape = per_channel(channels, splits)?;
    let (count_high, count_low) = halves(count as f64);
    let params = Params {
        channels: shape.channels,
        members: shape.members,
        splits: shape.splits,
        blocks: shape.blocks,
        count_high,
        count_low,
        ..params
    };
    let bindings = [
        ("the sums", workspace.map(Workspace::partials)),
        ("the sums", workspace.map(Workspace::merged)),
        ("the saved statistics", places.saved),
        ("running_mean", places.running_mean),
        ("running_var", places.running_var),
        ("num_batches_tracked", places.num_batches_tracked),
    ];
    gpu.bind(Key::per_channel(Kernel::Statistics), params, &bindings)
}
