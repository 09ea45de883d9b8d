//! TCP ranks, as threads of one process with real sockets: what each rank is told when something goes wrong.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that meets something else fails its test")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::tcp::{each, env, group, sum, tcp_group};
use common::{PATIENT, at_once, backward, pass};
use syncbn_comm::{BootstrapError, JobToken, LaunchEnv, TcpCommunicator};
use syncbn_core::{CollectiveId, CommError, CommErrorKind, HostCommunicator, Pass};
use syncbn_testkit::comm::free_port;

/// The failure that poisoned the group.
fn cause(error: &CommError) -> &CommError {
    match &error.kind {
        CommErrorKind::Poisoned(cause) => cause,
        other => panic!("expected a poisoned group, got {other:?}"),
    }
}

#[test]
fn a_rank_that_leaves_or_panics_is_told_to_its_peers_at_once() {
    for panics in [false, true] {
        let [zero, one, two] = group();
        let errors = at_once(|| {
            thread::scope(|scope| {
                let waiting =
                    [&zero, &two].map(|comm| scope.spawn(|| sum(comm, &backward("bn", 1)).unwrap_err()));
                thread::sleep(Duration::from_millis(30));
                let gone = catch_unwind(AssertUnwindSafe(move || {
                    let _gone = one;
                    assert!(!panics, "rank 1 gives up");
                }));
                assert_eq!(gone.is_err(), panics);
                waiting.map(|rank| rank.join().unwrap())
            })
        });
        for error in errors {
            let CommErrorKind::Left { rank: 1, panicked } = error.kind else { panic!("{error}") };
            assert_eq!((panicked, error.call), (panics, Some(backward("bn", 1))));
        }
        for comm in [zero, two] {
            assert!(matches!(cause(&comm.status().unwrap_err()).kind, CommErrorKind::Left { rank: 1, .. }));
        }
    }
}

#[test]
fn status_says_that_a_rank_has_left_before_the_next_sum_does() {
    let [zero, one] = group();
    assert!(zero.status().is_ok());
    drop(one);
    let began = Instant::now();
    while zero.status().is_ok() {
        assert!(began.elapsed() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(1));
    }
    for error in [zero.status().unwrap_err(), sum(&zero, &backward("bn", 1)).unwrap_err()] {
        assert!(matches!(error.kind, CommErrorKind::Left { rank: 1, panicked: false }), "{error}");
    }
}

/// A monitor's question may hold the connections while another thread poisons the group. Each round is a chance of it.
#[test]
fn a_poison_beside_a_question_for_the_status_reaches_the_peers() {
    for round in 0..300 {
        let [zero, one] = group();
        let ends = AtomicBool::new(false);
        thread::scope(|scope| {
            let waiting = scope.spawn(move || sum(&zero, &backward("bn", 1)).unwrap_err());
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    let _ = one.status();
                }
            });
            thread::sleep(Duration::from_micros(300));
            ends.store(true, Ordering::Relaxed);
            let kind = CommErrorKind::Disagree("the device is lost".into());
            one.poison(&CommError { rank: 1, world_size: 2, call: None, late: false, kind });
            let began = Instant::now();
            while !waiting.is_finished() && began.elapsed() < Duration::from_secs(5) {
                thread::sleep(Duration::from_micros(100));
            }
            let heard = waiting.is_finished();
            let _ = one.status(); // which would tell it
            assert!(heard, "round {round}: rank 0 has heard nothing");
            let error = waiting.join().unwrap();
            assert!(error.to_string().contains("the device is lost"), "{error}");
        });
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_and_learns_it_later() {
    let timeout = Duration::from_millis(500);
    let [zero, one, two]: [TcpCommunicator; 3] = tcp_group(3, timeout).unwrap().try_into().unwrap();
    let began = Instant::now();
    let errors = thread::scope(|scope| {
        let waiting = [&zero, &two].map(|comm| scope.spawn(|| sum(comm, &backward("bn", 1)).unwrap_err()));
        waiting.map(|rank| rank.join().unwrap())
    });
    let waited = began.elapsed();
    assert!(waited >= timeout && waited < timeout + Duration::from_secs(1), "{waited:?}");
    for error in errors {
        let CommErrorKind::Timeout { missing, timeout: told } = &error.kind else { panic!("{error}") };
        assert_eq!((missing.as_slice(), *told), ([1].as_slice(), timeout));
    }
    let late = at_once(|| sum(&one, &backward("bn", 1)).unwrap_err());
    let CommErrorKind::Timeout { missing, .. } = &cause(&late).kind else { panic!("{late}") };
    assert_eq!(missing, &[1]);
}

#[test]
fn a_rank_that_gives_up_is_heard_by_those_who_have_its_numbers_already() {
    let comms = tcp_group(3, PATIENT).unwrap();
    let [zero, one, _two]: [TcpCommunicator; 3] = comms.try_into().unwrap();
    let zero = zero.with_timeout(Duration::from_millis(200));
    let told = at_once(|| {
        thread::scope(|scope| {
            let waiting = scope.spawn(|| sum(&one, &backward("bn", 1)).unwrap_err());
            sum(&zero, &backward("bn", 1)).unwrap_err();
            waiting.join().unwrap()
        })
    });
    let CommErrorKind::Timeout { missing, .. } = &told.kind else { panic!("{told}") };
    assert!(missing.contains(&2), "{told}");
}

#[test]
fn a_rank_that_gives_up_in_the_middle_of_a_message_is_heard_by_those_who_read_it_later() {
    let [zero, one, two]: [TcpCommunicator; 3] = tcp_group(3, PATIENT).unwrap().try_into().unwrap();
    // More than the system keeps for a peer that does not read.
    let long = CollectiveId::new("long", 16_000_000);
    at_once(|| {
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                let error = sum(&zero, &long).unwrap_err();
                drop(zero);
                error
            });
            thread::sleep(Duration::from_millis(500));
            drop(one);
            let left =
                |error: &CommError| matches!(error.kind, CommErrorKind::Left { rank: 1, panicked: false });
            let error = first.join().unwrap();
            assert!(left(&error), "{error}");
            let error = sum(&two, &long).unwrap_err();
            assert!(left(&error), "{error}");
        });
    });
}

#[test]
fn every_rank_out_of_step_hears_where_another_was() {
    let forward = pass("bn", Pass::Forward, 4);
    for other in [
        backward("bn", 4),
        pass("bn", Pass::Forward, 5),
        pass("bm", Pass::Forward, 4),
        forward.clone().with_use(1, 0),
        forward.clone().with_use(0, 1),
        forward.clone().with_layer(1, 0),
        forward.clone().with_layer(0, 1),
    ] {
        let calls = [forward.clone(), forward.clone(), other.clone(), forward.clone()];
        let errors = at_once(|| {
            each(tcp_group(4, PATIENT).unwrap(), |comm| {
                let error = sum(&comm, &calls[comm.rank()]).unwrap_err();
                // Until all have been told: whoever leaves says so, too.
                thread::sleep(Duration::from_millis(100));
                error
            })
        });
        for error in errors {
            let CommErrorKind::OutOfStep { others } = &error.kind else { panic!("{error}") };
            assert_eq!(error.call.as_ref(), Some(&calls[error.rank]));
            assert!(!others.is_empty());
            for (rank, place) in others {
                assert_eq!(place, &calls[*rank]);
                assert_ne!(place, &calls[error.rank]);
            }
        }
    }
}

#[test]
fn a_length_that_no_memory_holds_is_an_error_and_takes_none() {
    let calls = [CollectiveId::new("n", 1), CollectiveId::new("n", 1 << 60)];
    let errors = at_once(|| {
        each(tcp_group(2, PATIENT).unwrap(), |comm| {
            let error = comm.all_reduce_sum(&calls[comm.rank()], &mut [0.0]).unwrap_err();
            thread::sleep(Duration::from_millis(50));
            error
        })
    });
    let expected = CommErrorKind::MessageLength { expected: 1 << 60, got: 1 };
    assert_eq!(format!("{:?}", errors[1].kind), format!("{expected:?}"));
    assert_eq!(format!("{:?}", cause(&errors[0]).kind), format!("{expected:?}"));
}

#[test]
fn a_label_that_is_too_long_to_be_sent_is_an_error_on_every_rank() {
    let id = CollectiveId::new("x".repeat(1 << 20), 1);
    let errors = at_once(|| {
        each(tcp_group(2, PATIENT).unwrap(), |comm| {
            let mine = if comm.rank() == 0 { id.clone() } else { backward("bn", 1) };
            let error = sum(&comm, &mine).unwrap_err();
            thread::sleep(Duration::from_millis(50));
            error
        })
    });
    assert!(errors[0].to_string().contains("a text of 1048576 bytes"), "{}", errors[0].kind);
    assert!(cause(&errors[1]).kind.to_string().contains("a text of 1048576 bytes"), "{}", errors[1].kind);
}

#[test]
fn a_split_beside_a_sum_is_a_disagreement_on_both_sides() {
    let errors = at_once(|| {
        each(tcp_group(2, PATIENT).unwrap(), |comm| {
            let error = match comm.rank() {
                0 => sum(&comm, &backward("bn", 2)).unwrap_err(),
                _ => comm.split(Some(0), 0).unwrap_err(),
            };
            thread::sleep(Duration::from_millis(50));
            error
        })
    });
    for error in errors {
        assert!(matches!(error.kind, CommErrorKind::Disagree(_)), "{error}");
        assert!(error.to_string().contains("a split of the group"), "{error}");
    }
}

#[test]
fn a_rank_that_cannot_go_on_poisons_the_group_even_while_others_wait() {
    let [zero, one] = group();
    let kind = CommErrorKind::Transport(Arc::new(std::io::Error::other("its device is gone")));
    let device = CommError { rank: 0, world_size: 2, call: None, late: false, kind };
    let told = at_once(|| {
        thread::scope(|scope| {
            let waiting = scope.spawn(|| sum(&one, &backward("bn", 1)).unwrap_err());
            thread::sleep(Duration::from_millis(30));
            zero.poison(&device);
            waiting.join().unwrap()
        })
    });
    assert_eq!(cause(&told).rank, 0);
    assert!(cause(&told).kind.to_string().contains("its device is gone"), "{told}");
    assert!(zero.status().is_err() && sum(&zero, &backward("bn", 1)).is_err());
}

#[test]
fn another_thread_of_a_waiting_rank_can_poison_its_group() {
    let [zero, one] = group();
    let kind = CommErrorKind::Transport(Arc::new(std::io::Error::other("its device is gone")));
    let device = CommError { rank: 0, world_size: 2, call: None, late: false, kind };
    at_once(|| {
        thread::scope(|scope| {
            let waiting = scope.spawn(|| sum(&zero, &backward("bn", 1)).unwrap_err());
            thread::sleep(Duration::from_millis(30));
            assert!(zero.status().is_ok());
            zero.poison(&device);
            assert!(waiting.join().unwrap().to_string().contains("its device is gone"));
        });
    });
    let told = sum(&one, &backward("bn", 1)).unwrap_err();
    assert!(cause(&told).kind.to_string().contains("its device is gone"), "{told}");
}

#[test]
fn two_threads_of_one_rank_in_a_collective_at_once_are_an_error_not_a_mixed_sum() {
    let [zero, one] = group();
    let results = at_once(|| {
        thread::scope(|scope| {
            let ranks = [&zero, &zero].map(|comm| scope.spawn(|| sum(comm, &backward("bn", 1)).unwrap_err()));
            ranks.map(|rank| rank.join().unwrap())
        })
    });
    let disagree = |error: &&CommError| matches!(error.kind, CommErrorKind::Disagree(_));
    assert_eq!(results.iter().filter(disagree).count(), 1, "{results:?}");
    let told = sum(&one, &backward("bn", 1)).unwrap_err();
    assert!(matches!(cause(&told).kind, CommErrorKind::Disagree(_)), "{told}");
}

#[test]
fn ranks_of_another_job_or_world_size_do_not_get_in() {
    let port = free_port();
    let timeout = Duration::from_millis(700);
    let began = Instant::now();
    thread::scope(|scope| {
        let zero = scope.spawn(|| TcpCommunicator::new(&env(0, 2, port), timeout).unwrap_err());
        let other = LaunchEnv { token: JobToken::of_secret("theirs"), ..env(1, 2, port) };
        let other = scope.spawn(move || TcpCommunicator::new(&other, timeout).unwrap_err());
        let wrong = TcpCommunicator::new(&env(1, 3, port), PATIENT).unwrap_err();
        assert!(matches!(wrong, BootstrapError::WorldSize { rank: 1, got: 3, expected: 2 }), "{wrong}");
        assert!(other.join().unwrap().to_string().contains("another job"));
        let zero = zero.join().unwrap().to_string();
        assert!(zero.contains("[1]") && zero.contains("another job") && zero.contains("3 ranks"), "{zero}");
    });
    assert!(began.elapsed() < timeout + Duration::from_secs(1));
}

#[test]
fn a_rendezvous_at_port_0_is_refused_at_once() {
    let began = Instant::now();
    for rank in 0..2 {
        let error = TcpCommunicator::new(&env(rank, 2, 0), PATIENT).unwrap_err();
        assert!(matches!(error, BootstrapError::NoPort), "{error}");
    }
    let error = TcpCommunicator::host(&env(1, 2, 0), PATIENT, |_| ()).unwrap_err();
    assert!(matches!(error, BootstrapError::NoPort), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
}
