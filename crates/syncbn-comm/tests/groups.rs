//! Sub-groups: who is in them, in which order, and that they live on their own.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod common;

use std::thread;
use std::time::Duration;

use common::{PATIENT, at_once, group, size, sum};
use syncbn_comm::{ThreadComm, ThreadGroup, threads};
use syncbn_core::{CommErrorKind, HostCommunicator};

/// All ranks split, each with its own colour and key.
fn split<const N: usize>(sides: [(Option<u32>, i64); N]) -> [Option<ThreadComm>; N] {
    let body = |comm: ThreadComm| {
        let (color, key) = sides[comm.rank()];
        comm.split(color, key).unwrap()
    };
    threads::run(size(N), PATIENT, body).unwrap().try_into().unwrap()
}

fn ranks<const N: usize>(groups: &[Option<ThreadComm>; N]) -> [Option<(usize, usize)>; N] {
    std::array::from_fn(|old| groups[old].as_ref().map(|comm| (comm.rank(), comm.world_size().get())))
}

#[test]
fn four_ranks_in_two_groups_are_two_worlds_of_two() {
    let sums = threads::run(size(4), PATIENT, |comm| {
        let group = comm.split(Some(comm.rank() as u32 % 2), 0).unwrap().unwrap();
        let value = (comm.rank() + 1) as f64;
        // The groups make different numbers of calls, and the parent stays usable between them.
        let mut sums = vec![sum(&group, [value, 0.0]).unwrap()[0]];
        if comm.rank() % 2 == 0 {
            sums.push(sum(&group, [10.0 * value, 0.0]).unwrap()[0]);
        }
        sums.push(sum(&comm, [value, 0.0]).unwrap()[0]);
        sums
    });
    assert_eq!(
        sums.unwrap(),
        [vec![4.0, 40.0, 10.0], vec![6.0, 10.0], vec![4.0, 40.0, 10.0], vec![6.0, 10.0]]
    );
}

#[test]
fn a_rank_without_a_colour_belongs_to_no_group() {
    let groups = split([(Some(7), 0), (None, 0), (Some(7), 0)]);
    assert_eq!(ranks(&groups), [Some((0, 2)), None, Some((1, 2))]);
    let groups = split([(None, 0), (None, 1)]);
    assert_eq!(ranks(&groups), [None, None]);
}

#[test]
fn members_are_ordered_by_key_and_equal_keys_by_old_rank() {
    let groups = split([(Some(1), 5), (Some(1), i64::MIN), (Some(1), 5), (Some(1), -3), (Some(0), 9)]);
    assert_eq!(ranks(&groups), [Some((2, 4)), Some((0, 4)), Some((3, 4)), Some((1, 4)), Some((0, 1))]);
}

#[test]
fn a_failure_in_one_group_reaches_neither_the_other_nor_the_parent() {
    let results = threads::run(size(4), PATIENT, |comm| {
        let color = comm.rank() as u32 / 2;
        let group = comm.split(Some(color), 0).unwrap().unwrap();
        let in_group = if comm.rank() == 0 {
            drop(group);
            None
        } else {
            Some(at_once(|| sum(&group, [1.0, 1.0])).map_err(|error| error.kind))
        };
        (in_group, sum(&comm, [1.0, 1.0]).unwrap())
    });
    let results = results.unwrap();
    assert!(matches!(results[1].0, Some(Err(CommErrorKind::Left { rank: 0, panicked: false }))));
    assert!(matches!((&results[2].0, &results[3].0), (Some(Ok([2.0, 2.0])), Some(Ok([2.0, 2.0])))));
    assert!(results.iter().all(|(_, parent)| *parent == [4.0, 4.0]));
}

#[test]
fn a_group_outlives_its_parent() {
    let [first, second] = split([(Some(0), 0), (Some(0), 0)]).map(Option::unwrap);
    let sums = thread::scope(|scope| {
        let ranks = [&first, &second].map(|comm| scope.spawn(|| sum(comm, [1.0, 3.0]).unwrap()));
        ranks.map(|rank| rank.join().unwrap())
    });
    assert_eq!(sums, [[2.0, 6.0]; 2]);
}

#[test]
fn a_group_can_be_split_again() {
    let worlds = threads::run(size(6), PATIENT, |comm| {
        let half = comm.split(Some(comm.rank() as u32 / 3), 0).unwrap().unwrap();
        let part = half.split((half.rank() != 1).then_some(4), -i64::try_from(half.rank()).unwrap()).unwrap();
        part.map(|part| (part.rank(), sum(&part, [comm.rank() as f64, 0.0]).unwrap()[0]))
    });
    let expected = [Some((1, 2.0)), None, Some((0, 2.0)), Some((1, 8.0)), None, Some((0, 8.0))];
    assert_eq!(worlds.unwrap(), expected);
}

#[test]
fn a_group_has_its_parents_timeout() {
    // Long enough for both to come to the split on a busy machine; then one waits in vain for the other.
    let timeout = Duration::from_secs(1);
    let comms = ThreadGroup::new(size(2), timeout).unwrap();
    let groups: Vec<_> = thread::scope(|scope| {
        let ranks: Vec<_> =
            comms.iter().map(|comm| scope.spawn(|| comm.split(Some(0), 0).unwrap())).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap().unwrap()).collect()
    });
    match sum(&groups[0], [1.0, 1.0]).unwrap_err().kind {
        CommErrorKind::Timeout { missing, timeout: waited } => {
            assert_eq!((missing, waited), (vec![1], timeout));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rank_that_leaves_during_a_split_is_reported_at_once() {
    let [zero, one] = group();
    drop(one);
    let error = at_once(|| zero.split(Some(0), 0)).unwrap_err();
    assert!(matches!(error.kind, CommErrorKind::Left { rank: 1, panicked: false }), "{error}");
    assert_eq!(error.call, None);
}
