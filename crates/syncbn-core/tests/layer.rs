//! What a layer lends and tells, besides its passes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use example_backend::Plain;
use syncbn_core::{Config, Scope, SyncBatchNorm, View, ViewMut};

type Layer = SyncBatchNorm<Plain, f32>;

fn layer(config: Config) -> Layer {
    Layer::local("bn1", config, Plain, &()).unwrap()
}

#[test]
fn the_modes_are_what_they_were_set_to() {
    let mut layer = layer(Config::new(2));
    assert_eq!((layer.is_training(), layer.is_frozen()), (true, false));
    layer.set_training(false);
    layer.set_frozen(&(), true).unwrap();
    assert_eq!((layer.is_training(), layer.is_frozen()), (false, true));
    layer.set_training(true);
    layer.set_frozen(&(), false).unwrap();
    assert_eq!((layer.is_training(), layer.is_frozen()), (true, false));
}

#[test]
fn name_and_settings_are_those_it_was_made_with() {
    let config = Config { eps: 1e-3, affine: false, ..Config::new(2) };
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
    let mut without = layer(Config { affine: false, ..Config::new(2) });
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
