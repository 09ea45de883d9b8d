//! The passes over borrowed memory: a vector of another length than the channels is refused before any work, with its name.
//!
//! Deliberately not here: what the passes compute, which the kit's laws hold through the layer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use example_backend::Plain;
use syncbn_core::backward::Gradients;
use syncbn_core::{
    Backward, Error, ErrorKind, Forward, LayerTag, Recompute, RunningMut, Saved, Site, Solo, Statistics,
    Sums, Tensor, View, ViewMut, backward, forward, recompute,
};

const SHAPE: [usize; 2] = [3, 2];
const X: [f32; 6] = [0.5, -1.0, 3.0, 2.0, 0.0, 1.0];

fn on_a_site<R>(body: impl FnOnce(&Site<'_, Plain>) -> R) -> R {
    thread_local! {
        static LAYER: LayerTag = LayerTag::new("bn");
    }
    LAYER.with(|layer| body(&Site { layer, backend: &Plain, queue: &(), communicator: &Solo }))
}

fn sums(channels: usize) -> Sums<Plain> {
    Sums::new(&Plain, &(), channels).unwrap()
}

fn refused<R>(result: Result<R, Error>, named: Tensor, numbers: (usize, usize)) {
    let Err(error) = result else { panic!("{named} of {} elements is accepted", numbers.1) };
    let ErrorKind::Length { tensor, expected, got } = *error.kind else { panic!("{error}") };
    assert_eq!((tensor, (expected, got)), (named, numbers));
}

/// The lengths of the vectors that a forward pass is given.
#[derive(Clone, Copy)]
struct Lengths {
    weight: usize,
    bias: usize,
    mean: usize,
    var: usize,
    count: usize,
    sums: usize,
}

const RIGHT: Lengths = Lengths { weight: 2, bias: 2, mean: 2, var: 2, count: 1, sums: 2 };

fn train(lengths: Lengths) -> (Result<Saved<Plain>, Error>, i64) {
    let vector = |len: usize| vec![1.0_f32; len];
    let (weight, bias) = (vector(lengths.weight), vector(lengths.bias));
    let (mut mean, mut var, mut count) = (vector(lengths.mean), vector(lengths.var), vec![0; lengths.count]);
    let mut y = [0.0; 6];
    let momentum = Some(0.1);
    let running =
        RunningMut { mean: &mut mean[..], var: &mut var[..], num_batches_tracked: &mut count[..], momentum };
    let args = Forward::<Plain, f32> {
        x: View::channels_first(&X[..], &SHAPE).unwrap(),
        y: ViewMut::channels_first(&mut y[..], &SHAPE).unwrap(),
        statistics: Statistics::Group { running: Some(running) },
        weight: Some(&weight),
        bias: Some(&bias),
        eps: 1e-5,
    };
    let result = on_a_site(|site| forward(site, &mut sums(lengths.sums), args));
    (result, count.first().copied().unwrap_or_default())
}

#[test]
fn a_training_forward_names_the_vector_that_does_not_fit() {
    assert!(train(RIGHT).0.is_ok());
    for (lengths, named, numbers) in [
        (Lengths { weight: 3, ..RIGHT }, Tensor::Weight, (2, 3)),
        (Lengths { bias: 1, ..RIGHT }, Tensor::Bias, (2, 1)),
        (Lengths { mean: 1, ..RIGHT }, Tensor::RunningMean, (2, 1)),
        (Lengths { var: 3, ..RIGHT }, Tensor::RunningVar, (2, 3)),
        (Lengths { count: 2, ..RIGHT }, Tensor::NumBatchesTracked, (1, 2)),
        (Lengths { sums: 3, ..RIGHT }, Tensor::Sums, (2, 3)),
    ] {
        let (result, count) = train(lengths);
        refused(result, named, numbers);
        assert_eq!(count, 0, "{named}: the batch was counted");
    }
}

#[test]
fn a_frozen_forward_names_the_statistics_that_do_not_fit() {
    for (mean, var, named) in [(3, 2, Tensor::RunningMean), (2, 3, Tensor::RunningVar)] {
        let (mean, var) = (vec![0.0; mean], vec![1.0; var]);
        let mut y = [0.0; 6];
        let args = Forward::<Plain, f32> {
            x: View::channels_first(&X[..], &SHAPE).unwrap(),
            y: ViewMut::channels_first(&mut y[..], &SHAPE).unwrap(),
            statistics: Statistics::Frozen { mean: &mean[..], var: &var[..] },
            weight: None,
            bias: None,
            eps: 1e-5,
        };
        refused(on_a_site(|site| forward(site, &mut sums(2), args)), named, (2, 3));
    }
}

#[test]
fn a_recomputation_names_the_parameter_that_does_not_fit() {
    let saved = train(RIGHT).0.unwrap();
    for (weight, bias, named) in [(3, 2, Tensor::Weight), (2, 3, Tensor::Bias)] {
        let (weight, bias) = (vec![1.0; weight], vec![1.0; bias]);
        let mut y = [0.0; 6];
        let args = Recompute::<Plain, f32> {
            saved: &saved,
            x: View::channels_first(&X[..], &SHAPE).unwrap(),
            y: ViewMut::channels_first(&mut y[..], &SHAPE).unwrap(),
            weight: Some(&weight),
            bias: Some(&bias),
            eps: 1e-5,
        };
        refused(on_a_site(|site| recompute(site, args)), named, (2, 3));
    }
}

#[test]
fn a_backward_names_the_vector_that_does_not_fit() {
    let saved = train(RIGHT).0.unwrap();
    for (weight, d_weight, d_bias, scratch, named) in [
        (3, 2, 2, 2, Tensor::Weight),
        (2, 3, 2, 2, Tensor::DWeight),
        (2, 2, 3, 2, Tensor::DBias),
        (2, 2, 2, 3, Tensor::Sums),
    ] {
        let weight = vec![1.0; weight];
        let (mut d_weight, mut d_bias, mut dx) = (vec![0.0; d_weight], vec![0.0; d_bias], [0.0; 6]);
        let args = Backward::<Plain, f32> {
            saved: &saved,
            x: View::channels_first(&X[..], &SHAPE).unwrap(),
            gradients: Gradients::Apart {
                dy: View::channels_first(&X[..], &SHAPE).unwrap(),
                dx: ViewMut::channels_first(&mut dx[..], &SHAPE).unwrap(),
            },
            weight: Some(&weight),
            d_weight: Some(&mut d_weight[..]),
            d_bias: Some(&mut d_bias[..]),
        };
        refused(on_a_site(|site| backward(site, &mut sums(scratch), args)), named, (2, 3));
    }
}
