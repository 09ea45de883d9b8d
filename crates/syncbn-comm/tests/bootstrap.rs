//! Processes, played by threads, become ranks.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::thread;
use std::time::{Duration, Instant};

use syncbn_comm::bootstrap::{BootstrapError, Meeting, Place, share};

const PATIENCE: Duration = Duration::from_secs(20);

/// A port that nobody listens at.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn place(rank: usize, world_size: usize, port: u16) -> Place {
    let meeting = Meeting { host: "127.0.0.1".into(), port };
    Place { rank, world_size: NonZeroUsize::new(world_size).unwrap(), local_rank: rank, meeting }
}

fn bytes() -> [u8; 128] {
    std::array::from_fn(|i| i as u8)
}

fn meet(place: &Place, timeout: Duration) -> Result<[u8; 128], BootstrapError> {
    share(place, timeout, || Ok(bytes()))
}

#[test]
fn every_rank_gets_rank_0s_bytes_whoever_comes_first() {
    let port = free_port();
    thread::scope(|scope| {
        for rank in 0..4 {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(30 * [3, 0, 5, 1][rank]));
                let got = meet(&place(rank, 4, port), PATIENCE).unwrap();
                assert_eq!(got, bytes(), "rank {rank}");
            });
        }
    });
}

#[test]
fn a_world_of_one_asks_no_network() {
    assert_eq!(meet(&place(0, 1, 0), Duration::ZERO).unwrap(), bytes());
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let port = free_port();
    let timeout = Duration::from_millis(400);
    thread::scope(|scope| {
        let zero = scope.spawn(|| meet(&place(0, 4, port), timeout));
        let two = scope.spawn(|| meet(&place(2, 4, port), timeout));
        match zero.join().unwrap().unwrap_err() {
            BootstrapError::Missing { missing, world_size: 4, .. } => assert_eq!(missing, [1, 3]),
            other => panic!("{other}"),
        }
        let error = two.join().unwrap().unwrap_err();
        assert!(matches!(error, BootstrapError::NoAnswer { rank: 2, .. }), "{error}");
    });
}

#[test]
fn a_rank_without_a_rank_0_gives_up_in_time() {
    let began = Instant::now();
    let error = meet(&place(1, 2, free_port()), Duration::from_millis(200)).unwrap_err();
    assert!(began.elapsed() < PATIENCE, "{error}");
}

#[test]
fn a_process_of_another_world_is_an_error() {
    let port = free_port();
    thread::scope(|scope| {
        let zero = scope.spawn(|| meet(&place(0, 2, port), PATIENCE));
        scope.spawn(|| meet(&place(1, 3, port), Duration::from_secs(1)));
        let error = zero.join().unwrap().unwrap_err();
        assert!(matches!(error, BootstrapError::Stranger { rank: 1, got: 3, expected: 2 }), "{error}");
    });
}

#[test]
fn a_port_in_use_is_named_with_the_way_out() {
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = meet(&place(0, 2, port), PATIENCE).unwrap_err();
    assert!(error.to_string().contains("SYNCBN_PORT"), "{error}");
}
