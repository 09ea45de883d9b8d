//! Collectives that fail: typed errors, unchanged state, and training on in a new group.
//!
//! Most failures are made with groups of threads, whatever group the harness has, since core handles them alike for every backend. How
//! communicators detect failures is tested in [`comm::laws`](crate::comm::laws).

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use syncbn_core::{
    CollectiveId, CommErrorKind, Element, Error, ErrorKind, Gradients, Group, Kernels, SingleRank,
    SyncBatchNorm,
};

use crate::bits::same_state;
use crate::expected::train;
use crate::harness::{Ability, Harness, need, need_ranks};
use crate::outcome::Outcome;
use crate::rank::{ParameterRoom, Rank, ranks, ranks_of};
use crate::spies::{Spy, Unaware, Unsteady};
use crate::strategies::Case;
use crate::tensor::Placed;
use crate::{ensure, threads};

fn is_communicators(error: &Error, kind: fn(&CommErrorKind) -> bool) -> bool {
    matches!(&*error.kind, ErrorKind::Communicator(error) if kind(&error.kind))
        && error.to_string().contains("`bn`")
}

/// A rank leaves: the others get a typed error, keep their state to the bit, get an error at once from then on, and train on in a new
/// group.
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
        // The first failure shows in the sum, after the rank's own work; the second before any.
        let unaware = Arc::new(Unaware(rank.communicator.clone()));
        let mut layer = rank.layer_in(unaware, case.config(), &case.state())?;
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
            same_state(&layer.state(&rank.queue)?, &case.state())?;
            layer.set_group(rank.communicator.clone());
        }
        layer.set_group(SingleRank);
        let after = rank.train(&mut layer, &x, &dy, case.layout)?;
        let mut fresh = rank.layer_in(SingleRank, case.config(), &case.state())?;
        let expected = rank.train(&mut fresh, &x, &dy, case.layout)?;
        after.same_bits(&expected).map_err(|why| why.at("in a new group"))
    })?;
    Ok(())
}

/// The same in backward: a typed error, and the state has the bits that forward wrote.
pub fn a_failed_backward_changes_nothing<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    let case = Case::plain(3, &[4], &[2, 1]);
    ranks_of(harness, threads::group(NonZeroUsize::new(2).unwrap()), |rank: &Rank<H::Backend>| {
        let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        let unaware = Arc::new(Unaware(rank.communicator.clone()));
        let mut layer = rank.layer_in(unaware, case.config(), &case.state())?;
        let placed = Placed::new(rank, &x, case.layout)?;
        let (saved, _) = rank.forward(&mut layer, &placed, &x)?;
        if rank.index == 1 {
            return Ok(());
        }
        let before = layer.state(&rank.queue)?;
        let dy = Placed::new(rank, &dy, case.layout)?;
        let mut dx = Placed::blank(rank, &x, case.layout)?;
        let mut room = ParameterRoom::new(rank, 3)?;
        let wanted = Gradients::out_of_place(dy.view(), dx.view_mut());
        let Err(error) = layer.backward(&rank.queue, &saved, placed.view(), wanted, room.borrow()) else {
            return Err(crate::broken!("backward succeeded without rank 1"));
        };
        ensure!(is_communicators(&error, |_| true), "not a communicator's error: {error}");
        same_state(&layer.state(&rank.queue)?, &before)
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
        layer.set_group(SingleRank);
        let untrusted = |what: &str, error: Option<Error>| match error {
            Some(error) if matches!(*error.kind, ErrorKind::Untrusted) => Ok(()),
            other => Err(crate::broken!("{what} after a late failure: {other:?}")),
        };
        untrusted("forward", layer.forward(&rank.queue, placed.view(), y.view_mut()).err())?;
        untrusted("saving", layer.state(&rank.queue).err())?;
        untrusted("recomputation", layer.recompute(&rank.queue, &saved, placed.view(), y.view_mut()).err())?;
        layer.load_state(&rank.queue, &snapshot)?;
        let after = rank.train(&mut layer, &x, &dy, case.layout)?;
        let mut fresh = rank.layer_in(SingleRank, case.config(), &case.state())?;
        let expected = rank.train(&mut fresh, &x, &dy, case.layout)?;
        after.same_bits(&expected).map_err(|why| why.at("after a load"))
    })?;
    Ok(())
}

/// Two ranks take two backward passes of one layer in opposite orders. Their sums would mix two batches, so both fail.
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
        let wanted = Gradients::out_of_place(dy.view(), dx.view_mut());
        let Err(error) = layer.backward(&rank.queue, saved, placed.view(), wanted, room.borrow()) else {
            return Err(crate::broken!("backward through use {} succeeded beside the other", 1 - rank.index));
        };
        ensure!(is_communicators(&error, |_| true), "not a communicator's error: {error}");
        Ok(())
    })?;
    Ok(())
}

/// One rank of three is in another step of the trainer, calls its layer by another name, has other settings, comes to two layers of one
/// name in another order, or leaves its running statistics as they are: a typed error on every rank, which tells what happened first and
/// where each was.
pub fn ranks_that_differ_all_hear_where_each_was<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 3)?;
    need(harness, Ability::ComparesCalls)?;
    let case = Case::plain(3, &[4], &[2, 1, 2]);
    let differences = ["step", "name", "settings", "order", "updates"];
    for what in differences {
        ranks(harness, 3, |rank: &Rank<H::Backend>| {
            let odd = rank.index == 2;
            let group = Group::new(rank.communicator.clone());
            group.set_step(if odd && what == "step" { 8 } else { 7 });
            let name = if odd && what == "name" { "bm" } else { "bn" };
            let config = case.config().with_eps(if odd && what == "settings" { 1e-4 } else { 1e-5 });
            let layer = || {
                let (backend, group) = (rank.backend.clone(), group.clone());
                SyncBatchNorm::<_, T::Param>::new(name, config, backend, &rank.queue, group)
            };
            let (mut first, mut second) = (layer()?, layer()?);
            first.set_updates_running_stats(!(odd && what == "updates"));
            let layer = if odd && what == "order" { &mut second } else { &mut first };
            let x = case.x::<T>(rank.index);
            let placed = Placed::new(rank, &x, case.layout)?;
            let mut y = Placed::blank(rank, &x, case.layout)?;
            let Err(error) = layer.forward(&rank.queue, placed.view(), y.view_mut()) else {
                return Err(crate::broken!("another {what} on rank 2 is not noticed on rank {}", rank.index));
            };
            let places = places_told(&error);
            let usual = places.iter().any(|(rank, _)| *rank != 2);
            let other = places.iter().any(|(rank, _)| *rank == 2);
            ensure!(usual && other, "another {what} on rank 2: rank {} is told {error}", rank.index);
            let apart =
                places.iter().any(|(_, one)| places.iter().any(|(_, other)| one.difference(other).is_some()));
            ensure!(apart, "another {what} on rank 2 is not among what rank {} is told: {error}", rank.index);
            Ok(())
        })
        .map_err(|why| why.at(what))?;
    }
    Ok(())
}

/// Where which rank was, as far as an error of ranks out of step tells.
fn places_told(error: &Error) -> Vec<(usize, CollectiveId)> {
    let ErrorKind::Communicator(error) = &*error.kind else { return Vec::new() };
    let mut error = error.clone();
    let mut places = Vec::new();
    loop {
        places.extend(error.call.clone().map(|call| (error.rank, call)));
        match error.kind {
            CommErrorKind::Poisoned(cause) => error = (*cause).clone(),
            CommErrorKind::OutOfStep { others } => {
                places.extend(others);
                return places;
            }
            _ => return Vec::new(),
        }
    }
}

/// A rank whose device fails before its numbers are sent can repeat the call, and the other ranks, which wait for it, go on.
pub fn what_failed_before_its_sum_can_be_tried_again<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    let case = Case::plain(3, &[4], &[2, 1]);
    let expected = train::<H, T>(harness, &case)?;
    ranks(harness, 2, |rank: &Rank<H::Backend>| {
        let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        let group = Group::new(Unsteady::new(rank.communicator.clone(), rank.index == 1));
        let mut layer = rank.layer_in(group, case.config(), &case.state())?;
        let placed = Placed::new(rank, &x, case.layout)?;
        let mut y = Placed::blank(rank, &x, case.layout)?;
        if rank.index == 1 {
            let Err(error) = layer.forward(&rank.queue, placed.view(), y.view_mut()) else {
                return Err(crate::broken!("a device that fails is not noticed"));
            };
            ensure!(
                is_communicators(&error, |k| matches!(k, CommErrorKind::Unsent(_))),
                "not told that nothing was sent: {error}"
            );
        }
        let step = rank.train(&mut layer, &x, &dy, case.layout)?;
        step.same_bits(&expected[rank.index]).map_err(|why| why.at("tried again"))
    })
    .map(drop)
}
