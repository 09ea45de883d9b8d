//! What core asks of a backend, and in which order, and what it makes of a refusal.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

mod clerk;

use clerk::{Clerk, Layer, Refusal, backward, forward, layer, read, recompute};
use syncbn_core::{Error, ErrorKind, Geometry, Gradients, ParamGradients, SavedStatistics, Stage};

fn backward_parameters(layer: &mut Layer, saved: &SavedStatistics<Clerk>, weight: bool, bias: bool) {
    let wanted = ParamGradients { weight: weight.then_some(2), bias: bias.then_some(2) };
    layer.backward(&(), saved, read(), Gradients::parameters_only(read()), wanted).unwrap();
}

#[test]
fn a_training_step_sums_between_its_kernels_and_flushes_each_pass_once() {
    let clerk = Clerk::default();
    let mut layer = layer(&clerk).unwrap();
    clerk.asked();
    let saved = forward(&mut layer).unwrap();
    assert_eq!(clerk.asked(), ["saved", "moments", "sum forward", "normalize", "flush"]);
    recompute(&layer, &saved).unwrap();
    assert_eq!(clerk.asked(), ["normalize", "flush"]);
    backward(&mut layer, &saved).unwrap();
    assert_eq!(clerk.asked(), ["grad_sums", "sum backward", "grad_input", "flush"]);
    backward_parameters(&mut layer, &saved, false, false);
    assert_eq!(clerk.asked(), ["grad_sums", "sum backward", "flush"]);
}

#[test]
fn frozen_statistics_ask_for_what_is_wanted_and_no_more() {
    let clerk = Clerk::default();
    let mut layer = layer(&clerk).unwrap();
    layer.set_training(false);
    clerk.asked();
    let saved = forward(&mut layer).unwrap();
    assert_eq!(clerk.asked(), ["saved", "normalize", "flush"]);
    backward(&mut layer, &saved).unwrap();
    assert_eq!(clerk.asked(), ["grad_input", "flush"]);
    for (weight, bias) in [(true, true), (true, false), (false, true)] {
        backward_parameters(&mut layer, &saved, weight, bias);
        assert_eq!(clerk.asked(), ["grad_sums", "flush"], "weight {weight}, bias {bias}");
    }
    backward_parameters(&mut layer, &saved, false, false);
    assert_eq!(clerk.asked(), ["flush"]);
}

#[test]
fn prepare_reaches_the_backend() {
    let clerk = Clerk::default();
    let layer = layer(&clerk).unwrap();
    clerk.asked();
    let geometry = Geometry::channels_first(&[2, 2]).unwrap();
    layer.prepare::<f32>(&(), &geometry).unwrap();
    assert_eq!(clerk.asked(), ["prepare"]);
    clerk.refuse(Some("prepare"));
    refused(layer.prepare::<f32>(&(), &geometry), Stage::Preparation, "prepare");
}

/// A backend's refusal is an error of its stage, with the layer's name and the refusal itself in its kind.
fn refused<R>(result: Result<R, Error>, at: Stage, what: &'static str) {
    let Err(error) = result else { panic!("{what} was refused, and the pass succeeded") };
    assert_eq!((&*error.layer, error.rank, error.world_size), ("bn", 1, 3));
    let ErrorKind::Backend { stage, source } = &*error.kind else { panic!("{error}") };
    assert_eq!((*stage, source.downcast_ref::<Refusal>()), (at, Some(&Refusal(what))));
}

#[test]
fn a_refusal_ends_the_pass_and_names_its_stage() {
    let clerk = Clerk::default();
    let mut layer = layer(&clerk).unwrap();
    let saved = forward(&mut layer).unwrap();
    for (what, stage) in [
        ("saved", Stage::Allocation),
        ("moments", Stage::Moments),
        ("normalize", Stage::Normalize),
        ("flush", Stage::Flush),
    ] {
        clerk.asked();
        clerk.refuse(Some(what));
        refused(forward(&mut layer), stage, what);
        assert_eq!(clerk.asked().last(), Some(&what), "after the refusal something was asked");
    }
    for (what, stage) in
        [("grad_sums", Stage::GradSums), ("grad_input", Stage::GradInput), ("flush", Stage::Flush)]
    {
        clerk.asked();
        clerk.refuse(Some(what));
        refused(backward(&mut layer, &saved), stage, what);
        assert_eq!(clerk.asked().last(), Some(&what), "after the refusal something was asked");
    }
    refused(recompute(&layer, &saved), Stage::Flush, "flush");
    clerk.refuse(None);
    forward(&mut layer).unwrap();
}

#[test]
fn memory_that_the_device_does_not_give_or_fill_is_named() {
    let clerk = Clerk::default();
    for what in ["upload", "workspace"] {
        clerk.refuse(Some(what));
        refused(layer(&clerk), Stage::Allocation, what);
    }
    clerk.refuse(None);
    let mut layer = layer(&clerk).unwrap();
    let state = layer.state(&()).unwrap();
    clerk.refuse(Some("read"));
    refused(layer.state(&()), Stage::Download, "read");
    clerk.refuse(Some("write"));
    refused(layer.load_state(&(), &state), Stage::Upload, "write");
    clerk.refuse(None);
    let half = forward(&mut layer).unwrap_err();
    assert!(matches!(*half.kind, ErrorKind::HalfLoaded), "half a state was loaded: {half}");
    layer.load_state(&(), &state).unwrap();
    forward(&mut layer).unwrap();
}
