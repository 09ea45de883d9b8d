//! Slices, vectors and arrays with a shape are read and written by every pass as views are.

#![allow(clippy::unwrap_used)] // tests panic

use syncbn_core::{
    Config, ErrorKind, Gradients, ParamGradients, ShapeError, SyncBatchNorm, Tensor, View, ViewMut,
};
use syncbn_cpu::Cpu;

const SHAPE: [usize; 3] = [4, 3, 5];

fn layer() -> SyncBatchNorm<Cpu, f32> {
    SyncBatchNorm::local("bn", Config::new(3), Cpu, &()).unwrap()
}

#[test]
fn vectors_with_a_shape_give_what_views_give() {
    let x: Vec<f32> = (0..60).map(|i| (i * i % 17) as f32).collect();
    let dy: Vec<f32> = x.iter().map(|x| x.sin()).collect();

    let (mut y, mut again, mut dx) = (vec![0.0; 60], vec![0.0; 60], vec![0.0; 60]);
    let mut bn = layer();
    let saved = bn.forward(&(), (&x, SHAPE), (&mut y, SHAPE)).unwrap();
    bn.recompute(&(), &saved, (&x, SHAPE), (&mut again, SHAPE)).unwrap();
    let gradients = Gradients::out_of_place((&dy, SHAPE), (&mut dx, SHAPE));
    bn.backward(&(), &saved, (&x, SHAPE), gradients, ParamGradients::default()).unwrap();

    let (mut expected_y, mut expected_dx) = (vec![0.0; 60], dy);
    let mut bn = layer();
    let x = || View::channels_first(&x[..], &SHAPE);
    let saved = bn.forward(&(), x(), ViewMut::channels_first(&mut expected_y[..], &SHAPE)).unwrap();
    let gradients = Gradients::in_place((&mut expected_dx[..], &SHAPE[..]));
    bn.backward(&(), &saved, x(), gradients, ParamGradients::default()).unwrap();
    assert_eq!((y, dx), (expected_y.clone(), expected_dx));
    assert_eq!(again, expected_y);
}

#[test]
fn memory_that_is_too_short_for_its_shape_is_a_typed_error_that_names_the_tensor() {
    let (x, mut y) = ([0.0_f32; 60], [0.0_f32; 59]);
    let error = layer().forward(&(), (&x, SHAPE), (&mut y, SHAPE)).unwrap_err();
    let ErrorKind::Shape { tensor: Tensor::Y, source } = &*error.kind else { panic!("{error}") };
    assert!(matches!(source, ShapeError::Memory { needed: 60, got: 59, .. }), "{source}");
}
