//! Ranks as operating-system threads of one process: for tests, demos, and several devices driven by one process.
//!
//! A rank holds a [`ThreadComm`]; when its last handle is dropped, the rank has left the group. Sums are added in the order
//! of the ranks whoever comes first, so every rank and every run gets the same bits.
//!
//! `meeting` is where the ranks wait for each other; `failure` is what each of them is told when they cannot meet.
//!
//! Deliberately not here: tasks of a thread pool as ranks. A collective blocks its thread until the last rank has come, which
//! would starve the pool.

mod meeting;
mod run;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use syncbn_core::{CollectiveId, CommError, CommErrorKind, HostCommunicator, Membership};

use crate::failure::Step;
use meeting::{Meeting, State};

pub use run::run;

/// The most ranks that a group can have: more than any machine has threads.
pub const MAX_WORLD_SIZE: usize = 1 << 20;

/// The making of a group; what it makes is one [`ThreadComm`] per rank.
#[derive(Debug)]
pub enum ThreadGroup {}

impl ThreadGroup {
    /// The communicators of a new group, by rank.
    ///
    /// `timeout` is how long a rank waits in a collective for those that have not come: it has to cover the difference in the
    /// ranks' speed. [`Duration::MAX`] waits for ever. A group has at most [`MAX_WORLD_SIZE`] ranks.
    ///
    /// # Errors
    ///
    /// [`TooManyRanks`].
    #[expect(clippy::new_ret_no_self, reason = "a group is nothing besides its ranks' communicators")]
    pub fn new(world_size: NonZeroUsize, timeout: Duration) -> Result<Vec<ThreadComm>, TooManyRanks> {
        match world_size.get() {
            got if got > MAX_WORLD_SIZE => Err(TooManyRanks { got, limit: MAX_WORLD_SIZE }),
            _ => Ok(seats(world_size, timeout)),
        }
    }
}

/// A group was asked for that has more ranks than are possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a group of {got} ranks, expected at most {limit}")]
pub struct TooManyRanks {
    /// The number of ranks asked for.
    pub got: usize,
    /// The most that are possible.
    pub limit: usize,
}

fn seats(world_size: NonZeroUsize, timeout: Duration) -> Vec<ThreadComm> {
    let meeting = Arc::new(Meeting::new(world_size, timeout));
    let seat = |rank| ThreadComm { rank, meeting: Arc::clone(&meeting), membership: Arc::default() };
    (0..world_size.get()).map(seat).collect()
}

/// One rank's place in a group of threads.
///
/// It may be sent to, and shared by, any threads, as long as its collectives come one after the other; two at once are
/// an error ([`CommErrorKind::Disagree`]), since ranks could pair them differently.
///
/// Dropping it leaves the group: what the rank has taken part in stays valid, and whoever needs it for more is told
/// [`CommErrorKind::Left`] at once.
pub struct ThreadComm {
    rank: usize,
    meeting: Arc<Meeting>,
    membership: Arc<Membership>,
}

impl ThreadComm {
    /// Divides the group, as MPI's `MPI_Comm_split`: ranks of one colour form a new group, ordered by key, and by old rank
    /// where keys are equal. A rank without a colour belongs to none and gets `None`.
    ///
    /// Collective: every rank of the group calls it. The new groups have this one's time-out and are otherwise independent
    /// of it and of each other: each can fail, or be left, on its own.
    ///
    /// # Errors
    ///
    /// As a sum's: a rank that does not come, left, or makes another call. This group is then poisoned.
    pub fn split(&self, color: Option<u32>, key: i64) -> Result<Option<Self>, CommError> {
        let mut state = self.meeting.enter(self.rank, &Step::Split)?;
        state.places[self.rank].side = color.map(|color| (color, key));
        let timeout = self.meeting.timeout();
        let mut state = self.meeting.meet(state, self.rank, &Step::Split, |state| deal(state, timeout))?;
        Ok(state.places[self.rank].dealt.take())
    }
}

impl HostCommunicator for ThreadComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> NonZeroUsize {
        self.meeting.world_size()
    }

    fn all_reduce_sum(&self, id: &CollectiveId, values: &mut [f64]) -> Result<(), CommError> {
        let step = Step::AllReduce(id.clone());
        let mut state = self.meeting.enter(self.rank, &step)?;
        let (expected, got) = (id.length, values.len());
        if expected != got {
            let kind = CommErrorKind::MessageLength { expected, got };
            return Err(self.meeting.fail(state, self.rank, &step, kind));
        }
        let message = &mut state.places[self.rank].message;
        message.clear();
        message.extend_from_slice(values);
        let state = self.meeting.meet(state, self.rank, &step, sum)?;
        // Of the same length: the ranks agreed on the identity, and each message was as long as it says.
        values.copy_from_slice(&state.sum);
        Ok(())
    }

    fn poison(&self, cause: &CommError) {
        self.meeting.poison(self.rank, cause);
    }

    fn status(&self) -> Result<(), CommError> {
        self.meeting.status(self.rank)
    }

    fn membership(&self) -> Option<Arc<Membership>> {
        Some(Arc::clone(&self.membership))
    }
}

impl Drop for ThreadComm {
    fn drop(&mut self) {
        self.meeting.leave(self.rank, thread::panicking());
    }
}

impl fmt::Debug for ThreadComm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ThreadComm(rank {} of {})", self.rank, self.world_size())
    }
}

/// Adds the messages in the order of the ranks.
fn sum(state: &mut State) {
    state.sum.clear();
    for (rank, place) in state.places.iter().enumerate() {
        if rank == 0 {
            state.sum.extend_from_slice(&place.message);
        } else {
            state.sum.iter_mut().zip(&place.message).for_each(|(sum, value)| *sum += value);
        }
    }
}

/// Makes a group for each colour and puts its communicators in their owners' places.
fn deal(state: &mut State, timeout: Duration) {
    let with_rank = |(rank, place): (usize, &meeting::Place)| {
        let (color, key) = place.side?;
        Some((color, key, rank))
    };
    let mut members: Vec<_> = state.places.iter().enumerate().filter_map(with_rank).collect();
    members.sort_unstable();
    for group in members.chunk_by(|(one, ..), (other, ..)| one == other) {
        let Some(size) = NonZeroUsize::new(group.len()) else { continue };
        for (&(.., rank), comm) in group.iter().zip(seats(size, timeout)) {
            state.places[rank].dealt = Some(comm);
        }
    }
}
