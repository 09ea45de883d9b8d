//! The four kernels called alone, and whole passes beside them.

use syncbn_core::{Dtype, Element, Kernels, Layout};

use crate::bits::same_steps;
use crate::expected::{Expected, train_in};
use crate::harness::{Harness, need_ranks};
use crate::outcome::Outcome;
use crate::property::{CASES, for_all};
use crate::rank::{Rank, alone};
use crate::strategies::{Case, Values, case};
use crate::{in_turn, threads};

/// A whole pass of a rank alone gives the bits of its two kernels, however the backend takes it.
pub fn a_whole_pass_alone_gives_the_bits_of_its_kernels<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for_all(CASES / 4, &case(1), |case| check_whole_passes::<H, T>(harness, case))?;
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        for (channels, spatial, samples) in [(3, [97, 89], 2), (67, [5, 3], 40), (300, [1, 2], 70)] {
            let values = Values::Mixed;
            let case = Case { layout, values, ..Case::plain(channels, &spatial, &[samples]) };
            check_whole_passes::<H, T>(harness, &case)?;
        }
    }
    Ok(())
}

/// The same of ranks with a sum between their kernels.
pub fn whole_passes_with_a_sum_between_give_the_bits_of_their_kernels<H: Harness, T: Element>(
    harness: &H,
) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    let most = harness.max_world_size().min(3);
    for_all(CASES / 8, &case(most), |case| check_whole_passes::<H, T>(harness, case))
}

fn check_whole_passes<H: Harness, T: Element>(harness: &H, case: &Case) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let x = case.all(Case::x::<T>);
    let world_size = case.samples.len().try_into()?;
    let passes = train_in(harness, threads::group(world_size), case, &x)?;
    let kernels = alone(harness, |rank: &Rank<H::Backend>| in_turn::train(rank, case, &x))?;
    same_steps(&passes, &kernels).map_err(|why| why.at(format!("whole passes on {case}")))
}

/// However far the data lie from 0 beside their deviation, 1 to 64 ranks are as exact as one: to what a few roundings of the mean
/// explain, which is within 4 times one rank's own.
pub fn a_mean_far_above_its_deviation_is_as_exact_over_64_ranks_as_on_one<H: Harness, T: Element>(
    harness: &H,
) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let means: &[f64] = match T::DTYPE {
        Dtype::F64 => &[1.0, 1e4, 1e6, 1e8, 1e10, 1e12],
        Dtype::F32 => &[1.0, 1e4, 1e6, 1.5e7],
        Dtype::F16 => &[1.0, 1e3],
        _ => &[1.0, 1e2],
    };
    let uneven = [vec![64], vec![21, 43], vec![0, 5, 9, 10, 11, 12, 17], [&[0, 2][..], &[1; 62]].concat()];
    for &mean in means {
        for samples in &uneven {
            let values = Values::Normal { mean, std: 1.0 };
            check_in_turn::<H, T>(harness, &Case { values, ..Case::plain(3, &[5], samples) })?;
        }
    }
    Ok(())
}

fn check_in_turn<H: Harness, T: Element>(harness: &H, case: &Case) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let x = case.all(Case::x::<T>);
    let steps = alone(harness, |rank: &Rank<H::Backend>| in_turn::train(rank, case, &x))?;
    Expected::on(case, &x).check(&steps)
}
