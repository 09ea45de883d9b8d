//! Channels-first and channels-last, any number of axes, and tensors in different layouts.

use syncbn_core::{Element, ErrorKind, Geometry, Gradients, Kernels, Layout, Storage, View, ViewMut};

use crate::bits::same_bits;
use crate::ensure;
use crate::expected::{Expected, train};
use crate::harness::Harness;
use crate::outcome::Outcome;
use crate::rank::{ParameterRoom, Rank, Step, alone};
use crate::strategies::{Case, Values, within};
use crate::tensor::Placed;

const LAYOUTS: [Layout; 2] = [Layout::ChannelsFirst, Layout::ChannelsLast];

/// Two to five axes and more, in both layouts.
pub fn every_number_of_axes_works_in_both_layouts<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let split = within(&[2, 1], harness.max_world_size());
    for spatial in [&[][..], &[5], &[3, 4], &[2, 3, 4], &[1, 2, 3, 2, 1, 2]] {
        for layout in LAYOUTS {
            let case = Case { layout, values: Values::Mixed, ..Case::plain(7, spatial, &split) };
            let steps: Vec<Step<T>> = train::<H, T>(harness, &case)?;
            let expected = Expected::of(&case);
            expected.check_y(&steps.iter().map(|step| step.y.clone()).collect::<Vec<_>>())?;
            expected.check_gradients(&steps)?;
        }
    }
    Ok(())
}

/// x and dy in every pair of layouts: the right dx, or a typed error, and never a dx that is silently wrong.
pub fn x_and_dy_in_any_pair_of_layouts_are_right_or_refused<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(3, &[2, 4], &[2]);
    let (x, dy) = (case.x::<T>(0), case.dy::<T>(0));
    let expected = Expected::<T>::of(&case);
    alone(harness, |rank: &Rank<H::Backend>| {
        for (of_x, of_dy, of_dx) in LAYOUTS
            .into_iter()
            .flat_map(|a| LAYOUTS.map(|b| (a, b)))
            .flat_map(|(a, b)| LAYOUTS.map(|c| (a, b, c)))
        {
            let mut layer = rank.layer(case.config(), &case.state())?;
            let placed = Placed::new(rank, &x, of_x)?;
            let (saved, _) = rank.forward(&mut layer, &placed, &x)?;
            let placed_dy = Placed::new(rank, &dy, of_dy)?;
            let mut dx = Placed::blank(rank, &dy, of_dx)?;
            let mut room = ParameterRoom::new(rank, 3)?;
            let wanted = Gradients::out_of_place(placed_dy.view(), dx.view_mut());
            let result = layer.backward(&rank.queue, &saved, placed.view(), wanted, room.borrow());
            match result {
                Ok(()) => {
                    expected.check_dx(&[dx.read(rank)?])?;
                    let (d_weight, d_bias) = room.read(rank)?;
                    expected.check_rank_parameters(0, &d_weight, &d_bias)?;
                }
                Err(error) => {
                    let typed = matches!(*error.kind, ErrorKind::Geometry { .. });
                    ensure!(
                        typed && (of_x, of_x) != (of_dy, of_dx),
                        "x {of_x}, dy {of_dy}, dx {of_dx}: {error}"
                    );
                }
            }
        }
        Ok(())
    })
}

/// y in another layout than x: right, or a typed error.
pub fn y_in_another_layout_is_right_or_refused<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(3, &[2, 4], &[2]);
    let x = case.x::<T>(0);
    alone(harness, |rank: &Rank<H::Backend>| {
        for of_x in LAYOUTS {
            for of_y in LAYOUTS {
                let mut layer = rank.layer(case.config(), &case.state())?;
                let placed = Placed::new(rank, &x, of_x)?;
                let mut y = Placed::blank(rank, &x, of_y)?;
                match layer.forward(&rank.queue, placed.view(), y.view_mut()) {
                    Ok(_) => Expected::<T>::of(&case).check_y(&[y.read(rank)?])?,
                    Err(error) => {
                        let typed = matches!(*error.kind, ErrorKind::Geometry { .. });
                        ensure!(typed && of_x != of_y, "x {of_x}, y {of_y}: {error}");
                    }
                }
            }
        }
        Ok(())
    })
}

/// A channels-last array described as (N, C, H, W) with its strides gives the same bits as the array itself; strides of axes of length
/// 1 are ignored.
pub fn strides_are_read_as_the_layout_they_mean<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for (spatial, strides) in [([3, 4], [36, 1, 12, 3]), ([1, 4], [12, 1, -77, 3])] {
        let layout = Layout::ChannelsLast;
        let case = Case { layout, ..Case::plain(3, &spatial, &[2]) };
        let x = case.x::<T>(0);
        alone(harness, |rank: &Rank<H::Backend>| {
            let mut layer = rank.layer(case.config(), &case.state())?;
            let placed = Placed::new(rank, &x, layout)?;
            let (_, expected) = rank.forward(&mut layer, &placed, &x)?;
            let geometry = Geometry::strided(&[2, 3, spatial[0], spatial[1]], &strides, 1)?;
            let mut y = Placed::<H::Backend, T>::blank(rank, &x, layout)?;
            let mut layer = rank.layer(case.config(), &case.state())?;
            let view = View::new(<H::Backend as Storage>::mem(placed.buffer()), geometry)?;
            let out = ViewMut::new(<H::Backend as Storage>::mem_mut(y.buffer_mut()), geometry)?;
            layer.forward(&rank.queue, view, out)?;
            same_bits(&format!("y of strides {strides:?}"), &y.read(rank)?.values, &expected.values)
        })?;
    }
    Ok(())
}
