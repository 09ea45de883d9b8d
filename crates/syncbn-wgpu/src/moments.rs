//! Enqueues `shaders/moments.wgsl`.

use syncbn_core::{Element, View};

use crate::device::Wgpu;
use crate::error::WgpuError;
use crate::module::Kernel;
use crate::plan::{Plan, Work};
use crate::queue::Queue;
use crate::workspace::{Parts, Sums};

pub(crate) fn enqueue<T: Element>(
    wgpu: &Wgpu,
    queue: &Queue,
    x: &View<'_, Wgpu, T>,
    out: &mut Sums,
) -> Result<(), WgpuError> {
    let geometry = x.geometry();
    let plan = Plan::new(geometry, size_of::<T>(), wgpu.gpu().parallelism(), Work::Sum)?;
    let x = x.mem().slice().of(geometry, size_of::<T>());
    let bindings = [("x", Some(x)), ("the sums", Some(out.partials()))];
    let kernel = wgpu.gpu().bind(wgpu.key::<T>(Kernel::Moments, plan.form), plan.params, &bindings)?;
    queue.dispatch(&[kernel])?;
    out.parts = Some(Parts { splits: plan.splits, count: geometry.per_channel() });
    Ok(())
}
