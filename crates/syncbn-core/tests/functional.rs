//! The layer over borrowed memory: what it saves leaves as vectors and numbers and comes back, running statistics move apart from the
//! pass, and what does not fit is refused by name before any work.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use example_backend::Plain;
use syncbn_core::functional::{Backward, Forward, Recompute, Statistics, UpdateRunning};
use syncbn_core::{
    Config, Error, ErrorKind, FunctionalBatchNorm, Gradients, NonFinite, RunningMut, SavedRef, SavedToken,
    Scope, SingleRank, Tensor, View, ViewMut, saved_len,
};

type Layer = FunctionalBatchNorm<Plain, f32>;

const SHAPE: [usize; 2] = [3, 2];
const X: [f32; 6] = [0.5, -1.0, 3.0, 2.0, 0.0, 1.0];
const DY: [f32; 6] = [1.0, 0.5, -1.0, 0.0, 0.5, 0.25];
const WORDS: usize = saved_len(2);

fn layer() -> Layer {
    Layer::new("bn", Config::new(2), Plain, &(), SingleRank).unwrap()
}

fn x<'a>() -> View<'a, Plain, f32> {
    View::channels_first(&X[..], &SHAPE).unwrap()
}

fn dy<'a>() -> View<'a, Plain, f32> {
    View::channels_first(&DY[..], &SHAPE).unwrap()
}

fn out(memory: &mut [f32]) -> ViewMut<'_, Plain, f32> {
    ViewMut::channels_first(memory, &SHAPE).unwrap()
}

/// The lengths of the vectors that a call is given.
#[derive(Clone, Copy)]
struct Lengths {
    weight: usize,
    bias: usize,
    mean: usize,
    var: usize,
    tracked: usize,
    saved: usize,
}

const RIGHT: Lengths = Lengths { weight: 2, bias: 2, mean: 2, var: 2, tracked: 1, saved: WORDS };

struct Running {
    mean: Vec<f32>,
    var: Vec<f32>,
    tracked: Vec<i64>,
}

impl Running {
    fn new(lengths: Lengths) -> Self {
        Self { mean: vec![0.5; lengths.mean], var: vec![2.0; lengths.var], tracked: vec![3; lengths.tracked] }
    }

    fn lend(&mut self) -> RunningMut<'_, Plain, f32> {
        RunningMut {
            mean: &mut self.mean,
            var: &mut self.var,
            num_batches_tracked: &mut self.tracked,
            momentum: Some(0.3),
            non_finite: NonFinite::Propagate,
        }
    }
}

/// A forward pass with the group's statistics.
struct Trained {
    token: SavedToken,
    saved: Vec<f64>,
    y: [f32; 6],
    running: Running,
}

fn train(
    layer: &Layer,
    lengths: Lengths,
    update: bool,
) -> (Result<SavedToken, Error>, Vec<f64>, [f32; 6], Running) {
    let (weight, bias) = (vec![1.5; lengths.weight], vec![0.25; lengths.bias]);
    let (mut saved, mut y, mut running) = (vec![0.0; lengths.saved], [0.0; 6], Running::new(lengths));
    let statistics = Statistics::Group { running: update.then(|| running.lend()) };
    let args = Forward::new(x(), out(&mut y), statistics, &mut saved[..]).affine(Some(&weight), Some(&bias));
    let token = layer.forward(&(), args);
    (token, saved, y, running)
}

fn trained(layer: &Layer, update: bool) -> Trained {
    let (token, saved, y, running) = train(layer, RIGHT, update);
    Trained { token: token.unwrap(), saved, y, running }
}

fn backward(layer: &Layer, token: SavedToken, saved: &[f64]) -> Result<[Vec<f32>; 3], Error> {
    let (mut dx, mut d_weight, mut d_bias) = ([0.0; 6], [0.0; 2], [0.0; 2]);
    let gradients = Gradients::OutOfPlace { dy: dy(), dx: out(&mut dx) };
    let args = Backward::new(SavedRef { token, mem: saved }, x(), gradients)
        .weight(Some(&[1.5, 1.5]))
        .parameters(Some(&mut d_weight), Some(&mut d_bias));
    layer.backward(&(), args)?;
    Ok([dx.to_vec(), d_weight.to_vec(), d_bias.to_vec()])
}

fn update(layer: &Layer, token: SavedToken, saved: &[f64], running: &mut Running) -> Result<(), Error> {
    layer.update_running(&(), UpdateRunning::new(SavedRef { token, mem: saved }, running.lend()))
}

#[test]
fn what_a_forward_pass_saved_can_be_taken_apart_dropped_made_again_and_gone_back_through() {
    let layer = layer();
    let Trained { token, saved, .. } = trained(&layer, true);
    let expected = backward(&layer, token, &saved).unwrap();
    // As a framework keeps it: tensors of its own, and a few numbers.
    let words = token.to_words();
    let (statistics, count) = saved.split_at(6);
    let [mean, var, invstd] = [0, 2, 4].map(|at| statistics[at..at + 2].to_vec());
    let count = count.to_vec();
    drop(saved);
    assert_eq!((mean.len(), var.len(), invstd.len(), &count[..]), (2, 2, 2, &[3.0][..]));
    let again = [mean, var, invstd, count].concat();
    let got = backward(&layer, SavedToken::from_words(words).unwrap(), &again).unwrap();
    assert_eq!(got, expected);
}

#[test]
fn a_recomputation_gives_the_bits_of_the_first_time() {
    let layer = layer();
    let Trained { token, saved, y, .. } = trained(&layer, true);
    let mut again = [0.0; 6];
    let args = Recompute::new(SavedRef { token, mem: &saved[..] }, x(), out(&mut again))
        .affine(Some(&[1.5, 1.5]), Some(&[0.25, 0.25]));
    layer.recompute(&(), args).unwrap();
    assert_eq!(again, y);
}

#[test]
fn running_statistics_updated_apart_have_the_bits_of_those_updated_by_the_pass() {
    let layer = layer();
    let within = trained(&layer, true);
    let mut apart = trained(&layer, false);
    let untouched = Running::new(RIGHT);
    assert_eq!((&apart.running.mean, &apart.running.tracked), (&untouched.mean, &untouched.tracked));
    update(&layer, apart.token, &apart.saved, &mut apart.running).unwrap();
    assert_eq!((apart.y, apart.saved), (within.y, within.saved));
    assert_eq!(
        (apart.running.mean, apart.running.var, apart.running.tracked),
        (within.running.mean, within.running.var, within.running.tracked)
    );
}

#[test]
fn one_value_serves_many_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let layer = layer();
    shared(&layer);
    let expected = trained(&layer, true).y;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| assert_eq!(trained(&layer, true).y, expected)));
        }
    });
}

fn kind<R>(result: Result<R, Error>) -> ErrorKind {
    match result {
        Ok(_) => panic!("nothing was refused"),
        Err(error) => *error.kind,
    }
}

#[test]
fn statistics_that_are_not_the_groups_move_no_running_ones() {
    let layer = layer();
    let mut running = Running::new(RIGHT);
    for frozen in [false, true] {
        let (mut saved, mut y) = ([0.0; WORDS], [0.0; 6]);
        let given = Statistics::Frozen { mean: &[0.0; 2][..], var: &[1.0; 2][..] };
        let statistics = if frozen { given } else { Statistics::Local };
        let args = Forward::new(x(), out(&mut y), statistics, &mut saved[..]);
        let token = layer.forward(&(), args).unwrap();
        let ErrorKind::NotTheGroups { scope } = kind(update(&layer, token, &saved, &mut running)) else {
            panic!("another error")
        };
        assert!(scope == token.scope() && scope != Scope::Group);
    }
    assert_eq!(running.tracked, [3]);
}

#[test]
fn what_another_layer_or_group_saved_is_refused_everywhere() {
    let (mut mine, other) = (layer(), layer());
    let foreign = trained(&other, true);
    let own = trained(&mine, true);
    let mut running = Running::new(RIGHT);
    assert!(matches!(kind(backward(&mine, foreign.token, &foreign.saved)), ErrorKind::ForeignSaved));
    let moved = update(&mine, foreign.token, &foreign.saved, &mut running);
    assert!(matches!(kind(moved), ErrorKind::ForeignSaved));
    mine.set_group(SingleRank);
    assert!(matches!(kind(backward(&mine, own.token, &own.saved)), ErrorKind::OtherGroup { .. }));
    let moved = update(&mine, own.token, &own.saved, &mut running);
    assert!(matches!(kind(moved), ErrorKind::OtherGroup { .. }));
    assert_eq!(running.tracked, [3]);
}

fn refused<R>(result: Result<R, Error>, named: Tensor, numbers: (usize, usize)) {
    let ErrorKind::Length { tensor, expected, got } = kind(result) else { panic!("{named}: another error") };
    assert_eq!((tensor, (expected, got)), (named, numbers));
}

#[test]
fn a_training_forward_names_the_vector_that_does_not_fit() {
    let layer = layer();
    for (lengths, named, numbers) in [
        (Lengths { weight: 3, ..RIGHT }, Tensor::Weight, (2, 3)),
        (Lengths { bias: 1, ..RIGHT }, Tensor::Bias, (2, 1)),
        (Lengths { mean: 1, ..RIGHT }, Tensor::RunningMean, (2, 1)),
        (Lengths { var: 3, ..RIGHT }, Tensor::RunningVar, (2, 3)),
        (Lengths { tracked: 2, ..RIGHT }, Tensor::NumBatchesTracked, (1, 2)),
        (Lengths { saved: 8, ..RIGHT }, Tensor::Saved, (WORDS, 8)),
    ] {
        let (result, _, y, running) = train(&layer, lengths, true);
        refused(result, named, numbers);
        assert_eq!((y, running.tracked[0]), ([0.0; 6], 3), "{named}: work was done");
    }
}

#[test]
fn a_frozen_forward_names_the_statistics_that_do_not_fit() {
    for (mean, var, named) in [(3, 2, Tensor::RunningMean), (2, 3, Tensor::RunningVar)] {
        let (mean, var) = (vec![0.0; mean], vec![1.0; var]);
        let (mut y, mut saved) = ([0.0; 6], [0.0; WORDS]);
        let statistics = Statistics::Frozen { mean: &mean[..], var: &var[..] };
        let args = Forward::new(x(), out(&mut y), statistics, &mut saved[..]);
        refused(layer().forward(&(), args), named, (2, 3));
    }
}

#[test]
fn a_recomputation_names_the_vector_that_does_not_fit() {
    let layer = layer();
    let Trained { token, saved, .. } = trained(&layer, true);
    for (weight, bias, words, named, numbers) in [
        (3, 2, WORDS, Tensor::Weight, (2, 3)),
        (2, 3, WORDS, Tensor::Bias, (2, 3)),
        (2, 2, WORDS - 1, Tensor::Saved, (WORDS, WORDS - 1)),
    ] {
        let (weight, bias, mut y) = (vec![1.0; weight], vec![1.0; bias], [0.0; 6]);
        let saved = SavedRef { token, mem: &saved[..words] };
        let args = Recompute::new(saved, x(), out(&mut y)).affine(Some(&weight), Some(&bias));
        refused(layer.recompute(&(), args), named, numbers);
    }
}

#[test]
fn a_backward_names_the_vector_that_does_not_fit() {
    let layer = layer();
    let Trained { token, saved, .. } = trained(&layer, true);
    for (weight, d_weight, d_bias, words, named, numbers) in [
        (3, 2, 2, WORDS, Tensor::Weight, (2, 3)),
        (2, 3, 2, WORDS, Tensor::DWeight, (2, 3)),
        (2, 2, 3, WORDS, Tensor::DBias, (2, 3)),
        (2, 2, 2, 1, Tensor::Saved, (WORDS, 1)),
    ] {
        let (weight, mut d_weight, mut d_bias) = (vec![1.0; weight], vec![0.0; d_weight], vec![0.0; d_bias]);
        let mut dx = [0.0; 6];
        let gradients = Gradients::OutOfPlace { dy: dy(), dx: out(&mut dx) };
        let args = Backward::new(SavedRef { token, mem: &saved[..words] }, x(), gradients)
            .weight(Some(&weight))
            .parameters(Some(&mut d_weight), Some(&mut d_bias));
        refused(layer.backward(&(), args), named, numbers);
    }
}

#[test]
fn an_update_apart_names_what_does_not_fit() {
    let layer = layer();
    let Trained { token, saved, .. } = trained(&layer, true);
    for (lengths, named, numbers) in [
        (Lengths { mean: 1, ..RIGHT }, Tensor::RunningMean, (2, 1)),
        (Lengths { var: 3, ..RIGHT }, Tensor::RunningVar, (2, 3)),
        (Lengths { tracked: 2, ..RIGHT }, Tensor::NumBatchesTracked, (1, 2)),
    ] {
        refused(update(&layer, token, &saved, &mut Running::new(lengths)), named, numbers);
    }
    refused(update(&layer, token, &saved[1..], &mut Running::new(RIGHT)), Tensor::Saved, (WORDS, WORDS - 1));
    let mut running = Running::new(RIGHT);
    let bad = RunningMut { momentum: Some(1.5), ..running.lend() };
    let saved = SavedRef { token, mem: &saved[..] };
    assert!(matches!(kind(layer.update_running(&(), UpdateRunning::new(saved, bad))), ErrorKind::Config(_)));
}
