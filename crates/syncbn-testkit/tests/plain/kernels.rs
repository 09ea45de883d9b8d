//! The four kernels, each with what may be wrong with it, and whole passes for ranks that meet inside.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};

use syncbn_core::backend::{
    BackwardArgs, ForwardArgs, Grad, GradInputArgs, GradSource, GradSumsArgs, MomentsArgs, NormalizeArgs,
    RunningMut, Source,
};
use syncbn_core::host_memory::{save_channel, saved_channel};
use syncbn_core::meeting::{backward_by_kernels, forward_by_kernels};
use syncbn_core::statistics::{Batch, GradTerms, Moments, Running};
use syncbn_core::{
    CollectiveId, Element, Geometry, HostCommunicator, Kernels, Meeting, NonFinite, Param, PassError, bf16,
};

use super::memory::{Part, Workspace};
use super::{Flaw, Plain};

type Done = Result<(), Infallible>;

/// What makes one run of [`Flaw::Flickers`] differ from the next.
static FLICKER: AtomicU32 = AtomicU32::new(0);

fn value<P: Element>(values: Option<&Part<'_, P>>, c: usize, default: f64) -> f64 {
    values.map_or(default, |values| values.read()[c].to_f64())
}

impl<T: Element> Kernels<T> for Plain {
    fn moments(&self, (): &(), args: MomentsArgs<'_, Self, T>) -> Done {
        let MomentsArgs { x, workspace } = args;
        let (geometry, x) = (x.geometry(), x.mem().read());
        self.meddle_if(Flaw::UpdatesBeforeTheSum);
        assert!(self.flaw != Flaw::PanicsOnEmpty || !geometry.is_empty(), "no elements");
        let tail = usize::from(self.flaw == Flaw::SkipsTheTail && geometry.per_channel() > 64);
        let flush = |v: f64| if self.flaw == Flaw::SubnormalsFlushed && v.abs() < 1e-37 { 0.0 } else { v };
        for c in 0..geometry.channels() {
            let all = geometry.per_channel() - tail;
            let values = || self.offsets(geometry, c).take(all).map(|i| flush(x[i].to_f64()));
            workspace.moments[c] = self.moments_of::<T, _>(geometry.per_channel() as f64, values);
        }
        Ok(())
    }

    fn normalize(&self, (): &(), args: NormalizeArgs<'_, Self, T>) -> Done {
        let NormalizeArgs { x, mut y, source, weight, bias, eps } = args;
        let (geometry, x_mem, y_mem) = (*x.geometry(), x.mem(), y.mem_mut());
        let x = if self.flaw == Flaw::IgnoresOffsets { x_mem.at_start().read() } else { x_mem.read() };
        let eps = if self.flaw == Flaw::IgnoresEps { 1e-5 } else { eps };
        let again = matches!(source, Source::Saved { .. });
        let (weight, bias) = match (self.flaw, weight, bias) {
            (Flaw::RecomputesWithoutBiasAlone, None, _) | (Flaw::RecomputesWithoutWeightAlone, _, None)
                if again =>
            {
                (None, None)
            }
            (_, weight, bias) => (weight, bias),
        };
        let (saved, running) = self.statistics(&geometry, source, eps);
        if let Some(running) = running
            && !(self.flaw == Flaw::EmptyRankIsSilent && geometry.is_empty())
        {
            self.update(&running, &saved, again);
        }
        let saved = saved.read();
        let mut y = y_mem.write();
        let lost = (0..geometry.channels()).any(|c| !saved[c].is_finite());
        for c in 0..geometry.channels() {
            let (batch, invstd) = saved_channel(&saved, c);
            let narrow =
                |v: f64| if self.flaw == Flaw::ParametersInHalf { bf16::from_f64(v).to_f64() } else { v };
            let weight = match (self.flaw, narrow(value(weight.as_ref(), c, 1.0))) {
                (Flaw::WeightOf0IsNone, 0.0) => 1.0,
                (Flaw::NoWeightWithoutBias, _) if bias.is_none() => 1.0,
                (_, weight) => weight,
            };
            let scale = invstd * if self.flaw == Flaw::WeightTwice { weight * weight } else { weight };
            let bias = narrow(value(bias.as_ref(), c, 0.0));
            let shift = if self.flaw == Flaw::BiasForgotten { 0.0 } else { bias };
            for i in self.offsets(&geometry, c) {
                let out = (x[i].to_f64() - batch.mean) * scale + shift;
                y[i] = T::from_f64(match self.flaw {
                    Flaw::NanSwallowed if !out.is_finite() => 0.0,
                    Flaw::NanEverywhere if lost => f64::NAN,
                    Flaw::Flickers => {
                        out * (1.0 + 1e-7 * f64::from(FLICKER.fetch_add(1, Ordering::Relaxed) % 3))
                    }
                    _ => out,
                });
            }
        }
        if self.flaw == Flaw::WritesBehindTheTensor && y.len() > geometry.len() {
            y[geometry.len()] = T::default();
        }
        if let Some(first) = y.first_mut()
            && self.flaw == Flaw::WritesBehindAnEmptyY
            && geometry.is_empty()
        {
            *first = T::default();
        }
        Ok(())
    }

    fn grad_sums(&self, (): &(), args: GradSumsArgs<'_, Self, T>) -> Done {
        let GradSumsArgs { x, dy, saved, d_weight, d_bias, workspace } = args;
        let (geometry, x, dy, saved) = (*x.geometry(), x.mem().read(), dy.mem().read(), saved.read());
        self.meddle_if(Flaw::UpdatesInBackward);
        let channels = geometry.channels();
        for c in 0..channels {
            let (batch, invstd) = saved_channel(&saved, c);
            let (mut sum_dy, mut sum_dy_xmu) = (0.0, 0.0);
            let samples = match self.flaw {
                Flaw::SkipsSamplesBeyond8 if geometry.inner() > 1 => 8,
                Flaw::SkipsSamplesBeyond32 if geometry.inner() > 1 => 32,
                _ => usize::MAX / geometry.inner(),
            };
            for i in self.offsets(&geometry, c).take(samples * geometry.inner()) {
                let dy = dy[i].to_f64();
                sum_dy += dy;
                sum_dy_xmu += dy * (x[i].to_f64() - batch.mean);
            }
            (workspace.sums[c], workspace.sums[channels + c]) = match self.flaw {
                Flaw::SumsLeaveOutWhatIsNotFinite if !sum_dy.is_finite() => (0.0, 0.0),
                Flaw::SumOfNanIsSentAs0 if sum_dy.is_nan() => (0.0, sum_dy_xmu),
                _ => (sum_dy, sum_dy_xmu),
            };
            if let Some(d_weight) = &d_weight {
                let mut d_weight = d_weight.write();
                let invstd = if self.flaw == Flaw::DWeightWithoutInvstd { 1.0 } else { invstd };
                let old = if self.flaw == Flaw::GradientsAdded { d_weight[c].to_f64() } else { 0.0 };
                d_weight[c] = T::Param::from_f64(self.of_all_ranks(old + sum_dy_xmu * invstd));
            }
            if let Some(d_bias) = &d_bias
                && (self.flaw != Flaw::NoDBiasWithoutDWeight || d_weight.is_some())
            {
                d_bias.write()[c] = T::Param::from_f64(sum_dy);
            }
        }
        Ok(())
    }

    fn grad_input(&self, (): &(), args: GradInputArgs<'_, Self, T>) -> Done {
        let GradInputArgs { x, grad, saved, source, weight } = args;
        let (geometry, x, saved) = (*x.geometry(), x.mem().read(), saved.read());
        let (dy, mut dx) = match grad {
            Grad::OutOfPlace { dy, dx } => (Some(dy), dx),
            Grad::InPlace(dx) => (None, dx),
        };
        let (dy, mut dx) = (dy.as_ref().map(|dy| dy.mem().read()), dx.mem_mut().write());
        if let Some(first) = dx.first_mut()
            && self.flaw == Flaw::WritesBehindAnEmptyDx
            && geometry.is_empty()
        {
            *first = T::default();
        }
        let channels = geometry.channels();
        for c in 0..channels {
            let (batch, invstd) = saved_channel(&saved, c);
            let sums = match source {
                GradSource::Batch { workspace: Workspace { sums, .. } } => {
                    Some((sums[c], sums[channels + c]))
                }
                GradSource::Frozen if self.flaw == Flaw::FrozenLooksAtX => Some((0.0, 0.0)),
                GradSource::Frozen => None,
            };
            let forgets_weight =
                self.flaw == Flaw::FrozenInPlaceWithoutWeight && dy.is_none() && sums.is_none();
            let weight = if forgets_weight { 1.0 } else { value(weight.as_ref(), c, 1.0) };
            let mut terms = GradTerms::new(weight, invstd, batch.count, sums);
            match self.flaw {
                Flaw::DxWithoutMeanTerm => terms.mean_dy = 0.0,
                Flaw::DxWithoutSlope => terms.slope = 0.0,
                Flaw::SquaresInvstd => {
                    let per_square = sums.map_or(0.0, |(_, sum_dy_xmu)| sum_dy_xmu / batch.count);
                    terms.slope = invstd * invstd * per_square;
                }
                Flaw::FrozenDifferentiated if sums.is_none() => terms.mean_dy = 0.1,
                Flaw::InPlaceReadsLate if dy.is_none() => terms.mean_dy *= 1.001,
                _ => {}
            }
            for i in self.offsets(&geometry, c) {
                let dy = dy.as_ref().map_or(dx[i], |dy| dy[i]).to_f64();
                let slope = sums.map_or(0.0, |_| (x[i].to_f64() - batch.mean) * terms.slope);
                dx[i] = T::from_f64(terms.scale * (dy - terms.mean_dy - slope));
            }
        }
        Ok(())
    }

    fn forward(
        &self,
        queue: &(),
        args: ForwardArgs<'_, Self, T>,
        meeting: Meeting<'_, Self>,
    ) -> Result<(), PassError<Infallible>> {
        let alone = matches!(meeting, Meeting::Alone) && self.flaw == Flaw::WholePassRoundsOtherwise;
        let args = ForwardArgs { eps: if alone { args.eps * (1.0 + 1e-9) } else { args.eps }, ..args };
        let leaves_out = self.flaw == Flaw::ForwardLeavesOutTheSum;
        self.pass(meeting, leaves_out, |meeting| forward_by_kernels(self, queue, args, meeting))
    }

    fn backward(
        &self,
        queue: &(),
        args: BackwardArgs<'_, Self, T>,
        meeting: Meeting<'_, Self>,
    ) -> Result<(), PassError<Infallible>> {
        let leaves_out = self.flaw == Flaw::BackwardLeavesOutTheSum;
        self.pass(meeting, leaves_out, |meeting| backward_by_kernels(self, queue, args, meeting))
    }
}

impl Plain {
    /// A pass by its kernels, with the meeting of ranks between them, whoever brings it.
    fn pass(
        &self,
        meeting: Meeting<'_, Self>,
        leaves_out: bool,
        run: impl FnOnce(Meeting<'_, Self>) -> Result<(), PassError<Infallible>>,
    ) -> Result<(), PassError<Infallible>> {
        match meeting {
            Meeting::Between(_) if leaves_out => run(Meeting::Alone),
            Meeting::Between(sum) if self.flaw == Flaw::SumsItselfTwice => {
                run(Meeting::Between(&mut |workspace| {
                    sum(workspace)?;
                    sum(workspace)
                }))
            }
            Meeting::Between(sum) if self.flaw == Flaw::IgnoresTheSumsError => {
                run(Meeting::Between(&mut |workspace| {
                    let _ = sum(workspace);
                    Ok(())
                }))
            }
            Meeting::Inside(_) if self.flaw == Flaw::ClaimsToMeetItsPeers => run(Meeting::Alone),
            Meeting::Inside(peers) => run(Meeting::Between(&mut |workspace| peers.sum(self, workspace))),
            other => run(other),
        }
    }

    /// Where the elements of channel `c` lie.
    fn offsets(&self, geometry: &Geometry, c: usize) -> impl Iterator<Item = usize> + use<> {
        let (mut outer, channels, mut inner) = (geometry.outer(), geometry.channels(), geometry.inner());
        match self.flaw {
            Flaw::ChannelsLastReadAsFirst if inner == 1 => (outer, inner) = (1, outer),
            Flaw::SkipsChannelsBeyond1024 if c >= 1024 => outer = 0,
            Flaw::SkipsChannelsBeyond65536 if c >= 65_536 => outer = 0,
            _ => {}
        }
        (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * channels + c) * inner + i))
    }

    /// The moments of one channel of `count` values.
    fn moments_of<T: Element, I: Iterator<Item = f64>>(&self, count: f64, values: impl Fn() -> I) -> Moments {
        let around = |mean: f64| Moments { count, mean, m2: values().map(|x| (x - mean) * (x - mean)).sum() };
        if self.flaw == Flaw::AccumulatesInHalf && size_of::<T>() == 2 {
            let add = |sum: T, x: f64| T::from_f64(sum.to_f64() + x);
            return around(values().fold(T::default(), add).to_f64() / count.max(1.0));
        }
        if self.flaw == Flaw::SquaresInF32 {
            let (mut sum, mut squares) = (0.0_f32, 0.0_f32);
            values().for_each(|x| (sum, squares) = (sum + x as f32, squares + (x * x) as f32));
            let mean = f64::from(sum) / count.max(1.0);
            return Moments { count, mean, m2: f64::from(squares) - count * mean * mean };
        }
        if self.flaw == Flaw::ShiftsByTheFirstInF32 {
            let shift = values().next().unwrap_or(0.0) as f32;
            let (mut sum, mut squares) = (0.0_f32, 0.0_f32);
            let shifted = values().map(|x| x as f32 - shift);
            shifted.for_each(|x| (sum, squares) = (sum + x, squares + x * x));
            let (sum, squares, m) = (f64::from(sum), f64::from(squares), count.max(1.0));
            return Moments {
                count,
                mean: f64::from(shift) + sum / m,
                m2: (squares - sum * sum / m).max(0.0),
            };
        }
        // Shifted by the first value, so that a constant's mean is exact.
        let shift = values().next().unwrap_or(0.0);
        let parts = if self.flaw == Flaw::SumsByThread { self.threads } else { 1 };
        let part = |i: usize| values().skip(i).step_by(parts).map(|x| x - shift).sum::<f64>();
        let mean = shift + (0..parts).map(part).sum::<f64>() / count.max(1.0);
        match self.flaw {
            Flaw::EmptyRankGivesNan if count == 0.0 => Moments { count, mean: f64::NAN, m2: f64::NAN },
            Flaw::MeanInF32 => around(f64::from(mean as f32 + 0.5) - 0.5),
            _ => around(mean),
        }
    }

    /// Where the statistics that a pass is to use lie, and what it is to update.
    fn statistics<'a, P: Param>(
        &self,
        geometry: &Geometry,
        source: Source<'a, Self, P>,
        eps: f64,
    ) -> (Part<'a, f64>, Option<RunningMut<'a, Self, P>>) {
        match source {
            Source::Saved { saved, running } => {
                self.meddle_if(Flaw::UpdatesOnRecomputation);
                (saved, running.filter(|_| self.flaw != Flaw::IgnoresUpdateApart))
            }
            Source::Frozen { mean, var, saved } => {
                self.meddle_if(Flaw::UpdatesInEvaluation);
                let count = match self.flaw {
                    Flaw::FrozenDifferentiated => 1.0,
                    Flaw::FrozenKeepsACount => geometry.per_channel() as f64,
                    Flaw::FrozenSavesNothingOfEmpty if geometry.is_empty() => return (saved, None),
                    _ => 0.0,
                };
                for c in 0..geometry.channels() {
                    let mut batch =
                        Batch { count, mean: value(Some(&mean), c, 0.0), var: value(Some(&var), c, 0.0) };
                    match self.flaw {
                        Flaw::NanMeanSwallowedIfFrozen if !batch.mean.is_finite() => batch.mean = 0.0,
                        // The larger of NaN and a number is the number.
                        Flaw::NanVarianceSwallowedIfFrozen => batch.var = batch.var.max(0.0),
                        _ => {}
                    }
                    save_channel(&mut saved.write(), c, batch, (batch.var + eps).sqrt().recip());
                }
                (saved, None)
            }
            Source::Batch { workspace, group, saved, running } => {
                for c in 0..geometry.channels() {
                    let mut batch = self.batch(workspace, group, c);
                    let invstd = match self.flaw {
                        Flaw::EmptyBatchHasADeviation if batch.count == 0.0 => eps.sqrt().recip(),
                        _ if batch.count == 0.0 => 0.0,
                        Flaw::EpsHidesSmallVariances if batch.var < eps / 1000.0 => eps.sqrt().recip(),
                        Flaw::EpsOutsideTheRoot => (batch.var.sqrt() + eps).recip(),
                        _ => (batch.var + eps).sqrt().recip(),
                    };
                    match self.flaw {
                        Flaw::DxWithLocalCount => batch.count = workspace.moments[c].count,
                        Flaw::KeepsNoCount if running.is_none() => batch.count = 0.0,
                        _ => {}
                    }
                    save_channel(&mut saved.write(), c, batch, invstd);
                }
                (saved, running)
            }
        }
    }

    /// The statistics of one channel.
    fn batch(&self, workspace: &Workspace, group: bool, c: usize) -> Batch {
        let moments = workspace.moments[c];
        if !group || self.flaw == Flaw::IgnoresGroup {
            let batch = moments.batch();
            return match self.flaw {
                Flaw::BesselInTheBatch => Batch { var: moments.m2 / (moments.count - 1.0).max(1.0), ..batch },
                _ => batch,
            };
        }
        let batch = workspace.group[c];
        match self.flaw {
            Flaw::NegativeVariance => Batch { var: batch.var - 1e-12 * batch.mean * batch.mean, ..batch },
            _ => batch,
        }
    }

    fn update<P: Param>(&self, running: &RunningMut<'_, Self, P>, saved: &Part<'_, f64>, apart: bool) {
        let RunningMut { mean, var, num_batches_tracked, momentum, non_finite } = running;
        let (mut mean, mut var, mut counter) = (mean.write(), var.write(), num_batches_tracked.write());
        let saved = saved.read();
        let (count, seen) = (saved[saved.len() - 1], counter[0]);
        let late = i64::from(self.flaw == Flaw::CumulativeFromZero && momentum.is_none());
        let momentum =
            if self.flaw == Flaw::MomentumInverted { momentum.map(|a| 1.0 - a) } else { *momentum };
        let momentum = match self.flaw {
            Flaw::IgnoresMomentum => Some(0.1),
            Flaw::AverageOf10Batches if seen >= 10 => momentum.or(Some(0.1)),
            Flaw::ApartIgnoresTheAverage if apart => momentum.or(Some(0.1)),
            _ => momentum,
        };
        let non_finite = match self.flaw {
            Flaw::IgnoresNonFinite => NonFinite::Propagate,
            Flaw::ApartIgnoresNonFinite if apart => NonFinite::Propagate,
            _ => *non_finite,
        };
        let Some(next) = Running::next(count, seen + late, momentum, non_finite) else { return };
        match self.flaw {
            Flaw::CounterForgotten => {}
            Flaw::ApartCountsIn32Bits if apart => counter[0] = i64::from(next.num_batches_tracked as i32),
            Flaw::CounterInF32 => counter[0] = next.num_batches_tracked as f32 as i64,
            _ => counter[0] = next.num_batches_tracked - late,
        }
        for c in 0..mean.len() {
            let mut batch = saved_channel(&saved, c).0;
            match self.flaw {
                Flaw::ApartMovesVarianceByOne if apart && count == 1.0 => batch.count = 1e9,
                Flaw::BatchOfOneMovesVariance if count == 1.0 => batch.count = 1e9,
                Flaw::BiasedRunningVariance => batch.count *= 1e9,
                _ => {}
            }
            [mean[c], var[c]] = next.moved([mean[c], var[c]], batch);
        }
    }

    /// The sum over the ranks of what is each rank's own.
    fn of_all_ranks(&self, value: f64) -> f64 {
        let mut values = [value];
        if self.flaw == Flaw::SumsDWeightOverRanks
            && let Some(peers) = self.peers.get()
        {
            let met = peers.all_reduce_sum(&CollectiveId::new("d_weight", 1), &mut values);
            assert!(met.is_ok(), "the other ranks did not come");
        }
        values[0]
    }
}
