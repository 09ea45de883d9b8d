//! Processes, here threads, become ranks, whatever other connections come.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::thread;
use std::time::{Duration, Instant};

use syncbn_comm::bootstrap::{BootstrapError, JobToken, LaunchEnv, MAX_WORLD_SIZE, Rendezvous, share};
use syncbn_testkit::comm::free_port;

/// No test waits for it, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Far below it.
const SOON: Duration = Duration::from_secs(20);
/// What a deadline may be passed by.
const GRACE: Duration = Duration::from_secs(1);

fn env_at(host: &str, rank: usize, world_size: usize, port: u16) -> LaunchEnv {
    LaunchEnv {
        rank,
        world_size: NonZeroUsize::new(world_size).unwrap(),
        local_rank: 0,
        rendezvous: Rendezvous { host: host.into(), port },
        token: JobToken::of_secret("ours"),
    }
}

fn env(rank: usize, world_size: usize, port: u16) -> LaunchEnv {
    env_at("127.0.0.1", rank, world_size, port)
}

fn bytes() -> [u8; 128] {
    std::array::from_fn(|i| i as u8)
}

fn meet(env: &LaunchEnv, timeout: Duration) -> Result<[u8; 128], BootstrapError> {
    share(env, timeout, || Ok(bytes()))
}

/// Every rank meets at the port, each from the host that it is given, while `disturb` goes on.
fn all_meet<const N: usize>(port: u16, hosts: [&str; N], disturb: impl FnOnce() + Send) {
    let began = Instant::now();
    thread::scope(|scope| {
        let zero = scope.spawn(move || meet(&env_at(hosts[0], 0, N, port), PATIENCE).unwrap());
        await_listener(port);
        scope.spawn(disturb);
        thread::sleep(Duration::from_millis(100));
        for (rank, host) in hosts.into_iter().enumerate().skip(1) {
            scope.spawn(move || assert_eq!(meet(&env_at(host, rank, N, port), PATIENCE).unwrap(), bytes()));
        }
        assert_eq!(zero.join().unwrap(), bytes());
    });
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

fn await_listener(port: u16) {
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        thread::sleep(Duration::from_millis(5));
    }
}

/// The error, which comes by the deadline.
fn fails_by(env: &LaunchEnv, timeout: Duration) -> BootstrapError {
    let began = Instant::now();
    let error = meet(env, timeout).unwrap_err();
    assert!(began.elapsed() < timeout + GRACE, "{:?}: {error}", began.elapsed());
    error
}

#[test]
fn every_rank_gets_rank_0s_bytes_whoever_comes_first() {
    let port = free_port();
    thread::scope(|scope| {
        for rank in 0..4 {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(30 * [3, 0, 5, 1][rank]));
                let got = meet(&env(rank, 4, port), PATIENCE).unwrap();
                assert_eq!(got, bytes(), "rank {rank}");
            });
        }
    });
}

#[test]
fn a_world_of_one_asks_no_network() {
    assert_eq!(meet(&env(0, 1, 0), Duration::ZERO).unwrap(), bytes());
}

#[test]
fn rank_0_is_found_at_every_address_of_both_families() {
    all_meet(free_port(), ["127.0.0.1", "127.0.0.1", "::1", "[::1]", "localhost"], || {});
}

#[test]
fn strangers_of_every_kind_are_not_accepted_and_delay_no_rank() {
    let port = free_port();
    all_meet(port, ["127.0.0.1"; 3], move || {
        let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
        let silent: Vec<_> = (0..200).map(|_| connect()).collect();
        let mut half = connect();
        half.write_all(b"syncbn\r\n\x02\0\0\0\x01\0\0\0").unwrap();
        let _ = connect().write_all(&[0xa5; 5000]);
        let _ = connect().write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        // What the first version of the protocol's ranks say: of a rank, and of a world, that there is not.
        for (rank, world_size) in [(1_u64, 9_u64), (7, 3), (u64::MAX, u64::MAX)] {
            let words = [*b"syncbn 1", rank.to_le_bytes(), world_size.to_le_bytes()];
            let _ = connect().write_all(words.as_flattened());
        }
        let mut dripping = connect();
        while dripping.write_all(b"s").is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
        drop((silent, half));
    });
}

#[test]
fn a_process_of_another_job_disturbs_neither_job() {
    let port = free_port();
    let theirs = |rank| LaunchEnv { token: JobToken::of_secret("theirs"), ..env(rank, 3, port) };
    let error = thread::scope(|scope| {
        let other = scope.spawn(|| fails_by(&theirs(1), Duration::from_secs(1)));
        all_meet(port, ["127.0.0.1"; 3], || thread::sleep(Duration::from_millis(500)));
        other.join().unwrap()
    });
    assert!(matches!(error, BootstrapError::NoAnswer { rank: 1, .. }), "{error}");
}

#[test]
fn both_jobs_learn_that_there_is_another() {
    let port = free_port();
    let theirs = LaunchEnv { token: JobToken::of_secret("theirs"), ..env(1, 2, port) };
    thread::scope(|scope| {
        let zero = scope.spawn(|| fails_by(&env(0, 2, port), Duration::from_secs(1)));
        let error = fails_by(&theirs, Duration::from_millis(600));
        assert!(error.to_string().contains("belongs to another job"), "{error}");
        let error = zero.join().unwrap();
        let BootstrapError::Missing { missing, rejected, .. } = &error else { panic!("{error}") };
        assert_eq!(missing, &[1]);
        assert!(rejected[0].contains("127.0.0.1") && rejected[0].contains("another job"), "{error}");
    });
}

#[test]
fn what_a_foreign_service_says_is_not_taken_for_an_answer() {
    for said in [128, 129, 1 << 20] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.unwrap().write_all(&vec![7; said]);
            }
        });
        let error = fails_by(&env(1, 2, port), Duration::from_millis(300));
        assert!(matches!(error, BootstrapError::NoAnswer { rank: 1, .. }), "{error}");
    }
}

#[test]
fn a_service_that_never_speaks_is_given_up_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = fails_by(&env(1, 2, port), Duration::from_millis(300));
    assert!(matches!(error, BootstrapError::NoAnswer { rank: 1, .. }), "{error}");
}

#[test]
fn a_service_that_drips_is_given_up_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while stream.write_all(b"s").is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    });
    let error = fails_by(&env(1, 2, port), Duration::from_millis(500));
    assert!(matches!(error, BootstrapError::NoAnswer { rank: 1, .. }), "{error}");
}

#[test]
fn a_name_that_has_no_address_is_given_up_at_the_deadline_and_named() {
    let error = fails_by(&env_at("no-such-host.invalid", 1, 2, 1), Duration::from_millis(400));
    assert!(error.to_string().contains("the name no-such-host.invalid was not resolved"), "{error}");
}

#[test]
fn ranks_that_do_not_come_are_named_to_those_who_did() {
    let port = free_port();
    thread::scope(|scope| {
        let zero = scope.spawn(|| fails_by(&env(0, 4, port), Duration::from_secs(1)));
        let two = scope.spawn(|| meet(&env(2, 4, port), PATIENCE).unwrap_err());
        for error in [zero.join().unwrap(), two.join().unwrap()] {
            match error {
                BootstrapError::Missing { missing, world_size: 4, .. } => assert_eq!(missing, [1, 3]),
                other => panic!("{other}"),
            }
        }
    });
}

#[test]
fn a_rank_without_a_rank_0_gives_up_in_time_and_says_what_it_tried() {
    let port = free_port();
    let error = fails_by(&env(1, 2, port), Duration::from_millis(200)).to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}: ")) && error.contains("refused"), "{error}");
}

#[test]
fn a_process_that_was_told_another_number_of_ranks_learns_it_at_once_and_does_not_end_the_job() {
    let port = free_port();
    thread::scope(|scope| {
        let zero = scope.spawn(|| fails_by(&env(0, 2, port), Duration::from_secs(2)));
        let error = meet(&env(1, 3, port), PATIENCE).unwrap_err();
        assert!(matches!(error, BootstrapError::WorldSize { rank: 1, got: 3, expected: 2 }), "{error}");
        let error = zero.join().unwrap().to_string();
        assert!(
            error.contains("ranks [1] of 2") && error.contains("it knows of 3 ranks, expected 2"),
            "{error}"
        );
    });
}

#[test]
fn a_rank_that_gave_up_and_comes_again_is_let_in() {
    let port = free_port();
    thread::scope(|scope| {
        let zero = scope.spawn(|| meet(&env(0, 3, port), PATIENCE));
        fails_by(&env(1, 3, port), Duration::from_millis(300));
        let one = scope.spawn(|| meet(&env(1, 3, port), PATIENCE));
        thread::sleep(Duration::from_millis(100));
        let two = scope.spawn(|| meet(&env(2, 3, port), PATIENCE));
        for rank in [zero, one, two] {
            assert_eq!(rank.join().unwrap().unwrap(), bytes());
        }
    });
}

#[test]
fn of_two_processes_of_one_rank_one_is_told_and_rank_0_names_both() {
    let port = free_port();
    thread::scope(|scope| {
        let zero = scope.spawn(|| fails_by(&env(0, 3, port), Duration::from_secs(2)));
        let ones = [0, 1].map(|_| scope.spawn(|| meet(&env(1, 3, port), PATIENCE).unwrap_err()));
        let told = ones.map(|one| one.join().unwrap());
        let twice = |error: &&BootstrapError| matches!(error, BootstrapError::TwoOfOneRank { rank: 1, .. });
        assert_eq!(told.iter().filter(twice).count(), 1, "{told:?}");
        let error = zero.join().unwrap();
        let BootstrapError::Missing { missing, rejected, .. } = &error else { panic!("{error}") };
        assert_eq!(missing, &[2]);
        assert!(rejected.iter().any(|note| note.contains("came as rank 1")), "{error}");
    });
}

#[test]
fn numbers_that_cannot_be_true_are_typed_errors_before_any_memory_is_taken() {
    for (rank, world_size) in [(2, 2), (0, 1 << 40), (1, 1 << 62), (0, usize::MAX), (0, MAX_WORLD_SIZE + 1)] {
        let error = meet(&env(rank, world_size, free_port()), Duration::from_millis(50)).unwrap_err();
        let BootstrapError::Rank { rank: got, world_size: of } = error else { panic!("{error}") };
        assert_eq!((got, of), (rank, world_size));
    }
    let error = fails_by(&env(0, MAX_WORLD_SIZE, free_port()), Duration::from_millis(50)).to_string();
    assert!(error.len() < 400, "{error}");
}

#[test]
fn a_port_in_use_is_named_with_the_way_out() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let taken = TcpListener::bind(address).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = meet(&env(0, 2, port), PATIENCE).unwrap_err();
        assert!(matches!(error, BootstrapError::Listen { .. }), "{error}");
        assert!(error.to_string().contains("SYNCBN_PORT"), "{error}");
    }
}

#[test]
fn a_stranger_is_not_told_the_bytes() {
    let port = free_port();
    all_meet(port, ["127.0.0.1"; 2], move || {
        let mut pending = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let words = [*b"syncbn 1", 1_u64.to_le_bytes(), 2_u64.to_le_bytes()];
        pending.write_all(words.as_flattened()).unwrap();
        let mut heard = Vec::new();
        let _ = pending.read_to_end(&mut heard);
        assert!(!heard.windows(8).any(|window| window == &bytes()[..8]), "{heard:?}");
    });
}
