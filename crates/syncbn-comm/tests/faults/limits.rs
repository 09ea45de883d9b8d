//! Faults of the system that a rank runs on: no file descriptors are left, the clock is set back.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;
use syncbn_testkit::report::absent;

use crate::job::{FAULTY, GRACE, Job, STEPS, TIMEOUT};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("descriptors::too_few_to_join", too_few_to_join),
        trial("descriptors::used_up_by_strangers", used_up_by_strangers),
        trial("descriptors::used_up_by_the_rank", used_up_by_the_rank),
        trial("clock::set_back_while_a_rank_waits", clock_set_back),
    ]
}

/// Starts a process with so few descriptors.
fn limited(descriptors: u32) -> Vec<String> {
    ["sh", "-c", &format!("ulimit -n {descriptors}; exec \"$0\"")].map(String::from).to_vec()
}

/// From too few to start with to enough: whichever is the one that is missing, rank 0 says so, and no rank hangs.
fn too_few_to_join() {
    let within = Duration::from_secs(4);
    let jobs = (4..=16).map(|descriptors| {
        let mut job = Job::new(within);
        job.launcher = limited(descriptors);
        job.start("none", "", 0, 2, &[(STEPS, "5")]);
        job.launcher.clear();
        job.start("none", "", 1, 2, &[(STEPS, "5")]);
        job
    });
    let mut joined = Vec::new();
    for mut job in jobs.collect::<Vec<_>>() {
        let zero = job.hear_one_of(0, &["not joined ", "trained "]).text;
        let one = job.hear_one_of(1, &["not joined ", "failed ", "trained "]).text;
        let trained = [&zero, &one].map(|text| text.starts_with("trained"));
        assert!(trained == [true; 2] || trained == [false; 2], "{zero}; {one}");
        assert!(trained[0] || zero.contains("Too many open files"), "{zero}");
        joined.push(trained[0]);
    }
    assert!(joined.is_sorted() && !joined[0] && joined[12], "{joined:?}");
}

/// More silent connections than rank 0 has descriptors, before the other ranks come and for as long as the job lives.
fn used_up_by_strangers() {
    let mut job = Job::new(Duration::from_secs(30));
    job.launcher = limited(24);
    job.start("none", "", 0, 3, &[]);
    job.await_rank_0();
    let connect = || TcpStream::connect(("127.0.0.1", job.port)).unwrap();
    let strangers: Vec<_> = (0..300).map(|_| connect()).collect();
    job.launcher.clear();
    for rank in [1, 2] {
        job.start("none", "", rank, 3, &[]);
    }
    let states = [0, 1, 2].map(|rank| job.trained(rank).1);
    assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
    drop(strangers);
}

/// Sums need no new descriptors. A split does: it fails on the rank that has none, and the others hear why.
fn used_up_by_the_rank() {
    let mut job = Job::new(Duration::from_secs(60));
    job.launcher = limited(64);
    for rank in 0..3 {
        job.start("uses up its descriptors", "0,1,2", rank, 3, &[]);
    }
    for rank in 0..3 {
        let told = job.told(rank);
        told.check(rank, 3);
        assert!(told.error.contains("Too many open files"), "{told:?}");
        assert_eq!(told.error.contains("poisoned"), rank != FAULTY, "{told:?}");
        assert!(told.waited < TIMEOUT / 2, "{told:?}");
    }
    job.goes_on(&[0, 1, 2]);
}

/// Rank 0's clock is set back an hour while it waits for the other rank, which does not come. Nobody else could tell it.
fn clock_set_back() {
    let Some(library) = faketime() else {
        return absent("faketime", "faults::clock", &"needs (Debian) `apt-get install libfaketime`");
    };
    let offset = std::env::temp_dir().join(format!("syncbn-clock-{}", std::process::id()));
    fs::write(&offset, "+0").unwrap();
    let other_clock = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", offset.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        // As on a machine whose clock is set: the one that counts from its start goes on.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let mut job = Job::new(Duration::from_secs(60));
    job.start("idles", "0", 0, 2, &other_clock);
    job.start("idles", "0", FAULTY, 2, &[]);
    let at = job.hear(0, "at the fault").at;
    thread::sleep(Duration::from_secs(1));
    fs::write(&offset, "-3600").unwrap();
    let told = job.told(0);
    told.check(0, 2);
    assert!(told.error.contains("ranks [1] did not come within 4s"), "{told:?}");
    assert!(told.at.duration_since(at) < TIMEOUT + GRACE, "{told:?}");
    let clock = |job: &mut Job, start| -> u64 {
        job.hear(0, start).text.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let (before, after) = (clock(&mut job, "at the fault"), clock(&mut job, "afterwards"));
    assert!(after + 3000 < before, "the clock went from {before} to {after}: it was not set back");
    job.goes_on(&[0]);
    let _ = fs::remove_file(offset);
}

fn faketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok);
    let library = |folder: fs::DirEntry| folder.path().join("faketime/libfaketimeMT.so.1");
    folders.map(library).find(|library| library.exists())
}
