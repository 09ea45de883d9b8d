//! The collectives of a layer: how many there are, and what they sum.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use syncbn_core::{
    CollectiveId, CollectiveKind, Communicator, Element, Gradients, Kernels, Pass, Scalar, SingleRank,
    ViaHost,
};

use crate::bars::check_number;
use crate::bits::same_steps;
use crate::expected::train;
use crate::harness::{Ability, Harness, need, need_ranks};
use crate::oracle;
use crate::outcome::Outcome;
use crate::rank::{ParameterRoom, Rank, alone, ranks, ranks_of};
use crate::spies::{Recorder, Spy};
use crate::strategies::{Case, Values};
use crate::tensor::{Placed, Tensor};
use crate::{ensure, threads};

/// The numbers of a forward message per channel.
fn parts<T: Element>() -> usize {
    Pass::Forward.per_channel(T::Param::DTYPE)
}

/// A training step makes one sum of a few numbers per channel forward and one of 2C backward, for any number of ranks, with or without
/// dx.
pub fn a_training_step_sums_once_in_each_pass<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    let expected = [parts::<T>() * 5 + 1, 10];
    for world_size in [2, 3].into_iter().filter(|&n| n <= harness.max_world_size()) {
        let case = Case::plain(5, &[4], &vec![2; world_size]);
        ranks(harness, world_size, |rank: &Rank<H::Backend>| {
            let spy = Spy::new(rank.communicator.clone());
            let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
            let mut layer = rank.layer_in(spy.clone(), case.config(), &case.state())?;
            rank.train(&mut layer, &x, &dy, case.layout)?;
            let lengths: Vec<_> = spy.take_calls().iter().map(|call| call.length).collect();
            ensure!(lengths == expected, "a training step sums {lengths:?} numbers, expected {expected:?}");
            let placed = Placed::new(rank, &x, case.layout)?;
            let (saved, _) = rank.forward(&mut layer, &placed, &x)?;
            let dy = Placed::new(rank, &dy, case.layout)?;
            let mut room = ParameterRoom::new(rank, 5)?;
            let wanted = Gradients::parameters_only(dy.view());
            layer.backward(&rank.queue, &saved, placed.view(), wanted, room.borrow())?;
            let calls = spy.take_calls();
            let passes: Vec<_> = calls.iter().map(|call| call.kind).collect();
            let both = [Pass::Forward, Pass::Backward].map(CollectiveKind::Pass);
            ensure!(passes == both, "without dx: {passes:?}");
            ensure!(calls.iter().all(|call| &*call.label == "bn"), "calls do not name the layer: {calls:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A group of one in host memory gives the bits of a local layer, without a collective.
pub fn a_group_of_one_computes_what_a_layer_alone_does<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case { values: Values::Mixed, ..Case::plain(6, &[3, 5], &[4]) };
    let group = Mutex::new(threads::host_group(1));
    alone(harness, |rank: &Rank<H::Backend>| {
        let one: Arc<dyn Communicator<H::Backend>> = Arc::new(ViaHost(group.lock().unwrap().remove(0)));
        let spy = Spy::new(one);
        let train = |mut layer| rank.train(&mut layer, &case.x::<T>(0), &case.dy::<T>(0), case.layout);
        let in_group = train(rank.layer_in(spy.clone(), case.config(), &case.state())?)?;
        let alone = train(rank.layer_in(SingleRank, case.config(), &case.state())?)?;
        let calls = spy.take_calls();
        ensure!(calls.is_empty(), "a group of one made {calls:?}");
        in_group.same_bits(&alone).map_err(|why| why.at("in a group of one"))
    })
}

const C: usize = 4;

/// A rank's messages: the count, and parts whose sums are `m mean` and `M2 + m mean^2`, all but the last of each a multiple of the
/// count, so that their sums are exact; backward `[sum_dy | sum_dy_xmu]`, both NaN where dy is.
pub fn messages_hold_counts_sums_and_squares_of_the_rank<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 3)?;
    let case = Case::plain(C, &[3, 3], &[2, 0, 1]);
    let groups: Vec<_> = threads::host_group(3).into_iter().map(|comm| Mutex::new(Some(comm))).collect();
    let whole = oracle::statistics(&Tensor::concat(&case.all(Case::x::<T>)));
    let messages = ranks(harness, 3, |rank: &Rank<H::Backend>| {
        let comm = groups[rank.index].lock().unwrap().take().unwrap();
        let recorder = Arc::new(Recorder(comm, Mutex::default()));
        let mut layer = rank.layer_in(ViaHost(recorder.clone()), case.config(), &case.state())?;
        let (x, mut dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        rank.train(&mut layer, &x, &dy, case.layout)?;
        let messages = std::mem::take(&mut *recorder.1.lock().unwrap());
        if need(harness, Ability::NonFinite).is_ok()
            && let Some(first) = dy.values.first_mut()
        {
            *first = T::from_f64(f64::NAN);
        }
        rank.train(&mut layer, &x, &dy, case.layout)?;
        let hurt = recorder.1.lock().unwrap().pop().unwrap_or_default();
        let there = dy.values.first().is_some_and(|first| first.to_f64().is_nan());
        ensure!(hurt.len() == 2 * C, "a backward message of {} numbers", hurt.len());
        let sums = [hurt[0], hurt[C]];
        ensure!(
            sums.iter().all(|sum| sum.is_nan() == there),
            "NaN in dy: {there}, but its sums are {sums:?}"
        );
        Ok(messages)
    })?;
    for (rank, messages) in messages.iter().enumerate() {
        let [forward, backward] = &messages[..] else {
            return Err(crate::broken!("rank {rank} sent {} messages", messages.len()));
        };
        let (x, dy) = (case.x::<T>(rank), case.dy::<T>(rank));
        let count = (x.samples * 9) as f64;
        ensure!(forward[0] == count, "rank {rank} counts {} elements, expected {count}", forward[0]);
        for c in 0..C {
            let (x, dy) = (x.channel(c), dy.channel(c));
            let add = |f: &dyn Fn(f64, f64) -> f64| -> (f64, f64) {
                let terms = x.iter().zip(&dy).map(|(x, dy)| f(x.to_f64(), dy.to_f64()));
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
            };
            let halves: Vec<f64> = (0..parts::<T>()).map(|part| forward[1 + part * C + c]).collect();
            let (first, second) = halves.split_at(halves.len() / 2);
            for part in [first, second].into_iter().flat_map(|half| &half[..half.len() - 1]) {
                let (of_one, spare) = (part / count.max(1.0), (1 << 29) - 1);
                let short = of_one.to_bits() & spare == 0 && of_one * count == *part;
                ensure!(
                    short,
                    "rank {rank}, channel {c}: {part:e} is not {count} times a number of 24 bits, so sums of it are rounded"
                );
            }
            let (sum, tail) = (first.iter().sum::<f64>(), first[first.len() - 1]);
            let most = sum.abs() * 2.0_f64.powi(1 - 24 * (first.len() as i32 - 1));
            ensure!(
                tail.abs() <= most,
                "rank {rank}, channel {c}: the last part of m mean is {tail:e}, expected at most {most:e}: the others hold its head"
            );
            let mean = whole[c].mean;
            for (what, got, (expected, size)) in [
                ("m mean", first.iter().sum(), add(&|x, _| x)),
                ("M2 + m mean^2", second.iter().sum(), add(&|x, _| x * x)),
                ("sum_dy", backward[c], add(&|_, dy| dy)),
                ("sum_dy_xmu", backward[C + c], add(&|x, dy| dy * (x - mean))),
            ] {
                let bar = if size_of::<T>() == 8 { 1e-12 } else { 1e-6 };
                check_number(what, c, got, expected, bar * size)
                    .map_err(|why| why.at(format!("rank {rank}")))?;
            }
        }
    }
    Ok(())
}

/// Each collective use of a layer has the next number, and its backward the same one, in whatever order; a new group starts at 0.
pub fn calls_number_the_uses_of_a_layer<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    let case = Case::plain(3, &[4], &[2, 1]);
    ranks(harness, 2, |rank: &Rank<H::Backend>| {
        let spy = Spy::new(rank.communicator.clone());
        let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        let placed = Placed::new(rank, &x, case.layout)?;
        let mut layer = rank.layer_in(spy.clone(), case.config(), &case.state())?;
        for _ in 0..2 {
            let (first, _) = rank.forward(&mut layer, &placed, &x)?;
            layer.set_training(false);
            rank.forward(&mut layer, &placed, &x)?;
            layer.set_training(true);
            let (second, _) = rank.forward(&mut layer, &placed, &x)?;
            rank.backward(&mut layer, &second, &placed, &dy)?;
            rank.backward(&mut layer, &first, &placed, &dy)?;
            rank.forward(&mut layer, &placed, &x)?;
            let numbers: Vec<_> =
                spy.take_calls().iter().map(|call: &CollectiveId| call.use_number).collect();
            ensure!(
                numbers == [0, 1, 1, 0, 2],
                "the uses are numbered {numbers:?}, expected [0, 1, 1, 0, 2]"
            );
            layer.set_group(spy.clone());
        }
        Ok(())
    })
    .map(drop)
}

/// Evaluation, frozen statistics and recomputation make no collective, in either pass.
pub fn nobody_is_asked_without_need<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    for track in [true, false] {
        let case = Case { track, ..Case::plain(3, &[4], &[2, 3]) };
        ranks(harness, 2, |rank: &Rank<H::Backend>| {
            let spy = Spy::new(rank.communicator.clone());
            let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
            let mut layer = rank.layer_in(spy.clone(), case.config(), &case.state())?;
            layer.set_training(false);
            rank.train(&mut layer, &x, &dy, case.layout)?;
            layer.set_training(true);
            if track {
                layer.set_frozen(true)?;
                rank.train(&mut layer, &x, &dy, case.layout)?;
                layer.set_frozen(false)?;
            }
            let calls = spy.take_calls();
            ensure!(calls.is_empty(), "evaluation called {calls:?}");
            let placed = Placed::new(rank, &x, case.layout)?;
            let (saved, _) = rank.forward(&mut layer, &placed, &x)?;
            let mut again = Placed::blank(rank, &x, case.layout)?;
            layer.recompute(&rank.queue, &saved, placed.view(), again.view_mut())?;
            let calls = spy.take_calls().len();
            ensure!(calls == 1, "forward and recomputation made {calls} calls");
            Ok(())
        })?;
    }
    Ok(())
}

/// Five ranks, four of them in two groups of two that train at the same time; the fifth trains alone.
pub fn groups_do_not_hear_of_each_other<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 5)?;
    let worlds = [
        Case::plain(3, &[4], &[2, 1]),
        Case { seed: 9, ..Case::plain(3, &[4], &[1, 3]) },
        Case { seed: 5, ..Case::plain(3, &[4], &[2]) },
    ];
    let places = worlds
        .iter()
        .flat_map(|case| harness.group(NonZeroUsize::new(case.world_size()).unwrap_or(NonZeroUsize::MIN)));
    let together = ranks_of(harness, places.collect(), |rank: &Rank<H::Backend>| {
        let case = &worlds[rank.index / 2];
        let own = rank.communicator.rank();
        let mut layer = rank.layer(case.config(), &case.state())?;
        rank.train(&mut layer, &case.x::<T>(own), &case.dy::<T>(own), case.layout)
    })?;
    let apart: Vec<_> =
        worlds.iter().map(|case| train::<H, T>(harness, case)).collect::<Outcome<Vec<_>>>()?.concat();
    same_steps(&together, &apart).map_err(|why| why.at("groups at work at the same time"))
}
