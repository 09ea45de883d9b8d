//! Enqueues `shaders/normalize.wgsl`, and `statistics.wgsl` before it where there are statistics to finalise.

use syncbn_core::backend::{NormalizeArgs, RunningMut, Source};
use syncbn_core::statistics::NonFinite;
use syncbn_core::{Element, Scalar};

use crate::Mem;
use crate::device::Wgpu;
use crate::error::WgpuError;
use crate::gpu::{Dispatch, Gpu};
use crate::module::Kernel;
use crate::pairs::halves;
use crate::params::{BIAS, FROZEN, GROUP, LOCAL, Params, RUNNING, SAVED, SKIP_NON_FINITE, WEIGHT};
use crate::plan::{Plan, Work};
use crate::queue::Queue;
use crate::statistics::{self, Places};

pub(crate) fn enqueue<T: Element>(
    wgpu: &Wgpu,
    queue: &Queue,
    args: NormalizeArgs<'_, Wgpu, T>,
) -> Result<(), WgpuError> {
    let NormalizeArgs { x, mut y, source, weight, bias, eps } = args;
    let geometry = *x.geometry();
    let plan = Plan::new(&geometry, size_of::<T>(), wgpu.gpu().parallelism(), Work::Write)?;
    let (statistics, places) = finalise(wgpu.gpu(), geometry.channels(), &source, eps)?;
    let mut params = plan.params;
    params.wanted = (u32::from(weight.is_some()) * WEIGHT) | (u32::from(bias.is_some()) * BIAS);
    if places.num_batches_tracked.is_some() {
        params.wanted |= RUNNING;
    }
    let bindings = [
        ("x", x.mem().slice().map(|x| x.of(&geometry, size_of::<T>()))),
        ("y", y.mem_mut().slice().map(|y| y.of(&geometry, size_of::<T>()))),
        ("the saved statistics", places.saved),
        ("weight", weight.as_ref().and_then(Mem::slice)),
        ("bias", bias.as_ref().and_then(Mem::slice)),
        ("num_batches_tracked", places.num_batches_tracked),
    ];
    let normalize = wgpu.gpu().bind(wgpu.key::<T>(Kernel::Normalize, plan.form), params, &bindings)?;
    let kernels: Vec<_> = statistics.into_iter().chain([normalize]).collect();
    queue.dispatch(&kernels)
}

/// The kernel that comes first, if there is anything to be finalised or updated, and what it and `normalize` share.
fn finalise<'s, P: Scalar>(
    gpu: &Gpu,
    channels: usize,
    source: &'s Source<'_, Wgpu, P>,
    eps: f64,
) -> Result<(Option<Dispatch>, Places<'s>), WgpuError> {
    let eps = with_eps(eps);
    match source {
        Source::Batch { workspace, group, saved, running } => {
            workspace.check(gpu, channels)?;
            let parts = workspace.parts.ok_or(WgpuError::OutOfOrder { what: "a rank's moments" })?;
            let places = Places { saved: saved.slice(), ..places_of(running.as_ref()) };
            let source = if *group { GROUP } else { LOCAL };
            let params = Params { source, ..with_running(eps, running.as_ref()) };
            let kernel = statistics::bind(gpu, channels, params, Some((workspace, parts)), places)?;
            Ok((Some(kernel), places))
        }
        Source::Frozen { mean, var, saved } => {
            let places = Places { saved: saved.slice(), ..Places::default() };
            let given = Places { running_mean: mean.slice(), running_var: var.slice(), ..places };
            let params = Params { source: FROZEN, ..eps };
            Ok((Some(statistics::bind(gpu, channels, params, None, given)?), places))
        }
        Source::Saved { saved, running: None } => {
            Ok((None, Places { saved: saved.slice(), ..Places::default() }))
        }
        Source::Saved { saved, running: Some(running) } => {
            let places = Places { saved: saved.slice(), ..places_of(Some(running)) };
            let params = Params { source: SAVED, ..with_running(eps, Some(running)) };
            Ok((Some(statistics::bind(gpu, channels, params, None, places)?), places))
        }
    }
}

fn places_of<'s, P: Scalar>(running: Option<&'s RunningMut<'_, Wgpu, P>>) -> Places<'s> {
    Places {
        saved: None,
        running_mean: running.and_then(|running| running.mean.slice()),
        running_var: running.and_then(|running| running.var.slice()),
        num_batches_tracked: running.and_then(|running| running.num_batches_tracked.slice()),
    }
}

fn with_running<P: Scalar>(params: Params, running: Option<&RunningMut<'_, Wgpu, P>>) -> Params {
    let Some(RunningMut { mean: _, var: _, num_batches_tracked: _, momentum, non_finite }) = running else {
        return params;
    };
    let skip = match non_finite {
        NonFinite::Propagate => 0,
        NonFinite::Skip => SKIP_NON_FINITE,
    };
    let momentum = momentum.unwrap_or(-1.0);
    // Rounded apart: 1 - momentum loses digits where momentum is near 1.
    let (momentum, kept) = (momentum as f32, (1.0 - momentum) as f32);
    Params { wanted: RUNNING | skip, momentum, kept, ..params }
}

/// eps as the device takes it: two halves from 1 to 2, and a power of two.
fn with_eps(eps: f64) -> Params {
    // Below the smallest normal f64 there is nothing that could be told from it.
    let eps = eps.max(f64::MIN_POSITIVE);
    let eps_exponent = (eps.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let mantissa = f64::from_bits(eps.to_bits() & ((1 << 52) - 1) | 1023 << 52);
    let (eps_high, eps_low) = halves(mantissa);
    Params { eps_high, eps_low, eps_exponent, ..Params::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eps_is_taken_apart_exactly_enough() {
        for eps in [1e-5, 1e-300, 1.0, 0.1, 3e200, f64::MIN_POSITIVE, 5e-324] {
            let params = with_eps(eps);
            let mantissa = f64::from(params.eps_high) + f64::from(params.eps_low);
            let back = mantissa * 2.0_f64.powi(params.eps_exponent);
            let expected = eps.max(f64::MIN_POSITIVE);
            assert!((back - expected).abs() <= expected * 1e-14, "{eps}: {back}");
            assert!((1.0..=2.0).contains(&params.eps_high));
        }
    }
}
