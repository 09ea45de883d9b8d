//! Faults of a job that trains.

use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::job::{FAULTY, Job, SOON, TIMEOUT, Told};
use crate::trial;

const ALL: [usize; 3] = [0, 1, 2];
const OTHERS: [usize; 2] = [0, 2];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_rank_panics", || gone("panics", "rank 1 panicked")),
        trial("a_rank_returns_early", || gone("returns", "rank 1 left the group")),
        trial("a_rank_is_killed_while_idle", || killed("idles", Duration::from_millis(300))),
        trial("a_rank_is_killed_in_a_sum", || killed("others are late", Duration::from_millis(400))),
        trial("a_rank_is_killed_in_a_send", || killed("sends", Duration::from_millis(600))),
        trial("rank_0_is_killed", rank_0_is_killed),
        trial("a_rank_is_stopped", stopped),
        trial("a_rank_sleeps_past_the_deadline", sleeps),
        trial("a_rank_skips_a_layer", || apart("skips a layer", &["`one`", "`two`"], "name")),
        trial("a_rank_skips_a_step", || apart("skips a step", &["step 3", "step 4"], "step")),
        trial("a_rank_swaps_two_layers", || apart("swaps two layers", &["`one`", "`two`"], "name")),
        trial("a_rank_calls_backward", || apart("calls backward", &["forward", "backward"], "pass")),
        trial("a_rank_has_other_channels", || apart("other channels", &["`two`"], "number of numbers")),
        trial("a_rank_has_another_type", || apart("another type", &["`two`"], "number of numbers")),
        trial("a_rank_has_another_eps", || apart("another eps", &["`two`"], "settings")),
    ]
}

/// The faulty rank is gone, and the others hear it at once.
fn gone(fault: &str, told_of: &str) {
    let mut job = Job::of_three(fault, "0,2");
    let at = job.hear(FAULTY, "at the fault").at;
    for rank in OTHERS {
        let told = job.told(rank);
        told.check(rank, 3);
        assert!(told.error.contains(told_of) && told.error.contains("layer `"), "{told:?}");
        assert!(told.at.duration_since(at) < TIMEOUT, "{told:?}");
    }
    job.goes_on(&OTHERS);
}

fn killed(fault: &str, after: Duration) {
    let mut job = Job::of_three(fault, "0,2");
    job.hear(FAULTY, "at the fault");
    thread::sleep(after);
    let at = job.kill(FAULTY);
    for rank in OTHERS {
        let told = job.told(rank);
        told.check(rank, 3);
        assert!(told.error.contains("rank 1 left the group"), "{told:?}");
        assert!(told.at.duration_since(at) < SOON, "{told:?}");
    }
    job.goes_on(&OTHERS);
}

/// It is needed to meet, and then no more than any other.
fn rank_0_is_killed() {
    let mut job = Job::of_three("others are late", "1,2");
    job.hear(0, "at the fault");
    thread::sleep(Duration::from_millis(400));
    let at = job.kill(0);
    for rank in [1, 2] {
        let told = job.told(rank);
        told.check(rank, 3);
        assert!(told.error.contains("rank 0 left the group"), "{told:?}");
        assert!(told.at.duration_since(at) < SOON, "{told:?}");
    }
    job.goes_on(&[1, 2]);
}

fn stopped() {
    let mut job = Job::of_three("idles", "0,2");
    job.hear(FAULTY, "at the fault");
    job.stop(FAULTY);
    for rank in OTHERS {
        late(rank, &job.told(rank));
    }
    job.goes_on(&OTHERS);
}

fn late(rank: usize, told: &Told) {
    told.check(rank, 3);
    assert!(told.error.contains("ranks [1] did not come within 4s"), "{told:?}");
    assert!(told.error.contains("forward of layer `one` (number 0, 13 numbers, use 3, step 3)"), "{told:?}");
}

fn sleeps() {
    let mut job = Job::of_three("sleeps past the deadline", "0,1,2");
    for rank in OTHERS {
        late(rank, &job.told(rank));
    }
    let told = job.told(FAULTY);
    told.check(FAULTY, 3);
    assert!(
        told.error.contains("poisoned") && told.error.contains("ranks [1] did not come within 4s"),
        "{told:?}"
    );
    assert!(told.waited < TIMEOUT / 2, "{told:?}");
    job.goes_on(&ALL);
}

/// The faulty rank is in another collective: every rank hears it at once, with where another was and what differs.
fn apart(fault: &str, names: &[&str], differ_in: &str) {
    let mut job = Job::of_three(fault, "0,1,2");
    for rank in ALL {
        let told = job.told(rank);
        told.check(rank, 3);
        assert!(told.error.contains("out of step"), "{told:?}");
        assert!(names.iter().all(|name| told.error.contains(name)), "{told:?}");
        assert!(told.error.contains(&format!("they differ in {differ_in}")), "{told:?}");
        let other = if rank == FAULTY { "rank 0 is in " } else { "rank 1 is in " };
        assert!(told.error.contains(other) || told.error.contains("rank 2 is in "), "{told:?}");
        assert!(told.waited < TIMEOUT / 2, "{told:?}");
    }
    job.goes_on(&ALL);
}
