//! Enqueues `shaders/moments.wgsl`.

use syncbn_core::Element;
use syncbn_core::backend::MomentsArgs;

use crate::device::Wgpu;
use crate::error::WgpuError;
use crate::module::Kernel;
use crate::plan::{Plan, Work};
use crate::queue::Queue;
use crate::workspace::Parts;

pub(crate) fn enqueue<T: Element>(
    wgpu: &Wgpu,
    queue: &Queue,
    args: MomentsArgs<'_, Wgpu, T>,
) -> Result<(), WgpuError> {
    let MomentsArgs { x, workspace } = args;
    let geometry = x.geometry();
    workspace.check(wgpu.gpu(), geometry.channels())?;
    let plan = Plan::new(geometry, size_of::<T>(), wgpu.gpu().parallelism(), Work::Sum)?;
    let bindings = [
        ("x", x.mem().slice().map(|x| x.of(geometry, size_of::<T>()))),
        ("the sums", Some(workspace.partials())),
    ];
    let kernel = wgpu.gpu().bind(wgpu.key::<T>(Kernel::Moments, plan.form), plan.params, &bindings)?;
    queue.dispatch(&[kernel])?;
    workspace.parts = Some(Parts { splits: plan.splits, count: geometry.per_channel() });
    Ok(())
}
