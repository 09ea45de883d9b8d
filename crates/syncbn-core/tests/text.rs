//! What errors and `Debug` tell: a run that dies at night has only its last line.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use example_backend::Plain;
use syncbn_core::{
    CollectiveId, CollectiveKind, CommError, CommErrorKind, Config, Dtype, Error, ErrorKind, Geometry,
    Layout, Operation, Pass, Scope, ShapeError, Stage, SyncBatchNorm, Tensor, View, ViewMut,
};

#[test]
fn shapes_and_layouts_are_told_as_they_are_written() {
    let first = Geometry::channels_first(&[2, 3, 4]).unwrap();
    let last = Geometry::channels_last(&[2, 4, 3]).unwrap();
    assert_eq!(format!("{} {:?}", first.shape(), last.shape()), "[2, 3, 4] [2, 3, 4]");
    assert_eq!(format!("{first:?}, {last:?}"), "channels-first [2, 3, 4], channels-last [2, 3, 4]");
    assert_eq!(
        [Layout::ChannelsFirst, Layout::ChannelsLast].map(|l| l.to_string()),
        ["channels-first", "channels-last"]
    );
}

#[test]
fn types_have_the_names_that_rust_gives_them() {
    let types = [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64, Dtype::I64];
    assert_eq!(types.map(|dtype| dtype.to_string()), ["f16", "bf16", "f32", "f64", "i64"]);
}

#[test]
fn views_tell_type_layout_and_shape() {
    let mut memory = [0.0_f32; 24];
    let view = View::<Plain, f32>::channels_last(&memory, &[2, 4, 3]).unwrap();
    assert_eq!(format!("{view:?}"), "View(f32 channels-last [2, 3, 4])");
    let view = ViewMut::<Plain, f32>::channels_first(&mut memory, &[2, 3, 4]).unwrap();
    assert_eq!(format!("{view:?}"), "ViewMut(f32 channels-first [2, 3, 4])");
}

#[test]
fn operations_stages_passes_and_tensors_have_their_names() {
    use Operation::{
        Backward, Construct, Forward, LoadState, Prepare, Recompute, SaveState, SetMode, UpdateRunning,
    };
    let operations =
        [Construct, Prepare, Forward, Recompute, UpdateRunning, Backward, SaveState, LoadState, SetMode];
    let names = "construction, preparation, forward, recomputation, update of the running statistics, backward, saving the \
                 state, loading the state, setting the mode";
    assert_eq!(operations.map(|operation| operation.to_string()).join(", "), names);
    let stages = [
        Stage::Allocation,
        Stage::Preparation,
        Stage::Moments,
        Stage::Normalize,
        Stage::GradSums,
        Stage::GradInput,
        Stage::Flush,
        Stage::Upload,
        Stage::Download,
    ];
    let names = "allocation, preparation, moments, normalize, grad_sums, grad_input, flush, upload, download";
    assert_eq!(stages.map(|stage| stage.to_string()).join(", "), names);
    assert_eq!([Pass::Forward, Pass::Backward].map(|pass| pass.to_string()), ["forward", "backward"]);
    assert_eq!(
        [Tensor::DWeight, Tensor::RunningVar, Tensor::Saved].map(|tensor| tensor.to_string()),
        ["d_weight", "running_var", "the memory for saved statistics"]
    );
}

fn forward(use_number: u64) -> CollectiveId {
    let kind = CollectiveKind::Pass(Pass::Forward);
    CollectiveId::new("bn1", 257).with_kind(kind).with_layer(2, 0).with_use(use_number, 9)
}

fn comm_error(call: Option<CollectiveId>, kind: CommErrorKind) -> CommError {
    CommError { rank: 1, world_size: 4, call, late: false, kind }
}

#[test]
fn a_failed_collective_tells_who_where_and_why() {
    let cause = CommErrorKind::Transport(Arc::new(io::Error::other("the cable is out")));
    let text = "rank 1 of 4, forward of layer `bn1` (number 2, 257 numbers, use 7, step 9): the cable is out";
    assert_eq!(comm_error(Some(forward(7)), cause).to_string(), text);
    let timeout = CommErrorKind::Timeout { missing: vec![2, 3], timeout: Duration::from_secs(5) };
    let error = comm_error(None, timeout);
    assert_eq!(error.to_string(), "rank 1 of 4: ranks [2, 3] did not come within 5s");
    assert!(error.source().is_none());
}

#[test]
fn ranks_out_of_step_are_told_where_each_was_and_in_what_they_differ() {
    let kind = CommErrorKind::OutOfStep { others: vec![(0, forward(6)), (3, CollectiveId::new("loss", 1))] };
    let text = "rank 1 of 4, forward of layer `bn1` (number 2, 257 numbers, use 7, step 9): out of step: rank 0 is in forward of \
                layer `bn1` (number 2, 257 numbers, use 6, step 9), rank 3 is in all_reduce of `loss` (1 number, use 0, step 0); \
                they differ in use";
    assert_eq!(comm_error(Some(forward(7)), kind).to_string(), text);
}

/// A device's error with a cause of its own.
#[derive(Debug)]
struct Device(io::Error);

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the device is lost")
    }
}

impl StdError for Device {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

fn device() -> Device {
    Device(io::Error::other("a fan has stopped"))
}

/// The error and its sources, as `anyhow` and others print them.
fn chain(error: &(dyn StdError + 'static)) -> Vec<String> {
    std::iter::successors(Some(error), |&error| error.source()).map(ToString::to_string).collect()
}

#[test]
fn a_printed_chain_says_everything_once() {
    let of = |kind| Error {
        operation: Operation::Forward,
        layer: "bn1".into(),
        rank: 0,
        world_size: 2,
        kind: Box::new(kind),
    };
    let communicator = |kind| ErrorKind::Communicator(comm_error(Some(forward(0)), kind));
    let poisoned = comm_error(None, CommErrorKind::Unsent(Arc::new(device())));
    let axes = ShapeError::Axes { shape: vec![3] };
    for (kind, said, behind) in [
        (
            ErrorKind::Backend { stage: Stage::Moments, source: Box::new(device()) },
            "the device is lost",
            true,
        ),
        (communicator(CommErrorKind::Transport(Arc::new(device()))), "the device is lost", true),
        (communicator(CommErrorKind::Unsent(Arc::new(device()))), "the device is lost", true),
        (communicator(CommErrorKind::Poisoned(Arc::new(poisoned))), "the device is lost", false),
        (ErrorKind::Shape { tensor: Tensor::X, source: axes }, "number of axes", false),
        (ErrorKind::Config(Config::new(0).validate().unwrap_err()), "channels is 0", false),
        (ErrorKind::SumLeftOut, "without the sum over the ranks", false),
    ] {
        let chain = chain(&of(kind));
        let printed = chain.join(": ");
        assert!(chain[0].starts_with("forward of layer `bn1` on rank 0 of 2: "), "{printed}");
        assert_eq!(printed.matches(said).count(), 1, "{printed}");
        assert!(chain[0].contains(said), "{printed}");
        assert_eq!(chain.len() > 1, behind, "{printed}");
        assert!(!behind || printed.ends_with(": a fan has stopped"), "{printed}");
    }
}

#[test]
fn each_kind_of_refusal_says_what_to_do_or_what_is_there() {
    let (first, last) =
        (Geometry::channels_first(&[4, 3, 5]).unwrap(), Geometry::channels_last(&[4, 5, 3]).unwrap());
    let other = Geometry::channels_first(&[4, 3, 6]).unwrap();
    let of = |tensor, got| ErrorKind::Geometry { tensor, expected: first, got };
    for (kind, text) in [
        (
            of(Tensor::Dy, other),
            "dy has shape [4, 3, 6], expected [4, 3, 5], the shape of the forward pass's x",
        ),
        (
            of(Tensor::Dy, last),
            "dy is channels-last, expected channels-first as the forward pass's x: copy it to that layout first",
        ),
        (
            of(Tensor::Dx, last),
            "dx is channels-last, expected channels-first as the forward pass's x: allocate it in that layout",
        ),
        (ErrorKind::Length { tensor: Tensor::Bias, expected: 3, got: 2 }, "bias has 2 elements, expected 3"),
        (
            ErrorKind::OtherGroup { saved: 4, current: 7 },
            "the saved statistics belong to group 4, and the layer is in group 7 now: run the forward pass again",
        ),
        (
            ErrorKind::OtherGroup { saved: 4, current: 4 },
            "the saved statistics are from before the layer was moved to group 4 again: run the forward pass again",
        ),
        (
            ErrorKind::StateValue { tensor: Tensor::RunningVar, channel: 3, got: -0.5 },
            "running_var of the state is -0.5 in channel 3, expected at least 0",
        ),
        (
            ErrorKind::StateValue { tensor: Tensor::NumBatchesTracked, channel: 0, got: -1.0 },
            "num_batches_tracked of the state is -1, expected at least 0",
        ),
        (
            ErrorKind::NotTheGroups { scope: Scope::Local },
            "running statistics move by a batch of the group: the saved statistics are Local, expected Group",
        ),
        (ErrorKind::ForeignSaved, "the saved statistics belong to another layer"),
        (ErrorKind::HalfLoaded, "an earlier load of a state failed half-way: load a state again"),
        (
            ErrorKind::NoPeers,
            "the communicator lets kernels meet their peers, and this backend has no such kernels",
        ),
    ] {
        assert_eq!(kind.to_string(), text);
    }
    assert!(ErrorKind::ParametersChanged.to_string().contains("after the last backward pass"));
}

#[test]
fn a_layer_and_what_it_saves_tell_their_name_and_settings() {
    let mut layer = SyncBatchNorm::<_, f32>::local("bn1", Config::new(3), Plain, &()).unwrap();
    let (x, mut y) = ([0.5; 6], [0.0; 6]);
    let x = View::<Plain, f32>::channels_first(&x[..], &[2, 3]);
    let y = ViewMut::channels_first(&mut y[..], &[2, 3]);
    let saved = layer.forward::<f32>(&(), x, y).unwrap();
    assert_eq!(format!("{saved:?}"), "SavedStatistics(channels-last [2, 3], Group)");
    let text = format!("{layer:?}");
    assert!(text.starts_with("SyncBatchNorm { name: \"bn1\", config: Config { channels: 3"), "{text}");
    assert!(text.ends_with("training: true, frozen: false, .. }"), "{text}");
    let group = layer.group();
    assert_eq!(format!("{group:?}"), format!("Group({}, rank 0 of 1)", group.id()));
}
