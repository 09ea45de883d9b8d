//! The layer over borrowed memory: what adapters to frameworks build on.

use syncbn_core::{Element, Kernels, NonFinite, Param, State};

use crate::bits::{same_state, same_steps, without_payload};
use crate::expected::{Expected, train};
use crate::harness::{Ability, Harness, need};
use crate::lent::{How, step};
use crate::outcome::Outcome;
use crate::property::{CASES, for_all};
use crate::rank::{Rank, Step, ranks};
use crate::strategies::{Case, case};

fn steps<H: Harness, T: Element>(harness: &H, case: &Case, how: How) -> Outcome<Vec<Step<T>>>
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| step::<H, T>(rank, case, how))
}

/// On drawn cases, a step taken in this way gives the bits of the layer that owns its parameters.
fn check_way<H: Harness, T: Element>(harness: &H, how: How) -> Outcome
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    for_all(CASES / 10, &case(harness.max_world_size().min(3)), |case| {
        let how = How { weight: case.affine, bias: case.affine, ..how };
        let mut expected = train::<H, T>(harness, case)?;
        if !case.affine {
            for step in &mut expected {
                step.gradients.d_weight.clear();
                step.gradients.d_bias.clear();
            }
        }
        same_steps(&steps::<H, T>(harness, case, how)?, &expected)
    })
}

/// A step over borrowed memory gives the bits of the layer that owns its parameters. Here tensors without elements are memory without
/// elements.
pub fn borrowed_memory_gives_the_bits_of_owned<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    check_way::<H, T>(harness, How::USUAL)?;
    for (spatial, samples) in [(2, &[0][..]), (2, &[0, 3]), (0, &[3, 2])] {
        let case = Case::plain(5, &[spatial], samples).within(harness.max_world_size());
        same_steps(&steps::<H, T>(harness, &case, How::USUAL)?, &train::<H, T>(harness, &case)?)?;
    }
    Ok(())
}

/// What a forward pass saved, read into host memory, dropped, and made again from there with its token's words: the same gradients.
pub fn what_is_saved_can_be_taken_apart_and_made_again<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    check_way::<H, T>(harness, How { saved_apart: true, ..How::USUAL })
}

/// Running statistics that are moved apart from the pass have the bits of those that the pass moves: with any momentum, after any number
/// of batches, for batches of one element and of none, and where the batch is not finite.
pub fn running_statistics_can_be_moved_apart<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    check_way::<H, T>(harness, How { update_apart: true, ..How::USUAL })?;
    let case = Case::plain(3, &[2], &[2, 1]).within(harness.max_world_size());
    for momentum in [None, Some(0.0), Some(0.75), Some(1.0)] {
        check_apart::<H, T>(harness, &Case { momentum, ..case.clone() }, How::USUAL)?;
    }
    for tracked in [0, 99, (1 << 24) + 1, (1 << 31) - 1, (1 << 32) - 1, 1 << 40, (1 << 53) + 1] {
        let how = How { tracked, ..How::USUAL };
        check_apart::<H, T>(harness, &Case { momentum: None, ..case.clone() }, how)?;
    }
    check_apart::<H, T>(harness, &Case::plain(3, &[2], &[0]), How::USUAL)?;
    if harness.max_world_size() > 1 {
        check_apart::<H, T>(harness, &Case::plain(3, &[], &[0, 1]), How::USUAL)?;
    }
    if need(harness, Ability::NonFinite).is_ok() {
        for (bad, non_finite) in
            [(f64::NAN, NonFinite::Skip), (f64::INFINITY, NonFinite::Skip), (f64::NAN, NonFinite::Propagate)]
        {
            check_apart::<H, T>(harness, &case, How { bad: Some(bad), non_finite, ..How::USUAL })?;
        }
    }
    Ok(())
}

/// The state after a step is the same whether the pass moves running statistics, or they are moved apart.
fn check_apart<H: Harness, T: Element>(harness: &H, case: &Case, how: How) -> Outcome
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    let within = steps::<H, T>(harness, case, how)?;
    let apart = steps::<H, T>(harness, case, How { update_apart: true, ..how })?;
    for (within, apart) in within.into_iter().zip(apart) {
        let (got, expected) = (plain_nans(apart.state), plain_nans(within.state));
        same_state(&got, &expected).map_err(|why| why.at(format!("{how:?}, moved apart, on {case}")))?;
    }
    Ok(())
}

fn plain_nans<P: Param>(state: State<P>) -> State<P> {
    let plain = |values: Option<Vec<P>>| values.map(|values| without_payload(&values));
    State { running_mean: plain(state.running_mean), running_var: plain(state.running_var), ..state }
}

/// A weight without a bias, a bias without a weight, and neither: in y, also recomputed, in dx, and as the gradients that are asked for.
pub fn weight_and_bias_need_not_come_together<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    let case = Case::plain(5, &[3, 2], &[2, 1]).within(harness.max_world_size());
    let both = steps::<H, T>(harness, &case, How::USUAL)?;
    for (weight, bias) in [(true, false), (false, true), (false, false)] {
        let how = How { weight, bias, ..How::USUAL };
        let what = format!("weight {weight}, bias {bias}");
        let steps = steps::<H, T>(harness, &case, how)?;
        let expected = Expected::<T>::given(&case, how.state::<T>(&case));
        let y: Vec<_> = steps.iter().map(|step| step.y.clone()).collect();
        let dx: Vec<_> = steps.iter().map(|step| step.gradients.dx.clone()).collect();
        expected.check_y(&y).map_err(|why| why.at(&what))?;
        expected.check_dx(&dx).map_err(|why| why.at(&what))?;
        for (step, both) in steps.iter().zip(&both) {
            expected.check_state(&step.state).map_err(|why| why.at(&what))?;
            // One parameter's gradient does not depend on whether the other, or its gradient, is there.
            let (got, all) = (&step.gradients, &both.gradients);
            let of = |there: bool, all: &Vec<T::Param>| if there { all.clone() } else { Vec::new() };
            crate::bits::same_bits(&format!("{what}: d_weight"), &got.d_weight, &of(weight, &all.d_weight))?;
            crate::bits::same_bits(&format!("{what}: d_bias"), &got.d_bias, &of(bias, &all.d_bias))?;
        }
    }
    Ok(())
}

/// Tensors and vectors that are parts of larger buffers, at any offset: right, and nothing around them is touched.
pub fn parts_of_larger_buffers_are_read_and_written_alone<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    for layout in [syncbn_core::Layout::ChannelsFirst, syncbn_core::Layout::ChannelsLast] {
        for before in [1, 2, 3, 4, 8, 64] {
            let case = Case { layout, ..Case::plain(8, &[4, 3], &[3, 2]) }.within(harness.max_world_size());
            let got = steps::<H, T>(harness, &case, How { before, ..How::USUAL })?;
            Expected::of(&case).check(&got).map_err(|why| why.at(format!("at offset {before}")))?;
        }
    }
    Ok(())
}
