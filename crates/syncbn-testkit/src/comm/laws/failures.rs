//! Laws about collectives that fail, because a rank leaves, panics, is late, or is in another collective.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use syncbn_core::{CollectiveId, CollectiveKind, CommError, CommErrorKind, HostCommunicator, Pass};

use super::{call, check_sum, run};
use crate::comm::{CommHarness, need};
use crate::harness::Ability;
use crate::outcome::Outcome;
use crate::{broken, ensure};

/// How long "at once" may take on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Tries a sum that has to fail.
fn failing_sum<C: HostCommunicator>(comm: &C) -> Outcome<CommError> {
    match comm.all_reduce_sum(&call(2), &mut [0.0; 4]) {
        Ok(()) => Err(broken!("a sum succeeded that a rank had no part in")),
        Err(error) => Ok(error),
    }
}

/// When a rank goes, the others get an error that says so: at once, and at every later call.
fn told_of_rank_1<C: HostCommunicator>(comm: &C, panicked: bool) -> Outcome {
    let began = Instant::now();
    let error = failing_sum(comm)?;
    ensure!(began.elapsed() < AT_ONCE, "the error took {:?}", began.elapsed());
    let mut kind = &error.kind;
    while let CommErrorKind::Poisoned(cause) = kind {
        kind = &cause.kind;
    }
    // A peer that has heard of it may be gone by now as well.
    let told = matches!(kind, CommErrorKind::Left { panicked: how, rank } if *rank != 1 || *how == panicked);
    ensure!(told, "rank {} is told: {error}", comm.rank());
    ensure!(comm.status().is_err(), "the group calls itself sound");
    failing_sum(comm).map(drop)
}

/// The shortest time of a few tries, so that a busy machine does not fail a law. Where ranks are processes, some of them measure
/// nothing.
struct Shortest(Mutex<Option<Duration>>);

impl Shortest {
    const TRIES: usize = 3;

    fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn note(&self, took: Duration) {
        let mut shortest = self.0.lock().unwrap();
        *shortest = Some(shortest.map_or(took, |other| other.min(took)));
    }

    fn check(&self, what: &str, most: Duration) -> Outcome {
        let Some(took) = *self.0.lock().unwrap() else { return Ok(()) };
        ensure!(
            took <= most,
            "{what} took {took:?} in the best of {} tries, at most {most:?} are right",
            Self::TRIES
        );
        Ok(())
    }
}

/// A rank drops its communicator.
pub fn a_rank_that_leaves_is_told_to_its_peers_at_once<H: CommHarness>(harness: &H) -> Outcome {
    need(harness, Ability::Departures)?;
    let shortest = Shortest::new();
    for _ in 0..Shortest::TRIES {
        run(harness, 3, &|comm| {
            check_sum(harness, &comm, 0, 2)?;
            if comm.rank() == 1 {
                return Ok(());
            }
            let began = Instant::now();
            told_of_rank_1(&comm, false)?;
            shortest.note(began.elapsed());
            Ok(())
        })?;
    }
    shortest.check("to be told that a rank has left", Duration::from_secs(1))
}

/// A rank panics.
pub fn a_rank_that_panics_is_told_to_its_peers_at_once<H: CommHarness>(harness: &H) -> Outcome {
    need(harness, Ability::Departures)?;
    run(harness, 3, &|comm| {
        check_sum(harness, &comm, 0, 2)?;
        if comm.rank() != 1 {
            return told_of_rank_1(&comm, true);
        }
        let unwound = catch_unwind(AssertUnwindSafe(move || {
            let _gone_with_the_panic = comm;
            std::panic::resume_unwind(Box::new("a rank's own mistake"));
        }));
        ensure!(unwound.is_err(), "the panic was lost");
        Ok(())
    })
}

/// A rank keeps its communicator and makes no call: the others wait for the time-out and not much longer, and their error names the
/// missing rank.
pub fn a_rank_that_never_comes_ends_the_wait<H: CommHarness>(harness: &H) -> Outcome {
    need(harness, Ability::Deadlines)?;
    let (timeout, shortest) = (Duration::from_millis(300), Shortest::new());
    for _ in 0..Shortest::TRIES {
        harness.run(NonZeroUsize::new(2).unwrap(), timeout, &|comm| {
            if comm.rank() == 1 {
                thread::sleep(5 * timeout);
                return Ok(());
            }
            let began = Instant::now();
            let error = failing_sum(&comm)?;
            ensure!(began.elapsed() >= timeout, "gave up after {:?} of {timeout:?}", began.elapsed());
            shortest.note(began.elapsed());
            let CommErrorKind::Timeout { missing, .. } = &error.kind else {
                return Err(broken!("not a time-out: {error}"));
            };
            ensure!(missing == &[1], "missing: {missing:?}");
            Ok(())
        })?;
    }
    shortest.check("a wait of 300 ms", 2 * timeout)
}

/// Ranks whose messages differ in length: all of them fail, nobody gets a sum.
pub fn ranks_that_disagree_on_length_all_fail<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 3, &|comm| {
        let channels = if comm.rank() == 2 { 3 } else { 2 };
        refused(&comm, &call(channels))
    })
}

/// Ranks in collectives of the same length that differ in any one thing, in its first bits or in its last: all of them fail as well,
/// and each is told what happened first: which rank was in which collective.
pub fn ranks_that_disagree_on_the_call_all_fail<H: CommHarness>(harness: &H) -> Outcome {
    need(harness, Ability::ComparesCalls)?;
    for other in other_calls() {
        run(harness, 3, &|comm| {
            let mine = if comm.rank() == 2 { other.clone() } else { usual_call() };
            told_apart(&comm, &mine, [&usual_call(), &other])
                .map_err(|why| why.at(format!("{other:?} on rank 2 beside {:?}", usual_call())))
        })?;
    }
    Ok(())
}

/// A sum that fails, with an error that names both collectives; and so does the next sum.
fn told_apart<C: HostCommunicator>(comm: &C, mine: &CollectiveId, both: [&CollectiveId; 2]) -> Outcome {
    let Err(error) = comm.all_reduce_sum(mine, &mut vec![1.0; mine.length]) else {
        return Err(broken!("rank {} got a sum", comm.rank()));
    };
    let mut first = &error;
    while let CommErrorKind::Poisoned(cause) = &first.kind {
        first = cause;
    }
    let CommErrorKind::OutOfStep { others } = &first.kind else {
        return Err(broken!("rank {} is told {error}", comm.rank()));
    };
    let named = |id: &CollectiveId| {
        first.call.as_ref() == Some(id)
            || others.iter().any(|(rank, other)| other == id && *rank != first.rank)
    };
    ensure!(both.into_iter().all(named), "rank {} is not told where each was: {error}", comm.rank());
    failing_sum(comm).map(drop)
}

fn usual_call() -> CollectiveId {
    call(2).with_layer(3, 5).with_use(7, 9)
}

/// As long as the usual one, each different in one thing.
fn other_calls() -> Vec<CollectiveId> {
    let labelled = |label: &str| {
        let mut call = usual_call();
        call.label = label.into();
        call
    };
    let kinds = [CollectiveKind::AllReduce, CollectiveKind::Pass(Pass::Forward)];
    let mut others = vec![labelled("bm"), labelled("bn2"), labelled("")];
    others.extend(kinds.map(|kind| usual_call().with_kind(kind)));
    for high in [1, 1 << 8, 1 << 16, 1 << 32, 1 << 63] {
        others.push(usual_call().with_layer(3 ^ high, 5));
        others.push(usual_call().with_layer(3, 5 ^ high));
        others.push(usual_call().with_use(7 ^ high, 9));
        others.push(usual_call().with_use(7, 9 ^ high));
    }
    others
}

/// A sum that fails, and so does the next.
fn refused<C: HostCommunicator>(comm: &C, call: &CollectiveId) -> Outcome {
    let mut values = vec![1.0; call.length];
    let answer = comm.all_reduce_sum(call, &mut values);
    ensure!(answer.is_err(), "rank {} got a sum", comm.rank());
    failing_sum(comm).map(drop)
}

/// A message that is not as long as its call says.
pub fn a_message_of_another_length_is_refused<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 2, &|comm| {
        let mut values = vec![1.0; if comm.rank() == 0 { 3 } else { 4 }];
        let answer = comm.all_reduce_sum(&call(2), &mut values);
        ensure!(answer.is_err(), "rank {} got a sum", comm.rank());
        Ok(())
    })
}

/// After a failure every call fails at once; a new group of the same harness works.
pub fn a_poisoned_group_answers_at_once_and_a_new_one_works<H: CommHarness>(harness: &H) -> Outcome {
    run(harness, 2, &|comm| {
        refused(&comm, &call(1 + comm.rank()))?;
        let began = Instant::now();
        for _ in 0..100 {
            failing_sum(&comm)?;
        }
        ensure!(began.elapsed() < AT_ONCE, "a hundred refusals took {:?}", began.elapsed());
        ensure!(comm.status().is_err(), "the group calls itself sound");
        Ok(())
    })?;
    run(harness, 2, &|comm| check_sum(harness, &comm, 1, 2).map(drop))
}

/// One thread of a rank asks for the status, again and again, and another poisons the group: the peers hear why, and not only that the
/// rank has left.
pub fn a_poison_is_heard_beside_a_thread_that_asks_for_the_status<H: CommHarness>(harness: &H) -> Outcome {
    const ROUNDS: usize = 10;
    for _ in 0..ROUNDS {
        run(harness, 2, &|comm| {
            check_sum(harness, &comm, 0, 2)?;
            if comm.rank() == 1 {
                poison_while_status_is_asked(&comm);
                return Ok(());
            }
            let error = failing_sum(&comm)?;
            ensure!(error.to_string().contains("the device is lost"), "rank 0 is told: {error}");
            Ok(())
        })?;
    }
    Ok(())
}

fn poison_while_status_is_asked<C: HostCommunicator>(comm: &C) {
    let (asked, ends) = (AtomicBool::new(false), AtomicBool::new(false));
    let ask = || {
        while !ends.load(Ordering::Relaxed) {
            let _ = comm.status();
            asked.store(true, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        scope.spawn(ask);
        while !asked.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        // Its last question may be on its way while this goes on.
        ends.store(true, Ordering::Relaxed);
        let kind = CommErrorKind::Disagree("the device is lost".into());
        comm.poison(&CommError { rank: 1, world_size: 2, call: None, late: false, kind });
    });
}

/// A rank poisons its group, with the failure of another group of any size: its own calls and those of its peers fail at once, and
/// say why.
pub fn a_rank_may_poison_its_group_with_the_failure_of_another<H: CommHarness>(harness: &H) -> Outcome {
    for world_size in [1, 64, usize::MAX] {
        run(harness, 3, &|comm| {
            check_sum(harness, &comm, 0, 2)?;
            if comm.rank() == 1 {
                let kind = CommErrorKind::Disagree("the other group has failed".into());
                comm.poison(&CommError { rank: world_size - 1, world_size, call: None, late: false, kind });
                ensure!(comm.status().is_err(), "the group calls itself sound");
            }
            let began = Instant::now();
            let error = failing_sum(&comm)?;
            ensure!(began.elapsed() < AT_ONCE, "the error took {:?}", began.elapsed());
            let place = (error.rank, error.world_size);
            ensure!(place == (comm.rank(), 3), "rank {} is told {error}", comm.rank());
            let told = error.to_string().contains("the other group has failed");
            ensure!(told, "rank {} is not told the cause: {error}", comm.rank());
            failing_sum(&comm).map(drop)
        })
        .map_err(|why| why.at(format!("the failure of a group of {world_size}")))?;
    }
    Ok(())
}
