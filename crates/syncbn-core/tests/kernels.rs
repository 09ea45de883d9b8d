//! A kernel can be called alone: its arguments are plain, and whoever writes a backend tests one without a layer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use example_backend::{Plain, Workspace};
use syncbn_core::backend::{
    BackwardArgs, ForwardArgs, Grad, GradInputArgs, GradSource, GradSumsArgs, MomentsArgs, NormalizeArgs,
    Source,
};
use syncbn_core::{
    Backend, CommError, CommErrorKind, Dtype, Gradients, Kernels, Meeting, NonFinite, Pass, PassError,
    RunningMut, View, ViewMut, saved_len,
};

const SHAPE: [usize; 2] = [3, 2];
const X: [f32; 6] = [1.0, -1.0, 2.0, 3.0, 6.0, 1.0];
const DY: [f32; 6] = [1.0, 0.5, -1.0, 0.0, 0.5, 0.25];

fn view(memory: &[f32]) -> View<'_, Plain, f32> {
    View::channels_first(memory, &SHAPE).unwrap()
}

fn view_mut(memory: &mut [f32]) -> ViewMut<'_, Plain, f32> {
    ViewMut::channels_first(memory, &SHAPE).unwrap()
}

fn workspace() -> Workspace {
    Plain.workspace(&(), 2, Dtype::F32).unwrap()
}

/// Mean 3 and 1; variance (4 + 1 + 9)/3 and (4 + 4 + 0)/3.
fn saved() -> Vec<f64> {
    let var = [14.0_f64 / 3.0, 8.0 / 3.0];
    let invstd = var.map(|var| (var + 1e-5).sqrt().recip());
    [&[3.0, 1.0][..], &var, &invstd, &[3.0]].concat()
}

#[test]
fn moments_alone_write_a_message() {
    let (mut workspace, mut message) = (workspace(), [0.0; 9]);
    Plain.moments(&(), MomentsArgs { x: view(&X), workspace: &mut workspace }).unwrap();
    Plain.read_message(&(), Pass::Forward, &mut workspace, &mut message).unwrap();
    assert_eq!(message, [3.0, 9.0, 3.0, 0.0, 0.0, 27.0, 3.0, 14.0, 8.0]);
}

#[test]
fn normalize_alone_saves_normalises_and_updates() {
    let (mut workspace, mut y, mut got) = (workspace(), [0.0; 6], vec![0.0; saved_len(2)]);
    let (mut mean, mut var, mut tracked) = ([0.0; 2], [1.0; 2], [0_i64]);
    Plain.moments(&(), MomentsArgs { x: view(&X), workspace: &mut workspace }).unwrap();
    let running = RunningMut {
        mean: &mut mean[..],
        var: &mut var[..],
        num_batches_tracked: &mut tracked[..],
        momentum: Some(1.0),
        non_finite: NonFinite::Propagate,
    };
    let source =
        Source::Batch { workspace: &workspace, group: false, saved: &mut got[..], running: Some(running) };
    let (weight, bias) = (Some(&[2.0_f32, 0.0][..]), Some(&[0.0_f32, 5.0][..]));
    let args = NormalizeArgs { x: view(&X), y: view_mut(&mut y), source, weight, bias, eps: 1e-5 };
    Plain.normalize(&(), args).unwrap();
    assert_eq!(got, saved());
    let first = |x: f64| ((x - 3.0) * (got[4] * 2.0)) as f32;
    assert_eq!(y, [first(1.0), 5.0, first(2.0), 5.0, first(6.0), 5.0]);
    assert_eq!((mean, var, tracked), ([3.0, 1.0], [7.0, 4.0], [1]));
}

#[test]
fn gradient_kernels_alone_write_what_they_are_asked_for() {
    let (mut workspace, saved, mut d_bias, mut dx) = (workspace(), saved(), [0.0; 2], [0.0; 6]);
    let args = GradSumsArgs {
        x: view(&X),
        dy: view(&DY),
        saved: &saved[..],
        d_weight: None,
        d_bias: Some(&mut d_bias[..]),
        workspace: &mut workspace,
    };
    Plain.grad_sums(&(), args).unwrap();
    let mut message = [0.0; 4];
    Plain.read_message(&(), Pass::Backward, &mut workspace, &mut message).unwrap();
    assert_eq!((message, d_bias), ([0.5, 0.75, 0.5, -1.0], [0.5, 0.75]));
    let source = GradSource::Frozen;
    let grad = Grad::OutOfPlace { dy: view(&DY), dx: view_mut(&mut dx) };
    Plain
        .grad_input(&(), GradInputArgs { x: view(&X), grad, saved: &saved[..], source, weight: None })
        .unwrap();
    let frozen = |c: usize| (f64::from(DY[c]) * saved[4 + c % 2]) as f32;
    assert_eq!(dx, [0, 1, 2, 3, 4, 5].map(frozen));
}

fn forward(meeting: Meeting<'_, Plain>) -> Result<(Vec<f64>, [f32; 6]), PassError<std::convert::Infallible>> {
    let (mut workspace, mut y, mut got) = (workspace(), [0.0; 6], vec![0.0; saved_len(2)]);
    let args = ForwardArgs {
        x: view(&X),
        y: view_mut(&mut y),
        weight: None,
        bias: None,
        eps: 1e-5,
        running: None,
        saved: &mut got[..],
        workspace: &mut workspace,
    };
    Plain.forward(&(), args, meeting).map(|()| (got, y))
}

#[test]
fn a_whole_pass_alone_does_not_sum_and_one_between_sums_once() {
    let (alone, y) = forward(Meeting::Alone).unwrap();
    assert_eq!(alone, saved());
    let mut sums = 0;
    // Two ranks of the same batch.
    let mut sum = |workspace: &mut Workspace| {
        sums += 1;
        let mut message = [0.0; 9];
        let Ok(()) = Plain.read_message(&(), Pass::Forward, workspace, &mut message);
        message = message.map(|number| 2.0 * number);
        let Ok(()) = Plain.write_message(&(), Pass::Forward, workspace, &message);
        Ok(())
    };
    let (twice, y_of_two) = forward(Meeting::Between(&mut sum)).unwrap();
    assert_eq!((twice[..2].to_vec(), twice[6], sums), (alone[..2].to_vec(), 6.0, 1));
    assert!(y.iter().zip(y_of_two).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn a_sum_that_fails_ends_the_pass_with_its_error() {
    let kind = CommErrorKind::Left { rank: 1, panicked: true };
    let error = CommError { rank: 0, world_size: 2, call: None, late: false, kind };
    let failed = forward(Meeting::Between(&mut |_| Err(error.clone())));
    assert!(matches!(failed, Err(PassError::Sum(CommError { rank: 0, .. }))));
    let (mut workspace, saved, mut dx) = (workspace(), saved(), [7.0; 6]);
    let args = BackwardArgs {
        x: view(&X),
        gradients: Gradients::OutOfPlace { dy: view(&DY), dx: view_mut(&mut dx) },
        saved: &saved[..],
        weight: None,
        d_weight: None,
        d_bias: None,
        workspace: &mut workspace,
    };
    let failed = Plain.backward(&(), args, Meeting::Between(&mut |_| Err(error.clone())));
    assert!(matches!(failed, Err(PassError::Sum(_))));
    assert_eq!(dx, [7.0; 6]);
}
