//! The plainest backend there is, one thread and three loops, with a switch for every [`Flaw`]: what the kit is tried on.
//!
//! Deliberately not here: speed, and any way of setting a flaw outside these tests.

#![allow(clippy::mut_mut)] // `Backend::reborrow_mut` of a `MemMut` that is a `&mut` itself

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};

use syncbn_core::backend::{Grad, GradInputArgs, GradSumsArgs, NormalizeArgs, RunningMut, Source};
use syncbn_core::{Backend, Element, Geometry, Kernels, Pass, Scalar, Storage, View};

/// What makes one run of [`Flaw::Flickers`] differ from the next.
static FLICKER: AtomicU32 = AtomicU32::new(0);

/// What may be wrong with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // only the sabotage tests have flaws
pub(crate) enum Flaw {
    /// The backend is right.
    None,
    BiasedRunningVariance,
    BesselInTheBatch,
    LocalCount,
    EpsOutsideTheRoot,
    SquaresInF32,
    MeanInF32,
    AccumulatesInHalf,
    SkipsTheTail,
    ChannelsLastReadAsFirst,
    WeightTwice,
    BiasForgotten,
    DxWithoutMeanTerm,
    DxWithoutSlope,
    DxWithLocalCount,
    DWeightWithoutInvstd,
    GradientsAdded,
    EmptyRankGivesNan,
    EmptyRankIsSilent,
    MomentumInverted,
    CounterForgotten,
    CounterInF32,
    CumulativeFromZero,
    FrozenDifferentiated,
    NanSwallowed,
    NanEverywhere,
    NegativeVariance,
    WritesBehindTheTensor,
    InPlaceReadsLate,
    Flickers,
    ParametersInHalf,
    SubnormalsFlushed,
    BatchOfOneMovesVariance,
    PanicsOnEmpty,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain(pub Flaw);

/// Per channel: count, mean, M2 of one rank; S1/M and S2/M of a group; or the two sums of a backward pass.
pub(crate) struct Sums {
    count: f64,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Sums {
    /// Times a factor, for groups that cannot add.
    #[allow(dead_code)] // not every test that includes this file has such a group
    pub(crate) fn scale(&mut self, factor: f64) {
        self.count *= factor;
        self.first.iter_mut().chain(&mut self.second).for_each(|v| *v *= factor);
    }
}

#[derive(Clone, Default)]
pub(crate) struct Saved {
    count: f64,
    mean: Vec<f64>,
    invstd: Vec<f64>,
}

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
        Ok(Sums { count: 0.0, first: vec![0.0; channels], second: vec![0.0; channels] })
    }
    fn saved(&self, (): &(), channels: usize) -> Result<Saved, Infallible> {
        Ok(Saved { count: 0.0, mean: vec![0.0; channels], invstd: vec![0.0; channels] })
    }

    fn read_sums(&self, (): &(), pass: Pass, sums: &Sums, message: &mut [f64]) -> Result<(), Infallible> {
        let channels = sums.first.len();
        match pass {
            Pass::Backward => {
                message[..channels].copy_from_slice(&sums.first);
                message[channels..].copy_from_slice(&sums.second);
            }
            Pass::Forward => {
                message[0] = sums.count;
                for c in 0..channels {
                    let (mean, m2) = (sums.first[c], sums.second[c]);
                    message[1 + c] = sums.count * mean;
                    message[1 + channels + c] = m2 + sums.count * mean * mean;
                }
            }
        }
        Ok(())
    }
    fn write_sums(&self, (): &(), pass: Pass, sums: &mut Sums, message: &[f64]) -> Result<(), Infallible> {
        let channels = sums.first.len();
        let message = match pass {
            Pass::Backward => message,
            Pass::Forward => {
                sums.count = message[0];
                &message[1..]
            }
        };
        sums.first.copy_from_slice(&message[..channels]);
        sums.second.copy_from_slice(&message[channels..]);
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

fn value<P: Element>(values: Option<&[P]>, c: usize, default: f64) -> f64 {
    values.map_or(default, |values| values[c].to_f64())
}

impl<T: Element> Kernels<T> for Plain {
    fn moments(&self, (): &(), x: View<'_, Self, T>, out: &mut Sums) -> Result<(), Infallible> {
        let geometry = x.geometry();
        out.count = geometry.per_channel() as f64;
        assert!(self.0 != Flaw::PanicsOnEmpty || !geometry.is_empty(), "no elements");
        let tail = usize::from(self.0 == Flaw::SkipsTheTail && geometry.per_channel() > 64);
        let flush = |v: f64| if self.0 == Flaw::SubnormalsFlushed && v.abs() < 1e-37 { 0.0 } else { v };
        for c in 0..geometry.channels() {
            let all = geometry.per_channel() - tail;
            let values = || self.offsets(geometry, c).take(all).map(|i| flush(x.mem()[i].to_f64()));
            if self.0 == Flaw::AccumulatesInHalf && size_of::<T>() == 2 {
                let add = |sum: T, x: f64| T::from_f64(sum.to_f64() + x);
                let mean = values().fold(T::default(), add).to_f64() / out.count.max(1.0);
                out.first[c] = mean;
                out.second[c] = values().map(|x| (x - mean) * (x - mean)).sum();
                continue;
            }
            if self.0 == Flaw::SquaresInF32 {
                let (mut sum, mut squares) = (0.0_f32, 0.0_f32);
                values().for_each(|x| (sum, squares) = (sum + x as f32, squares + (x * x) as f32));
                let mean = f64::from(sum) / out.count.max(1.0);
                out.first[c] = mean;
                out.second[c] = f64::from(squares) - out.count * mean * mean;
                continue;
            }
            // Shifted by the first value, so that a constant's mean is exact.
            let shift = values().next().unwrap_or(0.0);
            let mean = shift + values().map(|x| x - shift).sum::<f64>() / out.count.max(1.0);
            let empty = geometry.is_empty() && self.0 == Flaw::EmptyRankGivesNan;
            out.first[c] = match self.0 {
                _ if empty => f64::NAN,
                Flaw::MeanInF32 => f64::from(mean as f32 + 0.5) - 0.5,
                _ => mean,
            };
            out.second[c] = values().map(|x| (x - mean) * (x - mean)).sum();
        }
        Ok(())
    }

    fn normalize(&self, (): &(), args: NormalizeArgs<'_, Self, T>) -> Result<(), Infallible> {
        let NormalizeArgs { x, mut y, source, weight, bias, eps, .. } = args;
        let geometry = *x.geometry();
        let written;
        let saved: &Saved = match source {
            Source::Saved(saved) => saved,
            Source::Frozen { mean, var, saved, .. } => {
                saved.count = if self.0 == Flaw::FrozenDifferentiated { 1.0 } else { 0.0 };
                saved.mean = mean.iter().map(|v| v.to_f64()).collect();
                saved.invstd = var.iter().map(|v| (v.to_f64() + eps).sqrt().recip()).collect();
                saved
            }
            Source::Batch { sums, group, saved, mut running, .. } => {
                let (mean, var) = self.finalise(sums, group);
                saved.count = sums.count;
                saved.invstd = match self.0 {
                    Flaw::EpsOutsideTheRoot => var.iter().map(|v| (v.sqrt() + eps).recip()).collect(),
                    _ => var.iter().map(|v| (v + eps).sqrt().recip()).collect(),
                };
                saved.mean.clone_from(&mean);
                let silent = self.0 == Flaw::EmptyRankIsSilent && geometry.is_empty();
                if matches!(self.0, Flaw::LocalCount | Flaw::DxWithLocalCount) {
                    saved.count = geometry.per_channel() as f64;
                }
                if sums.count == 0.0 {
                    saved.invstd.fill(0.0);
                } else if silent {
                } else if let Some(running) = &mut running {
                    self.update::<T::Param>(running, sums.count, &mean, &var);
                }
                written = saved.clone();
                &written
            }
            _ => unreachable!("no other source"),
        };
        for c in 0..geometry.channels() {
            let narrow = |v: f64| {
                if self.0 == Flaw::ParametersInHalf { syncbn_core::bf16::from_f64(v).to_f64() } else { v }
            };
            let weight = narrow(value(weight, c, 1.0));
            let scale = saved.invstd[c] * if self.0 == Flaw::WeightTwice { weight * weight } else { weight };
            let shift = if self.0 == Flaw::BiasForgotten { 0.0 } else { narrow(value(bias, c, 0.0)) };
            for i in self.offsets(&geometry, c) {
                let x = x.mem()[i].to_f64();
                let out = (x - saved.mean[c]) * scale + shift;
                y.mem_mut()[i] = T::from_f64(match self.0 {
                    Flaw::NanSwallowed => {
                        if out.is_finite() {
                            out
                        } else {
                            0.0
                        }
                    }
                    Flaw::NanEverywhere if saved.mean.iter().any(|m| !m.is_finite()) => f64::NAN,
                    Flaw::Flickers => {
                        out * (1.0 + 1e-7 * f64::from(FLICKER.fetch_add(1, Ordering::Relaxed) % 3))
                    }
                    _ => out,
                });
            }
        }
        let end = geometry.len();
        if self.0 == Flaw::WritesBehindTheTensor && y.mem_mut().len() > end {
            y.mem_mut()[end] = T::default();
        }
        Ok(())
    }

    fn grad_sums(&self, (): &(), args: GradSumsArgs<'_, Self, T>) -> Result<(), Infallible> {
        let GradSumsArgs { x, dy, saved, mut d_weight, mut d_bias, out, .. } = args;
        let geometry = *x.geometry();
        for c in 0..geometry.channels() {
            let (mut sum_dy, mut sum_dy_xmu) = (0.0, 0.0);
            for i in self.offsets(&geometry, c) {
                let dy = dy.mem()[i].to_f64();
                sum_dy += dy;
                sum_dy_xmu += dy * (x.mem()[i].to_f64() - saved.mean[c]);
            }
            (out.first[c], out.second[c]) = (sum_dy, sum_dy_xmu);
            if let Some(d_weight) = &mut d_weight {
                let invstd = if self.0 == Flaw::DWeightWithoutInvstd { 1.0 } else { saved.invstd[c] };
                let old = if self.0 == Flaw::GradientsAdded { d_weight[c].to_f64() } else { 0.0 };
                d_weight[c] = T::Param::from_f64(old + sum_dy_xmu * invstd);
            }
            if let Some(d_bias) = &mut d_bias {
                d_bias[c] = T::Param::from_f64(sum_dy);
            }
        }
        Ok(())
    }

    fn grad_input(&self, (): &(), args: GradInputArgs<'_, Self, T>) -> Result<(), Infallible> {
        let GradInputArgs { x, grad, saved, sums, weight, .. } = args;
        let geometry = *x.geometry();
        let (source, mut dx) = match grad {
            Grad::Apart { dy, dx } => (Some(dy), dx),
            Grad::InPlace(dx) => (None, dx),
        };
        for c in 0..geometry.channels() {
            let invstd = saved.invstd[c];
            let terms = sums.filter(|_| saved.count > 0.0);
            let mut mean_dy = terms.map_or(0.0, |sums| sums.first[c] / saved.count);
            let mut slope = terms.map_or(0.0, |sums| invstd * invstd * sums.second[c] / saved.count);
            match self.0 {
                Flaw::DxWithoutMeanTerm => mean_dy = 0.0,
                Flaw::DxWithoutSlope => slope = 0.0,
                Flaw::FrozenDifferentiated if sums.is_none() => mean_dy = 0.1,
                Flaw::InPlaceReadsLate if source.is_none() => mean_dy *= 1.001,
                _ => {}
            }
            for i in self.offsets(&geometry, c) {
                let dy = source.as_ref().map_or(dx.mem_mut()[i], |dy| dy.mem()[i]).to_f64();
                let xmu = x.mem()[i].to_f64() - saved.mean[c];
                let value = value(weight, c, 1.0) * invstd * (dy - mean_dy - xmu * slope);
                dx.mem_mut()[i] = T::from_f64(value);
            }
        }
        Ok(())
    }
}

impl Plain {
    /// Where the elements of channel `c` lie.
    fn offsets(self, geometry: &Geometry, c: usize) -> impl Iterator<Item = usize> + use<> {
        let (mut outer, channels, mut inner) = (geometry.outer(), geometry.channels(), geometry.inner());
        if self.0 == Flaw::ChannelsLastReadAsFirst && inner == 1 {
            (outer, inner) = (1, outer);
        }
        (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * channels + c) * inner + i))
    }

    /// Mean and biased variance per channel.
    fn finalise(self, sums: &Sums, group: bool) -> (Vec<f64>, Vec<f64>) {
        let mut count = sums.count.max(1.0);
        if group && self.0 == Flaw::LocalCount {
            count = (count / 2.0).max(1.0);
        }
        let channels = 0..sums.first.len();
        if !group {
            let less = if self.0 == Flaw::BesselInTheBatch { 1.0 } else { 0.0 };
            let count = (count - less).max(1.0);
            return (sums.first.clone(), sums.second.iter().map(|m2| m2 / count).collect());
        }
        let mean: Vec<f64> = sums.first.iter().map(|sum| sum / count).collect();
        let var = channels.map(|c| {
            let square = sums.second[c] / count;
            let var = square - mean[c] * mean[c];
            let unbounded = self.0 == Flaw::NegativeVariance;
            if unbounded {
                var - 1e-15 * square
            } else if var <= square * 2.0_f64.powi(-48) {
                0.0
            } else {
                var
            }
        });
        let var = var.collect();
        (mean, var)
    }

    fn update<P: Element>(
        self,
        running: &mut RunningMut<'_, Self, P>,
        count: f64,
        mean: &[f64],
        var: &[f64],
    ) {
        let seen = running.num_batches_tracked[0] + 1;
        match self.0 {
            Flaw::CounterForgotten => {}
            Flaw::CounterInF32 => running.num_batches_tracked[0] = seen as f32 as i64,
            _ => running.num_batches_tracked[0] = seen,
        }
        let late = if self.0 == Flaw::CumulativeFromZero { 1.0 } else { 0.0 };
        let a = running.momentum.unwrap_or(1.0 / (seen as f64 + late));
        let a = if self.0 == Flaw::MomentumInverted { 1.0 - a } else { a };
        for c in 0..mean.len() {
            let blend = |old: P, new: f64| P::from_f64((1.0 - a) * old.to_f64() + a * new);
            running.mean[c] = blend(running.mean[c], mean[c]);
            if self.0 == Flaw::BatchOfOneMovesVariance && count == 1.0 {
                running.var[c] = blend(running.var[c], var[c]);
            } else if count > 1.0 {
                let less = if self.0 == Flaw::BiasedRunningVariance { 0.0 } else { 1.0 };
                running.var[c] = blend(running.var[c], var[c] * count / (count - less));
            } else if !var[c].is_finite() {
                running.var[c] = P::from_f64(f64::NAN);
            }
        }
    }
}
