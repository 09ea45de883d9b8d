//! Faults of a job that is started wrongly, or in the wrong company.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::job::{GRACE, Job};
use crate::trial;

/// How long the ranks of a job that never gathers wait for each other.
const SHORT: Duration = Duration::from_secs(4);
/// Far longer than processes take to start, on a busy machine.
const LONG: Duration = Duration::from_secs(60);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_wrong_world_size", wrong_world_size),
        trial("two_ranks_of_one_number", two_of_one_number),
        trial("a_rank_out_of_range", || {
            at_once(&[("RANK", "3")], "WORLD_SIZE is `3`, expected more than RANK, which is 3");
        }),
        trial("a_world_size_beyond_all_bounds", || {
            at_once(&[("WORLD_SIZE", "1099511627776")], "expected more than RANK");
        }),
        trial("a_master_that_cannot_be_reached", || in_vain("192.0.2.1", "192.0.2.1")),
        trial("a_master_that_has_no_address", || {
            in_vain("no-such-host.invalid", "the name no-such-host.invalid was not resolved");
        }),
        trial("a_master_that_refuses", || in_vain("127.0.0.1", "refused")),
        trial("a_port_in_use", port_in_use),
        trial("strangers_while_a_job_gathers_and_runs", strangers),
    ]
}

/// The rest of the job waits for the rank that was started wrongly, and says who is missing and who came instead.
fn missing(job: &mut Job, rank: usize, names: &[&str]) {
    let (waited, error) = job.not_joined(rank);
    assert!(waited < job.join_within + GRACE, "{waited:?}: {error}");
    assert!(names.iter().all(|name| error.contains(name)), "{error}");
}

fn wrong_world_size() {
    let mut job = Job::new(SHORT);
    job.start("", "", 0, 3, &[]);
    job.await_rank_0();
    job.start("", "", 1, 3, &[]);
    job.start("", "", 2, 4, &[]);
    let (waited, error) = job.not_joined(2);
    assert!(waited < SHORT / 2, "{waited:?}: {error}");
    assert!(error.contains("rank 2 was started as one of 4 ranks, and rank 0 as one of 3"), "{error}");
    missing(&mut job, 0, &["ranks [2] of 3 did not come", "it knows of 4 ranks, expected 3"]);
    missing(&mut job, 1, &["ranks [2] of 3 did not come"]);
}

fn two_of_one_number() {
    let mut job = Job::new(SHORT);
    job.start("", "", 0, 3, &[]);
    job.await_rank_0();
    job.start("", "", 1, 3, &[]);
    job.start("", "", 1, 3, &[]);
    missing(&mut job, 0, &["ranks [2] of 3 did not come", "came as rank 1"]);
    let errors = [job.not_joined(1).1, job.not_joined(2).1];
    assert!(
        errors.iter().any(|error| error.contains("another process was started as rank 1 of 3, too")),
        "{errors:?}"
    );
    assert!(errors.iter().any(|error| error.contains("ranks [2] of 3 did not come")), "{errors:?}");
}

fn at_once(variables: &[(&str, &str)], names: &str) {
    let mut job = Job::new(SHORT);
    job.start("", "", 1, 3, variables);
    let (waited, error) = job.not_joined(0);
    assert!(waited < GRACE && error.contains(names), "{waited:?}: {error}");
}

fn in_vain(master: &str, names: &str) {
    let mut job = Job::new(SHORT);
    job.start("", "", 1, 2, &[("MASTER_ADDR", master)]);
    missing(&mut job, 0, &["rank 1 of 2 got no answer from rank 0", names]);
}

fn port_in_use() {
    let mut job = Job::new(SHORT);
    let _taken = TcpListener::bind(("0.0.0.0", job.port)).unwrap();
    job.start("", "", 0, 2, &[]);
    let (waited, error) = job.not_joined(0);
    assert!(waited < SHORT / 2, "{waited:?}: {error}");
    assert!(error.contains("rank 0 cannot listen at port") && error.contains("SYNCBN_PORT"), "{error}");
}

/// Garbage, nothing, half a greeting, and lengths beyond all bounds, for as long as the job lives.
fn strangers() {
    let mut job = Job::new(LONG);
    job.start("returns", "0,2", 0, 3, &[]);
    job.start("returns", "0,2", 1, 3, &[]);
    let mut kept = Vec::new();
    for turn in 0..200_u64 {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", job.port)) {
            let length = (1_u64 << 60).to_le_bytes();
            let said: [&[u8]; 5] = [&[0xa5; 4000], b"", b"syncbn\r\n\x02\0\0\0", &length, b"syncbn 1"];
            let _ = stream.write_all(said[turn as usize % 5]);
            kept.push(stream);
        }
        thread::sleep(Duration::from_millis(5));
    }
    job.start("returns", "0,2", 2, 3, &[]);
    for rank in [0, 2] {
        let told = job.told(rank);
        assert!(told.error.contains("rank 1 left the group"), "{told:?}");
    }
    job.goes_on(&[0, 2]);
}
