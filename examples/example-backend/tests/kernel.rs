//! One kernel alone, without a layer: how a backend is tested while it is written.

#![allow(clippy::expect_used, reason = "a test that cannot be set up fails")]

use example_backend::Plain;
use syncbn_core::backend::MomentsArgs;
use syncbn_core::{Backend, Dtype, Kernels, Pass, View};

#[test]
fn moments_of_two_channels() {
    let x = [1.0, -1.0, 2.0, 3.0, 6.0, 1.0];
    let Ok(mut workspace) = Plain.workspace(&(), 2, Dtype::F32);
    let x = View::<Plain, f32>::channels_first(&x[..], &[3, 2]).expect("it fits");
    let Ok(()) = Plain.moments(&(), MomentsArgs { x, workspace: &mut workspace });
    let mut message = [0.0; 9];
    let Ok(()) = Plain.read_message(&(), Pass::Forward, &mut workspace, &mut message);
    // m; the head and tail of m mean; the head of m mean^2, and its tail with M2.
    assert_eq!(message, [3.0, 9.0, 3.0, 0.0, 0.0, 27.0, 3.0, 14.0, 8.0]);
}
