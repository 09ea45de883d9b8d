//! What errors and `Debug` tell: a run that dies at night has only its last line.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use example_backend::Plain;
use syncbn_core::{
    Call, CommError, CommErrorKind, Config, Dtype, Geometry, Layout, Operation, Pass, Stage, SyncBatchNorm,
    Tensor, View, ViewMut,
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
    use Operation::{Backward, Construct, Forward, LoadState, Prepare, Recompute, SaveState, SetMode};
    let operations = [Construct, Prepare, Forward, Recompute, Backward, SaveState, LoadState, SetMode];
    let names = "construction, preparation, forward, recomputation, backward, saving the state, loading the state, \
                 setting the mode";
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
        [Tensor::DWeight, Tensor::RunningVar].map(|tensor| tensor.to_string()),
        ["d_weight", "running_var"]
    );
}

#[test]
fn a_failed_collective_tells_who_where_and_why_and_keeps_its_source() {
    let cause = CommErrorKind::Transport(Arc::new(io::Error::other("the cable is out")));
    let call = Call { sequence: 7, ..Call::new("bn1", Pass::Forward, 64) };
    let error = CommError { rank: 1, world_size: 4, call: Some(call), late: false, kind: cause };
    let text = "rank 1 of 4, forward of layer `bn1` (64 channels, use 7): the cable is out";
    assert_eq!(error.to_string(), text);
    assert_eq!(error.source().map(ToString::to_string), Some("the cable is out".to_owned()));
    let timeout = CommErrorKind::Timeout { missing: vec![2, 3], timeout: Duration::from_secs(5) };
    let error = CommError { call: None, kind: timeout, ..error };
    assert_eq!(error.to_string(), "rank 1 of 4: ranks [2, 3] did not come within 5s");
    assert!(error.source().is_none());
}

#[test]
fn a_layer_and_what_it_saves_tell_their_name_and_settings() {
    let mut layer = SyncBatchNorm::<_, f32>::local("bn1", Config::new(3), Plain, &()).unwrap();
    let (x, mut y) = ([0.5; 6], [0.0; 6]);
    let x = View::<Plain, f32>::channels_first(&x[..], &[2, 3]);
    let y = ViewMut::channels_first(&mut y[..], &[2, 3]);
    let saved = layer.forward::<f32>(&(), x, y).unwrap();
    assert_eq!(format!("{saved:?}"), "Saved(bn1 of channels-last [2, 3], Group)");
    let text = format!("{layer:?}");
    assert!(text.starts_with("SyncBatchNorm { name: \"bn1\", config: Config { channels: 3"), "{text}");
    assert!(text.ends_with("training: true, frozen: false, .. }"), "{text}");
}
