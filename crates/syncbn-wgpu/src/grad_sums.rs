//! Enqueues `shaders/grad_sums.wgsl`, and `gradient_terms.wgsl` after it.

use syncbn_core::Element;
use syncbn_core::backend::GradSumsArgs;

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
    let GradSumsArgs { x, dy, saved, d_weight, d_bias, out, .. } = args;
    let geometry = *x.geometry();
    let plan = Plan::new(&geometry, size_of::<T>(), wgpu.gpu().parallelism(), Work::Sum)?;
    let bindings = [
        ("x", Some(x.mem().slice().of(&geometry, size_of::<T>()))),
        ("dy", Some(dy.mem().slice().of(&geometry, size_of::<T>()))),
        ("the saved statistics", saved.slice()),
        ("the sums", Some(out.partials())),
    ];
    let sum = wgpu.gpu().bind(wgpu.key::<T>(Kernel::GradSums, plan.form), plan.params, &bindings)?;
    let wanted = (u32::from(d_weight.is_some()) * D_WEIGHT) | (u32::from(d_bias.is_some()) * D_BIAS);
    let gradients = [d_weight.as_ref().map(crate::MemMut::slice), d_bias.as_ref().map(crate::MemMut::slice)];
    let params = Params { wanted, source: MERGE, ..per_channel(geometry.channels(), plan.splits)? };
    let merge = gradient_terms::bind(wgpu.gpu(), params, out, saved.slice(), gradients)?;
    queue.dispatch(&[sum, merge])?;
    // The moments that were there are gone.
    out.parts = None;
    out.terms_missing = false;
    Ok(())
}
