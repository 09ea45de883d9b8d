//! Enqueues `shaders/grad_input.wgsl`, and `gradient_terms.wgsl` before it where the sums are the group's.

use syncbn_core::Element;
use syncbn_core::backend::{Grad, GradInputArgs};

use crate::device::Wgpu;
use crate::error::WgpuError;
use crate::gradient_terms;
use crate::module::Kernel;
use crate::params::{FROZEN, GROUP, Params, WEIGHT};
use crate::plan::{Plan, Work, per_channel};
use crate::queue::Queue;
use crate::workspace::Sums;

pub(crate) fn enqueue<T: Element>(
    wgpu: &Wgpu,
    queue: &Queue,
    args: GradInputArgs<'_, Wgpu, T>,
) -> Result<(), WgpuError> {
    let GradInputArgs { x, mut grad, saved, sums, weight, .. } = args;
    let geometry = *x.geometry();
    if geometry.is_empty() {
        return Ok(());
    }
    let plan = Plan::new(&geometry, size_of::<T>(), wgpu.gpu().parallelism(), Work::Write)?;
    let mut kernels = Vec::with_capacity(2);
    if let Some(sums) = sums.filter(|sums| sums.terms_missing) {
        let params = Params { source: GROUP, ..per_channel(geometry.channels(), 1)? };
        kernels.push(gradient_terms::bind(wgpu.gpu(), params, sums, saved.slice(), [None, None])?);
    }
    let mut params = plan.params;
    params.wanted = u32::from(weight.is_some()) * WEIGHT;
    params.source = if sums.is_some() { GROUP } else { FROZEN };
    let (dy, dx) = match &mut grad {
        Grad::Apart { dy, dx } => (Some(dy.mem().slice()), dx.mem_mut().slice()),
        Grad::InPlace(dx) => (None, dx.mem_mut().slice()),
    };
    let mut bindings = vec![
        ("x", Some(x.mem().slice().of(&geometry, size_of::<T>()))),
        ("dx", Some(dx.of(&geometry, size_of::<T>()))),
        ("the saved statistics", saved.slice()),
        ("the sums", sums.map(Sums::merged)),
        ("weight", weight.as_ref().map(crate::Mem::slice)),
    ];
    let in_place = dy.is_none();
    bindings.extend(dy.map(|dy| ("dy", Some(dy.of(&geometry, size_of::<T>())))));
    let key = wgpu.key::<T>(Kernel::GradInput { in_place }, plan.form);
    kernels.push(wgpu.gpu().bind(key, params, &bindings)?);
    queue.dispatch(&kernels)
}
