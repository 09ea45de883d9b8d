//! The smallest backend that the test kit accepts: one thread, `f32` only, the formulas taken from core.
//!
//! `docs/adding-a-backend.md` walks through it. Deliberately not here: speed.
#![forbid(unsafe_code)]
#![allow(clippy::mut_mut)] // `reborrow_mut` of a `MemMut` that is itself a `&mut`

use std::convert::Infallible;

use syncbn_core::backend::{Grad, GradInputArgs, GradSumsArgs, NormalizeArgs, Source};
use syncbn_core::statistics::{Batch, GradTerms, Moments, Running, invstd};
use syncbn_core::{Backend, Geometry, Kernels, Pass, Scalar, Storage, View};

/// The device: this thread.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

/// The count, and two numbers per channel: a kernel's (mean and M2, or a backward's sums), then the group's sums.
pub struct Sums {
    count: f64,
    pairs: Vec<(f64, f64)>,
}

/// What a forward keeps for its backward: M, and per channel the mean and `invstd`.
pub struct Saved {
    count: f64,
    channels: Vec<(f64, f64)>,
}

// Step 2: memory. Ours is a slice; a device's is a buffer and a range.
impl Backend for Plain {
    type Queue = ();
    type Sums = Sums;
    type Saved = Saved;
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
    fn sums(&self, (): &(), channels: usize) -> Result<Sums, Infallible> {
        Ok(Sums { count: 0.0, pairs: vec![(0.0, 0.0); channels] })
    }
    fn saved(&self, (): &(), channels: usize) -> Result<Saved, Infallible> {
        Ok(Saved { count: 0.0, channels: vec![(0.0, 0.0); channels] })
    }

    // Step 3: the message, for communicators in host memory.
    fn read_sums(&self, (): &(), pass: Pass, sums: &Sums, message: &mut [f64]) -> Result<(), Infallible> {
        let head = message.len() - 2 * sums.pairs.len();
        message[..head].fill(sums.count);
        let (first, second) = message[head..].split_at_mut(sums.pairs.len());
        for (c, &(a, b)) in sums.pairs.iter().enumerate() {
            (first[c], second[c]) = match pass {
                Pass::Forward => Moments { count: sums.count, mean: a, m2: b }.to_sums(),
                Pass::Backward => (a, b),
            };
        }
        Ok(())
    }
    fn write_sums(&self, (): &(), _: Pass, sums: &mut Sums, message: &[f64]) -> Result<(), Infallible> {
        let (head, pairs) = message.split_at(message.len() - 2 * sums.pairs.len());
        sums.count = head.first().copied().unwrap_or(0.0);
        let (first, second) = pairs.split_at(sums.pairs.len());
        sums.pairs = first.iter().copied().zip(second.iter().copied()).collect();
        Ok(())
    }
}

impl Storage for Plain {
    type Buffer<T: Scalar> = Vec<T>;

    fn upload<T: Scalar>(&self, (): &(), values: &[T]) -> Result<Vec<T>, Infallible> {
        Ok(values.to_vec())
    }
    fn write<T: Scalar>(&self, (): &(), buffer: &mut Vec<T>, values: &[T]) -> Result<(), Infallible> {
        buffer.copy_from_slice(values);
        Ok(())
    }
    fn download<T: Scalar>(&self, (): &(), buffer: &Vec<T>) -> Result<Vec<T>, Infallible> {
        Ok(buffer.clone())
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
    fn moments(&self, (): &(), x: View<'_, Self, f32>, out: &mut Sums) -> Result<(), Infallible> {
        out.count = x.geometry().per_channel() as f64;
        for (c, pair) in out.pairs.iter_mut().enumerate() {
            let one = |i: usize| Moments { count: 1.0, mean: f64::from(x.mem()[i]), m2: 0.0 };
            let all = offsets(x.geometry(), c).map(one).fold(Moments::default(), Moments::merge);
            *pair = (all.mean, all.m2);
        }
        Ok(())
    }

    fn normalize(&self, (): &(), args: NormalizeArgs<'_, Self, f32>) -> Result<(), Infallible> {
        let NormalizeArgs { x, mut y, source, weight, bias, eps, .. } = args;
        let saved: &Saved = match source {
            Source::Saved(saved) => saved,
            Source::Frozen { mean, var, saved } => {
                saved.count = 0.0;
                let pairs = mean.iter().zip(var);
                saved.channels = pairs.map(|(&m, &v)| (m.into(), invstd(v.into(), eps))).collect();
                saved
            }
            Source::Batch { sums, group, saved, mut running } => {
                let batch = |&(a, b): &(f64, f64)| {
                    let alone = Moments { count: sums.count, mean: a, m2: b };
                    if group { Batch::from_sums(sums.count, a, b) } else { alone.batch() }
                };
                let batches: Vec<Batch> = sums.pairs.iter().map(batch).collect();
                saved.count = sums.count;
                saved.channels = batches.iter().map(|batch| (batch.mean, batch.invstd(eps))).collect();
                if let Some(running) = &mut running
                    && let Some(next) =
                        Running::next(sums.count, running.num_batches_tracked[0], running.momentum)
                {
                    running.num_batches_tracked[0] = next.num_batches_tracked;
                    for (c, batch) in batches.into_iter().enumerate() {
                        running.mean[c] = next.mean(running.mean[c].into(), batch) as f32;
                        running.var[c] = next.var(running.var[c].into(), batch) as f32;
                    }
                }
                saved
            }
            _ => return Ok(()), // a source that core learns later: the laws will say so
        };
        for (c, &(mean, invstd)) in saved.channels.iter().enumerate() {
            let (scale, shift) = (invstd * of_channel(weight, c, 1.0), of_channel(bias, c, 0.0));
            for i in offsets(x.geometry(), c) {
                y.mem_mut()[i] = ((f64::from(x.mem()[i]) - mean) * scale + shift) as f32;
            }
        }
        Ok(())
    }

    fn grad_sums(&self, (): &(), args: GradSumsArgs<'_, Self, f32>) -> Result<(), Infallible> {
        let GradSumsArgs { x, dy, saved, mut d_weight, mut d_bias, out, .. } = args;
        for (c, &(mean, invstd)) in saved.channels.iter().enumerate() {
            let both = |i: usize| (f64::from(dy.mem()[i]), f64::from(x.mem()[i]) - mean);
            let terms = offsets(x.geometry(), c).map(both);
            let (sum_dy, sum_dy_xmu) = terms.fold((0.0, 0.0), |(a, b), (dy, xmu)| (a + dy, b + dy * xmu));
            out.pairs[c] = (sum_dy, sum_dy_xmu);
            if let Some(d_weight) = &mut d_weight {
                d_weight[c] = (sum_dy_xmu * invstd) as f32;
            }
            if let Some(d_bias) = &mut d_bias {
                d_bias[c] = sum_dy as f32;
            }
        }
        Ok(())
    }

    fn grad_input(&self, (): &(), args: GradInputArgs<'_, Self, f32>) -> Result<(), Infallible> {
        let GradInputArgs { x, grad, saved, sums, weight, .. } = args;
        let (dy, mut dx) = match grad {
            Grad::Apart { dy, dx } => (Some(dy), dx),
            Grad::InPlace(dx) => (None, dx),
        };
        for (c, &(mean, invstd)) in saved.channels.iter().enumerate() {
            let (weight, pair) = (of_channel(weight, c, 1.0), sums.map(|sums| sums.pairs[c]));
            let terms = GradTerms::new(weight, invstd, saved.count, pair);
            for i in offsets(x.geometry(), c) {
                let dy = f64::from(dy.as_ref().map_or(dx.mem_mut()[i], |dy| dy.mem()[i]));
                let slope = (f64::from(x.mem()[i]) - mean) * terms.slope;
                dx.mem_mut()[i] = (terms.scale * (dy - terms.mean_dy - slope)) as f32;
            }
        }
        Ok(())
    }
}
