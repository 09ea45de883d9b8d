//! The plainest backend there is, one thread and three loops, with a switch for every [`Flaw`]: what the kit is tried on.
//!
//! Deliberately not here: speed, and any way of setting a flaw outside these tests.

mod flaw;
mod memory;

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use syncbn_comm::ThreadComm;
use syncbn_core::backend::{Grad, GradInputArgs, GradSumsArgs, NormalizeArgs, RunningMut, Source};
use syncbn_core::{Call, Element, Geometry, HostCommunicator, Kernels, Pass, View};

pub(crate) use flaw::Flaw;
pub(crate) use memory::{Saved, Sums};
use memory::{Seen, Shared, read, write};

/// What makes one run of [`Flaw::Flickers`] differ from the next.
static FLICKER: AtomicU32 = AtomicU32::new(0);

/// The device.
#[derive(Clone, Debug)]
pub(crate) struct Plain {
    flaw: Flaw,
    /// Over how many threads a reduction would be divided; no result may depend on it.
    threads: usize,
    /// A second way to the other ranks, which no kernel has a use for unless it meddles with their gradients.
    peers: Arc<OnceLock<ThreadComm>>,
    seen: Arc<Mutex<Seen>>,
}

#[allow(dead_code)] // not every test that includes this file has flaws
impl Plain {
    pub(crate) fn new(flaw: Flaw) -> Self {
        Self { flaw, threads: 1, peers: Arc::default(), seen: Arc::default() }
    }

    pub(crate) fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    pub(crate) fn meet(&self, peers: ThreadComm) {
        let _ = self.peers.set(peers);
    }
}

fn value<P: Element>(values: Option<&Shared<P>>, c: usize, default: f64) -> f64 {
    values.map_or(default, |values| read(values)[c].to_f64())
}

impl<T: Element> Kernels<T> for Plain {
    fn moments(&self, (): &(), x: View<'_, Self, T>, out: &mut Sums) -> Result<(), Infallible> {
        let (geometry, x) = (x.geometry(), read(x.mem()));
        self.meddle_if(Flaw::UpdatesBeforeTheSum);
        out.count = geometry.per_channel() as f64;
        assert!(self.flaw != Flaw::PanicsOnEmpty || !geometry.is_empty(), "no elements");
        let tail = usize::from(self.flaw == Flaw::SkipsTheTail && geometry.per_channel() > 64);
        let flush = |v: f64| if self.flaw == Flaw::SubnormalsFlushed && v.abs() < 1e-37 { 0.0 } else { v };
        for c in 0..geometry.channels() {
            let all = geometry.per_channel() - tail;
            let values = || self.offsets(geometry, c).take(all).map(|i| flush(x[i].to_f64()));
            if self.flaw == Flaw::AccumulatesInHalf && size_of::<T>() == 2 {
                let add = |sum: T, x: f64| T::from_f64(sum.to_f64() + x);
                let mean = values().fold(T::default(), add).to_f64() / out.count.max(1.0);
                out.first[c] = mean;
                out.second[c] = values().map(|x| (x - mean) * (x - mean)).sum();
                continue;
            }
            if self.flaw == Flaw::SquaresInF32 {
                let (mut sum, mut squares) = (0.0_f32, 0.0_f32);
                values().for_each(|x| (sum, squares) = (sum + x as f32, squares + (x * x) as f32));
                let mean = f64::from(sum) / out.count.max(1.0);
                out.first[c] = mean;
                out.second[c] = f64::from(squares) - out.count * mean * mean;
                continue;
            }
            // Shifted by the first value, so that a constant's mean is exact.
            let shift = values().next().unwrap_or(0.0);
            let parts = if self.flaw == Flaw::SumsByThread { self.threads } else { 1 };
            let part = |i: usize| values().skip(i).step_by(parts).map(|x| x - shift).sum::<f64>();
            let mean = shift + (0..parts).map(part).sum::<f64>() / out.count.max(1.0);
            let empty = geometry.is_empty() && self.flaw == Flaw::EmptyRankGivesNan;
            out.first[c] = match self.flaw {
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
        let (geometry, x, mut y) = (*x.geometry(), read(x.mem()), write(y.mem_mut()));
        match &source {
            Source::Frozen { .. } => self.meddle_if(Flaw::UpdatesInEvaluation),
            Source::Saved(_) => self.meddle_if(Flaw::UpdatesOnRecomputation),
            _ => {}
        }
        let written;
        let saved: &Saved = match source {
            Source::Saved(saved) => saved,
            Source::Frozen { mean, var, saved, .. } => {
                saved.count = if self.flaw == Flaw::FrozenDifferentiated { 1.0 } else { 0.0 };
                saved.mean = read(mean).iter().map(|v| v.to_f64()).collect();
                saved.invstd = read(var).iter().map(|v| (v.to_f64() + eps).sqrt().recip()).collect();
                saved
            }
            Source::Batch { sums, group, saved, running, .. } => {
                let (mean, var) = self.finalise(sums, group);
                saved.count = sums.count;
                saved.invstd = match self.flaw {
                    Flaw::EpsOutsideTheRoot => var.iter().map(|v| (v.sqrt() + eps).recip()).collect(),
                    _ => var.iter().map(|v| (v + eps).sqrt().recip()).collect(),
                };
                saved.mean.clone_from(&mean);
                let silent = self.flaw == Flaw::EmptyRankIsSilent && geometry.is_empty();
                if matches!(self.flaw, Flaw::LocalCount | Flaw::DxWithLocalCount) {
                    saved.count = geometry.per_channel() as f64;
                }
                if sums.count == 0.0 {
                    saved.invstd.fill(0.0);
                } else if silent {
                } else if let Some(running) = &running {
                    self.update::<T::Param>(running, sums.count, &mean, &var);
                }
                written = saved.clone();
                &written
            }
            _ => unreachable!("no other source"),
        };
        for c in 0..geometry.channels() {
            let narrow = |v: f64| {
                if self.flaw == Flaw::ParametersInHalf { syncbn_core::bf16::from_f64(v).to_f64() } else { v }
            };
            let weight = narrow(value(weight, c, 1.0));
            let scale =
                saved.invstd[c] * if self.flaw == Flaw::WeightTwice { weight * weight } else { weight };
            let shift = if self.flaw == Flaw::BiasForgotten { 0.0 } else { narrow(value(bias, c, 0.0)) };
            for i in self.offsets(&geometry, c) {
                let x = x[i].to_f64();
                let out = (x - saved.mean[c]) * scale + shift;
                y[i] = T::from_f64(match self.flaw {
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
        if self.flaw == Flaw::WritesBehindTheTensor && y.len() > end {
            y[end] = T::default();
        }
        Ok(())
    }

    fn grad_sums(&self, (): &(), args: GradSumsArgs<'_, Self, T>) -> Result<(), Infallible> {
        let GradSumsArgs { x, dy, saved, d_weight, d_bias, out, .. } = args;
        let (geometry, x, dy) = (*x.geometry(), read(x.mem()), read(dy.mem()));
        self.meddle_if(Flaw::UpdatesInBackward);
        for c in 0..geometry.channels() {
            let (mut sum_dy, mut sum_dy_xmu) = (0.0, 0.0);
            for i in self.offsets(&geometry, c) {
                let dy = dy[i].to_f64();
                sum_dy += dy;
                sum_dy_xmu += dy * (x[i].to_f64() - saved.mean[c]);
            }
            (out.first[c], out.second[c]) = (sum_dy, sum_dy_xmu);
            if let Some(d_weight) = d_weight {
                let d_weight = &mut write(d_weight);
                let invstd = if self.flaw == Flaw::DWeightWithoutInvstd { 1.0 } else { saved.invstd[c] };
                let old = if self.flaw == Flaw::GradientsAdded { d_weight[c].to_f64() } else { 0.0 };
                let mut d = [old + sum_dy_xmu * invstd, 0.0];
                if self.flaw == Flaw::SumsDWeightOverRanks
                    && let Some(peers) = self.peers.get()
                {
                    let met = peers.all_reduce_sum(&Call::new("d_weight", Pass::Backward, 1), &mut d);
                    assert!(met.is_ok(), "the other ranks did not come");
                }
                d_weight[c] = T::Param::from_f64(d[0]);
            }
            if let Some(d_bias) = d_bias {
                write(d_bias)[c] = T::Param::from_f64(sum_dy);
            }
        }
        Ok(())
    }

    fn grad_input(&self, (): &(), args: GradInputArgs<'_, Self, T>) -> Result<(), Infallible> {
        let GradInputArgs { x, grad, saved, sums, weight, .. } = args;
        let (geometry, x) = (*x.geometry(), read(x.mem()));
        let (source, mut dx) = match grad {
            Grad::Apart { dy, dx } => (Some(dy), dx),
            Grad::InPlace(dx) => (None, dx),
        };
        let (source, mut dx) = (source.as_ref().map(|dy| read(dy.mem())), write(dx.mem_mut()));
        for c in 0..geometry.channels() {
            let invstd = saved.invstd[c];
            let terms = sums.filter(|_| saved.count > 0.0);
            let mut mean_dy = terms.map_or(0.0, |sums| sums.first[c] / saved.count);
            let mut slope = terms.map_or(0.0, |sums| invstd * invstd * sums.second[c] / saved.count);
            match self.flaw {
                Flaw::DxWithoutMeanTerm => mean_dy = 0.0,
                Flaw::DxWithoutSlope => slope = 0.0,
                Flaw::FrozenDifferentiated if sums.is_none() => mean_dy = 0.1,
                Flaw::InPlaceReadsLate if source.is_none() => mean_dy *= 1.001,
                _ => {}
            }
            for i in self.offsets(&geometry, c) {
                let dy = source.as_ref().map_or(dx[i], |dy| dy[i]).to_f64();
                let xmu = x[i].to_f64() - saved.mean[c];
                let value = value(weight, c, 1.0) * invstd * (dy - mean_dy - xmu * slope);
                dx[i] = T::from_f64(value);
            }
        }
        Ok(())
    }
}

impl Plain {
    fn meddle_if(&self, flaw: Flaw) {
        if self.flaw == flaw {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).meddle();
        }
    }

    /// Where the elements of channel `c` lie.
    fn offsets(&self, geometry: &Geometry, c: usize) -> impl Iterator<Item = usize> + use<> {
        let (mut outer, channels, mut inner) = (geometry.outer(), geometry.channels(), geometry.inner());
        if self.flaw == Flaw::ChannelsLastReadAsFirst && inner == 1 {
            (outer, inner) = (1, outer);
        }
        (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * channels + c) * inner + i))
    }

    /// Mean and biased variance per channel.
    fn finalise(&self, sums: &Sums, group: bool) -> (Vec<f64>, Vec<f64>) {
        let mut count = sums.count.max(1.0);
        if group && self.flaw == Flaw::LocalCount {
            count = (count / 2.0).max(1.0);
        }
        let channels = 0..sums.first.len();
        if !group {
            let less = if self.flaw == Flaw::BesselInTheBatch { 1.0 } else { 0.0 };
            let count = (count - less).max(1.0);
            return (sums.first.clone(), sums.second.iter().map(|m2| m2 / count).collect());
        }
        let mean: Vec<f64> = sums.first.iter().map(|sum| sum / count).collect();
        let var = channels.map(|c| {
            let square = sums.second[c] / count;
            let var = square - mean[c] * mean[c];
            let unbounded = self.flaw == Flaw::NegativeVariance;
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

    fn update<P: Element>(&self, running: &RunningMut<'_, Self, P>, count: f64, mean: &[f64], var: &[f64]) {
        let (mut old_mean, mut old_var) = (write(running.mean), write(running.var));
        let counter = &mut write(running.num_batches_tracked)[0];
        let seen = *counter + 1;
        match self.flaw {
            Flaw::CounterForgotten => {}
            Flaw::CounterInF32 => *counter = seen as f32 as i64,
            _ => *counter = seen,
        }
        let late = if self.flaw == Flaw::CumulativeFromZero { 1.0 } else { 0.0 };
        let a = running.momentum.unwrap_or(1.0 / (seen as f64 + late));
        let a = if self.flaw == Flaw::MomentumInverted { 1.0 - a } else { a };
        for c in 0..mean.len() {
            let blend = |old: P, new: f64| P::from_f64((1.0 - a) * old.to_f64() + a * new);
            old_mean[c] = blend(old_mean[c], mean[c]);
            if self.flaw == Flaw::BatchOfOneMovesVariance && count == 1.0 {
                old_var[c] = blend(old_var[c], var[c]);
            } else if count > 1.0 {
                let less = if self.flaw == Flaw::BiasedRunningVariance { 0.0 } else { 1.0 };
                old_var[c] = blend(old_var[c], var[c] * count / (count - less));
            } else if !var[c].is_finite() {
                old_var[c] = P::from_f64(f64::NAN);
            }
        }
    }
}
