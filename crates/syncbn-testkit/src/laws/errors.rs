//! Every mistake of a caller is a typed error that names the layer. The state is unchanged, and nothing panics.

use proptest::prelude::*;
use proptest::sample::select;
use syncbn_core::{
    Config, Element, Error, ErrorKind, Geometry, Gradients, Kernels, Layout, Param, ShapeError, SingleRank,
    State, Storage, SyncBatchNorm, View, ViewMut,
};

use crate::bits::{same_bits, same_state};
use crate::harness::Harness;
use crate::outcome::Outcome;
use crate::property::{CASES, for_all};
use crate::rank::{ParameterRoom, Rank, alone};
use crate::strategies::Case;
use crate::tensor::{Placed, Tensor};
use crate::{broken, ensure};

/// The result is an error that names the layer, of the right kind.
fn refused<R>(what: &str, result: Result<R, Error>, kind: impl Fn(&ErrorKind) -> bool) -> Outcome {
    let Err(error) = result else {
        return Err(broken!("{what} is accepted"));
    };
    ensure!(kind(&error.kind), "{what} gives another error: {error:?}");
    let names_it = &*error.layer == "bn" && error.to_string().contains("`bn`");
    ensure!(names_it, "the error does not name the layer: {error}");
    Ok(())
}

/// One element per channel on a rank alone has no variance: an error, before y or any statistic is touched.
pub fn one_element_alone_is_refused_before_any_work<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    alone(harness, |rank: &Rank<H::Backend>| {
        for (track, training) in [(true, true), (false, true), (false, false)] {
            let case = Case { track, ..Case::plain(3, &[1, 1], &[1]) };
            let x = case.x::<T>(0);
            let mut layer = rank.layer(case.config(), &case.state())?;
            layer.set_training(training);
            let placed = Placed::new(rank, &x, case.layout)?;
            let mut y = Placed::blank(rank, &x, case.layout)?;
            let result = layer.forward(&rank.queue, placed.view(), y.view_mut());
            refused("one element", result, |kind| matches!(kind, ErrorKind::OneElement { .. }))?;
            let blank = Placed::<H::Backend, T>::blank(rank, &x, case.layout)?.read(rank)?;
            same_bits("y, which nobody may write,", &y.read(rank)?.values, &blank.values)?;
            same_state(&layer.state(&rank.queue)?, &case.state())?;
        }
        Ok(())
    })
}

/// eps and momentum out of range, and no channels, when a layer is made.
pub fn settings_out_of_range_are_refused<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let good = Config::new(3);
    let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-9];
    let mut configs = vec![good.with_eps(0.0), good.with_momentum(Some(1.000_001)), Config::new(0)];
    configs.extend(bad.map(|eps| good.with_eps(eps)));
    configs.extend(bad.map(|momentum| good.with_momentum(Some(momentum))));
    configs.push(Config::new(usize::MAX));
    alone(harness, |rank: &Rank<H::Backend>| {
        let make = |config| {
            let (backend, group) = (rank.backend.clone(), rank.communicator.clone());
            SyncBatchNorm::<H::Backend, T::Param>::new("bn", config, backend, &rank.queue, group)
        };
        for config in &configs {
            let kind = |kind: &ErrorKind| matches!(kind, ErrorKind::Config(_));
            refused(&format!("{config:?}"), make(*config), kind)?;
        }
        for momentum in [Some(0.0), Some(1.0), None] {
            make(good.with_momentum(momentum))?;
        }
        Ok(())
    })
}

/// Other channels than the layer's, y or dy of another shape, too short memory.
pub fn tensors_that_do_not_fit_are_refused<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(3, &[4], &[2]);
    let zeros = |n, c, spatial: &[usize]| Tensor::from_fn(n, c, spatial, |_, _, _| T::default());
    alone(harness, |rank: &Rank<H::Backend>| {
        let place = |tensor: &Tensor<T>| Placed::<H::Backend, T>::new(rank, tensor, Layout::ChannelsFirst);
        let mut layer = rank.layer(case.config(), &case.state())?;
        let x = place(&case.x(0))?;
        let (saved, _) = rank.forward(&mut layer, &x, &case.x(0))?;
        let before = layer.state(&rank.queue)?;
        let queue = &rank.queue;

        let (four, mut y_of_four) = (place(&zeros(2, 4, &[4]))?, place(&zeros(2, 4, &[4]))?);
        let result = layer.forward(queue, four.view(), y_of_four.view_mut());
        let channels = |k: &ErrorKind| matches!(k, ErrorKind::Channels { expected: 3, got: 4, .. });
        refused("an x of 4 channels", result, channels)?;

        for other in [zeros(1, 3, &[4]), zeros(2, 3, &[2, 2]), zeros(2, 3, &[5]), zeros(0, 3, &[4])] {
            let geometry = |k: &ErrorKind| matches!(k, ErrorKind::Geometry { .. });
            let (placed, mut out) = (place(&other)?, place(&other)?);
            let what = format!("{:?} beside an x of {:?}", other.shape(Layout::ChannelsFirst), [2, 3, 4]);
            refused(&what, layer.forward(queue, x.view(), out.view_mut()), geometry)?;
            refused(&what, layer.recompute(queue, &saved, x.view(), out.view_mut()), geometry)?;
            let mut dx = place(&zeros(2, 3, &[4]))?;
            let mut room = ParameterRoom::new(rank, 3)?;
            let result = layer.backward(
                queue,
                &saved,
                x.view(),
                Gradients::out_of_place(placed.view(), dx.view_mut()),
                room.borrow(),
            );
            refused(&what, result, geometry)?;
            let result = layer.backward(
                queue,
                &saved,
                x.view(),
                Gradients::out_of_place(x.view(), out.view_mut()),
                room.borrow(),
            );
            refused(&what, result, geometry)?;
            let result = layer.backward(
                queue,
                &saved,
                placed.view(),
                Gradients::out_of_place(x.view(), dx.view_mut()),
                room.borrow(),
            );
            refused(&what, result, geometry)?;
        }
        let mut short = ParameterRoom::new(rank, 2)?;
        let mut dx = place(&zeros(2, 3, &[4]))?;
        let result = layer.backward(
            queue,
            &saved,
            x.view(),
            Gradients::out_of_place(x.view(), dx.view_mut()),
            short.borrow(),
        );
        let length = |k: &ErrorKind| matches!(k, ErrorKind::Length { expected: 3, got: 2, .. });
        refused("gradients of 2 channels", result, length)?;

        let memory = <H::Backend as Storage>::mem(x.buffer());
        let result = layer.forward(queue, View::channels_first(memory, &[20, 3, 4]), dx.view_mut());
        let too_short =
            |k: &ErrorKind| matches!(k, ErrorKind::Shape { source: ShapeError::Memory { .. }, .. });
        refused("short memory", result, too_short)?;
        same_state(&layer.state(queue)?, &before)
    })
}

/// What another layer saved, of the same name and size.
pub fn saved_statistics_of_another_layer_are_refused<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(3, &[4], &[2]);
    alone(harness, |rank: &Rank<H::Backend>| {
        let x = Placed::new(rank, &case.x::<T>(0), case.layout)?;
        let mut mine = rank.layer(case.config(), &case.state())?;
        let mut other = rank.layer(case.config(), &case.state())?;
        let (saved, _) = rank.forward(&mut other, &x, &case.x(0))?;
        let before = mine.state(&rank.queue)?;
        let foreign = |k: &ErrorKind| matches!(k, ErrorKind::ForeignSaved);
        let mut out = Placed::blank(rank, &case.x::<T>(0), case.layout)?;
        refused("recomputation", mine.recompute(&rank.queue, &saved, x.view(), out.view_mut()), foreign)?;
        let mut room = ParameterRoom::new(rank, 3)?;
        let result = mine.backward(
            &rank.queue,
            &saved,
            x.view(),
            Gradients::out_of_place(x.view(), out.view_mut()),
            room.borrow(),
        );
        refused("backward", result, foreign)?;
        same_state(&mine.state(&rank.queue)?, &before)
    })
}

/// States of another size, with a tensor too few or too many, or with a variance or a counter below 0.
pub fn states_that_do_not_fit_are_refused<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let full = Case::plain(3, &[4], &[2]);
    let bare = Case { affine: false, track: false, ..full.clone() };
    alone(harness, |rank: &Rank<H::Backend>| {
        let good = full.state::<T::Param>();
        let mut layer = rank.layer(full.config(), &good)?;
        for (what, state) in unfit(&good) {
            let kind = |k: &ErrorKind| {
                matches!(
                    k,
                    ErrorKind::Length { .. } | ErrorKind::StateTensor { .. } | ErrorKind::StateValue { .. }
                )
            };
            refused(what, layer.load_state(&rank.queue, &state), kind)?;
            same_state(&layer.state(&rank.queue)?, &good).map_err(|why| why.at(what))?;
        }
        let mut layer = rank.layer(bare.config(), &bare.state::<T::Param>())?;
        let kind = |k: &ErrorKind| matches!(k, ErrorKind::StateTensor { .. });
        refused("a state for a bare layer", layer.load_state(&rank.queue, &good), kind)?;
        let nothing = |k: &ErrorKind| matches!(k, ErrorKind::NothingToFreeze);
        refused("freezing a bare layer", layer.set_frozen(true), nothing)
    })
}

fn unfit<P: Param>(good: &State<P>) -> Vec<(&'static str, State<P>)> {
    let long = Some(vec![P::default(); 4]);
    let negative = Some([1.0, -1e-30, 1.0].map(P::from_f64).to_vec());
    vec![
        ("a long weight", State { weight: long.clone(), ..good.clone() }),
        ("a long bias", State { bias: long.clone(), ..good.clone() }),
        ("a long running_mean", State { running_mean: long.clone(), ..good.clone() }),
        ("a long running_var", State { running_var: long, ..good.clone() }),
        ("a negative running_var", State { running_var: negative, ..good.clone() }),
        ("a negative num_batches_tracked", State { num_batches_tracked: Some(-1), ..good.clone() }),
        ("no running_var", State { running_var: None, ..good.clone() }),
        ("no weight", State { weight: None, ..good.clone() }),
        ("no num_batches_tracked", State { num_batches_tracked: None, ..good.clone() }),
        ("nothing", State::default()),
    ]
}

/// Any shape, strides, channel axis and length of memory: an error or a result, no panic, and after an error the state is what it was.
pub fn arbitrary_tensors_never_panic<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let size =
        || prop_oneof![6 => 0..=4_usize, 1 => select(vec![usize::MAX, usize::MAX / 2, 1 << 32, 1 << 62])];
    let stride = || prop_oneof![4 => -3..=24_isize, 1 => select(vec![isize::MAX, isize::MIN])];
    let tensor = || {
        let shape = prop::collection::vec(size(), 0..=9);
        let strides = prop::collection::vec(stride(), 0..=9);
        (shape, strides, 0..=9_usize, 0..=2_usize)
    };
    for_all(2 * CASES, &(tensor(), tensor(), 0..=64_usize), |(x, y, memory)| {
        alone(harness, |rank: &Rank<H::Backend>| {
            let case = Case::plain(2, &[], &[2]);
            let mut layer = rank.layer(case.config(), &case.state::<T::Param>())?;
            let values = vec![T::default(); *memory];
            let input = rank.upload(&values)?;
            let mut output = rank.upload(&values)?;
            let geometry = |(shape, strides, axis, how): &(Vec<usize>, Vec<isize>, usize, usize)| match how {
                0 => Geometry::channels_first(shape),
                1 => Geometry::channels_last(shape),
                _ => Geometry::strided(shape, strides, *axis),
            };
            let view = geometry(x).and_then(|g| View::new(<H::Backend as Storage>::mem(&input), g));
            let out =
                geometry(y).and_then(|g| ViewMut::new(<H::Backend as Storage>::mem_mut(&mut output), g));
            if let Err(error) = layer.forward::<T>(&rank.queue, view, out) {
                ensure!(error.to_string().contains("`bn`"), "the error does not name the layer: {error}");
                same_state(&layer.state(&rank.queue)?, &case.state()).map_err(|why| why.at(error))?;
            }
            Ok(())
        })
    })
}

/// A change of a layer, and the kind of error that it causes.
type Change<B, P> = (&'static str, fn(&mut SyncBatchNorm<B, P>), fn(&ErrorKind) -> bool);

/// Saved statistics are refused in another group, and after weight or bias were borrowed to be changed.
pub fn what_is_saved_does_not_outlive_its_group_or_parameters<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(3, &[4], &[2]);
    let changes: [Change<H::Backend, T::Param>; 4] = [
        ("another group", |layer| layer.set_group(SingleRank), |k| matches!(k, ErrorKind::OtherGroup { .. })),
        (
            "another group and back",
            |layer| {
                let group = layer.group().clone();
                layer.set_group(SingleRank);
                layer.set_group(group);
            },
            |k| matches!(k, ErrorKind::OtherGroup { .. }),
        ),
        (
            "a weight borrowed to be changed",
            |layer| _ = layer.weight_mut(),
            |k| matches!(k, ErrorKind::ParametersChanged),
        ),
        (
            "a bias borrowed to be changed",
            |layer| _ = layer.bias_mut(),
            |k| matches!(k, ErrorKind::ParametersChanged),
        ),
    ];
    alone(harness, |rank: &Rank<H::Backend>| {
        for (what, change, kind) in changes {
            let x = Placed::new(rank, &case.x::<T>(0), case.layout)?;
            let mut layer = rank.layer(case.config(), &case.state())?;
            let (saved, _) = rank.forward(&mut layer, &x, &case.x(0))?;
            let before = layer.state(&rank.queue)?;
            change(&mut layer);
            let mut out = Placed::blank(rank, &case.x::<T>(0), case.layout)?;
            refused(what, layer.recompute(&rank.queue, &saved, x.view(), out.view_mut()), kind)?;
            let mut room = ParameterRoom::new(rank, 3)?;
            let wanted = Gradients::out_of_place(x.view(), out.view_mut());
            refused(what, layer.backward(&rank.queue, &saved, x.view(), wanted, room.borrow()), kind)?;
            same_state(&layer.state(&rank.queue)?, &before).map_err(|why| why.at(what))?;
        }
        Ok(())
    })
}
