//! The laws of a communicator in host memory.
//!
//! Every law is told from inside one rank, which knows what the sum has to be without asking another: so ranks may as well be
//! processes.
//!
//! Deliberately not here: laws about batch norm. A group carries numbers, whatever they mean.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use syncbn_core::{CollectiveId, CollectiveKind, CommError, CommErrorKind, HostCommunicator, Pass};

use super::{Body, CommHarness, need};
use crate::harness::{Ability, lack};
use crate::outcome::Outcome;
use crate::{broken, ensure};

/// Long enough for any machine, so that only what should time out does.
const PATIENCE: Duration = Duration::from_secs(60);
/// "At once", on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(20);

fn run<H: CommHarness>(harness: &H, world_size: usize, body: &Body<'_, H::Comm>) -> Outcome {
    harness.run(NonZeroUsize::new(world_size).unwrap(), PATIENCE, body)
}

fn call(channels: usize) -> CollectiveId {
    CollectiveId::new("bn", 2 * channels).with_kind(CollectiveKind::Pass(Pass::Backward))
}

/// What a rank contributes: numbers whose sum depends on the order in which they are added.
fn part(rank: usize, round: usize, i: usize) -> f64 {
    let spread = [1.0, 1e16, -1e16, 1e-3, 3.0, -1.0][(rank + round + i) % 6];
    spread * (1.0 + (rank * 7 + round * 3 + i) as f64 / 9.0)
}

/// One sum in which every rank takes part: the sum of all parts, to the bit where the ranks' order is promised.
fn check_sum<H: CommHarness>(
    harness: &H,
    comm: &H::Comm,
    round: usize,
    channels: usize,
) -> Outcome<Vec<f64>> {
    let exact = lack(&harness.gaps(), Ability::RankOrder).is_none();
    let mut values: Vec<f64> = (0..2 * channels).map(|i| part(comm.rank(), round, i)).collect();
    comm.all_reduce_sum(&call(channels), &mut values)?;
    for (i, got) in values.iter().enumerate() {
        let parts = || (0..comm.world_size().get()).map(|rank| part(rank, round, i));
        let expected = parts().reduce(|sum, part| sum + part).unwrap_or_default();
        let size: f64 = parts().map(f64::abs).sum();
        let same = got.to_bits() == expected.to_bits();
        let near = (got - expected).abs() <= comm.world_size().get() as f64 * f64::EPSILON * size;
        ensure!(
            if exact { same } else { near },
            "round {round}, number {i}: {got:e}, expected {expected:e} in the order of ranks (exactly: {exact})"
        );
    }
    Ok(values)
}

/// Whether every rank holds these very bits. Each half of them is a whole number, of which any order of adding gives the exact sum;
/// a rank whose bits are not everyone's is off the mean, and sees it.
fn check_agreement<C: HostCommunicator>(comm: &C, values: &[f64]) -> Outcome {
    let halves = |v: &f64| [(v.to_bits() >> 32) as f64, f64::from(v.to_bits() as u32)];
    let mine: Vec<f64> = values.iter().flat_map(halves).collect();
    let mut sums = mine.clone();
    comm.all_reduce_sum(&call(values.len()), &mut sums)?;
    let ranks = comm.world_size().get() as f64;
    let same = sums.iter().zip(&mine).all(|(sum, mine)| *sum == ranks * mine);
    ensure!(same, "rank {} has other bits than its peers", comm.rank());
    Ok(())
}

/// Tries a sum that has to fail.
fn failing_sum<C: HostCommunicator>(comm: &C) -> Outcome<CommError> {
    match comm.all_reduce_sum(&call(2), &mut [0.0; 4]) {
        Ok(()) => Err(broken!("a sum succeeded that a rank had no part in")),
        Err(error) => Ok(error),
    }
}

/// Ranks count from 0 to the size of the world, in a group that works.
pub fn ranks_know_their_place<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 4, &|comm| {
        ensure!(
            comm.world_size().get() == 4 && comm.rank() < 4,
            "rank {} of {}",
            comm.rank(),
            comm.world_size()
        );
        // Asked while all are there: after the sum the others may be done, and gone.
        comm.status()?;
        // Each rank sets its own bit: together they are all there, each once.
        let mut bits = [0.0; 2];
        bits[0] = f64::from(1_u32 << comm.rank());
        comm.all_reduce_sum(&call(1), &mut bits)?;
        ensure!(bits == [15.0, 0.0], "the ranks are not 0 to 3, each once");
        Ok(())
    })
}

/// Whoever comes first or last, the sum is the one in the order of ranks, to the bit, on every rank.
pub fn a_sum_has_the_bits_of_the_ranks_order_whoever_comes_first<H: CommHarness>(harness: &H) -> Outcome {
    need(harness, Ability::RankOrder)?;
    run(harness, 4, &|comm| {
        for round in 0..12 {
            thread::sleep(Duration::from_millis((comm.rank() * 5 + round * 3) as u64 % 13));
            check_sum(harness, &comm, round, 5)?;
        }
        Ok(())
    })
}

/// Whoever comes first or last, every rank gets the same bits.
pub fn every_rank_gets_the_same_bits_whoever_comes_first<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 4, &|comm| {
        for round in 0..12 {
            thread::sleep(Duration::from_millis((comm.rank() * 3 + round * 5) as u64 % 11));
            let values = check_sum(harness, &comm, round, 5)?;
            check_agreement(&comm, &values)?;
        }
        Ok(())
    })
}

/// 5000 sums of changing length.
pub fn thousands_of_sums_in_a_row_stay_right<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 3, &|comm| {
        (0..5000).try_for_each(|round| check_sum(harness, &comm, round, 1 + round % 7).map(drop))
    })
}

/// A group of one.
pub fn a_world_of_one_is_its_own_sum<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 1, &|comm| (0..3).try_for_each(|round| check_sum(harness, &comm, round, 3).map(drop)))
}

/// What a rank's peers see of its going: an error that says so, at once, and again.
fn told_of_rank_1<C: HostCommunicator>(comm: &C, panicked: bool) -> Outcome {
    let began = Instant::now();
    let error = failing_sum(comm)?;
    ensure!(began.elapsed() < AT_ONCE, "the error took {:?}", began.elapsed());
    let mut kind = &error.kind;
    while let CommErrorKind::Poisoned(cause) = kind {
        kind = &cause.kind;
    }
    // A peer that has heard of it may be gone by now as well.
    let told = matches!(kind, CommErrorKind::Left { panicked: how, rank } if *rank != 1 || *how == panicked);
    ensure!(told, "rank {} is told: {error}", comm.rank());
    ensure!(comm.status().is_err(), "the group calls itself sound");
    failing_sum(comm).map(drop)
}

/// A rank drops its communicator.
pub fn a_rank_that_leaves_is_told_to_its_peers_at_once<H: CommHarness>(harness: &H) -> Outcome {
    need(harness, Ability::Departures)?;
    run(harness, 3, &|comm| {
        check_sum(harness, &comm, 0, 2)?;
        if comm.rank() == 1 {
            return Ok(());
        }
        told_of_rank_1(&comm, false)
    })
}

/// A rank panics.
pub fn a_rank_that_panics_is_told_to_its_peers_at_once<H: CommHarness>(harness: &H) -> Outcome {
    need(harness, Ability::Departures)?;
    run(harness, 3, &|comm| {
        check_sum(harness, &comm, 0, 2)?;
        if comm.rank() != 1 {
            return told_of_rank_1(&comm, true);
        }
        let unwound = catch_unwind(AssertUnwindSafe(move || {
            let _gone_with_the_panic = comm;
            std::panic::resume_unwind(Box::new("a rank's own mistake"));
        }));
        ensure!(unwound.is_err(), "the panic was lost");
        Ok(())
    })
}

/// A rank holds its communicator and does not come: its peers wait as long as they were told to, and are told who is missing.
pub fn a_rank_that_never_comes_ends_the_wait<H: CommHarness>(harness: &H) -> Outcome {
    need(harness, Ability::Deadlines)?;
    let timeout = Duration::from_millis(300);
    harness.run(NonZeroUsize::new(2).unwrap(), timeout, &|comm| {
        if comm.rank() == 1 {
            thread::sleep(Duration::from_secs(2));
            return Ok(());
        }
        let began = Instant::now();
        let error = failing_sum(&comm)?;
        ensure!(began.elapsed() >= timeout, "gave up after {:?} of {timeout:?}", began.elapsed());
        let CommErrorKind::Timeout { missing, .. } = &error.kind else {
            return Err(broken!("not a time-out: {error}"));
        };
        ensure!(missing == &[1], "missing: {missing:?}");
        Ok(())
    })
}

/// Ranks whose messages differ in length: all of them fail, nobody gets a sum.
pub fn ranks_that_disagree_on_length_all_fail<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 3, &|comm| {
        let channels = if comm.rank() == 2 { 3 } else { 2 };
        refused(&comm, &call(channels))
    })
}

/// Ranks in collectives of the same length that differ in any one thing, in its first bits or in its last: all of them fail as well.
pub fn ranks_that_disagree_on_the_call_all_fail<H: CommHarness>(harness: &H) -> Outcome {
    need(harness, Ability::ComparesCalls)?;
    for other in other_calls() {
        run(harness, 3, &|comm| {
            let mine = if comm.rank() == 2 { other.clone() } else { usual_call() };
            refused(&comm, &mine).map_err(|why| why.at(format!("{other:?} beside {:?}", usual_call())))
        })?;
    }
    Ok(())
}

fn usual_call() -> CollectiveId {
    call(2).with_layer(3, 5).with_use(7, 9)
}

/// As long as the usual one, each different in one thing.
fn other_calls() -> Vec<CollectiveId> {
    let labelled = |label: &str| {
        let mut call = usual_call();
        call.label = label.into();
        call
    };
    let kinds = [CollectiveKind::AllReduce, CollectiveKind::Pass(Pass::Forward)];
    let mut others = vec![labelled("bm"), labelled("bn2"), labelled("")];
    others.extend(kinds.map(|kind| usual_call().with_kind(kind)));
    for high in [1, 1 << 8, 1 << 16, 1 << 32, 1 << 63] {
        others.push(usual_call().with_layer(3 ^ high, 5));
        others.push(usual_call().with_layer(3, 5 ^ high));
        others.push(usual_call().with_use(7 ^ high, 9));
        others.push(usual_call().with_use(7, 9 ^ high));
    }
    others
}

/// A sum that fails, and so does the next.
fn refused<C: HostCommunicator>(comm: &C, call: &CollectiveId) -> Outcome {
    let mut values = vec![1.0; call.length];
    let answer = comm.all_reduce_sum(call, &mut values);
    ensure!(answer.is_err(), "rank {} got a sum", comm.rank());
    failing_sum(comm).map(drop)
}

/// A message that is not as long as its call says.
pub fn a_message_of_another_length_is_refused<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 2, &|comm| {
        let mut values = vec![1.0; if comm.rank() == 0 { 3 } else { 4 }];
        let answer = comm.all_reduce_sum(&call(2), &mut values);
        ensure!(answer.is_err(), "rank {} got a sum", comm.rank());
        Ok(())
    })
}

/// After a failure every call fails at once; a new group of the same harness works.
pub fn a_poisoned_group_answers_at_once_and_a_new_one_works<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 2, &|comm| {
        refused(&comm, &call(1 + comm.rank()))?;
        let began = Instant::now();
        for _ in 0..100 {
            failing_sum(&comm)?;
        }
        ensure!(began.elapsed() < AT_ONCE, "a hundred refusals took {:?}", began.elapsed());
        ensure!(comm.status().is_err(), "the group calls itself sound");
        Ok(())
    })?;
    run(harness, 2, &|comm| check_sum(harness, &comm, 1, 2).map(drop))
}

/// Colours make groups, keys their order, old ranks break ties; a rank without a colour belongs to none.
pub fn a_split_orders_by_key_and_then_by_old_rank<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 6, &|comm| {
        // Colour and key of each old rank, and the rank and size of what comes of them.
        let plan: [(_, i64, Option<(usize, usize)>); 6] = [
            (Some(7), 1, Some((1, 3))),
            (Some(2), 0, Some((0, 2))),
            (Some(7), 1, Some((2, 3))),
            (None, 0, None),
            (Some(7), -5, Some((0, 3))),
            (Some(2), 0, Some((1, 2))),
        ];
        let (color, key, expected) = plan[comm.rank()];
        let group = harness.split(&comm, color, key)?;
        let got = group.as_ref().map(|group| (group.rank(), group.world_size().get()));
        ensure!(got == expected, "old rank {} is {got:?}, expected {expected:?}", comm.rank());
        group.iter().try_for_each(|group| check_sum(harness, group, 3, 2).map(drop))
    })
}

/// Two groups and the one they came from, in turns.
pub fn several_groups_work_at_once<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 4, &|comm| {
        let half = harness.split(&comm, Some((comm.rank() % 2) as u32), 0)?;
        let Some(half) = half else {
            return Err(broken!("a rank with a colour got no group"));
        };
        for round in 0..50 {
            // The groups run at different speeds between the sums of all.
            let sums = if comm.rank() % 2 == 0 { 1 } else { 3 };
            (0..sums).try_for_each(|i| check_sum(harness, &half, round + i, 2).map(drop))?;
            check_sum(harness, &comm, round, 3)?;
        }
        Ok(())
    })
}
