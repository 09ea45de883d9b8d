//! Enqueues `shaders/grad_sums.wgsl`, and `gradient_terms.wgsl` after it.

use syncbn_core::Element;
use syncbn_core::backend::GradSumsArgs;

use crate::MemMut;
use crate::device::Wgpu;
use crate::error::WgpuError;
use crate::gradient_terms;
use crate::module::Kernel;
use crate::params::{D_BIAS, D_WEIGHT, MERGE, Params};
use crate::plan::{Plan, Work, per_channel};
use crate::queue::Queue;

pub(crate) fn enqueue<T: Element>(
    wgpu: &Wgpu,
    queue: &Queue,
    args: GradSumsArgs<'_, Wgpu, T>,
) -> Result<(), WgpuError> {
    let GradSumsArgs { x, dy, saved, d_weight, d_bias, workspace } = args;
    let geometry = *x.geometry();
    workspace.check(wgpu.gpu(), geometry.channels())?;
    let plan = Plan::new(&geometry, size_of::<T>(), wgpu.gpu().parallelism(), Work::Sum)?;
    let bindings = [
        ("x", x.mem().slice().map(|x| x.of(&geometry, size_of::<T>()))),
        ("dy", dy.mem().slice().map(|dy| dy.of(&geometry, size_of::<T>()))),
        ("the saved statistics", saved.slice()),
        ("the sums", Some(workspace.partials())),
    ];
    let sum = wgpu.gpu().bind(wgpu.key::<T>(Kernel::GradSums, plan.form), plan.params, &bindings)?;
    let wanted = (u32::from(d_weight.is_some()) * D_WEIGHT) | (u32::from(d_bias.is_some()) * D_BIAS);
    let gradients = [d_weight.as_ref(), d_bias.as_ref()].map(|gradient| gradient.and_then(MemMut::slice));
    let params = Params { wanted, source: MERGE, ..per_channel(geometry.channels(), plan.splits)? };
    let merge = gradient_terms::bind(wgpu.gpu(), params, workspace, saved.slice(), gradients)?;
    queue.dispatch(&[sum, merge])?;
    // This overwrites the moments.
    workspace.parts = None;
    workspace.terms_missing = false;
    Ok(())
}
