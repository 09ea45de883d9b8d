//! The smallest backend that the test kit accepts: one thread, `f32` only, the formulas taken from core. It is not fast.
//!
//! `docs/adding-a-backend.md` explains it step by step.
#![forbid(unsafe_code)]
#![allow(clippy::mut_mut)] // `reborrow_mut` of a `MemMut` that is itself a `&mut`

use std::convert::Infallible;

use syncbn_core::backend::{
    Grad, GradInputArgs, GradSource, GradSumsArgs, MomentsArgs, NormalizeArgs, RunningMut, Source,
};
use syncbn_core::host_memory::{
    message_to_batches, moments_to_message, save_channel, saved_channel, update_running,
};
use syncbn_core::statistics::{Batch, GradTerms, Moments, invstd};
use syncbn_core::{Backend, Dtype, Geometry, Kernels, Pass, Scalar, Storage, saved_len};

type Done = Result<(), Infallible>;

/// The device: this thread.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

/// The numbers of a rank, and then of the group: in a forward pass moments, in a backward pass the two sums.
#[derive(Default)]
pub struct Workspace {
    moments: Vec<Moments>,
    group: Vec<Batch>,
    /// `sum_dy` of every channel, then `sum_dy_xmu` of every channel.
    sums: Vec<f64>,
}

// Step 2: memory. Ours is a slice; a device's is a buffer and a range.
impl Backend for Plain {
    type Queue = ();
    type Workspace = Workspace;
    type Saved = Vec<f64>;
    type Peers = Infallible;
    type Mem<'a, T: Scalar> = &'a [T];
    type MemMut<'a, T: Scalar> = &'a mut [T];
    type Error = Infallible;

    fn mem_len<T: Scalar>(mem: &&[T]) -> usize {
        mem.len()
    }
    fn mem_mut_len<T: Scalar>(mem: &&mut [T]) -> usize {
        mem.len()
    }
    fn reborrow<'s, T: Scalar>(mem: &'s &[T]) -> &'s [T] {
        mem
    }
    fn reborrow_mut<'s, T: Scalar>(mem: &'s mut &mut [T]) -> &'s mut [T] {
        mem
    }
    fn as_mem<'s, T: Scalar>(mem: &'s &mut [T]) -> &'s [T] {
        mem
    }
    fn empty<'a, T: Scalar>() -> &'a [T] {
        &[]
    }
    fn empty_mut<'a, T: Scalar>() -> &'a mut [T] {
        &mut []
    }
    fn read<T: Scalar>(&self, (): &(), mem: &[T], values: &mut [T]) -> Done {
        values.copy_from_slice(mem);
        Ok(())
    }
    fn write<T: Scalar>(&self, (): &(), mem: &mut [T], values: &[T]) -> Done {
        mem.copy_from_slice(values);
        Ok(())
    }
    fn workspace(&self, (): &(), _: usize, _: Dtype) -> Result<Workspace, Infallible> {
        Ok(Workspace::default())
    }
    fn saved(&self, (): &(), channels: usize) -> Result<Vec<f64>, Infallible> {
        Ok(vec![0.0; saved_len(channels)])
    }
    fn saved_mem(saved: &Vec<f64>) -> &[f64] {
        saved
    }
    fn saved_mem_mut(saved: &mut Vec<f64>) -> &mut [f64] {
        saved
    }

    // Step 3: the message, for communicators in host memory.
    fn read_message(&self, (): &(), pass: Pass, ours: &mut Workspace, to: &mut [f64]) -> Done {
        match pass {
            Pass::Forward => moments_to_message(&ours.moments, Dtype::F32, to),
            Pass::Backward => to.copy_from_slice(&ours.sums),
        }
        Ok(())
    }
    fn write_message(&self, (): &(), pass: Pass, ours: &mut Workspace, from: &[f64]) -> Done {
        match pass {
            Pass::Forward => {
                ours.group.resize(ours.moments.len(), Batch::default());
                message_to_batches(from, Dtype::F32, &mut ours.group);
            }
            Pass::Backward => ours.sums.copy_from_slice(from),
        }
        Ok(())
    }
}

impl Storage for Plain {
    type Buffer<T: Scalar> = Vec<T>;

    fn upload<T: Scalar>(&self, (): &(), values: &[T]) -> Result<Vec<T>, Infallible> {
        Ok(values.to_vec())
    }
    fn mem<T: Scalar>(buffer: &Vec<T>) -> &[T] {
        buffer
    }
    fn mem_mut<T: Scalar>(buffer: &mut Vec<T>) -> &mut [T] {
        buffer
    }
}

/// Where the elements of channel `c` lie, whatever the layout.
fn offsets(geometry: &Geometry, c: usize) -> impl Iterator<Item = usize> + use<> {
    let (outer, channels, inner) = (geometry.outer(), geometry.channels(), geometry.inner());
    (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * channels + c) * inner + i))
}

fn of_channel(values: Option<&[f32]>, c: usize, default: f64) -> f64 {
    values.map_or(default, |values| f64::from(values[c]))
}

// Step 4: four kernels, for each type that the device has.
impl Kernels<f32> for Plain {
    fn moments(&self, (): &(), args: MomentsArgs<'_, Self, f32>) -> Done {
        let MomentsArgs { x, workspace } = args;
        let one = |i: usize| Moments { count: 1.0, mean: f64::from(x.mem()[i]), m2: 0.0 };
        let of = |c| offsets(x.geometry(), c).map(one).fold(Moments::default(), Moments::merge);
        workspace.moments = (0..x.geometry().channels()).map(of).collect();
        Ok(())
    }

    fn normalize(&self, (): &(), args: NormalizeArgs<'_, Self, f32>) -> Done {
        let NormalizeArgs { x, mut y, source, weight, bias, eps } = args;
        let channels = 0..x.geometry().channels();
        let (saved, running): (&[f64], _) = match source {
            Source::Saved { saved, running } => (saved, running),
            Source::Frozen { mean, var, saved } => {
                for c in channels.clone() {
                    let batch = Batch { count: 0.0, mean: mean[c].into(), var: var[c].into() };
                    save_channel(saved, c, batch, invstd(batch.var, eps));
                }
                (saved, None)
            }
            Source::Batch { workspace, group, saved, running } => {
                for c in channels.clone() {
                    let batch = if group { workspace.group[c] } else { workspace.moments[c].batch() };
                    save_channel(saved, c, batch, batch.invstd(eps));
                }
                (saved, running)
            }
        };
        if let Some(RunningMut { mean, var, num_batches_tracked, momentum, non_finite }) = running {
            let batches = channels.clone().map(|c| saved_channel(saved, c).0);
            update_running([mean, var], num_batches_tracked, (momentum, non_finite), batches);
        }
        for c in channels {
            let (batch, invstd) = saved_channel(saved, c);
            let (scale, shift) = (invstd * of_channel(weight, c, 1.0), of_channel(bias, c, 0.0));
            for i in offsets(x.geometry(), c) {
                y.mem_mut()[i] = ((f64::from(x.mem()[i]) - batch.mean) * scale + shift) as f32;
            }
        }
        Ok(())
    }

    fn grad_sums(&self, (): &(), args: GradSumsArgs<'_, Self, f32>) -> Done {
        let GradSumsArgs { x, dy, saved, mut d_weight, mut d_bias, workspace } = args;
        let channels = x.geometry().channels();
        workspace.sums.resize(2 * channels, 0.0);
        for c in 0..channels {
            let (batch, invstd) = saved_channel(saved, c);
            let both = |i: usize| (f64::from(dy.mem()[i]), f64::from(x.mem()[i]) - batch.mean);
            let terms = offsets(x.geometry(), c).map(both);
            let (sum_dy, sum_dy_xmu) = terms.fold((0.0, 0.0), |(a, b), (dy, xmu)| (a + dy, b + dy * xmu));
            (workspace.sums[c], workspace.sums[channels + c]) = (sum_dy, sum_dy_xmu);
            if let Some(d_weight) = &mut d_weight {
                d_weight[c] = (sum_dy_xmu * invstd) as f32;
            }
            if let Some(d_bias) = &mut d_bias {
                d_bias[c] = sum_dy as f32;
            }
        }
        Ok(())
    }

    fn grad_input(&self, (): &(), args: GradInputArgs<'_, Self, f32>) -> Done {
        let GradInputArgs { x, grad, saved, source, weight } = args;
        let (dy, mut dx) = match grad {
            Grad::OutOfPlace { dy, dx } => (Some(dy), dx),
            Grad::InPlace(dx) => (None, dx),
        };
        let channels = x.geometry().channels();
        for c in 0..channels {
            let (batch, invstd) = saved_channel(saved, c);
            let sums = match source {
                GradSource::Batch { workspace: Workspace { sums, .. } } => {
                    Some((sums[c], sums[channels + c]))
                }
                GradSource::Frozen => None, // without a slope, and x is not looked at
            };
            let terms = GradTerms::new(of_channel(weight, c, 1.0), invstd, batch.count, sums);
            for i in offsets(x.geometry(), c) {
                let dy = f64::from(dy.as_ref().map_or(dx.mem_mut()[i], |dy| dy.mem()[i]));
                let slope = sums.map_or(0.0, |_| (f64::from(x.mem()[i]) - batch.mean) * terms.slope);
                dx.mem_mut()[i] = (terms.scale * (dy - terms.mean_dy - slope)) as f32;
            }
        }
        Ok(())
    }
}
