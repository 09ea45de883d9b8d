//! Enqueues `shaders/grad_input.wgsl`, and `gradient_terms.wgsl` before it where the sums are the group's.

use syncbn_core::Element;
use syncbn_core::backend::{Grad, GradInputArgs, GradSource};

use crate::Mem;
use crate::device::Wgpu;
use crate::error::WgpuError;
use crate::gradient_terms;
use crate::module::Kernel;
use crate::params::{FROZEN, GROUP, Params, WEIGHT};
use crate::plan::{Plan, Work, per_channel};
use crate::queue::Queue;
use crate::workspace::Workspace;

pub(crate) fn enqueue<T: Element>(
    wgpu: &Wgpu,
    queue: &Queue,
    args: GradInputArgs<'_, Wgpu, T>,
) -> Result<(), WgpuError> {
    let GradInputArgs { x, mut grad, saved, source, weight } = args;
    let geometry = *x.geometry();
    let workspace = match source {
        GradSource::Batch { workspace } => Some(workspace),
        GradSource::Frozen => None,
    };
    if let Some(workspace) = workspace {
        workspace.check(wgpu.gpu(), geometry.channels())?;
    }
    if geometry.is_empty() {
        return Ok(());
    }
    let plan = Plan::new(&geometry, size_of::<T>(), wgpu.gpu().parallelism(), Work::Write)?;
    let mut kernels = Vec::with_capacity(2);
    if let Some(workspace) = workspace.filter(|workspace| workspace.terms_missing) {
        let params = Params { source: GROUP, ..per_channel(geometry.channels(), 1)? };
        kernels.push(gradient_terms::bind(wgpu.gpu(), params, workspace, saved.slice(), [None, None])?);
    }
    let mut params = plan.params;
    params.wanted = u32::from(weight.is_some()) * WEIGHT;
    params.source = if workspace.is_some() { GROUP } else { FROZEN };
    let (dy, dx) = match &mut grad {
        Grad::OutOfPlace { dy, dx } => (Some(dy.mem().slice()), dx.mem_mut().slice()),
        Grad::InPlace(dx) => (None, dx.mem_mut().slice()),
    };
    let mut bindings = vec![
        ("x", x.mem().slice().map(|x| x.of(&geometry, size_of::<T>()))),
        ("dx", dx.map(|dx| dx.of(&geometry, size_of::<T>()))),
        ("the saved statistics", saved.slice()),
        ("the sums", workspace.map(Workspace::merged)),
        ("weight", weight.as_ref().and_then(Mem::slice)),
    ];
    let in_place = dy.is_none();
    bindings.extend(dy.map(|dy| ("dy", dy.map(|dy| dy.of(&geometry, size_of::<T>())))));
    let key = wgpu.key::<T>(Kernel::GradInput { in_place }, plan.form);
    kernels.push(wgpu.gpu().bind(key, params, &bindings)?);
    queue.dispatch(&kernels)
}
