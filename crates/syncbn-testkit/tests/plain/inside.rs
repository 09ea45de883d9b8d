//! A communicator whose ranks sum inside their kernels ([`Meeting::Inside`](syncbn_core::Meeting::Inside)): threads that write their
//! messages to memory that all of them read, as GPUs do with their peers' memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use syncbn_comm::{ThreadComm, ThreadGroup};
use syncbn_core::{
    Backend, CollectiveId, CollectiveKind, CommError, CommErrorKind, Communicator, HostCommunicator,
    Membership, Numbers, Pass, ViaHost,
};
use syncbn_testkit::Join;

use super::Plain;
use super::memory::Workspace;

/// Every rank's message; two of them, since a rank may be a sum ahead of one that still reads.
type Board = Vec<[Mutex<Vec<f64>>; 2]>;

/// What one pass meets its peers with.
#[derive(Clone)]
pub(crate) struct Peers {
    id: CollectiveId,
    pass: Pass,
    round: usize,
    comm: Arc<ThreadComm>,
    board: Arc<Board>,
}

impl Peers {
    /// Replaces this rank's sums by the group's: each rank adds all ranks' messages itself, in their order.
    pub(super) fn sum(&self, plain: &Plain, workspace: &mut Workspace) -> Result<(), CommError> {
        let place = |rank: usize| {
            let [even, odd] = &self.board[rank];
            let place = if self.round.is_multiple_of(2) { even } else { odd };
            place.lock().unwrap_or_else(PoisonError::into_inner)
        };
        let mut message = vec![0.0; self.id.length];
        let Ok(()) = plain.read_message(&(), self.pass, workspace, &mut message);
        place(self.comm.rank()).clone_from(&message);
        // All have laid their message down when this sum of nothing comes back.
        self.comm.all_reduce_sum(&self.id, &mut vec![0.0; self.id.length])?;
        message.clone_from(&place(0));
        for rank in 1..self.board.len() {
            message.iter_mut().zip(place(rank).iter()).for_each(|(sum, part)| *sum += part);
        }
        let Ok(()) = plain.write_message(&(), self.pass, workspace, &message);
        Ok(())
    }
}

/// A rank's place in a group that meets inside kernels.
struct InsideGroup {
    comm: Arc<ThreadComm>,
    board: Arc<Board>,
    rounds: AtomicUsize,
}

impl Communicator<Plain> for InsideGroup {
    fn rank(&self) -> usize {
        self.comm.rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        self.comm.world_size()
    }
    fn sum_workspace(
        &self,
        id: &CollectiveId,
        _: Pass,
        _: &Plain,
        (): &(),
        _: &mut Workspace,
    ) -> Result<(), CommError> {
        let kind =
            CommErrorKind::Disagree("a pass that can meet its peers was summed between kernels".into());
        let (rank, world_size) = (self.comm.rank(), self.comm.world_size().get());
        Err(CommError { rank, world_size, call: Some(id.clone()), late: false, kind })
    }
    fn sum_numbers(
        &self,
        id: &CollectiveId,
        plain: &Plain,
        (): &(),
        numbers: Numbers<'_, Plain>,
    ) -> Result<(), CommError> {
        ViaHost(self.comm.clone()).sum_numbers(id, plain, &(), numbers)
    }
    fn peers(&self, id: &CollectiveId, _: usize, _: &Plain) -> Result<Option<Peers>, CommError> {
        let CollectiveKind::Pass(pass) = id.kind else { return Ok(None) };
        let round = self.rounds.fetch_add(1, Ordering::Relaxed);
        let (comm, board) = (self.comm.clone(), self.board.clone());
        Ok(Some(Peers { id: id.clone(), pass, round, comm, board }))
    }
    fn poison(&self, cause: &CommError) {
        self.comm.poison(cause);
    }
    fn membership(&self) -> Option<Arc<Membership>> {
        self.comm.membership()
    }
    fn status(&self) -> Result<(), CommError> {
        self.comm.status()
    }
}

/// The ranks of a new group that meets inside kernels.
#[allow(dead_code)] // not every test that includes this file has such a group
pub(crate) fn group(world_size: NonZeroUsize) -> Vec<Join<Plain>> {
    let board: Arc<Board> = Arc::new((0..world_size.get()).map(|_| Default::default()).collect());
    let join = |comm| -> Join<Plain> {
        let (comm, board, rounds) = (Arc::new(comm), board.clone(), AtomicUsize::new(0));
        Box::new(move |_, ()| Ok(Arc::new(InsideGroup { comm, board, rounds })))
    };
    let group = ThreadGroup::new(world_size, Duration::from_secs(60)).unwrap();
    group.into_iter().map(join).collect()
}
