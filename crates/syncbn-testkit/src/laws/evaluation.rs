//! Evaluation and frozen statistics: their results, and that running statistics do not change.

use syncbn_core::{Element, Kernels};

use crate::bits::{same_bits, same_state, same_steps};
use crate::ensure;
use crate::expected::{Expected, train};
use crate::harness::{Ability, Harness, need, need_ranks};
use crate::outcome::Outcome;
use crate::property::{CASES, for_all};
use crate::rank::{Rank, Step, alone, ranks};
use crate::strategies::{Case, case};
use crate::tensor::Placed;

fn check_frozen<T: Element>(case: &Case, steps: &[Step<T>]) -> Outcome {
    let expected = Expected::frozen(case);
    expected.check_y(&steps.iter().map(|step| step.y.clone()).collect::<Vec<_>>())?;
    expected.check_gradients(steps)?;
    steps.iter().try_for_each(|step| same_state(&step.state, &case.state()))
}

/// Evaluation uses the running statistics, changes nothing, and has the gradient `dx = weight invstd dy`.
pub fn evaluation_uses_the_running_statistics<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for_all(CASES / 2, &case(harness.max_world_size()), |case| {
        let case = &Case { track: true, ..case.clone() };
        let steps = ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
            let mut layer = rank.layer(case.config(), &case.state())?;
            layer.set_training(false);
            let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
            rank.train(&mut layer, &x, &dy, case.layout)
        })?;
        check_frozen(case, &steps)
    })
}

/// A running mean or variance that is not finite is not hidden: y of its channel is not finite, nor is dx where it is the variance. All
/// else has the bits that it has without.
pub fn running_statistics_that_are_not_finite_spoil_their_channel<H: Harness, T: Element>(
    harness: &H,
) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need(harness, Ability::NonFinite)?;
    let case = Case::plain(4, &[3], &[2]);
    let run = |mean: f64, var: f64| {
        let mut state = case.state::<T::Param>();
        state.running_mean.iter_mut().for_each(|values| values[1] = T::Param::from_f64(mean));
        state.running_var.iter_mut().for_each(|values| values[2] = T::Param::from_f64(var));
        alone(harness, |rank: &Rank<H::Backend>| {
            let mut layer = rank.layer(case.config(), &state)?;
            layer.set_training(false);
            rank.train(&mut layer, &case.x::<T>(0), &case.dy::<T>(0), case.layout)
        })
    };
    let clean = run(0.5, 2.0)?;
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let hurt = run(bad, f64::NAN)?;
        let (y, dx) = ((&hurt.y, &clean.y), (&hurt.gradients.dx, &clean.gradients.dx));
        for (what, (got, clean), spoilt) in [("y", y, 1..3), ("dx", dx, 2..3)] {
            for c in 0..case.channels {
                let values = got.channel(c);
                if spoilt.contains(&c) {
                    let lost = values.iter().all(|v| !v.to_f64().is_finite());
                    ensure!(lost, "{what} of channel {c} is {values:?} with {bad} or NaN in its statistics");
                } else {
                    same_bits(&format!("{what} of channel {c}"), &values, &clean.channel(c))?;
                }
            }
        }
    }
    Ok(())
}

/// A frozen layer in training mode gives the bits of evaluation, and trains again when it is no longer frozen.
pub fn a_frozen_layer_computes_what_an_evaluating_one_does<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(5, &[3, 2], &[3, 2]).within(harness.max_world_size());
    let trained = train::<H, T>(harness, &case)?;
    let frozen = ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
        let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        let mut layer = rank.layer(case.config(), &case.state())?;
        layer.set_frozen(true)?;
        let frozen = rank.train(&mut layer, &x, &dy, case.layout)?;
        layer.set_frozen(false)?;
        layer.set_training(false);
        let evaluated = rank.train(&mut layer, &x, &dy, case.layout)?;
        evaluated.same_bits(&frozen).map_err(|why| why.at("evaluating, not frozen"))?;
        layer.set_training(true);
        let thawed = rank.train(&mut layer, &x, &dy, case.layout)?;
        thawed.same_bits(&trained[rank.index]).map_err(|why| why.at("thawed"))?;
        Ok(frozen)
    })?;
    check_frozen(&case, &frozen)
}

/// What a frozen pass saves follows from the running statistics alone: the same words after every batch, also after one without elements.
pub fn what_a_frozen_pass_saves_does_not_depend_on_the_batch<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let saved_after = |samples: usize| {
        let case = Case::plain(3, &[2], &[samples]);
        alone(harness, |rank: &Rank<H::Backend>| {
            let x = case.x::<T>(0);
            let mut layer = rank.layer(case.config(), &case.state())?;
            layer.set_training(false);
            let (saved, _) = rank.forward(&mut layer, &Placed::new(rank, &x, case.layout)?, &x)?;
            rank.saved_words(&saved)
        })
    };
    let words = saved_after(2)?;
    for samples in [3, 0] {
        same_bits(&format!("what is saved after {samples} samples"), &saved_after(samples)?, &words)?;
    }
    Ok(())
}

/// Without running statistics, evaluation uses each rank's own batch, and differentiates it.
pub fn evaluation_without_running_statistics_uses_the_ranks_own_batch<H: Harness, T: Element>(
    harness: &H,
) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case { track: false, ..Case::plain(3, &[3, 2], &[3, 2]) };
    let case = case.within(harness.max_world_size());
    let steps = ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
        let mut layer = rank.layer(case.config(), &case.state())?;
        layer.set_training(false);
        rank.train(&mut layer, &case.x::<T>(rank.index), &case.dy::<T>(rank.index), case.layout)
    })?;
    for (rank, step) in steps.iter().enumerate() {
        let expected = Expected::local(&case, rank);
        let step = std::slice::from_ref(step);
        expected.check_y(&[step[0].y.clone()]).map_err(|why| why.at(format!("rank {rank}")))?;
        expected.check_gradients(step).map_err(|why| why.at(format!("rank {rank}")))?;
    }
    Ok(())
}

/// Evaluation on one rank alone, while its peers do nothing: local batch norm, and no waiting.
pub fn evaluation_on_one_rank_needs_no_other<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 3)?;
    let case = Case::plain(4, &[3], &[2, 3, 1]);
    let run = |rank: &Rank<H::Backend>| {
        let mut layer = rank.layer(case.config(), &case.state())?;
        layer.set_training(false);
        rank.train(&mut layer, &case.x::<T>(1), &case.dy::<T>(1), case.layout)
    };
    let by_itself = alone(harness, run)?;
    let among_others = ranks(
        harness,
        3,
        |rank: &Rank<H::Backend>| {
            if rank.index == 1 { run(rank).map(Some) } else { Ok(None) }
        },
    )?;
    let among_others: Vec<_> = among_others.into_iter().flatten().collect();
    same_steps(&among_others, &[by_itself]).map_err(|why| why.at("among others"))
}

/// Recomputing an evaluation gives its bits.
pub fn an_evaluation_can_be_recomputed<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for track in [true, false] {
        let case = Case { track, ..Case::plain(4, &[3], &[5]) };
        alone(harness, |rank: &Rank<H::Backend>| {
            let x = case.x::<T>(0);
            let mut layer = rank.layer(case.config(), &case.state())?;
            layer.set_training(false);
            let placed = Placed::new(rank, &x, case.layout)?;
            let (saved, y) = rank.forward(&mut layer, &placed, &x)?;
            let mut again = Placed::blank(rank, &x, case.layout)?;
            layer.recompute(&rank.queue, &saved, placed.view(), again.view_mut())?;
            same_bits("the recomputed y", &again.read(rank)?.values, &y.values)
                .map_err(|why| why.at(format!("running statistics: {track}")))
        })?;
    }
    Ok(())
}

/// With frozen statistics `dx = weight invstd dy`, and x is not read: a NaN or infinity in it does not reach dx.
pub fn frozen_dx_does_not_look_at_x<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(3, &[5], &[3]);
    alone(harness, |rank: &Rank<H::Backend>| {
        let (x, dy) = (case.x::<T>(0), case.dy::<T>(0));
        let mut layer = rank.layer(case.config(), &case.state())?;
        layer.set_frozen(true)?;
        let placed = Placed::new(rank, &x, case.layout)?;
        let (saved, _) = rank.forward(&mut layer, &placed, &x)?;
        let expected = rank.backward(&mut layer, &saved, &placed, &dy)?;
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut hurt = x.clone();
            hurt.values[1] = T::from_f64(bad);
            let placed = Placed::new(rank, &hurt, case.layout)?;
            let got = rank.backward(&mut layer, &saved, &placed, &dy)?;
            same_bits(&format!("dx beside {bad} in x"), &got.dx.values, &expected.dx.values)?;
        }
        Ok(())
    })
}
