//! What a sum over thread ranks holds when nothing goes wrong.

mod common;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{PATIENT, attempt, backward, group, pass, size, sum};
use syncbn_comm::{ThreadComm, ThreadGroup, threads};
use syncbn_core::{HostCommunicator, Pass};

#[test]
fn every_rank_gets_the_sum_over_all_ranks() {
    let sums = threads::run(size(4), PATIENT, |comm| sum(&comm, [1.0, comm.rank() as f64]).unwrap());
    assert_eq!(sums.unwrap(), [[4.0, 6.0]; 4]);
}

#[test]
fn ranks_are_numbered_from_0_and_know_the_size_of_their_world() {
    let comms = ThreadGroup::new(size(3), PATIENT).unwrap();
    let ranks: Vec<_> = comms.iter().map(|comm| (comm.rank(), comm.world_size().get())).collect();
    assert_eq!(ranks, [(0, 3), (1, 3), (2, 3)]);
    assert!(comms.iter().all(|comm| comm.status().is_ok()));
}

#[test]
fn sums_are_added_in_rank_order_whoever_comes_first() {
    // ((1e16 + 1) - 1e16) + 1 is 1; other orders give 0 or 2.
    let values = [1e16, 1.0, -1e16, 1.0];
    for late in 0..values.len() {
        let sums = threads::run(size(4), PATIENT, |comm| {
            if comm.rank() == late {
                thread::sleep(Duration::from_millis(5));
            }
            sum(&comm, [values[comm.rank()], -0.0]).unwrap().map(f64::to_bits)
        });
        assert_eq!(sums.unwrap(), [[1.0_f64.to_bits(), (-0.0_f64).to_bits()]; 4], "rank {late} came late");
    }
}

#[test]
fn a_rank_that_is_alone_keeps_the_bits_of_its_message() {
    let [comm] = group();
    let values = [f64::from_bits(0x7ff8_0000_0000_1234), -0.0];
    assert_eq!(sum(&comm, values).unwrap().map(f64::to_bits), values.map(f64::to_bits));
}

#[test]
fn numbers_that_are_not_finite_are_summed_like_others() {
    let message = |rank| if rank == 1 { [f64::NAN, f64::INFINITY] } else { [1.0, 1.0] };
    for [first, second] in
        threads::run(size(3), PATIENT, |comm| sum(&comm, message(comm.rank())).unwrap()).unwrap()
    {
        assert!(first.is_nan());
        assert_eq!(second, f64::INFINITY);
    }
}

#[test]
fn an_empty_message_is_a_collective_like_any_other() {
    let results = threads::run(size(3), PATIENT, |comm| attempt(&comm, &backward("bn", 0)));
    assert!(results.unwrap().iter().all(Result::is_ok));
}

#[test]
fn thousands_of_calls_in_a_row_keep_their_sums_apart() {
    let failed = threads::run(size(3), PATIENT, |comm| {
        (0..3000_usize).find(|&turn| {
            let half = if turn % 2 == 0 { Pass::Forward } else { Pass::Backward };
            let call = pass("bn", half, turn % 5);
            let mut values = vec![(turn * (comm.rank() + 1)) as f64; call.length];
            let result = comm.all_reduce_sum(&call, &mut values);
            result.is_err() || values.iter().any(|&value| value != (6 * turn) as f64)
        })
    });
    assert_eq!(failed.unwrap(), [None; 3]);
}

#[test]
fn a_result_is_not_lost_when_another_rank_leaves_right_after_it() {
    for _ in 0..300 {
        let sums = threads::run(size(4), PATIENT, |comm| sum(&comm, [1.0, 2.0]).unwrap());
        assert_eq!(sums.unwrap(), [[4.0, 8.0]; 4]);
    }
}

#[test]
fn several_layers_of_a_rank_share_its_communicator() {
    let results = threads::run(size(2), PATIENT, |comm| {
        let first = Arc::new(comm);
        let second = Arc::clone(&first);
        attempt(&first, &backward("bn1", 1))?;
        drop(first);
        attempt(&second, &backward("bn2", 3))
    });
    assert!(results.unwrap().iter().all(Result::is_ok));
}

#[test]
fn a_group_of_several_hundred_ranks_works() {
    let sums = threads::run(size(400), PATIENT, |comm| sum(&comm, [1.0, comm.rank() as f64]).unwrap());
    assert!(sums.unwrap().iter().all(|&sum| sum == [400.0, 79_800.0]));
}

#[test]
fn the_longest_timeout_there_is_does_not_overflow() {
    let sums = threads::run(size(2), Duration::MAX, |comm| {
        thread::sleep(Duration::from_millis(10 * comm.rank() as u64));
        sum(&comm, [1.0, 1.0]).unwrap()
    });
    assert_eq!(sums.unwrap(), [[2.0, 2.0]; 2]);
}

#[test]
fn run_returns_by_rank_and_names_its_threads_after_them() {
    let names = threads::run(size(3), PATIENT, |_| thread::current().name().map(str::to_owned)).unwrap();
    assert_eq!(names, ["rank 0", "rank 1", "rank 2"].map(|name| Some(name.to_owned())));
}

#[test]
fn a_communicator_can_be_sent_to_and_shared_by_threads() {
    fn check<T: Send + Sync + std::fmt::Debug>(value: &T) -> String {
        format!("{value:?}")
    }
    let [_, comm]: [ThreadComm; 2] = group();
    assert_eq!(check(&comm), "ThreadComm(rank 1 of 2)");
}
