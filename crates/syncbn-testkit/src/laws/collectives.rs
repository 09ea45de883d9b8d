//! How ranks talk: how often, about what, and what is left when it goes wrong.
//!
//! Failures are staged with groups of threads, whatever group the harness has: they are core's to handle, on every backend.
//!
//! Deliberately not here: whether a communicator itself is right.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use syncbn_core::{CommErrorKind, Element, Error, ErrorKind, Kernels, Pass, Solo, Staged};

use crate::bars::check_number;
use crate::expected::train;
use crate::harness::{Ability, Harness, need, need_ranks};
use crate::oracle;
use crate::outcome::Outcome;
use crate::rank::{ParameterRoom, Rank, alone, ranks, ranks_of};
use crate::spies::{Recorder, Spy};
use crate::strategies::Case;
use crate::tensor::Placed;
use crate::{ensure, threads};

/// A training step makes one sum of 2C + 1 numbers and one of 2C, however many ranks there are, dx or not.
pub fn a_training_step_sums_2c_plus_1_numbers_and_2c_numbers<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for world_size in [1, 2, 3].into_iter().filter(|&n| n <= harness.max_world_size()) {
        let case = Case::plain(5, &[4], &vec![2; world_size]);
        ranks(harness, world_size, |rank: &Rank<H::Backend>| {
            let spy = Spy::new(rank.communicator.clone());
            let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
            let mut layer = rank.layer_in(spy.clone(), case.config(), &case.state())?;
            rank.train(&mut layer, &x, &dy, case.layout)?;
            let lengths: Vec<_> = spy.take_calls().iter().map(|c| c.pass.message_len(c.channels)).collect();
            ensure!(lengths == [11, 10], "a training step sums {lengths:?} numbers, expected [11, 10]");
            let placed = Placed::new(rank, &x, case.layout)?;
            let (saved, _) = rank.forward(&mut layer, &placed, &x)?;
            let dy = Placed::new(rank, &dy, case.layout)?;
            let mut room = ParameterRoom::new(rank, 5)?;
            layer.backward_parameters(&rank.queue, &saved, placed.view(), dy.view(), room.borrow())?;
            let calls = spy.take_calls();
            let passes: Vec<_> = calls.iter().map(|call| call.pass).collect();
            ensure!(passes == [Pass::Forward, Pass::Backward], "without dx: {passes:?}");
            ensure!(calls.iter().all(|call| &*call.layer == "bn"), "calls do not name the layer: {calls:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// What a rank sends is its own `[m | m mean | M2 + m mean^2]`, and `[sum_dy | sum_dy_xmu]`.
pub fn messages_hold_counts_sums_and_squares_of_the_rank<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 3)?;
    let case = Case::plain(4, &[3, 3], &[2, 0, 1]);
    let groups: Vec<_> = threads::host_group(3).into_iter().map(|comm| Mutex::new(Some(comm))).collect();
    let whole = oracle::statistics(&crate::tensor::Tensor::concat(&case.all(Case::x::<T>)), true);
    let messages = ranks(harness, 3, |rank: &Rank<H::Backend>| {
        let comm = groups[rank.index].lock().unwrap().take().unwrap();
        let recorder = Arc::new(Recorder(comm, Mutex::default()));
        let group = Arc::new(Staged(recorder.clone()));
        let mut layer = rank.layer_in(group, case.config(), &case.state())?;
        rank.train(&mut layer, &case.x::<T>(rank.index), &case.dy::<T>(rank.index), case.layout)?;
        Ok(std::mem::take(&mut *recorder.1.lock().unwrap()))
    })?;
    for (rank, messages) in messages.iter().enumerate() {
        let [forward, backward] = &messages[..] else {
            return Err(crate::broken!("rank {rank} sent {} messages", messages.len()));
        };
        let (x, dy) = (case.x::<T>(rank), case.dy::<T>(rank));
        ensure!(forward[0] == (x.samples * 9) as f64, "rank {rank} counts {} elements", forward[0]);
        for c in 0..4 {
            let (x, dy) = (x.channel(c), dy.channel(c));
            let add = |f: &dyn Fn(f64, f64) -> f64| -> (f64, f64) {
                let terms = x.iter().zip(&dy).map(|(x, dy)| f(x.to_f64(), dy.to_f64()));
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
            };
            let mean = whole[c].mean;
            for (what, got, (expected, size)) in [
                ("m mean", forward[1 + c], add(&|x, _| x)),
                ("M2 + m mean^2", forward[5 + c], add(&|x, _| x * x)),
                ("sum_dy", backward[c], add(&|_, dy| dy)),
                ("sum_dy_xmu", backward[4 + c], add(&|x, dy| dy * (x - mean))),
            ] {
                let bar = if size_of::<T>() == 8 { 1e-12 } else { 1e-6 };
                check_number(what, c, got, expected, bar * size)?;
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
    let case = Case::plain(3, &[4], &[2]);
    alone(harness, |rank: &Rank<H::Backend>| {
        let spy = Spy::new(rank.communicator.clone());
        let (x, dy) = (case.x::<T>(0), case.dy::<T>(0));
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
            let numbers: Vec<_> = spy.take_calls().iter().map(|call| call.sequence).collect();
            ensure!(
                numbers == [0, 1, 1, 0, 2],
                "the uses are numbered {numbers:?}, expected [0, 1, 1, 0, 2]"
            );
            layer.set_communicator(spy.clone());
        }
        Ok(())
    })
}

/// Two ranks go back through two uses of one layer in opposite orders: their sums would be of different batches, and both fail.
pub fn ranks_that_go_back_in_another_order_all_fail<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    need(harness, Ability::ComparesCalls)?;
    let case = Case::plain(3, &[4], &[2, 1]);
    ranks(harness, 2, |rank: &Rank<H::Backend>| {
        let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        let mut layer = rank.layer(case.config(), &case.state())?;
        let placed = Placed::new(rank, &x, case.layout)?;
        let (first, _) = rank.forward(&mut layer, &placed, &x)?;
        let (second, _) = rank.forward(&mut layer, &placed, &x)?;
        let saved = if rank.index == 0 { &second } else { &first };
        let dy = Placed::new(rank, &dy, case.layout)?;
        let mut dx = Placed::blank(rank, &x, case.layout)?;
        let mut room = ParameterRoom::new(rank, 3)?;
        let (x, dy) = (placed.view(), dy.view());
        let Err(error) = layer.backward(&rank.queue, saved, x, dy, dx.view_mut(), room.borrow()) else {
            return Err(crate::broken!("backward through use {} succeeded beside the other", 1 - rank.index));
        };
        ensure!(is_communicators(&error, |_| true), "not a communicator's error: {error}");
        Ok(())
    })?;
    Ok(())
}

/// Evaluation, frozen statistics and recomputation ask no rank for anything, in either pass.
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
                layer.set_frozen(&rank.queue, true)?;
                rank.train(&mut layer, &x, &dy, case.layout)?;
                layer.set_frozen(&rank.queue, false)?;
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

/// Five ranks, four of them in two groups: they are two worlds of two, at the same time; a rank without a group trains alone.
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
    ensure!(together == apart, "groups at work at the same time differ from the same groups apart");
    Ok(())
}

fn is_communicators(error: &Error, kind: fn(&CommErrorKind) -> bool) -> bool {
    matches!(&*error.kind, ErrorKind::Communicator(error) if kind(&error.kind))
        && error.to_string().contains("`bn`")
}

/// A rank leaves: its peers get a typed error, keep their state to the bit, are refused at once from then on, and go on in a
/// new group.
pub fn a_failed_forward_changes_nothing_and_poisons_the_group<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 3)?;
    let case = Case::plain(3, &[4], &[2, 1, 3]);
    let places = threads::group(NonZeroUsize::new(3).unwrap());
    ranks_of(harness, places, |rank: &Rank<H::Backend>| {
        if rank.index == 1 {
            return Ok(());
        }
        let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        let mut layer = rank.layer(case.config(), &case.state())?;
        let placed = Placed::new(rank, &x, case.layout)?;
        let mut y = Placed::blank(rank, &x, case.layout)?;
        for _ in 0..2 {
            let began = Instant::now();
            let Err(error) = layer.forward(&rank.queue, placed.view(), y.view_mut()) else {
                return Err(crate::broken!("forward succeeded without rank 1"));
            };
            ensure!(
                is_communicators(&error, |k| matches!(
                    k,
                    CommErrorKind::Left { .. } | CommErrorKind::Poisoned(_)
                )),
                "not a communicator's error: {error}"
            );
            ensure!(began.elapsed() < Duration::from_secs(30), "the error took {:?}", began.elapsed());
            ensure!(layer.state(&rank.queue)? == case.state(), "the failure has changed the state");
        }
        layer.set_communicator(Arc::new(Solo));
        let after = rank.train(&mut layer, &x, &dy, case.layout)?;
        let mut fresh = rank.layer_in(Arc::new(Solo), case.config(), &case.state())?;
        let expected = rank.train(&mut fresh, &x, &dy, case.layout)?;
        ensure!(after == expected, "in a new group the layer computes something else");
        Ok(())
    })?;
    Ok(())
}

/// The same in backward: a typed error, and a state to the bit as forward left it.
pub fn a_failed_backward_changes_nothing<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    let case = Case::plain(3, &[4], &[2, 1]);
    ranks_of(harness, threads::group(NonZeroUsize::new(2).unwrap()), |rank: &Rank<H::Backend>| {
        let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        let mut layer = rank.layer(case.config(), &case.state())?;
        let placed = Placed::new(rank, &x, case.layout)?;
        let (saved, _) = rank.forward(&mut layer, &placed, &x)?;
        if rank.index == 1 {
            return Ok(());
        }
        let before = layer.state(&rank.queue)?;
        let dy = Placed::new(rank, &dy, case.layout)?;
        let mut dx = Placed::blank(rank, &x, case.layout)?;
        let mut room = ParameterRoom::new(rank, 3)?;
        let (x, dy) = (placed.view(), dy.view());
        let Err(error) = layer.backward(&rank.queue, &saved, x, dy, dx.view_mut(), room.borrow()) else {
            return Err(crate::broken!("backward succeeded without rank 1"));
        };
        ensure!(is_communicators(&error, |_| true), "not a communicator's error: {error}");
        ensure!(layer.state(&rank.queue)? == before, "the failure has changed the state");
        Ok(())
    })?;
    Ok(())
}

/// A failure that shows after the work was enqueued: the next use gets the error, later ones are refused, until a state is loaded.
pub fn after_a_late_failure_a_state_has_to_be_loaded<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    let case = Case::plain(3, &[4], &[2, 1]);
    ranks(harness, 2, |rank: &Rank<H::Backend>| {
        let spy = Spy::new(rank.communicator.clone());
        let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        let mut layer = rank.layer_in(spy.clone(), case.config(), &case.state())?;
        let snapshot = layer.state(&rank.queue)?;
        let placed = Placed::new(rank, &x, case.layout)?;
        let (saved, _) = rank.forward(&mut layer, &placed, &x)?;
        spy.fail_late();
        let mut y = Placed::blank(rank, &x, case.layout)?;
        let Err(first) = layer.forward(&rank.queue, placed.view(), y.view_mut()) else {
            return Err(crate::broken!("forward succeeded after a late failure"));
        };
        ensure!(
            is_communicators(&first, |_| true),
            "the first use does not get the communicator's error: {first}"
        );
        layer.set_communicator(Arc::new(Solo));
        let untrusted = |what: &str, error: Option<Error>| match error {
            Some(error) if matches!(*error.kind, ErrorKind::Untrusted) => Ok(()),
            other => Err(crate::broken!("{what} after a late failure: {other:?}")),
        };
        untrusted("forward", layer.forward(&rank.queue, placed.view(), y.view_mut()).err())?;
        untrusted("saving", layer.state(&rank.queue).err())?;
        untrusted("recomputation", layer.recompute(&rank.queue, &saved, placed.view(), y.view_mut()).err())?;
        layer.load_state(&rank.queue, &snapshot)?;
        let after = rank.train(&mut layer, &x, &dy, case.layout)?;
        let mut fresh = rank.layer_in(Arc::new(Solo), case.config(), &case.state())?;
        ensure!(
            after == rank.train(&mut fresh, &x, &dy, case.layout)?,
            "a restored layer computes something else"
        );
        Ok(())
    })?;
    Ok(())
}
