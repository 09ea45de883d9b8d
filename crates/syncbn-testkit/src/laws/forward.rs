//! y of a forward pass in training, against the oracle.

use syncbn_core::{Element, Kernels, Layout};

use crate::bits::{same, same_bits, same_state};
use crate::ensure;
use crate::expected::{Expected, train, train_on};
use crate::harness::{Ability, Harness, need, need_ranks};
use crate::outcome::Outcome;
use crate::property::{CASES, for_all};
use crate::rank::{Rank, Step, ranks};
use crate::strategies::{Case, Values, case};
use crate::tensor::{Placed, Tensor};

fn outputs<T: Element>(steps: &[Step<T>]) -> Vec<Tensor<T>> {
    steps.iter().map(|step| step.y.clone()).collect()
}

fn check_case<H: Harness, T: Element>(harness: &H, case: &Case) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = &case.clone().within(harness.max_world_size());
    let steps = train::<H, T>(harness, case)?;
    Expected::of(case).check(&steps)
}

/// Any split of any batch, uneven and empty ones included, gives the y of the whole batch on one rank.
pub fn any_split_of_a_batch_gives_the_y_of_the_whole<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for_all(CASES, &case(harness.max_world_size()), |case| {
        Expected::of(case).check_y(&outputs(&train::<H, T>(harness, case)?))
    })
}

/// 300 x 300 positions, in both layouts: longer than any block, chain or tile.
pub fn large_images_are_as_exact_as_small_ones<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let case = Case { layout, values: Values::Mixed, ..Case::plain(3, &[300, 300], &[1, 1]) };
        check_case::<H, T>(harness, &case)?;
    }
    Ok(())
}

/// 1000 channels of 7 x 7, and more than 1024, 4096 and 65 536 of them, in both layouts.
pub fn many_channels_are_as_exact_as_few<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        for (channels, spatial) in [(1000, &[7, 7][..]), (1027, &[3]), (4099, &[2]), (65_539, &[2])] {
            let case = Case { layout, values: Values::Mixed, ..Case::plain(channels, spatial, &[2, 1]) };
            check_case::<H, T>(harness, &case)?;
        }
    }
    Ok(())
}

/// More than 8, 32 and 256 samples on a rank, in both layouts.
pub fn large_batches_are_as_exact_as_small_ones<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        for (samples, spatial) in
            [([9, 10], &[2, 3][..]), ([33, 1], &[5]), ([70, 40], &[3]), ([300, 5], &[2])]
        {
            let case = Case { layout, values: Values::Mixed, ..Case::plain(5, spatial, &samples) };
            check_case::<H, T>(harness, &case)?;
        }
    }
    Ok(())
}

/// One element is 1e4 standard deviations away from the others, in turn the first of its channel and a later one: the others keep all
/// their digits.
pub fn an_outlier_of_1e4_deviations_costs_no_digits<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let values = Values::Normal { mean: 0.0, std: 1.0 };
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let case =
            Case { layout, values, ..Case::plain(3, &[37, 11], &[3, 2]) }.within(harness.max_world_size());
        let positions = case.x::<T>(0).positions();
        for (n, s) in [(0, 0), (0, positions / 2), (2, positions - 1)] {
            let mut x = case.all(Case::x::<T>);
            for c in 0..2 {
                x[0].values[(n * 3 + c) * positions + s] = T::from_f64(1e4);
            }
            Expected::on(&case, &x)
                .check(&train_on(harness, &case, &x)?)
                .map_err(|why| why.at(format!("an outlier at sample {n}, position {s}")))?;
        }
    }
    Ok(())
}

/// A weight of 0, of either sign, is not an absent weight: y is bias, dx is 0, and the gradient of the weight is as usual.
pub fn a_weight_of_0_gives_bias_and_no_dx<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(5, &[4, 3], &[2, 1]).within(harness.max_world_size());
    let mut state = case.state::<T::Param>();
    let weight = [0.0, 1.5, -0.0, -2.0, 1.0].map(T::Param::from_f64);
    state.weight = Some(weight.to_vec());
    let steps = ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
        let mut layer = rank.layer(case.config(), &state)?;
        rank.train(&mut layer, &case.x::<T>(rank.index), &case.dy::<T>(rank.index), case.layout)
    })?;
    Expected::given(&case, state.clone()).check(&steps)?;
    for step in &steps {
        for c in [0, 2] {
            let bias = T::from_f64(state.bias.as_ref().map_or(0.0, |bias| bias[c].to_f64()));
            let (y, dx) = (step.y.channel(c), step.gradients.dx.channel(c));
            ensure!(y.iter().all(|&y| y == bias), "y of weight 0, channel {c}, is {y:?}, expected {bias:?}");
            ensure!(dx.iter().all(|dx| dx.to_f64() == 0.0), "dx of weight 0, channel {c}, is {dx:?}");
        }
    }
    Ok(())
}

/// A mean of 1e4 and a standard deviation of 1: y, gradients and running statistics are within their bars.
pub fn a_mean_of_1e4_with_a_deviation_of_1_costs_no_digits<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let values = Values::Normal { mean: 1e4, std: 1.0 };
    for (samples, layout) in [
        (vec![8], Layout::ChannelsFirst),
        (vec![3, 5], Layout::ChannelsFirst),
        (vec![8], Layout::ChannelsLast),
        (vec![1, 3], Layout::ChannelsLast),
    ] {
        let case = Case { layout, values, ..Case::plain(5, &[33, 31], &samples) };
        check_case::<H, T>(harness, &case)?;
    }
    Ok(())
}

/// A variance of 1e-12 with an eps of 1e-5; and larger ones, which are small beside that eps but have to be seen.
pub fn a_variance_of_1e_12_drowns_in_an_eps_of_1e_5<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for std in [1e-6, 1e-5, 3e-5, 2e-4] {
        let values = Values::Normal { mean: 0.0, std };
        check_case::<H, T>(harness, &Case { values, ..Case::plain(4, &[5, 3], &[2, 3]) })?;
    }
    Ok(())
}

/// One rank's values are 50 times the others'.
pub fn one_rank_may_be_scaled_by_50<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 3)?;
    let case = Case::plain(4, &[6, 5], &[2, 2, 3]);
    let mut x = case.all(Case::x::<T>);
    x[1] = x[1].map(|x| T::from_f64(50.0 * x.to_f64()));
    let steps = train_on(harness, &case, &x)?;
    Expected::on(&case, &x).check(&steps)
}

/// (N, C) with one sample a rank, the plainest shape and the smallest batch.
pub fn two_axes_and_one_sample_a_rank_are_enough<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    check_case::<H, T>(harness, &Case::plain(5, &[], &[1, 1, 1]))
}

/// A constant channel has variance 0 and never less, so y is bias: exactly, but for `f64`, whose mean may be rounded.
pub fn a_constant_channel_gives_bias<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for constant in [0.1, -1e4, 3.0, 1e-3] {
        for samples in [vec![7], vec![2, 0, 5]] {
            let values = Values::Normal { mean: constant, std: 0.0 };
            let case = Case { values, ..Case::plain(3, &[3, 11], &samples) };
            let case = case.within(harness.max_world_size());
            check_case::<H, T>(harness, &case)?;
            if size_of::<T>() < 8 {
                check_equals_bias(&case, &outputs(&train::<H, T>(harness, &case)?))?;
            }
        }
    }
    Ok(())
}

/// One element per channel over all ranks: its y is bias, and not an error.
pub fn a_single_element_on_several_ranks_gives_bias<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    let case = Case::plain(4, &[], &[0, 1, 0]).within(harness.max_world_size());
    check_case::<H, T>(harness, &case)?;
    check_equals_bias(&case, &outputs(&train::<H, T>(harness, &case)?))
}

fn check_equals_bias<T: Element>(case: &Case, got: &[Tensor<T>]) -> Outcome {
    let bias = case.state::<T::Param>().bias.unwrap_or_default();
    for y in got {
        for (c, bias) in bias.iter().enumerate() {
            let expected = T::from_f64(bias.to_f64());
            let exact = y.channel(c).into_iter().all(|y| y == expected);
            ensure!(exact, "y of constant channel {c} is {:?}, expected {expected:?} exactly", y.channel(c));
        }
    }
    Ok(())
}

/// No rank has an element: y is empty, gradients and what is saved are 0, and running statistics are unchanged.
pub fn empty_batches_on_all_ranks_change_nothing<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for samples in [vec![0], vec![0, 0, 0]] {
        check_case::<H, T>(harness, &Case::plain(5, &[2, 2], &samples))?;
    }
    let case = Case::plain(5, &[0, 2], &[3, 2]).within(harness.max_world_size());
    check_case::<H, T>(harness, &case)?;
    ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
        let x = case.x::<T>(rank.index);
        let mut layer = rank.layer(case.config(), &case.state())?;
        let (saved, _) = rank.forward(&mut layer, &Placed::new(rank, &x, case.layout)?, &x)?;
        let words = rank.saved_words(&saved)?;
        same_bits("what is saved of no elements", &words, &vec![0.0; words.len()])
    })
    .map(drop)
}

/// An empty rank takes part with zeros: its running statistics are updated, its gradients are 0, and no rank gets a NaN.
pub fn an_empty_rank_takes_part_like_any_other<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    let case = Case::plain(3, &[4], &[0, 3, 0]).within(harness.max_world_size());
    check_case::<H, T>(harness, &case)?;
    let steps = train::<H, T>(harness, &case)?;
    same_state(&steps[0].state, &steps[1].state).map_err(|why| why.at("the empty rank"))?;
    let zero = |values: &[T::Param]| values.iter().all(|v| v.to_f64() == 0.0);
    let gradients = &steps[0].gradients;
    ensure!(zero(&gradients.d_weight) && zero(&gradients.d_bias), "an empty rank's gradients are not 0");
    Ok(())
}

/// NaN or infinity in a channel: its y, dx and running statistics are not finite, on any rank; the other channels have the same
/// bits as without.
pub fn what_is_not_finite_stays_in_its_channel<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need(harness, Ability::NonFinite)?;
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for samples in [vec![2, 1, 0], vec![3]] {
            for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
                let case = Case { layout, ..Case::plain(5, &[3, 3], &samples) };
                let case = case.within(harness.max_world_size());
                check_containment::<H, T>(harness, &case, bad)?;
            }
        }
    }
    Ok(())
}

fn check_containment<H: Harness, T: Element>(harness: &H, case: &Case, bad: f64) -> Outcome
where
    H::Backend: Kernels<T>,
{
    const HURT: usize = 2;
    let clean = train::<H, T>(harness, case)?;
    let mut x = case.all(Case::x::<T>);
    let positions = x[0].positions();
    x[0].values[HURT * positions + 1] = T::from_f64(bad);
    let hurt = train_on::<H, T>(harness, case, &x)?;
    check_hurt(&hurt, &clean, HURT, &bad.to_string())?;
    for (rank, Step { state, .. }) in hurt.iter().enumerate() {
        let running = [&state.running_mean, &state.running_var].map(|v| v.as_ref().map(|v| v[HURT]));
        let lost = running.iter().flatten().all(|v| !v.to_f64().is_finite());
        ensure!(lost, "{bad} in channel {HURT}: running statistics are finite on rank {rank}: {running:?}");
    }
    Ok(())
}

/// y and dx of one channel are not finite, on any rank, and the other channels have the bits that they have without.
fn check_hurt<T: Element>(hurt: &[Step<T>], clean: &[Step<T>], channel: usize, bad: &str) -> Outcome {
    for (rank, (hurt, clean)) in hurt.iter().zip(clean).enumerate() {
        for c in 0..hurt.y.channels {
            let values = [hurt.y.channel(c), hurt.gradients.dx.channel(c)].concat();
            if c == channel {
                let lost = values.iter().all(|v| !v.to_f64().is_finite());
                ensure!(lost, "{bad} in channel {c}: y or dx is finite on rank {rank}: {values:?}");
            } else {
                let before = [clean.y.channel(c), clean.gradients.dx.channel(c)].concat();
                let running = |step: &Step<T>| {
                    [&step.state.running_mean, &step.state.running_var].map(|v| v.as_ref().map(|v| v[c]))
                };
                let untouched =
                    values.iter().zip(&before).all(|(a, b)| same(*a, *b)) && running(hurt) == running(clean);
                ensure!(untouched, "{bad} in channel {channel} reaches channel {c} on rank {rank}");
            }
        }
    }
    Ok(())
}

/// Of `f64`: a channel whose squares are beyond the type is lost as one with infinity is, on one rank and on several. With a variance of
/// infinity every y would be the bias, which is finite.
pub fn squares_beyond_the_type_are_not_finite<H: Harness>(harness: &H) -> Outcome
where
    H::Backend: Kernels<f64>,
{
    const HURT: usize = 2;
    need(harness, Ability::NonFinite)?;
    for samples in [vec![2, 1, 0], vec![3]] {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            let case = Case { layout, ..Case::plain(5, &[4, 4], &samples) };
            let case = case.within(harness.max_world_size());
            let clean = train::<H, f64>(harness, &case)?;
            let mut x = case.all(Case::x::<f64>);
            let positions = x[0].positions();
            // The sum is 0, so that the mean and its square are finite.
            for x in &mut x {
                for n in 0..x.samples {
                    let channel = &mut x.values[(n * case.channels + HURT) * positions..][..positions];
                    channel.iter_mut().enumerate().for_each(|(i, x)| *x = [0.0, 1e160, -1e160, 0.0][i % 4]);
                }
            }
            let hurt = train_on::<H, f64>(harness, &case, &x)?;
            check_hurt(&hurt, &clean, HURT, "squares of 1e320")?;
            let vars = || hurt.iter().filter_map(|step| step.state.running_var.as_ref().map(|var| var[HURT]));
            let lost = vars().all(|var| !var.is_finite());
            ensure!(lost, "squares of 1e320: running_var is finite: {:?}", vars().collect::<Vec<_>>());
        }
    }
    Ok(())
}

/// Subnormal numbers are not flushed to 0. (Of `f64`, eps hides their squares.)
pub fn subnormal_values_are_not_flushed<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need(harness, Ability::Subnormals)?;
    let smallest = smallest_subnormal::<T>();
    let case = Case { eps: 1e-300, ..Case::plain(3, &[5], &[3, 2]) }.within(harness.max_world_size());
    let x: Vec<_> = case
        .all(Case::x::<T>)
        .iter()
        .map(|x| x.map(|v| T::from_f64((v.to_f64() * 8.0).round() * smallest)))
        .collect();
    let steps = train_on(harness, &case, &x)?;
    let expected = Expected::on(&case, &x);
    expected.check_y(&outputs(&steps))
}

fn smallest_subnormal<T: Element>() -> f64 {
    match T::DTYPE {
        syncbn_core::Dtype::F16 => 2.0_f64.powi(-24),
        syncbn_core::Dtype::Bf16 => 2.0_f64.powi(-133),
        syncbn_core::Dtype::F32 => 2.0_f64.powi(-149),
        _ => f64::from_bits(1),
    }
}

/// Values near 1e30, whose squares only a wide accumulator holds; near half's largest for `f16`.
pub fn large_values_do_not_overflow<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need(harness, Ability::WideRange)?;
    let std = if T::DTYPE == syncbn_core::Dtype::F16 { 1.6e4 } else { 1e30 };
    let values = Values::Normal { mean: 0.0, std };
    let case = Case { values, ..Case::plain(3, &[6, 5], &[2, 3]) }.within(harness.max_world_size());
    let steps = train::<H, T>(harness, &case)?;
    Expected::of(&case).check_y(&outputs(&steps))
}
