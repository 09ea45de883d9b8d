//! What a layer lends and tells, besides its passes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use example_backend::Plain;
use syncbn_core::{
    Config, Error, ErrorKind, Gradients, NonFinite, ParamGradients, SavedStatistics, Scope, SingleRank,
    State, SyncBatchNorm, Tensor, View, ViewMut,
};

type Layer = SyncBatchNorm<Plain, f32>;

fn layer(config: Config) -> Layer {
    Layer::local("bn1", config, Plain, &()).unwrap()
}

#[test]
fn the_modes_are_what_they_were_set_to() {
    let mut layer = layer(Config::new(2));
    assert_eq!((layer.is_training(), layer.is_frozen()), (true, false));
    layer.set_training(false);
    layer.set_frozen(true).unwrap();
    assert_eq!((layer.is_training(), layer.is_frozen()), (false, true));
    layer.set_training(true);
    layer.set_frozen(false).unwrap();
    assert_eq!((layer.is_training(), layer.is_frozen()), (true, false));
}

#[test]
fn name_and_settings_are_those_it_was_made_with() {
    let config = Config::new(2).with_eps(1e-3).with_affine(false);
    assert_eq!((layer(config).name(), *layer(config).config()), ("bn1", config));
}

#[test]
fn parameters_are_lent_to_be_read_and_to_be_changed_where_there_are_any() {
    let mut layer_with = layer(Config::new(2));
    layer_with.weight_mut().unwrap()[0] = 5.0;
    layer_with.bias_mut().unwrap()[1] = -3.0;
    assert_eq!(
        (layer_with.weight().unwrap(), layer_with.bias().unwrap()),
        (&vec![5.0, 1.0], &vec![0.0, -3.0])
    );
    let mut without = layer(Config::new(2).with_affine(false));
    assert!(without.weight().is_none() && without.bias().is_none());
    assert!(without.weight_mut().is_none() && without.bias_mut().is_none());
}

#[test]
fn what_is_saved_tells_its_geometry_and_whose_statistics_it_has() {
    let mut layer = layer(Config::new(2));
    for (training, scope) in [(true, Scope::Group), (false, Scope::Frozen)] {
        let (x, mut y) = ([0.5, -1.0, 3.0, 2.0], [0.0; 4]);
        layer.set_training(training);
        let view = View::<Plain, f32>::channels_first(&x[..], &[2, 2]).unwrap();
        let geometry = *view.geometry();
        let saved = layer.forward::<f32>(&(), view, ViewMut::channels_first(&mut y[..], &[2, 2])).unwrap();
        assert_eq!((*saved.geometry(), saved.scope()), (geometry, scope));
    }
}

const X: [f32; 4] = [0.5, -1.0, 3.0, 2.0];

fn forward(layer: &mut Layer, x: [f32; 4]) -> Result<(SavedStatistics<Plain>, [f32; 4]), Error> {
    let mut y = [0.0; 4];
    let view = View::channels_first(&x[..], &[2, 2]);
    let saved = layer.forward::<f32>(&(), view, ViewMut::channels_first(&mut y[..], &[2, 2]))?;
    Ok((saved, y))
}

fn backward(layer: &mut Layer, saved: &SavedStatistics<Plain>) -> Result<[f32; 8], Error> {
    let (mut dx, mut weight, mut bias) = ([0.0; 4], [0.0; 2], [0.0; 2]);
    let x = View::channels_first(&X[..], &[2, 2]);
    let dy = View::channels_first(&[1.0, 2.0, -1.0, 4.0][..], &[2, 2]);
    let wanted = Gradients::out_of_place(dy, ViewMut::channels_first(&mut dx[..], &[2, 2]));
    let parameters = ParamGradients { weight: Some(&mut weight[..]), bias: Some(&mut bias[..]) };
    layer.backward::<f32>(&(), saved, x, wanted, parameters)?;
    let mut all = [0.0; 8];
    [&dx[..], &weight, &bias].concat().into_iter().zip(&mut all).for_each(|(from, to)| *to = from);
    Ok(all)
}

fn recompute(layer: &Layer, saved: &SavedStatistics<Plain>) -> Result<[f32; 4], Error> {
    let mut y = [0.0; 4];
    let x = View::channels_first(&X[..], &[2, 2]);
    layer.recompute::<f32>(&(), saved, x, ViewMut::channels_first(&mut y[..], &[2, 2]))?;
    Ok(y)
}

fn kind<R>(result: Result<R, Error>) -> ErrorKind {
    match result {
        Ok(_) => panic!("nothing was refused"),
        Err(error) => *error.kind,
    }
}

#[test]
fn what_was_saved_before_a_parameter_was_lent_to_be_changed_is_refused() {
    let lend: [fn(&mut Layer); 3] = [
        |layer| layer.weight_mut().unwrap()[0] = 2.0,
        |layer| layer.bias_mut().unwrap()[0] = 2.0,
        |layer| {
            let state = layer.state(&()).unwrap();
            layer.load_state(&(), &state).unwrap();
        },
    ];
    for lend in lend {
        let mut layer = layer(Config::new(2));
        let (saved, y) = forward(&mut layer, X).unwrap();
        assert_eq!(recompute(&layer, &saved).unwrap(), y);
        backward(&mut layer, &saved).unwrap();
        lend(&mut layer);
        assert!(matches!(kind(backward(&mut layer, &saved)), ErrorKind::ParametersChanged));
        assert!(matches!(kind(recompute(&layer, &saved)), ErrorKind::ParametersChanged));
        let (saved, _) = forward(&mut layer, X).unwrap();
        backward(&mut layer, &saved).unwrap();
    }
}

#[test]
fn what_was_saved_in_another_group_is_refused_with_both_named() {
    let mut layer = layer(Config::new(2));
    let (saved, _) = forward(&mut layer, X).unwrap();
    let before = layer.group().id();
    layer.set_group(SingleRank);
    let now = layer.group().id();
    for refused in [kind(backward(&mut layer, &saved)), kind(recompute(&layer, &saved))] {
        let ErrorKind::OtherGroup { saved, current } = refused else { panic!("{refused}") };
        assert_eq!((saved, current), (before, now));
    }
}

#[test]
fn what_another_layer_saved_is_refused() {
    let (mut mine, mut other) = (layer(Config::new(2)), layer(Config::new(2)));
    let (saved, _) = forward(&mut other, X).unwrap();
    assert!(matches!(kind(backward(&mut mine, &saved)), ErrorKind::ForeignSaved));
    assert!(matches!(kind(recompute(&mine, &saved)), ErrorKind::ForeignSaved));
}

#[test]
fn another_momentum_counts_from_the_next_pass_on() {
    let mut layer = layer(Config::new(2).with_momentum(Some(0.5)));
    let mean = |layer: &Layer| layer.running_mean().unwrap()[0];
    forward(&mut layer, X).unwrap();
    assert_eq!(mean(&layer), 0.875); // half of 0 and of (0.5 + 3)/2
    layer.set_momentum(Some(0.0)).unwrap();
    forward(&mut layer, X).unwrap();
    assert_eq!(mean(&layer), 0.875);
    layer.set_momentum(Some(1.0)).unwrap();
    forward(&mut layer, X).unwrap();
    assert_eq!((mean(&layer), layer.config().momentum), (1.75, Some(1.0)));
    layer.set_momentum(None).unwrap();
    forward(&mut layer, [4.75; 4]).unwrap();
    assert_eq!(mean(&layer), 2.5); // the fourth batch of an average
    for bad in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
        assert!(matches!(kind(layer.set_momentum(Some(bad))), ErrorKind::Config(_)), "{bad}");
    }
    assert_eq!(layer.config().momentum, None);
}

#[test]
fn a_batch_that_is_not_finite_may_leave_the_running_statistics_of_its_channel_alone() {
    for (non_finite, kept) in [(NonFinite::Propagate, false), (NonFinite::Skip, true)] {
        let mut layer = layer(Config::new(2).with_momentum(Some(1.0)).with_non_finite(non_finite));
        forward(&mut layer, [f32::INFINITY, -1.0, 3.0, 2.0]).unwrap();
        let state = layer.state(&()).unwrap();
        let (mean, var) = (state.running_mean.unwrap(), state.running_var.unwrap());
        if kept {
            assert_eq!((mean[0], var[0]), (0.0, 1.0));
        } else {
            assert!(!mean[0].is_finite() && !var[0].is_finite(), "{} {}", mean[0], var[0]);
        }
        assert_eq!((mean[1], var[1], state.num_batches_tracked), (0.5, 4.5, Some(1)));
    }
}

#[test]
fn training_may_leave_the_running_statistics_untouched() {
    let mut layer = layer(Config::new(2));
    let before = layer.state(&()).unwrap();
    layer.set_updates_running_stats(false);
    let (saved, y) = forward(&mut layer, X).unwrap();
    assert_eq!((layer.state(&()).unwrap(), saved.scope()), (before.clone(), Scope::Group));
    layer.set_updates_running_stats(true);
    assert_eq!(forward(&mut layer, X).unwrap().1, y);
    assert_ne!(layer.state(&()).unwrap(), before);
}

/// Memory of a host is a `Vec`, which a caller may replace.
#[test]
fn parameters_of_another_length_are_refused_before_a_state_is_saved_or_loaded() {
    let mut layer = layer(Config::new(3));
    let state = layer.state(&()).unwrap();
    *layer.bias_mut().unwrap() = vec![1.0; 2];
    let wrong =
        |kind: ErrorKind| matches!(kind, ErrorKind::Length { tensor: Tensor::Bias, expected: 3, got: 2 });
    assert!(wrong(kind(layer.state(&()))));
    let weights = State { weight: Some(vec![5.0; 3]), ..state.clone() };
    assert!(wrong(kind(layer.load_state(&(), &weights))));
    assert_eq!(layer.weight().unwrap(), &[1.0; 3], "nothing was written");
    *layer.bias_mut().unwrap() = vec![1.0; 3];
    layer.load_state(&(), &state).unwrap();
    assert_eq!(layer.state(&()).unwrap(), state);
}

#[test]
fn a_layer_without_parameters_has_none_to_change() {
    let mut layer = layer(Config::new(2).with_affine(false));
    let (x, mut y) = ([1.0, 2.0, 3.0, 5.0], [0.0; 4]);
    let view = |x| View::channels_first(x, &[2, 2]);
    let saved =
        layer.forward::<f32>(&(), view(&x[..]), ViewMut::channels_first(&mut y[..], &[2, 2])).unwrap();
    assert!(layer.weight_mut().is_none() && layer.bias_mut().is_none());
    layer.recompute::<f32>(&(), &saved, view(&x[..]), ViewMut::channels_first(&mut y[..], &[2, 2])).unwrap();
}
