//! Enqueues `shaders/normalize.wgsl`, and `statistics.wgsl` before it where there are statistics to finalise.

use syncbn_core::Element;
use syncbn_core::backend::{NormalizeArgs, Source};

use crate::device::Wgpu;
use crate::error::WgpuError;
use crate::module::Kernel;
use crate::params::{BIAS, FROZEN, GROUP, LOCAL, Params, RUNNING, WEIGHT};
use crate::plan::{Plan, Work};
use crate::queue::Queue;
use crate::statistics::{self, Places};
use crate::workspace::halves;

pub(crate) fn enqueue<T: Element>(
    wgpu: &Wgpu,
    queue: &Queue,
    args: NormalizeArgs<'_, Wgpu, T>,
) -> Result<(), WgpuError> {
    let NormalizeArgs { x, mut y, source, weight, bias, eps, .. } = args;
    let geometry = *x.geometry();
    let channels = geometry.channels();
    let plan = Plan::new(&geometry, size_of::<T>(), wgpu.gpu().parallelism(), Work::Write)?;
    let mut params = plan.params;
    let mut kernels = Vec::with_capacity(2);
    let mut places = Places::default();
    match &source {
        Source::Batch { sums, group, saved, running } => {
            let mut params_of_statistics = with_eps(eps);
            params_of_statistics.source = if *group { GROUP } else { LOCAL };
            places.saved = saved.slice();
            if let Some(running) = running {
                params_of_statistics.wanted = RUNNING;
                let momentum = running.momentum.unwrap_or(-1.0);
                // Rounded apart: 1 - momentum loses digits where momentum is near 1.
                params_of_statistics.momentum = momentum as f32;
                params_of_statistics.kept = (1.0 - momentum) as f32;
                params.wanted |= RUNNING;
                places.running_mean = Some(running.mean.slice());
                places.running_var = Some(running.var.slice());
                places.num_batches_tracked = Some(running.num_batches_tracked.slice());
            }
            if sums.parts.is_none() {
                return Err(WgpuError::OutOfOrder { what: "a rank's moments" });
            }
            kernels.push(statistics::bind(
                wgpu.gpu(),
                channels,
                params_of_statistics,
                Some(sums),
                sums.parts,
                places,
            )?);
        }
        Source::Frozen { mean, var, saved } => {
            places.saved = saved.slice();
            let frozen =
                Places { running_mean: Some(mean.slice()), running_var: Some(var.slice()), ..places };
            let params_of_statistics = Params { source: FROZEN, ..with_eps(eps) };
            kernels.push(statistics::bind(wgpu.gpu(), channels, params_of_statistics, None, None, frozen)?);
        }
        Source::Saved(saved) => places.saved = saved.slice(),
        _ => return Err(WgpuError::OutOfOrder { what: "a source of statistics that this backend knows" }),
    }
    params.wanted |= (u32::from(weight.is_some()) * WEIGHT) | (u32::from(bias.is_some()) * BIAS);
    let bindings = [
        ("x", Some(x.mem().slice().of(&geometry, size_of::<T>()))),
        ("y", Some(y.mem_mut().slice().of(&geometry, size_of::<T>()))),
        ("the saved statistics", places.saved),
        ("weight", weight.as_ref().map(crate::Mem::slice)),
        ("bias", bias.as_ref().map(crate::Mem::slice)),
        ("num_batches_tracked", places.num_batches_tracked),
    ];
    kernels.push(wgpu.gpu().bind(wgpu.key::<T>(Kernel::Normalize, plan.form), params, &bindings)?);
    queue.dispatch(&kernels)
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
