//! The layer over borrowed memory: what adapters to frameworks build on.

use syncbn_core::{Element, Kernels};

use crate::bits::same_steps;
use crate::expected::{Expected, train};
use crate::harness::Harness;
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

/// A step over borrowed memory gives the bits of the layer that owns its parameters.
pub fn borrowed_memory_gives_the_bits_of_owned<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    check_way::<H, T>(harness, How::USUAL)
}

/// What a forward pass saved, read into host memory, dropped, and made again from there with its token's words: the same gradients.
pub fn what_is_saved_can_be_taken_apart_and_made_again<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    check_way::<H, T>(harness, How { saved_apart: true, ..How::USUAL })
}

/// Running statistics that are moved apart from the pass have the bits of those that the pass moves.
pub fn running_statistics_can_be_moved_apart<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    check_way::<H, T>(harness, How { update_apart: true, ..How::USUAL })
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
