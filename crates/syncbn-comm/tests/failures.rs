//! What each rank is told when something goes wrong, and that nobody is left waiting.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that meets something else fails its test")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{PATIENT, at_once, attempt, backward, group, pass, size, sum};
use syncbn_comm::{ThreadComm, ThreadGroup, threads};
use syncbn_core::{CollectiveId, CommError, CommErrorKind, HostCommunicator, Pass};

/// The failure that poisoned the group.
fn cause(error: &CommError) -> &CommError {
    match &error.kind {
        CommErrorKind::Poisoned(cause) => cause,
        other => panic!("expected a poisoned group, got {other:?}"),
    }
}

/// The errors of all ranks, each making its own call at the same time.
fn errors<const N: usize>(comms: &[ThreadComm; N], calls: [CollectiveId; N]) -> Vec<CommError> {
    at_once(|| {
        thread::scope(|scope| {
            let start = |(comm, call)| scope.spawn(move || attempt(comm, &call).unwrap_err());
            let ranks: Vec<_> = comms.iter().zip(calls).map(start).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    })
}

#[test]
fn a_rank_that_panics_is_reported_to_its_peers_at_once() {
    let told = Mutex::new(Vec::new());
    let outcome = at_once(|| {
        catch_unwind(AssertUnwindSafe(|| {
            threads::run(size(3), PATIENT, |comm| {
                sum(&comm, [1.0, 1.0]).unwrap();
                assert!(comm.rank() != 1, "rank 1 gives up");
                told.lock().unwrap().push(sum(&comm, [1.0, 1.0]).unwrap_err());
            })
        }))
    });
    let panic = outcome.unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"rank 1 gives up"));

    let mut told = told.into_inner().unwrap();
    told.sort_by_key(|error| error.rank);
    assert_eq!(told.iter().map(|error| error.rank).collect::<Vec<_>>(), [0, 2]);
    for error in told {
        assert!(matches!(error.kind, CommErrorKind::Left { rank: 1, panicked: true }), "{error}");
        assert_eq!((error.world_size, error.call), (3, Some(backward("bn", 1))));
    }
}

/// The panic does not drop the communicator: another place has it, too.
#[test]
fn a_panic_beside_a_communicator_that_lives_on_is_reported() {
    let kept = Mutex::new(Vec::new());
    let outcome = at_once(|| {
        catch_unwind(AssertUnwindSafe(|| {
            threads::run(size(2), Duration::MAX, |comm| {
                let comm = Arc::new(comm);
                kept.lock().unwrap().push(Arc::clone(&comm));
                assert!(comm.rank() != 1, "rank 1 gives up");
                let error = sum(&comm, [1.0, 1.0]).unwrap_err();
                assert!(matches!(error.kind, CommErrorKind::Left { rank: 1, panicked: true }), "{error}");
            })
        }))
    });
    assert_eq!(outcome.unwrap_err().downcast_ref::<&str>(), Some(&"rank 1 gives up"));
}

#[test]
fn a_rank_that_drops_its_communicator_is_reported_to_those_who_wait_for_it() {
    let [zero, one] = group();
    let error = at_once(|| {
        thread::scope(|scope| {
            let waiting = scope.spawn(|| sum(&zero, [1.0, 1.0]).unwrap_err());
            thread::sleep(Duration::from_millis(20));
            drop(one);
            waiting.join().unwrap()
        })
    });
    assert!(matches!(error.kind, CommErrorKind::Left { rank: 1, panicked: false }), "{error}");
    assert_eq!(
        error.to_string(),
        "rank 0 of 2, backward of layer `bn` (number 0, 2 numbers, use 0, step 0): rank 1 left the group"
    );
}

#[test]
fn the_next_call_after_a_rank_left_fails_at_once_and_status_says_so_before() {
    let [zero, one, two] = group();
    drop(one);
    for comm in [&zero, &two] {
        for error in [comm.status().unwrap_err(), at_once(|| sum(comm, [1.0, 1.0])).unwrap_err()] {
            assert!(matches!(error.kind, CommErrorKind::Left { rank: 1, panicked: false }), "{error}");
            assert_eq!(error.rank, comm.rank());
        }
        for error in [comm.status().unwrap_err(), at_once(|| sum(comm, [1.0, 1.0])).unwrap_err()] {
            assert!(matches!(cause(&error).kind, CommErrorKind::Left { rank: 1, .. }), "{error}");
        }
    }
}

#[test]
fn a_rank_stays_until_its_last_handle_is_dropped() {
    let [zero, one] = group();
    let first = Arc::new(one);
    let second = Arc::clone(&first);
    drop(first);
    assert!(zero.status().is_ok());
    drop(second);
    assert!(matches!(zero.status().unwrap_err().kind, CommErrorKind::Left { rank: 1, .. }));
}

#[test]
fn a_rank_that_does_not_come_is_named_after_the_timeout() {
    let timeout = Duration::from_millis(30);
    let [zero, one]: [ThreadComm; 2] = ThreadGroup::new(size(2), timeout).unwrap().try_into().unwrap();
    let error = sum(&zero, [1.0, 1.0]).unwrap_err();
    match &error.kind {
        CommErrorKind::Timeout { missing, timeout: waited } => {
            assert_eq!((missing.as_slice(), *waited), ([1].as_slice(), timeout));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((error.rank, error.world_size, error.call), (0, 2, Some(backward("bn", 1))));

    for error in
        [one.status(), zero.status(), attempt(&one, &backward("bn", 1)), one.split(None, 0).map(drop)]
    {
        assert!(matches!(cause(&error.unwrap_err()).kind, CommErrorKind::Timeout { .. }));
    }
}

#[test]
fn all_who_wait_are_told_of_the_timeout() {
    let [zero, one, two]: [ThreadComm; 3] =
        ThreadGroup::new(size(3), Duration::from_secs(1)).unwrap().try_into().unwrap();
    let errors = thread::scope(|scope| {
        let waiting = [&zero, &two].map(|comm| scope.spawn(|| sum(comm, [1.0, 1.0]).unwrap_err()));
        waiting.map(|rank| rank.join().unwrap())
    });
    for error in errors {
        match &error.kind {
            CommErrorKind::Timeout { missing, .. } => {
                assert!(missing.contains(&1) && !missing.contains(&error.rank), "{error}");
            }
            // A machine so busy that this rank's thread came a second late.
            _ => assert!(matches!(cause(&error).kind, CommErrorKind::Timeout { .. }), "{error}"),
        }
    }
    assert!(matches!(cause(&sum(&one, [1.0, 1.0]).unwrap_err()).kind, CommErrorKind::Timeout { .. }));
}

#[test]
fn a_new_group_works_after_a_failure() {
    let [zero, one] = group();
    drop(one);
    assert!(sum(&zero, [1.0, 1.0]).is_err());
    let sums = threads::run(size(2), PATIENT, |comm| sum(&comm, [1.0, 2.0]).unwrap());
    assert_eq!(sums.unwrap(), [[2.0, 4.0]; 2]);
}

#[test]
fn nothing_hangs_after_a_failure_and_the_first_cause_is_kept() {
    let [zero, one, two]: [ThreadComm; 3] =
        ThreadGroup::new(size(3), Duration::from_millis(10)).unwrap().try_into().unwrap();
    assert!(sum(&zero, [1.0, 1.0]).is_err());
    drop(two);
    at_once(|| {
        for _ in 0..1000 {
            for comm in [&zero, &one] {
                let error = sum(comm, [1.0, 1.0]).unwrap_err();
                assert!(matches!(cause(&error).kind, CommErrorKind::Timeout { .. }), "{error}");
                assert!(comm.status().is_err());
            }
        }
    });
}

#[test]
fn ranks_in_different_layers_each_learn_of_another_and_where_it_is() {
    let comms = group::<3>();
    let calls = [backward("bn1", 2), backward("bn2", 2), backward("bn1", 2)];
    for error in errors(&comms, calls.clone()) {
        let CommErrorKind::OutOfStep { others } = &error.kind else { panic!("{error}") };
        assert!(!others.is_empty());
        for (rank, other) in others {
            assert_eq!(*other, calls[*rank]);
            assert_ne!(*other, calls[error.rank]);
        }
        assert_eq!(error.call.as_ref(), Some(&calls[error.rank]));
    }
}

#[test]
fn ranks_that_differ_in_pass_channels_or_use_are_out_of_step() {
    let forward = pass("bn", Pass::Forward, 4);
    for other in [
        backward("bn", 4),
        pass("bn", Pass::Forward, 5),
        forward.clone().with_use(1, 0),
        forward.clone().with_use(0, 1),
        forward.clone().with_layer(1, 0),
        forward.clone().with_layer(0, 1),
    ] {
        let comms = group::<2>();
        for error in errors(&comms, [forward.clone(), other.clone()]) {
            assert!(matches!(error.kind, CommErrorKind::OutOfStep { .. }), "{error}");
        }
    }
}

#[test]
fn a_rank_that_comes_after_others_fell_out_of_step_is_told_the_same_way() {
    let [zero, one, two] = group();
    thread::scope(|scope| {
        scope.spawn(|| attempt(&zero, &backward("bn1", 2)).unwrap_err());
        scope.spawn(|| attempt(&one, &backward("bn2", 2)).unwrap_err());
    });
    let error = at_once(|| attempt(&two, &backward("bn1", 2)).unwrap_err());
    let CommErrorKind::OutOfStep { others } = &error.kind else { panic!("{error}") };
    assert_eq!(*others, [(1, backward("bn2", 2))]);
    let again = attempt(&two, &backward("bn1", 2)).unwrap_err();
    assert!(matches!(cause(&again).kind, CommErrorKind::OutOfStep { .. }), "{again}");
}

#[test]
fn a_message_of_a_wrong_length_is_the_senders_error_and_poisons_its_peers() {
    let [zero, one] = group();
    let (waiting, offender) = at_once(|| {
        thread::scope(|scope| {
            let waiting = scope.spawn(|| attempt(&zero, &backward("bn", 2)).unwrap_err());
            let offender = one.all_reduce_sum(&backward("bn", 2), &mut [0.0; 3]).unwrap_err();
            (waiting.join().unwrap(), offender)
        })
    });
    assert!(matches!(offender.kind, CommErrorKind::MessageLength { expected: 4, got: 3 }), "{offender}");
    let cause = cause(&waiting);
    assert_eq!(cause.rank, 1);
    assert!(matches!(cause.kind, CommErrorKind::MessageLength { expected: 4, got: 3 }), "{cause}");
}

#[test]
fn a_number_of_channels_that_no_message_can_have_is_an_error_of_its_length() {
    for half in [Pass::Forward, Pass::Backward] {
        let [comm] = group();
        let call = pass("bn", half, usize::MAX);
        let error = comm.all_reduce_sum(&call, &mut [0.0; 3]).unwrap_err();
        let CommErrorKind::MessageLength { expected: usize::MAX, got: 3 } = error.kind else {
            panic!("{error}")
        };
    }
}

#[test]
fn a_split_beside_a_sum_is_a_disagreement_on_both_sides() {
    let [zero, one] = group();
    let (sums, splits) = at_once(|| {
        thread::scope(|scope| {
            let sums = scope.spawn(|| attempt(&zero, &backward("bn", 2)).unwrap_err());
            let splits = one.split(Some(0), 0).unwrap_err();
            (sums.join().unwrap(), splits)
        })
    });
    let summing = "backward of layer `bn` (number 0, 4 numbers, use 0, step 0)";
    let splitting = "a split of the group";
    assert_eq!(
        sums.to_string(),
        format!("rank 0 of 2, {summing}: ranks disagree: rank 1 is in {splitting}, this rank in {summing}")
    );
    assert_eq!(
        splits.to_string(),
        format!("rank 1 of 2: ranks disagree: rank 0 is in {summing}, this rank in {splitting}")
    );
}

#[test]
fn two_threads_of_one_rank_in_a_collective_at_once_are_an_error_not_a_mixed_sum() {
    let [zero, one] = group();
    let results = at_once(|| {
        thread::scope(|scope| {
            let ranks = [&zero, &zero].map(|comm| scope.spawn(|| sum(comm, [1.0, 1.0]).unwrap_err()));
            ranks.map(|rank| rank.join().unwrap())
        })
    });
    let disagree = |error: &CommError| matches!(error.kind, CommErrorKind::Disagree(_));
    assert_eq!(results.iter().filter(|error| disagree(error)).count(), 1);
    let other = results.iter().find(|error| !disagree(error)).unwrap();
    assert!(disagree(cause(other)));
    assert!(disagree(cause(&sum(&one, [1.0, 1.0]).unwrap_err())));
}

#[test]
fn a_rank_that_cannot_go_on_after_a_sum_poisons_the_group() {
    let [zero, one] = group();
    let kind = CommErrorKind::Transport(Arc::new(std::io::Error::other("its device is gone")));
    zero.poison(&CommError { rank: 0, world_size: 2, call: None, late: false, kind });
    for error in [one.status().unwrap_err(), sum(&one, [1.0, 1.0]).unwrap_err()] {
        assert!(matches!(&cause(&error).kind, CommErrorKind::Transport(_)), "{error}");
        assert_eq!((error.rank, cause(&error).rank), (1, 0));
    }
}

#[test]
fn run_ends_though_a_rank_returns_early() {
    let results = at_once(|| {
        threads::run(
            size(3),
            PATIENT,
            |comm| if comm.rank() == 2 { Ok([0.0; 2]) } else { sum(&comm, [1.0; 2]) },
        )
    });
    let failed = |result: &Result<_, CommError>| {
        matches!(result, Err(CommError { kind: CommErrorKind::Left { rank: 2, panicked: false }, .. }))
    };
    let results = results.unwrap();
    assert!(failed(&results[0]) && failed(&results[1]) && results[2].is_ok());
}

#[test]
fn run_carries_on_the_panic_that_came_first_not_the_ones_that_followed_from_it() {
    for origin in 0..3 {
        let outcome = at_once(|| {
            catch_unwind(AssertUnwindSafe(|| {
                threads::run(size(3), PATIENT, |comm| {
                    sum(&comm, [1.0, 1.0]).unwrap();
                    assert!(comm.rank() != origin, "rank {origin} gives up");
                    sum(&comm, [1.0, 1.0]).unwrap();
                })
            }))
        });
        let panic = outcome.unwrap_err();
        assert_eq!(panic.downcast_ref::<String>(), Some(&format!("rank {origin} gives up")));
    }
}

#[test]
fn a_panic_counts_from_its_departure_though_its_thread_ends_last() {
    /// Ends its thread late.
    struct Slow;
    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(300));
        }
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        threads::run(size(2), PATIENT, |comm| {
            let slow = Slow;
            let comm = comm;
            assert!(comm.rank() != 1, "the cause");
            drop(slow);
            sum(&comm, [1.0, 1.0]).unwrap();
        })
    }));
    assert_eq!(outcome.unwrap_err().downcast_ref::<&str>(), Some(&"the cause"));
}

#[test]
fn more_ranks_than_a_group_can_have_are_a_typed_error() {
    for got in [usize::MAX, usize::MAX / 2, 1 << 40, threads::MAX_WORLD_SIZE + 1] {
        let error = ThreadGroup::new(size(got), PATIENT).unwrap_err();
        assert_eq!((error.got, error.limit), (got, threads::MAX_WORLD_SIZE));
        let error = threads::run(size(got), PATIENT, |_| ()).unwrap_err();
        assert!(error.to_string().contains(&got.to_string()), "{error}");
    }
}
