//! The passes of core on torch's memory, for one backend and one type of activations.
//!
//! Deliberately not here: which backend and type a call is for; `layer.rs` finds out.

use syncbn_core::functional::{self, Statistics};
use syncbn_core::{
    Element, ErrorKind, FunctionalBatchNorm, Gradients, Kernels, NonFinite, Operation, Param, RunningMut,
    SavedRef, SavedToken, Tensor, View, ViewMut,
};

use crate::error::{Failure, Refused};
use crate::memory::{Lent, Memory, check_apart};
use crate::tensor::Activations;

/// Running mean, variance and counter.
pub(crate) struct Running {
    pub(crate) mean: Memory,
    pub(crate) var: Memory,
    pub(crate) num_batches_tracked: Memory,
}

impl Running {
    fn named(&self) -> [(&'static str, Memory); 3] {
        let Self { mean, var, num_batches_tracked } = self;
        [("running_mean", *mean), ("running_var", *var), ("num_batches_tracked", *num_batches_tracked)]
    }

    fn lend<B: Lent, P: Param>(
        &mut self,
        norm: &FunctionalBatchNorm<B, P>,
    ) -> Result<RunningMut<'_, B, P>, Refused> {
        let Self { mean, var, num_batches_tracked } = self;
        let backend = norm.backend();
        Ok(RunningMut {
            mean: backend.mem_mut("running_mean", mean)?,
            var: backend.mem_mut("running_var", var)?,
            num_batches_tracked: backend.mem_mut("num_batches_tracked", num_batches_tracked)?,
            momentum: norm.config().momentum,
            non_finite: NonFinite::Propagate,
        })
    }
}

pub(crate) fn prepare<B: Lent + Kernels<T>, T: Element>(
    norm: &FunctionalBatchNorm<B, T::Param>,
    queue: &B::Queue,
    x: &Activations,
) -> Result<(), Failure> {
    let geometry = x
        .geometry
        .clone()
        .map_err(|source| norm.error(Operation::Prepare, ErrorKind::Shape { tensor: Tensor::X, source }))?;
    Ok(norm.prepare::<T>(queue, &geometry)?)
}

pub(crate) struct Forward {
    pub(crate) x: Activations,
    pub(crate) y: Activations,
    pub(crate) weight: Option<Memory>,
    pub(crate) bias: Option<Memory>,
    pub(crate) running: Option<Running>,
    /// Whether the statistics are the group's.
    pub(crate) group: bool,
    pub(crate) saved: Memory,
}

pub(crate) fn forward<B: Lent + Kernels<T>, T: Element>(
    norm: &FunctionalBatchNorm<B, T::Param>,
    queue: &B::Queue,
    mut args: Forward,
) -> Result<SavedToken, Failure> {
    let read = [Some(("x", args.x.memory)), named("weight", args.weight), named("bias", args.bias)];
    let running = args.running.as_ref().map(Running::named);
    let written: Vec<_> = [("y", args.y.memory), ("saved", args.saved)]
        .into_iter()
        .chain(running.into_iter().flatten())
        .collect();
    check_apart(&written, &present(read))?;
    let backend = norm.backend();
    let operation = Operation::Forward;
    let x = view(norm, operation, Tensor::X, &args.x)?;
    let y = view_mut(norm, operation, Tensor::Y, &mut args.y)?;
    let statistics = if args.group {
        Statistics::Group { running: args.running.as_mut().map(|running| running.lend(norm)).transpose()? }
    } else {
        Statistics::Local
    };
    let args = functional::Forward::new(x, y, statistics, backend.mem_mut("saved", &mut args.saved)?)
        .affine(lend(backend, "weight", args.weight.as_ref())?, lend(backend, "bias", args.bias.as_ref())?);
    Ok(norm.forward::<T>(queue, args)?)
}

pub(crate) struct Recompute {
    pub(crate) x: Activations,
    pub(crate) y: Activations,
    pub(crate) weight: Option<Memory>,
    pub(crate) bias: Option<Memory>,
    pub(crate) saved: Memory,
    pub(crate) token: SavedToken,
}

pub(crate) fn recompute<B: Lent + Kernels<T>, T: Element>(
    norm: &FunctionalBatchNorm<B, T::Param>,
    queue: &B::Queue,
    mut args: Recompute,
) -> Result<(), Failure> {
    let read = [
        Some(("x", args.x.memory)),
        Some(("saved", args.saved)),
        named("weight", args.weight),
        named("bias", args.bias),
    ];
    check_apart(&[("y", args.y.memory)], &present(read))?;
    let backend = norm.backend();
    let operation = Operation::Recompute;
    let x = view(norm, operation, Tensor::X, &args.x)?;
    let y = view_mut(norm, operation, Tensor::Y, &mut args.y)?;
    let saved = SavedRef { token: args.token, mem: backend.mem("saved", &args.saved)? };
    let args = functional::Recompute::new(saved, x, y)
        .affine(lend(backend, "weight", args.weight.as_ref())?, lend(backend, "bias", args.bias.as_ref())?);
    Ok(norm.recompute::<T>(queue, args)?)
}

pub(crate) struct UpdateRunning {
    pub(crate) running: Running,
    pub(crate) saved: Memory,
    pub(crate) token: SavedToken,
}

pub(crate) fn update_running<B: Lent + Kernels<T::Param>, T: Element>(
    norm: &FunctionalBatchNorm<B, T::Param>,
    queue: &B::Queue,
    mut args: UpdateRunning,
) -> Result<(), Failure> {
    check_apart(&args.running.named(), &[("saved", args.saved)])?;
    let saved = SavedRef { token: args.token, mem: norm.backend().mem("saved", &args.saved)? };
    let running = args.running.lend(norm)?;
    Ok(norm.update_running(queue, functional::UpdateRunning::new(saved, running))?)
}

pub(crate) struct Backward {
    pub(crate) x: Activations,
    pub(crate) dy: Activations,
    pub(crate) dx: Option<Activations>,
    pub(crate) weight: Option<Memory>,
    pub(crate) d_weight: Option<Memory>,
    pub(crate) d_bias: Option<Memory>,
    pub(crate) saved: Memory,
    pub(crate) token: SavedToken,
}

pub(crate) fn backward<B: Lent + Kernels<T>, T: Element>(
    norm: &FunctionalBatchNorm<B, T::Param>,
    queue: &B::Queue,
    mut args: Backward,
) -> Result<(), Failure> {
    let read = [
        Some(("x", args.x.memory)),
        Some(("dy", args.dy.memory)),
        Some(("saved", args.saved)),
        named("weight", args.weight),
    ];
    let dx = args.dx.as_ref().map(|dx| ("dx", dx.memory));
    let written = [dx, named("d_weight", args.d_weight), named("d_bias", args.d_bias)];
    check_apart(&present(written), &present(read))?;
    let backend = norm.backend();
    let operation = Operation::Backward;
    let x = view(norm, operation, Tensor::X, &args.x)?;
    let dy = view(norm, operation, Tensor::Dy, &args.dy)?;
    let gradients = match &mut args.dx {
        Some(dx) => Gradients::OutOfPlace { dy, dx: view_mut(norm, operation, Tensor::Dx, dx)? },
        None => Gradients::ParametersOnly { dy },
    };
    let saved = SavedRef { token: args.token, mem: backend.mem("saved", &args.saved)? };
    let d_weight = args.d_weight.as_mut().map(|memory| backend.mem_mut("d_weight", memory)).transpose()?;
    let d_bias = args.d_bias.as_mut().map(|memory| backend.mem_mut("d_bias", memory)).transpose()?;
    let args = functional::Backward::new(saved, x, gradients)
        .weight(lend(backend, "weight", args.weight.as_ref())?)
        .parameters(d_weight, d_bias);
    Ok(norm.backward::<T>(queue, args)?)
}

fn view<'a, B: Lent, T: Element>(
    norm: &FunctionalBatchNorm<B, T::Param>,
    operation: Operation,
    tensor: Tensor,
    given: &'a Activations,
) -> Result<View<'a, B, T>, Failure> {
    let bad = |source| norm.error(operation, ErrorKind::Shape { tensor, source });
    let geometry = given.geometry.clone().map_err(bad)?;
    let mem = norm.backend().mem(tensor.name(), &given.memory)?;
    Ok(View::new(mem, geometry).map_err(bad)?)
}

fn view_mut<'a, B: Lent, T: Element>(
    norm: &FunctionalBatchNorm<B, T::Param>,
    operation: Operation,
    tensor: Tensor,
    given: &'a mut Activations,
) -> Result<ViewMut<'a, B, T>, Failure> {
    let bad = |source| norm.error(operation, ErrorKind::Shape { tensor, source });
    let geometry = given.geometry.clone().map_err(bad)?;
    let mem = norm.backend().mem_mut(tensor.name(), &mut given.memory)?;
    Ok(ViewMut::new(mem, geometry).map_err(bad)?)
}

fn lend<'a, B: Lent, P: Param>(
    backend: &B,
    name: &'static str,
    memory: Option<&'a Memory>,
) -> Result<Option<B::Mem<'a, P>>, Refused> {
    memory.map(|memory| backend.mem(name, memory)).transpose()
}

fn named(name: &'static str, memory: Option<Memory>) -> Option<(&'static str, Memory)> {
    memory.map(|memory| (name, memory))
}

fn present<const N: usize>(memories: [Option<(&'static str, Memory)>; N]) -> Vec<(&'static str, Memory)> {
    memories.into_iter().flatten().collect()
}
