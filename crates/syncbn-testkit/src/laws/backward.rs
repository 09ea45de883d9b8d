//! The results of a backward pass: dx of the whole batch, and each rank's own gradients of weight and bias.

use syncbn_core::{
    CollectiveId, Element, Gradients, HostCommunicator, Kernels, Layout, State, Storage, SyncBatchNorm,
};

use crate::bits::{same_bits, same_state};
use crate::expected::{Expected, train};
use crate::harness::{Ability, Harness, need, need_ranks};
use crate::oracle::{self, Affine};
use crate::outcome::Outcome;
use crate::property::{CASES, for_all};
use crate::rank::{ParameterRoom, Rank, Written, ranks};
use crate::strategies::{Case, Values, case};
use crate::tensor::{Placed, Tensor};
use crate::{ensure, threads};

/// Any split of any batch gives the dx of the whole batch on one rank; each rank's `d_weight` and `d_bias` are its share.
pub fn any_split_of_a_batch_gives_the_gradients_of_the_whole<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for_all(CASES, &case(harness.max_world_size()), |case| {
        Expected::of(case).check_gradients(&train::<H, T>(harness, case)?)
    })
}

/// `d_weight` and `d_bias` of all ranks, added up, are those of the whole batch: no rank's holds another's share.
pub fn parameters_gradients_of_all_ranks_add_up_to_the_whole<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 3)?;
    let case = Case::plain(3, &[4, 3], &[3, 1, 2]);
    let whole = Case { samples: vec![6], ..case.clone() };
    let parts = train::<H, T>(harness, &case)?;
    let added = |of: fn(&Written<T>) -> &Vec<T::Param>| -> Vec<T::Param> {
        let sum = |c: usize| parts.iter().map(|part| of(&part.gradients)[c].to_f64()).sum();
        (0..case.channels).map(|c| T::Param::from_f64(sum(c))).collect()
    };
    let (d_weight, d_bias) = (added(|g| &g.d_weight), added(|g| &g.d_bias));
    Expected::<T>::of(&whole).check_rank_parameters(0, &d_weight, &d_bias)
}

/// dx written over dy has the same bits as dx in memory of its own, and so have the parameters' gradients: in training, and with
/// frozen statistics.
pub fn in_place_gives_the_bits_of_apart<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for_all(CASES / 2, &case(harness.max_world_size()), |case| {
        let differ = ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
            let mut layer = rank.layer(case.config(), &case.state())?;
            check_in_place::<_, T>(rank, &mut layer, case)?;
            layer.set_training(false);
            // Without running statistics this is the rank's own batch, which may have one element.
            if case.track { check_in_place::<_, T>(rank, &mut layer, case) } else { Ok(()) }
        });
        differ.map(drop)
    })
}

fn check_in_place<B: Storage + Kernels<T>, T: Element>(
    rank: &Rank<B>,
    layer: &mut SyncBatchNorm<B, T::Param>,
    case: &Case,
) -> Outcome {
    let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
    let placed = Placed::new(rank, &x, case.layout)?;
    let (saved, _) = rank.forward(layer, &placed, &x)?;
    let apart = rank.backward(layer, &saved, &placed, &dy)?;
    let mut dx = Placed::new(rank, &dy, case.layout)?;
    let mut room = ParameterRoom::new(rank, x.channels)?;
    let wanted = Gradients::in_place(dx.view_mut());
    layer.backward(&rank.queue, &saved, placed.view(), wanted, room.borrow())?;
    let (d_weight, d_bias) = room.read(rank)?;
    let got = Written { dx: dx.read(rank)?, d_weight, d_bias };
    got.same_bits(&apart).map_err(|why| why.at(format!("{:?} statistics", saved.scope())))
}

/// NaN or infinity in one rank's dy: dx of its channel is not finite on any rank, nor are that rank's gradients of the parameters. All
/// else has the bits that it has without.
pub fn what_is_not_finite_in_dy_stays_in_its_channel<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    const HURT: usize = 2;
    need(harness, Ability::NonFinite)?;
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let case = Case { layout, ..Case::plain(5, &[3, 3], &[2, 1, 0]) }.within(harness.max_world_size());
        ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
            let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
            let mut layer = rank.layer(case.config(), &case.state())?;
            let placed = Placed::new(rank, &x, layout)?;
            let (saved, _) = rank.forward(&mut layer, &placed, &x)?;
            let clean = rank.backward(&mut layer, &saved, &placed, &dy)?;
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut dy = dy.clone();
                if rank.index == 0 {
                    dy.values[HURT * x.positions() + 1] = T::from_f64(bad);
                }
                let hurt = rank.backward(&mut layer, &saved, &placed, &dy)?;
                check_hurt(&hurt, &clean, HURT, rank.index == 0).map_err(|why| why.at(bad))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn check_hurt<T: Element>(hurt: &Written<T>, clean: &Written<T>, channel: usize, own: bool) -> Outcome {
    for c in 0..hurt.dx.channels {
        let parameters = |of: &Written<T>| [of.d_weight[c], of.d_bias[c]];
        if c == channel {
            let dx = hurt.dx.channel(c);
            ensure!(dx.iter().all(|dx| !dx.to_f64().is_finite()), "dx of the channel is {dx:?}");
        } else {
            same_bits(&format!("dx of channel {c}"), &hurt.dx.channel(c), &clean.dx.channel(c))?;
        }
        if c == channel && own {
            let got = parameters(hurt);
            ensure!(got.iter().all(|v| !v.to_f64().is_finite()), "d_weight and d_bias are {got:?}");
        } else {
            let what = format!("d_weight and d_bias of channel {c}");
            same_bits(&what, &parameters(hurt), &parameters(clean))?;
        }
    }
    Ok(())
}

/// A rank that needs no dx still takes part, so that its peers get theirs; what it does get has the same bits.
pub fn a_rank_without_dx_still_takes_part<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 3)?;
    let case = Case::plain(4, &[5], &[2, 2, 1]);
    let all = train::<H, T>(harness, &case)?;
    ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
        let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        let mut layer = rank.layer(case.config(), &case.state())?;
        let placed = Placed::new(rank, &x, case.layout)?;
        let (saved, _) = rank.forward(&mut layer, &placed, &x)?;
        let gradients = &all[rank.index].gradients;
        if rank.index != 1 {
            return rank.backward(&mut layer, &saved, &placed, &dy)?.same_bits(gradients);
        }
        let dy = Placed::new(rank, &dy, case.layout)?;
        let mut room = ParameterRoom::new(rank, case.channels)?;
        let wanted = Gradients::parameters_only(dy.view());
        layer.backward(&rank.queue, &saved, placed.view(), wanted, room.borrow())?;
        let (d_weight, d_bias) = room.read(rank)?;
        same_bits("d_weight without dx", &d_weight, &gradients.d_weight)?;
        same_bits("d_bias without dx", &d_bias, &gradients.d_bias)
    })?;
    Ok(())
}

/// Leaving out some gradients does not change a bit of the others.
pub fn gradients_of_parameters_are_optional<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(4, &[5], &[2, 1]).within(harness.max_world_size());
    let all = train::<H, T>(harness, &case)?;
    ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
        let (x, dy) = (case.x::<T>(rank.index), case.dy::<T>(rank.index));
        let mut layer = rank.layer(case.config(), &case.state())?;
        let x_placed = Placed::new(rank, &x, case.layout)?;
        let dy_placed = Placed::new(rank, &dy, case.layout)?;
        let (saved, _) = rank.forward(&mut layer, &x_placed, &x)?;
        for (weight, bias) in [(false, false), (true, false), (false, true)] {
            let mut dx = Placed::blank(rank, &dy, case.layout)?;
            let mut room = ParameterRoom::new(rank, case.channels)?;
            let mut wanted = room.borrow();
            wanted.weight = wanted.weight.filter(|_| weight);
            wanted.bias = wanted.bias.filter(|_| bias);
            let gradients = Gradients::out_of_place(dy_placed.view(), dx.view_mut());
            layer.backward(&rank.queue, &saved, x_placed.view(), gradients, wanted)?;
            let (d_weight, d_bias) = room.read(rank)?;
            let expected = &all[rank.index].gradients;
            let asked = format!("with d_weight {weight} and d_bias {bias}, ");
            same_bits(&(asked.clone() + "dx"), &dx.read(rank)?.values, &expected.dx.values)?;
            if weight {
                same_bits(&(asked.clone() + "d_weight"), &d_weight, &expected.d_weight)?;
            }
            if bias {
                same_bits(&(asked + "d_bias"), &d_bias, &expected.d_bias)?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// dx, `d_weight` and `d_bias` are the slopes of sum(dy y), by central differences of forward itself.
pub fn gradients_are_the_slopes_of_forward<H: Harness>(harness: &H) -> Outcome
where
    H::Backend: Kernels<f64>,
{
    need_ranks(harness, 3)?;
    let case = Case { eps: 1e-3, ..Case::plain(3, &[2, 2], &[2, 0, 1]) };
    let x = case.all(Case::x::<f64>);
    let dy = case.all(Case::dy::<f64>);
    let steps = train::<H, f64>(harness, &case)?;
    let loss = |x: &[Tensor<f64>], state: &State<f64>| -> Outcome<(f64, f64)> {
        let y = ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
            let mut layer = rank.layer(case.config(), state)?;
            let placed = Placed::new(rank, &x[rank.index], case.layout)?;
            rank.forward(&mut layer, &placed, &x[rank.index]).map(|(_, y)| y)
        })?;
        let (y, dy) = (Tensor::concat(&y), Tensor::concat(&dy));
        let terms = y.values.iter().zip(&dy.values).map(|(y, dy)| y * dy);
        Ok(terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs())))
    };
    // With h near the cube root of the unit, truncation and rounding cost about as much: 1e-10 of the terms each.
    let h = 1e-5;
    let slope = |up: (f64, f64), down: (f64, f64)| ((up.0 - down.0) / (2.0 * h), up.1);
    let check = |what: &str, got: f64, (expected, size): (f64, f64)| -> Outcome {
        let (error, allowed) = ((got - expected).abs(), 1e-6 * size.max(1.0));
        ensure!(
            error <= allowed,
            "{what} is {got}, the slope {expected}: off by {error:e}, allowed {allowed:e}"
        );
        Ok(())
    };
    let start = case.state::<f64>();
    for rank in 0..x.len() {
        for i in 0..x[rank].values.len() {
            let moved = |by: f64| {
                let mut x = x.clone();
                x[rank].values[i] += by;
                loss(&x, &start)
            };
            let slope = slope(moved(h)?, moved(-h)?);
            check(&format!("dx[{i}] of rank {rank}"), steps[rank].gradients.dx.values[i], slope)?;
        }
    }
    for c in 0..case.channels {
        let moved = |by: f64, of: fn(&mut State<f64>) -> &mut Option<Vec<f64>>| {
            let mut state = start.clone();
            if let Some(values) = of(&mut state) {
                values[c] += by;
            }
            loss(&x, &state)
        };
        let all = |of: fn(&Written<f64>) -> &Vec<f64>| steps.iter().map(|s| of(&s.gradients)[c]).sum::<f64>();
        let weight = slope(moved(h, |s| &mut s.weight)?, moved(-h, |s| &mut s.weight)?);
        check(&format!("d_weight[{c}]"), all(|g| &g.d_weight), weight)?;
        let bias = slope(moved(h, |s| &mut s.bias)?, moved(-h, |s| &mut s.bias)?);
        check(&format!("d_bias[{c}]"), all(|g| &g.d_bias), bias)?;
    }
    Ok(())
}

/// Of `f64`: a variance and an eps so small that the square of invstd overflows. dx is as exact as ever where it is finite itself, and a
/// constant channel has one, too.
pub fn the_square_of_invstd_may_overflow<H: Harness>(harness: &H) -> Outcome
where
    H::Backend: Kernels<f64>,
{
    for std in [4e-155, 0.0] {
        for (samples, layout) in [
            (vec![5], Layout::ChannelsFirst),
            (vec![2, 0, 3], Layout::ChannelsFirst),
            (vec![5], Layout::ChannelsLast),
            (vec![3, 2], Layout::ChannelsLast),
        ] {
            let values = Values::Normal { mean: std / 4.0, std };
            let case = Case { values, layout, eps: 1e-310, ..Case::plain(3, &[5, 3], &samples) };
            let case = case.within(harness.max_world_size());
            let mut state = case.state();
            // With it dx is near 1e134, and weight invstd^3 sum_dy_xmu / M, which kernels may multiply x - mean by, near 1e289.
            state.weight.iter_mut().flatten().for_each(|weight| *weight *= 1e-20);
            let steps = ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
                let mut layer = rank.layer(case.config(), &state)?;
                rank.train(&mut layer, &case.x::<f64>(rank.index), &case.dy::<f64>(rank.index), case.layout)
            })?;
            Expected::given(&case, state.clone()).check(&steps)?;
        }
    }
    Ok(())
}

/// The layer used twice before its first backward, in either order of the backwards, and recomputed between: gradients belong to
/// their own use.
pub fn a_layer_used_twice_keeps_its_uses_apart<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 2)?;
    let first = Case::plain(3, &[4], &[2, 1]);
    let values = Values::Normal { mean: -3.0, std: 5.0 };
    let second = Case { values, ..Case::plain(3, &[2, 3], &[0, 3]) };
    let expected = [train::<H, T>(harness, &first)?, train::<H, T>(harness, &second)?];
    let states = ranks(harness, 2, |rank: &Rank<H::Backend>| {
        let mut layer = rank.layer(first.config(), &first.state())?;
        let x = [first.x::<T>(rank.index), second.x::<T>(rank.index)];
        let dy = [first.dy::<T>(rank.index), second.dy::<T>(rank.index)];
        let placed = [Placed::new(rank, &x[0], first.layout)?, Placed::new(rank, &x[1], second.layout)?];
        let (saved_first, y_first) = rank.forward(&mut layer, &placed[0], &x[0])?;
        let (saved_second, _) = rank.forward(&mut layer, &placed[1], &x[1])?;
        let after_two = layer.state(&rank.queue)?;

        let mut again = Placed::blank(rank, &x[0], first.layout)?;
        layer.recompute(&rank.queue, &saved_first, placed[0].view(), again.view_mut())?;
        same_bits("the recomputed y", &again.read(rank)?.values, &y_first.values)?;
        same_bits("y of the first use", &y_first.values, &expected[0][rank.index].y.values)?;
        for order in [[0, 1], [1, 0]] {
            for i in order {
                let saved = if i == 0 { &saved_first } else { &saved_second };
                let got = rank.backward(&mut layer, saved, &placed[i], &dy[i])?;
                got.same_bits(&expected[i][rank.index].gradients)?;
            }
        }
        let state = layer.state(&rank.queue)?;
        same_state(&state, &after_two).map_err(|why| why.at("after recomputation and backward"))?;
        Ok(state)
    })?;
    for state in states {
        let seen = state.num_batches_tracked;
        ensure!(seen == Some(5), "two uses after 3 batches are counted as {seen:?}, expected 5");
    }
    Ok(())
}

/// Five steps of gradient descent, affine or not, give the parameters of the whole batch on one rank after every step.
pub fn five_steps_of_descent_follow_the_whole_batch<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    need_ranks(harness, 3)?;
    for affine in [true, false] {
        let case = Case { affine, ..Case::plain(3, &[3, 2], &[3, 0, 2]) };
        let expected = descend_by_oracle::<T>(&case);
        let sums = threads::host_group(3);
        let got = ranks(harness, 3, |rank: &Rank<H::Backend>| descend(rank, &case, &sums[rank.index]))?;
        for (rank, steps) in got.iter().enumerate() {
            for (step, (got, expected)) in steps.iter().zip(&expected).enumerate() {
                for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
                    let allowed = descent_bar::<T>() * expected.abs().max(1.0);
                    let near = (got - expected).abs() <= allowed;
                    ensure!(
                        near,
                        "number {i} on rank {rank} after step {step} is {got}, expected {expected}"
                    );
                }
            }
        }
    }
    Ok(())
}

const STEPS: usize = 5;
const RATE: f64 = 0.02;

/// Each step feeds y, rounded to `T`, back as part of dy, so that a step's error grows into the next.
fn descent_bar<T: Element>() -> f64 {
    match size_of::<T>() {
        8 => 1e-11,
        4 => 5e-6,
        _ => 0.05,
    }
}

/// dy = y/2 - target; then all parameters and x move against their gradients. What is compared: weight, bias, `running_mean`,
/// `running_var`.
fn descend<B: Kernels<T> + syncbn_core::Storage, T: Element>(
    rank: &Rank<B>,
    case: &Case,
    sums: &impl HostCommunicator,
) -> Outcome<Vec<Vec<f64>>> {
    let mut layer = rank.layer::<T::Param>(case.config(), &case.state())?;
    let mut x = case.x::<T>(rank.index);
    let target = case.dy::<T>(rank.index);
    let mut trace = Vec::new();
    for _ in 0..STEPS {
        let placed = Placed::new(rank, &x, case.layout)?;
        let (saved, y) = rank.forward(&mut layer, &placed, &x)?;
        let dy = dy_of(&y, &target);
        let gradients = rank.backward(&mut layer, &saved, &placed, &dy)?;
        let mut both: Vec<f64> =
            gradients.d_weight.iter().chain(&gradients.d_bias).map(|v| v.to_f64()).collect();
        sums.all_reduce_sum(&CollectiveId::new("descent", both.len()), &mut both)?;
        let mut state = layer.state(&rank.queue)?;
        let mut parameters = state.weight.iter_mut().chain(&mut state.bias).flatten();
        parameters.by_ref().zip(&both).for_each(|(p, d)| *p = T::Param::from_f64(p.to_f64() - RATE * d));
        layer.load_state(&rank.queue, &state)?;
        x = moved(&x, &gradients.dx.map(T::to_f64));
        let tensors = [&state.weight, &state.bias, &state.running_mean, &state.running_var];
        trace.push(tensors.into_iter().flatten().flatten().map(|v| v.to_f64()).collect());
    }
    Ok(trace)
}

fn dy_of<T: Element>(y: &Tensor<T>, target: &Tensor<T>) -> Tensor<T> {
    Tensor::from_fn(y.samples, y.channels, &y.spatial, |n, c, s| {
        T::from_f64(y.at(n, c, s).to_f64() / 2.0 - target.at(n, c, s).to_f64())
    })
}

fn moved<T: Element>(x: &Tensor<T>, dx: &Tensor<f64>) -> Tensor<T> {
    Tensor::from_fn(x.samples, x.channels, &x.spatial, |n, c, s| {
        T::from_f64(x.at(n, c, s).to_f64() - RATE * dx.at(n, c, s))
    })
}

fn descend_by_oracle<T: Element>(case: &Case) -> Vec<Vec<f64>> {
    let mut x = Tensor::concat(&case.all(Case::x::<T>));
    let target = Tensor::concat(&case.all(Case::dy::<T>));
    let start = case.state::<T::Param>();
    let mut affine = Affine::new(case.channels, start.weight.as_ref(), start.bias.as_ref());
    let running = Affine::new(case.channels, start.running_var.as_ref(), start.running_mean.as_ref());
    let (mut mean, mut var) = (running.bias, running.weight);
    let eps = case.eps;
    let a = case.momentum.unwrap_or_default();
    let mut trace = Vec::new();
    for _ in 0..STEPS {
        let statistics = oracle::statistics(&x);
        let xhat = oracle::xhat(&x, &statistics, eps);
        let dy = dy_of(&oracle::y(&xhat, &affine).map(T::from_f64), &target);
        let sums = oracle::grad_sums(&xhat, &dy);
        let dx = oracle::dx(&xhat, &dy, &statistics, Some(&sums), &affine, eps);
        for c in 0..case.channels {
            if case.affine {
                affine.weight[c] -= RATE * sums[c].dy_xhat;
                affine.bias[c] -= RATE * sums[c].dy;
            }
            mean[c] = (1.0 - a) * mean[c] + a * statistics[c].mean;
            var[c] = (1.0 - a) * var[c] + a * statistics[c].unbiased();
        }
        x = moved(&x, &dx.map(|dx| dx.0));
        let parameters =
            if case.affine { [&affine.weight[..], &affine.bias[..]] } else { [&[][..], &[][..]] };
        trace.push([&parameters.concat()[..], &mean, &var].concat());
    }
    trace
}
