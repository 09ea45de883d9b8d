//! Which layers a late failure of their group costs their state, and which not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use example_backend::Plain;
use syncbn_core::{
    Backend, CollectiveId, CommError, CommErrorKind, Communicator, Config, Error, ErrorKind, Numbers, Pass,
    SingleRank, SyncBatchNorm, View, ViewMut,
};

/// A group of two, as a device's own: what went wrong shows late, in the status or in the next sum.
#[derive(Default)]
struct Group {
    status_fails: AtomicBool,
    sum_fails: AtomicBool,
}

fn answer(fails: &AtomicBool) -> Result<(), CommError> {
    if !fails.load(Ordering::SeqCst) {
        return Ok(());
    }
    let kind = CommErrorKind::Left { rank: 1, panicked: false };
    Err(CommError { rank: 0, world_size: 2, call: None, late: true, kind })
}

impl Communicator<Plain> for Group {
    fn rank(&self) -> usize {
        0
    }
    fn world_size(&self) -> NonZeroUsize {
        NonZeroUsize::MIN.saturating_add(1)
    }
    fn sum_workspace(
        &self,
        id: &CollectiveId,
        pass: Pass,
        plain: &Plain,
        (): &(),
        workspace: &mut <Plain as Backend>::Workspace,
    ) -> Result<(), CommError> {
        answer(&self.sum_fails)?;
        let mut message = vec![0.0; id.length];
        let Ok(()) = plain.read_message(&(), pass, workspace, &mut message);
        let Ok(()) = plain.write_message(&(), pass, workspace, &message);
        Ok(())
    }
    fn sum_numbers(
        &self,
        _: &CollectiveId,
        _: &Plain,
        (): &(),
        _: Numbers<'_, Plain>,
    ) -> Result<(), CommError> {
        answer(&self.sum_fails)
    }
    fn poison(&self, _: &CommError) {
        self.status_fails.store(true, Ordering::SeqCst);
    }
    fn status(&self) -> Result<(), CommError> {
        answer(&self.status_fails)
    }
}

type Layer = SyncBatchNorm<Plain, f32>;

fn layer(group: &Arc<Group>) -> Layer {
    Layer::new("bn", Config::new(2), Plain, &(), group.clone()).unwrap()
}

fn forward(layer: &mut Layer) -> Result<(), Error> {
    let (x, mut y) = ([0.5, -1.0, 3.0, 2.0], [0.0; 4]);
    let x = View::<Plain, f32>::channels_first(&x[..], &[2, 2]);
    layer.forward::<f32>(&(), x, ViewMut::channels_first(&mut y[..], &[2, 2])).map(drop)
}

fn fails_late(result: Result<(), Error>) {
    let error = result.unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::Communicator(error) if error.late), "{error}");
}

fn is_lost(layer: &mut Layer) {
    let error = forward(layer).unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::Untrusted), "{error}");
}

#[test]
fn a_layer_that_has_summed_does_not_save_a_state_after_a_late_failure() {
    let group = Arc::new(Group::default());
    let mut layer = layer(&group);
    forward(&mut layer).unwrap();
    group.status_fails.store(true, Ordering::SeqCst);
    fails_late(layer.state(&()).map(drop));
    is_lost(&mut layer);
}

#[test]
fn a_layer_that_has_summed_is_lost_in_a_new_group_though_nobody_has_asked() {
    let group = Arc::new(Group::default());
    let mut layer = layer(&group);
    forward(&mut layer).unwrap();
    group.status_fails.store(true, Ordering::SeqCst);
    layer.set_group(SingleRank);
    is_lost(&mut layer);
}

#[test]
fn a_layer_is_lost_by_a_sum_that_fails_late_itself() {
    let group = Arc::new(Group::default());
    let mut layer = layer(&group);
    let snapshot = layer.state(&()).unwrap();
    forward(&mut layer).unwrap();
    group.sum_fails.store(true, Ordering::SeqCst);
    fails_late(forward(&mut layer));
    group.sum_fails.store(false, Ordering::SeqCst);
    is_lost(&mut layer);
    layer.load_state(&(), &snapshot).unwrap();
    forward(&mut layer).unwrap();
}

#[test]
fn a_layer_that_has_not_summed_keeps_its_state_whatever_becomes_of_the_group() {
    let group = Arc::new(Group::default());
    let (mut unused, mut evaluated) = (layer(&group), layer(&group));
    evaluated.set_training(false);
    forward(&mut evaluated).unwrap();
    evaluated.set_training(true);
    group.status_fails.store(true, Ordering::SeqCst);
    for layer in [&mut unused, &mut evaluated] {
        layer.state(&()).unwrap();
        fails_late(forward(layer));
        layer.set_group(SingleRank);
        forward(layer).unwrap();
    }
}

#[test]
fn a_layer_that_has_summed_well_keeps_its_state_in_a_new_group() {
    let mut layer = layer(&Arc::new(Group::default()));
    forward(&mut layer).unwrap();
    layer.set_group(SingleRank);
    forward(&mut layer).unwrap();
    assert_eq!(layer.state(&()).unwrap().num_batches_tracked, Some(2));
}
