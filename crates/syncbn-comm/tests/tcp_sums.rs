//! TCP ranks, as threads of one process with real sockets: sums, sub-groups, and who else connects.

#![allow(clippy::unwrap_used, reason = "a helper that meets something else fails its test")]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::tcp::{each, env, group, sum, tcp_group};
use common::{PATIENT, backward, size};
use syncbn_comm::{TcpCommunicator, threads};
use syncbn_core::{CollectiveId, HostCommunicator};
use syncbn_testkit::comm::free_port;

#[test]
fn the_bits_are_those_of_thread_ranks() {
    let part = |rank: usize, i: usize| {
        [1.0, 1e16, -1e16, 1e-3, f64::NAN, -0.0][(rank + i) % 6] * (1.0 + (rank * 7 + i) as f64 / 9.0)
    };
    let body = |comm: &dyn HostCommunicator| {
        let mut values: Vec<f64> = (0..1000).map(|i| part(comm.rank(), i)).collect();
        comm.all_reduce_sum(&CollectiveId::new("bits", 1000), &mut values).unwrap();
        values.into_iter().map(f64::to_bits).collect::<Vec<_>>()
    };
    let expected = threads::run(size(5), PATIENT, |comm| body(&comm)).unwrap();
    assert_eq!(each(tcp_group(5, PATIENT).unwrap(), |comm| body(&comm)), expected);
}

#[test]
fn rank_0_may_listen_anywhere_and_say_where() {
    let (announce, announced) = mpsc::channel();
    thread::scope(|scope| {
        let first = scope.spawn(move || {
            TcpCommunicator::host(&env(0, 2, 0), PATIENT, |port| announce.send(port).unwrap())
        });
        let port = announced.recv().unwrap();
        assert_ne!(port, 0);
        let second = TcpCommunicator::new(&env(1, 2, port), PATIENT).unwrap();
        let other = scope.spawn(move || sum(&second, &CollectiveId::new("sum", 1)).unwrap());
        let first = first.join().unwrap().unwrap();
        assert_eq!(sum(&first, &CollectiveId::new("sum", 1)).unwrap(), [3.0]);
        assert_eq!(other.join().unwrap(), [3.0]);
    });
}

#[test]
fn messages_far_longer_than_any_buffer_pass_both_ways_at_once() {
    let length = 3_000_000;
    let sums =
        each(tcp_group(3, PATIENT).unwrap(), |comm| sum(&comm, &CollectiveId::new("long", length)).unwrap());
    assert!(sums.iter().all(|sum| sum.len() == length && sum.iter().all(|value| *value == 6.0)));
}

#[test]
fn thousands_of_sums_of_changing_length_stay_apart_whoever_is_late() {
    each(tcp_group(4, PATIENT).unwrap(), |comm| {
        for turn in 0..4000_usize {
            if turn % 1000 == comm.rank() * 100 {
                thread::sleep(Duration::from_millis(20));
            }
            let id = CollectiveId::new("turn", turn % 7 * 50).with_use(turn as u64, 0);
            let mut values = vec![(turn * (comm.rank() + 1)) as f64; id.length];
            comm.all_reduce_sum(&id, &mut values).unwrap();
            assert!(values.iter().all(|value| *value == (10 * turn) as f64));
        }
    });
}

#[test]
fn four_ranks_in_two_groups_of_turned_order_and_again_in_two() {
    let sums = each(tcp_group(4, PATIENT).unwrap(), |comm| {
        let rank = comm.rank();
        let half = comm.split(Some(rank as u32 % 2), -(rank as i64)).unwrap().unwrap();
        assert_eq!((half.rank(), half.world_size().get()), (1 - rank / 2, 2));
        let pair = half.split(Some(0), half.rank() as i64).unwrap().unwrap();
        assert_eq!((pair.rank(), pair.world_size().get()), (half.rank(), 2));
        let none = comm.split((rank == 3).then_some(9), 0).unwrap();
        assert_eq!(none.map(|alone| (alone.rank(), alone.world_size().get())), (rank == 3).then_some((0, 1)));
        [&comm, &half, &pair].map(|group| {
            let mut value = [rank as f64];
            group.all_reduce_sum(&CollectiveId::new("ranks", 1), &mut value).unwrap();
            value[0]
        })
    });
    assert_eq!(sums, [[6.0, 2.0, 2.0], [6.0, 4.0, 4.0], [6.0, 2.0, 2.0], [6.0, 4.0, 4.0]]);
}

#[test]
fn what_was_complete_before_a_rank_left_is_not_lost() {
    let sums = each(tcp_group(4, PATIENT).unwrap(), |comm| {
        thread::sleep(Duration::from_millis(40 * comm.rank() as u64));
        sum(&comm, &backward("bn", 1)).unwrap()
    });
    assert_eq!(sums, vec![vec![10.0; 2]; 4]);
}

#[test]
fn strangers_disturb_neither_the_making_of_a_group_nor_one_that_runs() {
    let port = free_port();
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut silent = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for _ in 0..20 {
                    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
                        let _ = stream.write_all(&[0xa5; 300]);
                    }
                    silent.extend(TcpStream::connect(("127.0.0.1", port)));
                }
                silent.truncate(200);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let join = |rank| scope.spawn(move || TcpCommunicator::new(&env(rank, 4, port), PATIENT).unwrap());
        let mut ranks: Vec<_> = [0, 1, 2].map(join).into();
        thread::sleep(Duration::from_millis(300));
        ranks.push(join(3));
        let comms = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        let sums =
            each(comms, |comm| (0..200).map(|_| sum(&comm, &backward("bn", 3)).unwrap()[0]).sum::<f64>());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(sums, [2000.0; 4]);
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_rank_that_waits_sleeps() {
    let [zero, one] = group();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let before = thread_time();
            sum(&zero, &backward("bn", 1)).unwrap();
            thread_time().saturating_sub(before)
        });
        thread::sleep(Duration::from_secs(1));
        sum(&one, &backward("bn", 1)).unwrap();
        let used = waiting.join().unwrap();
        assert!(used < Duration::from_millis(50), "{used:?} of a second");
    });
}

/// The processor time that this thread has used, in the system's ticks of 10 ms.
#[cfg(target_os = "linux")]
fn thread_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(10 * ticks)
}
