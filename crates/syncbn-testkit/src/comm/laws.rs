//! The laws of a communicator in host memory.
//!
//! A law is written from the point of view of one rank, which can compute the expected sum by itself. So ranks may be threads or
//! processes.
//!
//! `failures` has the laws about collectives that fail.

mod failures;

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use syncbn_core::{CollectiveId, CollectiveKind, HostCommunicator, Pass};

use super::{Body, CommHarness, need};
use crate::harness::{Ability, lack};
use crate::outcome::Outcome;
use crate::{broken, ensure};

pub use failures::*;

/// A time-out that no machine reaches by being slow.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Checks that every rank has the same bits. It sums both halves of them, which are integers with exact sums in any order; a rank whose
/// bits differ sees that its own are not the mean.
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

/// The sum is the one in the order of ranks, to the bit, on every rank, whichever rank comes first or last.
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

/// Every rank gets the same bits, whichever rank comes first or last.
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

/// More than 4096 numbers, and more than 65 536.
pub fn long_messages_are_summed_to_their_last_number<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 3, &|comm| {
        [2049, 5000, 32_769, 50_001]
            .into_iter()
            .enumerate()
            .try_for_each(|(round, channels)| check_sum(harness, &comm, round, channels).map(drop))
    })
}

/// NaN and infinity of one rank reach all ranks, and the numbers beside them are right.
pub fn what_is_not_finite_reaches_every_rank<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 3, &|comm| {
        let one = comm.rank() == 1;
        let mut values = [
            if one { f64::NAN } else { 1.0 },
            if one { f64::INFINITY } else { 1.0 },
            if one { f64::NEG_INFINITY } else { f64::INFINITY },
            1.0,
        ];
        comm.all_reduce_sum(&call(2), &mut values)?;
        let right =
            values[0].is_nan() && values[1] == f64::INFINITY && values[2].is_nan() && values[3] == 3.0;
        ensure!(right, "rank {} got {values:?}, expected [NaN, inf, NaN, 3.0]", comm.rank());
        Ok(())
    })
}

/// A group of one.
pub fn a_world_of_one_is_its_own_sum<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 1, &|comm| (0..3).try_for_each(|round| check_sum(harness, &comm, round, 3).map(drop)))
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
