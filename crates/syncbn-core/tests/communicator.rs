//! What core's own communicators pass on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use example_backend::Plain;
use syncbn_core::functional::{Forward, Statistics};
use syncbn_core::{
    CollectiveId, CollectiveKind, CommError, CommErrorKind, Communicator, Config, FunctionalBatchNorm,
    Gradients, Group, HostCommunicator, NonFinite, Numbers, ParamGradients, Pass, RunningMut, SingleRank,
    SyncBatchNorm, ViaHost, View, ViewMut, saved_len,
};

/// Rank 2 of 5, in a group that is sound until it is told otherwise, and whose every sum is 7.
#[derive(Default)]
struct Third {
    fails: AtomicBool,
}

impl Third {
    fn answer(&self, call: Option<&CollectiveId>) -> Result<(), CommError> {
        if !self.fails.load(Ordering::SeqCst) {
            return Ok(());
        }
        let kind = CommErrorKind::Left { rank: 4, panicked: false };
        Err(CommError { rank: 2, world_size: 5, call: call.cloned(), late: false, kind })
    }

    fn answer_failing(&self) -> CommError {
        let kind = CommErrorKind::Left { rank: 4, panicked: false };
        CommError { rank: self.rank(), world_size: 5, call: None, late: false, kind }
    }
}

impl HostCommunicator for Third {
    fn rank(&self) -> usize {
        2
    }
    fn world_size(&self) -> NonZeroUsize {
        NonZeroUsize::MIN.saturating_add(4)
    }
    fn all_reduce_sum(&self, id: &CollectiveId, values: &mut [f64]) -> Result<(), CommError> {
        values.fill(7.0);
        self.answer(Some(id))
    }
    fn poison(&self, _: &CommError) {
        self.fails.store(true, Ordering::SeqCst);
    }
    fn status(&self) -> Result<(), CommError> {
        self.answer(None)
    }
}

#[test]
fn a_shared_communicator_is_the_one_that_is_shared() {
    let third = Arc::new(Third::default());
    let mut values = [1.0, 2.0];
    assert_eq!((HostCommunicator::rank(&third), HostCommunicator::world_size(&third).get()), (2, 5));
    HostCommunicator::all_reduce_sum(&third, &CollectiveId::new("loss", 2), &mut values).unwrap();
    assert_eq!(values, [7.0, 7.0]);
    assert!(HostCommunicator::status(&third).is_ok());
    HostCommunicator::poison(&third, &third.answer_failing());
    assert!(HostCommunicator::status(&third).is_err());
}

#[test]
fn a_host_communicator_in_a_backends_service_has_the_rank_size_and_status_of_the_one_within() {
    let third = Arc::new(Third::default());
    let via_host: Arc<dyn Communicator<Plain>> = Arc::new(ViaHost(third.clone()));
    assert_eq!((via_host.rank(), via_host.world_size().get()), (2, 5));
    assert!(via_host.status().is_ok());
    via_host.poison(&third.answer_failing());
    assert!(via_host.status().is_err() && third.fails.load(Ordering::SeqCst));
}

#[test]
fn alone_there_is_one_rank_which_is_the_first() {
    let single: &dyn Communicator<Plain> = &SingleRank;
    assert_eq!((single.rank(), single.world_size().get()), (0, 1));
    assert!(single.status().is_ok());
    let (mut narrow, mut wide) = ([1.5_f32], [2.5_f64]);
    single.sum_numbers(&CollectiveId::new("one", 1), &Plain, &(), Numbers::F32(&mut narrow[..])).unwrap();
    single.sum_numbers(&CollectiveId::new("one", 1), &Plain, &(), Numbers::F64(&mut wide[..])).unwrap();
    assert_eq!((narrow, wide), ([1.5], [2.5]));
}

#[test]
fn a_group_sums_a_callers_own_numbers_of_either_type_and_any_number() {
    let group = Group::<Plain>::new(ViaHost(Third::default()));
    let (mut narrow, mut wide) = ([1.0_f32; 3], vec![2.0_f64; 1000]);
    group.all_reduce("norms", &Plain, &(), &mut narrow[..]).unwrap();
    group.all_reduce("counts", &Plain, &(), &mut wide[..]).unwrap();
    group.all_reduce("nothing", &Plain, &(), &mut [][..] as &mut [f32]).unwrap();
    assert_eq!((narrow, wide), ([7.0; 3], vec![7.0; 1000]));
}

#[test]
fn a_group_numbers_its_plain_sums_and_tells_the_step() {
    let calls = Arc::new(Noting::default());
    let group = Group::<Plain>::new(ViaHost(calls.clone()));
    for step in [3, 4] {
        group.set_step(step);
        assert_eq!(group.step(), step);
        group.all_reduce("loss", &Plain, &(), &mut [1.0_f32][..]).unwrap();
    }
    let clone = group.clone();
    assert_eq!((clone.id(), clone.step()), (group.id(), 4));
    clone.all_reduce("loss", &Plain, &(), &mut [1.0_f32; 2][..]).unwrap();
    let expected = [(1, 0, 3), (1, 1, 4), (2, 2, 4)]
        .map(|(len, n, step)| CollectiveId::new("loss", len).with_use(n, step));
    assert_eq!(*calls.0.lock().unwrap(), expected);
}

/// Rank 0 of 2, which notes what it is asked.
#[derive(Default)]
struct Noting(Mutex<Vec<CollectiveId>>);

impl HostCommunicator for Noting {
    fn rank(&self) -> usize {
        0
    }
    fn world_size(&self) -> NonZeroUsize {
        NonZeroUsize::MIN.saturating_add(1)
    }
    fn all_reduce_sum(&self, id: &CollectiveId, _: &mut [f64]) -> Result<(), CommError> {
        self.0.lock().unwrap().push(id.clone());
        Ok(())
    }
    fn poison(&self, _: &CommError) {}
    fn status(&self) -> Result<(), CommError> {
        Ok(())
    }
}

#[test]
fn identities_say_the_first_thing_in_which_they_differ() {
    let forward = CollectiveKind::Pass(Pass::Forward);
    let one = || CollectiveId::new("bn", 4).with_kind(forward).with_layer(1, 2).with_use(3, 4);
    assert_eq!(one().difference(&one()), None);
    let mut renamed = one();
    renamed.label = "bm".into();
    let mut longer = one();
    longer.length = 5;
    for (other, what) in [
        (one().with_use(3, 5), "step"),
        (renamed, "name"),
        (one().with_layer(0, 2), "place in the order of construction"),
        (one().with_kind(CollectiveKind::AllReduce), "pass"),
        (one().with_use(2, 4), "use"),
        (longer, "number of numbers"),
        (
            one().with_layer(1, 3),
            "settings (eps, momentum, affine, tracking, updates, non_finite or type of parameters)",
        ),
    ] {
        assert_eq!((one().difference(&other), other.difference(&one())), (Some(what), Some(what)));
    }
}

/// The settings of an update come with the call, and ranks compare them: with others their running statistics would drift apart.
#[test]
fn ranks_compare_the_settings_of_each_update() {
    let calls = Arc::new(Noting::default());
    let (config, group) = (Config::new(1).with_momentum(Some(0.1)), ViaHost(Arc::clone(&calls)));
    let layer = FunctionalBatchNorm::<Plain, f32>::new("bn", config, Plain, &(), group).unwrap();
    let (propagate, skip) = (NonFinite::Propagate, NonFinite::Skip);
    for update in [
        None,
        Some((Some(0.1), propagate)),
        Some((Some(0.9), propagate)),
        Some((None, propagate)),
        Some((Some(0.1), skip)),
    ] {
        let (mut mean, mut var, mut tracked) = ([0.0], [1.0], [0]);
        let (mut y, mut saved) = ([0.0; 2], [0.0; saved_len(1)]);
        let running = update.map(|(momentum, non_finite)| RunningMut::<Plain, f32> {
            mean: &mut mean[..],
            var: &mut var[..],
            num_batches_tracked: &mut tracked[..],
            momentum,
            non_finite,
        });
        let x = View::<Plain, f32>::channels_first(&[1.0, 2.0], &[2, 1]).unwrap();
        let to_y = ViewMut::channels_first(&mut y[..], &[2, 1]).unwrap();
        layer.forward(&(), Forward::new(x, to_y, Statistics::Group { running }, &mut saved[..])).unwrap();
    }
    let settings: Vec<_> = calls.0.lock().unwrap().iter().map(|id| id.settings).collect();
    assert_eq!(settings[0], settings[1], "the layer's own settings");
    let different: HashSet<_> = settings[1..].iter().collect();
    assert_eq!(different.len(), 4, "{settings:?}");
}

/// A rank that leaves its running statistics as they are would drift apart from the others. Only forward passes move them.
#[test]
fn ranks_compare_whether_a_forward_pass_updates_running_statistics() {
    let calls = Arc::new(Noting::default());
    let group = ViaHost(Arc::clone(&calls));
    let mut layer = SyncBatchNorm::<Plain, f32>::new("bn", Config::new(1), Plain, &(), group).unwrap();
    let x = || View::<Plain, f32>::channels_first(&[1.0, 2.0], &[2, 1]).unwrap();
    for updates in [true, false] {
        let mut y = [0.0; 2];
        layer.set_updates_running_stats(updates);
        let saved = layer.forward(&(), x(), ViewMut::channels_first(&mut y[..], &[2, 1])).unwrap();
        layer.set_updates_running_stats(true);
        let gradients = Gradients::parameters_only(x());
        layer.backward(&(), &saved, x(), gradients, ParamGradients::default()).unwrap();
    }
    let calls = calls.0.lock().unwrap();
    let [forward, backward, without_update, last] = &calls[..] else { panic!("{calls:?}") };
    assert_ne!(forward.settings, without_update.settings);
    assert_eq!((forward.settings, backward.settings), (backward.settings, last.settings));
}
