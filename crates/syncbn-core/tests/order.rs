//! What core asks of a backend, and in which order: a backend that computes nothing notes what it is asked, and fails where told.
//!
//! Deliberately not here: numbers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use std::mem::take;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use syncbn_core::backend::{GradInputArgs, GradSumsArgs, NormalizeArgs};
use syncbn_core::{
    Backend, Call, CommError, Communicator, Config, Error, ErrorKind, Geometry, Kernels, ParamGradients,
    Pass, Saved, Scalar, Stage, Storage, SyncBatchNorm, View, ViewMut,
};

#[derive(Clone, Default)]
struct Clerk(Arc<Mutex<Notes>>);

#[derive(Default)]
struct Notes {
    asked: Vec<&'static str>,
    refuses: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("no {0} today")]
struct Refusal(&'static str);

impl Clerk {
    fn note(&self, what: &'static str) -> Result<(), Refusal> {
        let mut notes = self.0.lock().unwrap();
        notes.asked.push(what);
        if notes.refuses == Some(what) { Err(Refusal(what)) } else { Ok(()) }
    }

    fn asked(&self) -> Vec<&'static str> {
        take(&mut self.0.lock().unwrap().asked)
    }

    fn refuse(&self, what: Option<&'static str>) {
        self.0.lock().unwrap().refuses = what;
    }
}

impl Backend for Clerk {
    type Queue = ();
    type Sums = ();
    type Saved = ();
    // Nobody reads or writes it, so memory is its length.
    type Mem<'a, T: Scalar> = usize;
    type MemMut<'a, T: Scalar> = usize;
    type Error = Refusal;

    fn mem_len<T: Scalar>(mem: &usize) -> usize {
        *mem
    }
    fn mem_mut_len<T: Scalar>(mem: &usize) -> usize {
        *mem
    }
    fn reborrow<T: Scalar>(mem: &usize) -> usize {
        *mem
    }
    fn reborrow_mut<T: Scalar>(mem: &mut usize) -> usize {
        *mem
    }
    fn as_mem<T: Scalar>(mem: &usize) -> usize {
        *mem
    }
    fn sums(&self, (): &(), _: usize) -> Result<(), Refusal> {
        self.note("sums")
    }
    fn saved(&self, (): &(), _: usize) -> Result<(), Refusal> {
        self.note("saved")
    }
    fn read_sums(&self, (): &(), _: Pass, (): &(), _: &mut [f64]) -> Result<(), Refusal> {
        self.note("read_sums")
    }
    fn write_sums(&self, (): &(), _: Pass, (): &mut (), _: &[f64]) -> Result<(), Refusal> {
        self.note("write_sums")
    }
    fn flush(&self, (): &()) -> Result<(), Refusal> {
        self.note("flush")
    }
}

impl Storage for Clerk {
    type Buffer<T: Scalar> = Vec<T>;

    fn upload<T: Scalar>(&self, (): &(), values: &[T]) -> Result<Vec<T>, Refusal> {
        self.note("upload").map(|()| values.to_vec())
    }
    fn write<T: Scalar>(&self, (): &(), _: &mut Vec<T>, _: &[T]) -> Result<(), Refusal> {
        self.note("write")
    }
    fn download<T: Scalar>(&self, (): &(), buffer: &Vec<T>) -> Result<Vec<T>, Refusal> {
        self.note("download").map(|()| buffer.clone())
    }
    fn mem<T: Scalar>(buffer: &Vec<T>) -> usize {
        buffer.len()
    }
    fn mem_mut<T: Scalar>(buffer: &mut Vec<T>) -> usize {
        buffer.len()
    }
}

impl Kernels<f32> for Clerk {
    fn prepare(&self, (): &(), _: &Geometry) -> Result<(), Refusal> {
        self.note("prepare")
    }
    fn moments(&self, (): &(), _: View<'_, Self, f32>, (): &mut ()) -> Result<(), Refusal> {
        self.note("moments")
    }
    fn normalize(&self, (): &(), _: NormalizeArgs<'_, Self, f32>) -> Result<(), Refusal> {
        self.note("normalize")
    }
    fn grad_sums(&self, (): &(), _: GradSumsArgs<'_, Self, f32>) -> Result<(), Refusal> {
        self.note("grad_sums")
    }
    fn grad_input(&self, (): &(), _: GradInputArgs<'_, Self, f32>) -> Result<(), Refusal> {
        self.note("grad_input")
    }
}

/// Notes the sum among the kernels.
struct Group(Clerk);

impl Communicator<Clerk> for Group {
    fn rank(&self) -> usize {
        1
    }
    fn world_size(&self) -> NonZeroUsize {
        NonZeroUsize::MIN.saturating_add(2)
    }
    fn all_reduce_sum(&self, call: &Call, _: &Clerk, (): &(), (): &mut ()) -> Result<(), CommError> {
        let sum = if call.pass == Pass::Forward { "sum forward" } else { "sum backward" };
        self.0.note(sum).unwrap();
        Ok(())
    }
    fn status(&self) -> Result<(), CommError> {
        Ok(())
    }
}

type Layer = SyncBatchNorm<Clerk, f32>;

fn layer(clerk: &Clerk) -> Result<Layer, Error> {
    Layer::new("bn", Config::new(2), clerk.clone(), &(), Arc::new(Group(clerk.clone())))
}

fn read() -> View<'static, Clerk, f32> {
    View::channels_first(4, &[2, 2]).unwrap()
}

fn written() -> ViewMut<'static, Clerk, f32> {
    ViewMut::channels_first(4, &[2, 2]).unwrap()
}

fn forward(layer: &mut Layer) -> Result<Saved<Clerk>, Error> {
    layer.forward(&(), read(), written())
}

fn recompute(layer: &Layer, saved: &Saved<Clerk>) -> Result<(), Error> {
    layer.recompute(&(), saved, read(), written())
}

fn backward(layer: &mut Layer, saved: &Saved<Clerk>) -> Result<(), Error> {
    layer.backward(&(), saved, read(), read(), written(), ParamGradients::default())
}

fn backward_parameters(layer: &mut Layer, saved: &Saved<Clerk>, weight: bool, bias: bool) {
    let wanted = ParamGradients { weight: weight.then_some(2), bias: bias.then_some(2) };
    layer.backward_parameters(&(), saved, read(), read(), wanted).unwrap();
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

/// A backend's refusal is an error of its stage, with the layer's name and the refusal itself as its source.
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
    for what in ["upload", "sums"] {
        clerk.refuse(Some(what));
        refused(layer(&clerk), Stage::Allocation, what);
    }
    clerk.refuse(None);
    let mut layer = layer(&clerk).unwrap();
    let state = layer.state(&()).unwrap();
    clerk.refuse(Some("download"));
    refused(layer.state(&()), Stage::Download, "download");
    clerk.refuse(Some("write"));
    refused(layer.load_state(&(), &state), Stage::Upload, "write");
    clerk.refuse(None);
    let untrusted = forward(&mut layer).unwrap_err();
    assert!(matches!(*untrusted.kind, ErrorKind::Untrusted), "half a state was loaded: {untrusted}");
    layer.load_state(&(), &state).unwrap();
    forward(&mut layer).unwrap();
}
