//! What users met off the tested path: each a case of its kind, with the value or the error that is right.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ndarray::{Array2, Axis, arr2, s};
use syncbn_comm::{ThreadComm, ThreadGroup, threads};
use syncbn_core::{
    CommErrorKind, Config, Error, ErrorKind, Group, HostCommunicator as _, SyncBatchNorm, ViaHost,
};
use syncbn_cpu::{Cpu, backward_array, forward_array};

/// No test waits for it.
const PATIENT: Duration = Duration::from_secs(600);

type Norm = SyncBatchNorm<Cpu, f64>;

fn ranks<R: Send>(ranks: usize, body: impl Fn(ThreadComm) -> R + Sync) -> Vec<R> {
    threads::run(NonZeroUsize::new(ranks).unwrap(), PATIENT, body).unwrap()
}

fn kind(error: &Error) -> &CommErrorKind {
    match &*error.kind {
        ErrorKind::Communicator(error) => &error.kind,
        other => panic!("expected a communicator's error, got {other}"),
    }
}

#[test]
fn a_small_variance_beside_a_large_mean_is_the_same_over_any_number_of_ranks() {
    // Northings in metres: mean 5400000.15, variance 0.0125.
    let whole: Array2<f64> = arr2(&[[5_400_000.0], [5_400_000.1], [5_400_000.2], [5_400_000.3]]);
    for n in [1, 2, 4] {
        let parts = ranks(n, |comm| {
            let (rank, each) = (comm.rank(), 4 / n);
            let mut norm = Norm::new("bn", Config::new(1), Cpu, &(), ViaHost(comm)).unwrap();
            let x = whole.slice(s![each * rank..each * (rank + 1), ..]);
            let (y, _) = forward_array(&mut norm, &x).unwrap();
            (y.into_raw_vec_and_offset().0, norm.state(&()).unwrap().running_var.unwrap()[0])
        });
        let y: Vec<f64> = parts.iter().flat_map(|(y, _)| y.clone()).collect();
        for (y, expected) in y.iter().zip([-1.3411, -0.4470, 0.4470, 1.3411]) {
            assert!((y - expected).abs() < 1e-4, "{n} ranks: {y}, expected {expected}");
        }
        for (_, var) in parts {
            assert!((var - (0.9 + 0.1 * 0.0125 * 4.0 / 3.0)).abs() < 1e-6, "{n} ranks: {var}");
        }
    }
}

#[test]
fn a_rank_that_leaves_out_a_step_is_told_apart_by_the_steps_number() {
    let errors = ranks(2, |comm| {
        let rank = comm.rank();
        let group = Group::new(ViaHost(comm));
        let mut norm = Norm::new("bn", Config::new(1), Cpu, &(), group.clone()).unwrap();
        let mut step = |step: u64| {
            group.set_step(step);
            let x = Array2::from_elem((2, 1), step as f64);
            let (_, saved) = forward_array(&mut norm, &x)?;
            backward_array(&mut norm, &saved, &x, &x).map(drop)
        };
        (0..4).filter(|&at| rank == 0 || at != 1).find_map(|at| step(at).err())
    });
    for (rank, error) in errors.into_iter().enumerate() {
        let error = error.unwrap();
        let CommErrorKind::OutOfStep { others } = kind(&error) else { panic!("{error}") };
        assert_eq!(others[0].0, 1 - rank);
        assert_eq!(others[0].1.step, [2, 1][rank], "{error}");
        assert!(error.to_string().ends_with("they differ in step"), "{error}");
    }
}

#[test]
fn what_was_saved_in_a_group_is_refused_in_another() {
    let x: Array2<f64> = arr2(&[[1.0], [2.0], [6.0]]);
    let pair = ThreadGroup::new(NonZeroUsize::new(2).unwrap(), PATIENT).unwrap();
    let next: Vec<_> = pair.into_iter().map(|comm| Mutex::new(Some(comm))).collect();
    let refused = ranks(3, |comm| {
        let rank = comm.rank();
        let x = x.row(rank).insert_axis(Axis(0)).to_owned();
        let mut norm = Norm::new("bn", Config::new(1), Cpu, &(), ViaHost(comm)).unwrap();
        let (_, saved) = forward_array(&mut norm, &x).unwrap();
        if rank == 2 {
            return None; // lost between forward and backward
        }
        let before = norm.group().id();
        backward_array(&mut norm, &saved, &x, &x).unwrap_err();
        norm.set_group(ViaHost(next[rank].lock().unwrap().take().unwrap()));
        let error = backward_array(&mut norm, &saved, &x, &x).unwrap_err();
        let ErrorKind::OtherGroup { saved, current } = *error.kind else { panic!("{error}") };
        Some(saved == before && current == norm.group().id() && saved != current)
    });
    assert_eq!(refused, [Some(true), Some(true), None]);
}

#[test]
fn two_layers_of_one_name_are_told_apart_by_their_order_of_construction() {
    for shared in [true, false] {
        let errors = ranks(2, |comm| {
            let (rank, comm) = (comm.rank(), Arc::new(comm));
            let group = Group::new(ViaHost(Arc::clone(&comm)));
            let layer = || {
                let own = Group::new(ViaHost(Arc::clone(&comm)));
                let group = if shared { group.clone() } else { own };
                Norm::new("bn1", Config::new(1), Cpu, &(), group).unwrap()
            };
            let mut nets = [layer(), layer()]; // teacher and student: the same names
            let x = [arr2(&[[100.0], [102.0]]), arr2(&[[1.0], [3.0]])];
            let order = if rank == 0 { [0, 1] } else { [1, 0] };
            order.into_iter().find_map(|i| forward_array(&mut nets[i], &x[i]).err())
        });
        for error in errors {
            let error = error.unwrap();
            assert!(matches!(kind(&error), CommErrorKind::OutOfStep { .. }), "{error}");
        }
    }
}

#[test]
fn ranks_whose_layers_have_other_settings_hear_it_at_the_first_sum() {
    let plain = Config::new(2);
    for other in [
        plain.with_eps(1e-3),
        plain.with_momentum(None),
        plain.with_affine(false),
        plain.with_track_running_stats(false),
    ] {
        let errors = ranks(2, |comm| {
            let config = if comm.rank() == 0 { plain } else { other };
            let mut norm = Norm::new("bn", config, Cpu, &(), ViaHost(comm)).unwrap();
            forward_array(&mut norm, &arr2(&[[1.0, 2.0], [3.0, 4.0]])).map(drop).unwrap_err().to_string()
        });
        assert!(errors.iter().all(|error| error.contains("they differ in settings")), "{errors:?}");
    }
    let errors = ranks(2, |comm| {
        let (rank, group) = (comm.rank(), ViaHost(comm));
        let error = if rank == 0 {
            let mut norm = SyncBatchNorm::<Cpu, f32>::new("bn", plain, Cpu, &(), group).unwrap();
            forward_array(&mut norm, &arr2(&[[1.0_f32, 2.0], [3.0, 4.0]])).map(drop)
        } else {
            let mut norm = Norm::new("bn", plain, Cpu, &(), group).unwrap();
            forward_array(&mut norm, &arr2(&[[1.0, 2.0], [3.0, 4.0]])).map(drop)
        };
        matches!(kind(&error.unwrap_err()), CommErrorKind::OutOfStep { .. })
    });
    assert_eq!(errors, [true, true]);
}

#[test]
fn a_weight_that_was_lent_to_be_changed_makes_what_was_saved_before_useless() {
    let (x, dy) = (arr2(&[[1.0], [2.0], [4.0]]), arr2(&[[1.0], [0.0], [0.0]]));
    let mut norm = Norm::local("bn", Config::new(1), Cpu, &()).unwrap();
    let (y, saved) = forward_array(&mut norm, &x).unwrap();
    let dx = backward_array(&mut norm, &saved, &x, &dy).unwrap().dx;
    assert_eq!(backward_array(&mut norm, &saved, &x, &dy).unwrap().dx, dx);

    norm.weight_mut().unwrap()[0] = 10.0;
    let changed = |error: Error| matches!(*error.kind, ErrorKind::ParametersChanged);
    assert!(changed(backward_array(&mut norm, &saved, &x, &dy).unwrap_err()));
    assert!(changed(norm.recompute(&(), &saved, &x, &mut y.clone()).unwrap_err()));
    let (_, saved) = forward_array(&mut norm, &x).unwrap();
    let tenfold = backward_array(&mut norm, &saved, &x, &dy).unwrap().dx;
    let error: f64 = tenfold[[0, 0]] - 10.0 * dx[[0, 0]];
    assert!(error.abs() < 1e-12);
}
