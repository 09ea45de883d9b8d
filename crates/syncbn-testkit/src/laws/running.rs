//! Running statistics and their counter in training.

use syncbn_core::{Element, Kernels, NonFinite, State};

use crate::bars::check_running;
use crate::bits::same_state;
use crate::ensure;
use crate::expected::{Expected, train};
use crate::harness::{Ability, Harness, need, need_ranks};
use crate::oracle;
use crate::outcome::Outcome;
use crate::property::{CASES, for_all};
use crate::rank::{Rank, Step, alone, ranks};
use crate::strategies::{Case, case};
use crate::tensor::{Placed, Tensor};

/// Any split of any batch moves the running statistics as the whole batch would, to the same bits on every rank.
pub fn any_split_of_a_batch_moves_every_ranks_statistics_alike<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for_all(CASES, &case(harness.max_world_size()), |case| {
        let steps = train::<H, T>(harness, case)?;
        let expected = Expected::<T>::of(case);
        steps.iter().try_for_each(|step| {
            same_state(&step.state, &steps[0].state).map_err(|why| why.at("beside rank 0"))?;
            expected.check_state(&step.state)
        })
    })
}

/// Ranks of 10, 100, 1000 and 10 000 elements, momentum 0.99, 100 steps: the pooled mean and unbiased variance.
pub fn ranks_of_very_different_size_are_weighted_by_count<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 4)?;
    let case = Case { momentum: Some(0.99), ..Case::plain(2, &[10], &[1, 10, 100, 1000]) };
    let mut x = case.all(Case::x::<T>);
    for (rank, x) in x.iter_mut().enumerate() {
        *x = x.map(|v| T::from_f64(v.to_f64() + 3.0 * rank as f64));
    }
    let pooled = oracle::statistics(&Tensor::concat(&x));
    let states = ranks(harness, 4, |rank: &Rank<H::Backend>| {
        let x = &x[rank.index];
        let placed = Placed::new(rank, x, case.layout)?;
        let mut y = Placed::blank(rank, x, case.layout)?;
        let mut layer = rank.layer(case.config(), &case.state())?;
        for _ in 0..100 {
            layer.forward(&rank.queue, placed.view(), y.view_mut())?;
        }
        Ok(layer.state(&rank.queue)?)
    })?;
    for state in states {
        ensure!(state.num_batches_tracked == Some(103), "counted {:?}", state.num_batches_tracked);
        let zeros = vec![T::Param::default(); 2];
        check_vectors(&state, &zeros, &pooled, 1.0)?;
    }
    Ok(())
}

fn check_vectors<P: syncbn_core::Param>(
    state: &State<P>,
    before: &[P],
    statistics: &[oracle::Channel],
    share: f64,
) -> Outcome {
    let (mean, var) = (state.running_mean.as_deref(), state.running_var.as_deref());
    check_running((mean.unwrap_or_default(), var.unwrap_or_default()), (before, before), statistics, share)
}

/// Without a momentum the running statistics are the average of all batches, and the initial values do not matter. 12 batches, since
/// the tenth part, which is a usual momentum, comes with the tenth.
pub fn without_momentum_statistics_are_the_average_of_all_batches<H: Harness, T: Element>(
    harness: &H,
) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let batch = |seed| Case { seed, momentum: None, ..Case::plain(3, &[4], &[3]) };
    let start = State { num_batches_tracked: Some(0), ..batch(1).state::<T::Param>() };
    let states = alone(harness, |rank: &Rank<H::Backend>| {
        let mut layer = rank.layer(batch(1).config(), &start)?;
        let mut states = Vec::new();
        for seed in 1..=12 {
            let x = batch(seed).x::<T>(0);
            rank.forward(&mut layer, &Placed::new(rank, &x, batch(1).layout)?, &x)?;
            states.push(layer.state(&rank.queue)?);
        }
        Ok(states)
    })?;
    let mut sums = [(0.0, 0.0); 3];
    for (i, state) in states.iter().enumerate() {
        let statistics = oracle::statistics(&batch(i as u64 + 1).x::<T>(0));
        for (c, (sum, channel)) in sums.iter_mut().zip(&statistics).enumerate() {
            sum.0 += channel.mean;
            sum.1 += channel.unbiased();
            let n = i as f64 + 1.0;
            let bar = if size_of::<T::Param>() == 8 { 1e-12 } else { 2e-6 };
            let got = [&state.running_mean, &state.running_var]
                .map(|v| v.as_ref().map_or(f64::NAN, |v| v[c].to_f64()));
            crate::bars::check_number("running_mean", c, got[0], sum.0 / n, bar * (1.0 + sum.0.abs()))?;
            crate::bars::check_number("running_var", c, got[1], sum.1 / n, bar * (1.0 + sum.1))?;
        }
    }
    Ok(())
}

/// The counter is an integer of 64 bits: beyond 2^40 it still increases by 1, and its inverse is the momentum where there is none.
pub fn the_counter_counts_by_one_however_large_it_is<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for momentum in [Some(0.1), None] {
        let case = Case { momentum, ..Case::plain(2, &[3], &[3]) };
        for seen in [0, 20, 999, (1_i64 << 24) + 1, (1 << 31) - 1, (1 << 32) - 1, 1 << 40, (1 << 53) + 1] {
            let start = State { num_batches_tracked: Some(seen), ..case.state::<T::Param>() };
            let state = alone(harness, |rank: &Rank<H::Backend>| {
                let x = case.x::<T>(0);
                let mut layer = rank.layer(case.config(), &start)?;
                rank.forward(&mut layer, &Placed::new(rank, &x, case.layout)?, &x)?;
                Ok(layer.state(&rank.queue)?)
            })?;
            let expected = Expected::<T>::given(&case, start.clone());
            expected.check_state(&state).map_err(|why| why.at(format!("after {seen} batches")))?;
        }
    }
    Ok(())
}

/// A new momentum applies from the next pass on, also the cumulative average.
pub fn momentum_may_change_between_steps<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(3, &[4], &[2, 1]).within(harness.max_world_size());
    ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
        let mut layer = rank.layer(case.config(), &case.state())?;
        let x = case.x::<T>(rank.index);
        let placed = Placed::new(rank, &x, case.layout)?;
        for momentum in [Some(0.1), Some(0.75), None, Some(0.0), Some(1.0)] {
            let before = layer.state(&rank.queue)?;
            layer.set_momentum(momentum)?;
            rank.forward(&mut layer, &placed, &x)?;
            let expected = Expected::<T>::given(&Case { momentum, ..case.clone() }, before);
            expected.check_state(&layer.state(&rank.queue)?)?;
        }
        Ok(())
    })
    .map(drop)
}

/// y and gradients have the same bits whether or not running statistics are updated.
pub fn training_may_leave_running_statistics_untouched<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(3, &[4], &[2, 1]).within(harness.max_world_size());
    let moving = train::<H, T>(harness, &case)?;
    ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
        let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        let mut layer = rank.layer(case.config(), &case.state())?;
        layer.set_updates_running_stats(false);
        let step = rank.train(&mut layer, &x, &dy, case.layout)?;
        same_state(&step.state, &case.state()).map_err(|why| why.at("running statistics off"))?;
        let expected = Step { state: step.state.clone(), ..moving[rank.index].clone() };
        step.same_bits(&expected).map_err(|why| why.at("running statistics off"))
    })
    .map(drop)
}

/// With the option set, a channel whose batch statistics are not finite keeps its running ones; the batch is counted, the other
/// channels move, and y is as without.
pub fn what_is_not_finite_may_be_kept_out_of_running_statistics<H: Harness, T: Element>(
    harness: &H,
) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need(harness, Ability::NonFinite)?;
    let case = Case::plain(4, &[3], &[2, 1]).within(harness.max_world_size());
    let clean = train::<H, T>(harness, &case)?;
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut x = case.all(Case::x::<T>);
        x[0].values[3] = T::from_f64(bad);
        let states = ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
            let config = case.config().with_non_finite(NonFinite::Skip);
            let mut layer = rank.layer(config, &case.state())?;
            let placed = Placed::new(rank, &x[rank.index], case.layout)?;
            let (_, y) = rank.forward(&mut layer, &placed, &x[rank.index])?;
            let lost = y.channel(1).iter().all(|y| !y.to_f64().is_finite());
            ensure!(lost, "{bad} in channel 1: y is finite: {:?}", y.channel(1));
            Ok(layer.state(&rank.queue)?)
        })?;
        for state in &states {
            let (mut expected, before) = (clean[0].state.clone(), case.state::<T::Param>());
            let keep = |to: &mut Option<Vec<T::Param>>, from: &Option<Vec<T::Param>>| {
                if let (Some(to), Some(from)) = (to, from) {
                    to[1] = from[1];
                }
            };
            keep(&mut expected.running_mean, &before.running_mean);
            keep(&mut expected.running_var, &before.running_var);
            same_state(state, &expected).map_err(|why| why.at(format!("{bad} in channel 1")))?;
        }
    }
    Ok(())
}

/// The variance of finite numbers of `f32` may be beyond `f32`. With the option set, such a batch leaves the channel's running statistics
/// as they are; without it, the running variance is not finite. y is as ever, and the other channels move.
pub fn a_variance_beyond_f32_may_be_kept_out_of_running_statistics<H: Harness>(harness: &H) -> Outcome
where
    H::Backend: Kernels<f32>,
{
    need(harness, Ability::NonFinite)?;
    need(harness, Ability::WideRange)?;
    let case = Case::plain(3, &[4], &[2, 1]).within(harness.max_world_size());
    let clean = train::<H, f32>(harness, &case)?;
    let mut x = case.all(Case::x::<f32>);
    for x in &mut x {
        let positions = x.positions();
        for n in 0..x.samples {
            let channel = &mut x.values[(n * case.channels + 1) * positions..][..positions];
            channel.iter_mut().enumerate().for_each(|(i, x)| *x = [1e25, -1e25][i % 2]);
        }
    }
    for non_finite in [NonFinite::Skip, NonFinite::Propagate] {
        let states = ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
            let mut layer = rank.layer(case.config().with_non_finite(non_finite), &case.state())?;
            let placed = Placed::new(rank, &x[rank.index], case.layout)?;
            let (_, y) = rank.forward(&mut layer, &placed, &x[rank.index])?;
            ensure!(y.values.iter().all(|y| y.is_finite()), "y is not finite: {:?}", y.channel(1));
            Ok(layer.state(&rank.queue)?)
        })?;
        let var = |state: &State<f32>| state.running_var.as_ref().map(|var| var[1]);
        let mean = |state: &State<f32>| state.running_mean.as_ref().map(|mean| mean[1]);
        for state in &states {
            let before = case.state::<f32>();
            let kept = (mean(state), var(state)) == (mean(&before), var(&before));
            let lost = var(state).is_some_and(|var| !var.is_finite());
            let right = if non_finite == NonFinite::Skip { kept } else { lost };
            ensure!(right, "{non_finite:?}: running mean {:?}, variance {:?}", mean(state), var(state));
            let others = |state: &State<f32>| state.running_var.as_ref().map(|var| [var[0], var[2]]);
            ensure!(others(state) == others(&clean[0].state), "{non_finite:?}: other channels differ");
            ensure!(
                state.num_batches_tracked == clean[0].state.num_batches_tracked,
                "the batch is not counted"
            );
        }
    }
    Ok(())
}
