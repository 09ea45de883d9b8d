//! What core's own communicators pass on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use example_backend::Plain;
use syncbn_core::{Call, CommError, CommErrorKind, Communicator, HostCommunicator, Pass, Solo, Staged};

/// Rank 2 of 5, in a group that is sound until it is told otherwise, and whose every sum is 7.
#[derive(Default)]
struct Third {
    fails: AtomicBool,
}

impl Third {
    fn answer(&self, call: Option<&Call>) -> Result<(), CommError> {
        if !self.fails.load(Ordering::SeqCst) {
            return Ok(());
        }
        let kind = CommErrorKind::Left { rank: 4, panicked: false };
        Err(CommError { rank: 2, world_size: 5, call: call.cloned(), late: false, kind })
    }
}

impl HostCommunicator for Third {
    fn rank(&self) -> usize {
        2
    }
    fn world_size(&self) -> NonZeroUsize {
        NonZeroUsize::MIN.saturating_add(4)
    }
    fn all_reduce_sum(&self, call: &Call, values: &mut [f64]) -> Result<(), CommError> {
        values.fill(7.0);
        self.answer(Some(call))
    }
    fn status(&self) -> Result<(), CommError> {
        self.answer(None)
    }
}

#[test]
fn a_shared_communicator_is_the_one_that_is_shared() {
    let third = Arc::new(Third::default());
    let mut values = [1.0, 2.0];
    assert_eq!((HostCommunicator::rank(&third), HostCommunicator::world_size(&third).get()), (2, 5));
    HostCommunicator::all_reduce_sum(&third, &Call::new("bn", Pass::Backward, 1), &mut values).unwrap();
    assert_eq!(values, [7.0, 7.0]);
    assert!(HostCommunicator::status(&third).is_ok());
    third.fails.store(true, Ordering::SeqCst);
    assert!(HostCommunicator::status(&third).is_err());
}

#[test]
fn a_staged_communicator_has_the_rank_size_and_status_of_the_one_within() {
    let third = Arc::new(Third::default());
    let staged: &dyn Communicator<Plain> = &Staged(third.clone());
    assert_eq!((staged.rank(), staged.world_size().get()), (2, 5));
    assert!(staged.status().is_ok());
    third.fails.store(true, Ordering::SeqCst);
    assert!(staged.status().is_err());
}

#[test]
fn alone_there_is_one_rank_which_is_the_first() {
    let solo: &dyn Communicator<Plain> = &Solo;
    assert_eq!((solo.rank(), solo.world_size().get()), (0, 1));
    assert!(solo.status().is_ok());
}
