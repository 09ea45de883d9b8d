//! Communicators: sums over the ranks of a group.
//!
//! There are two traits:
//! - [`HostCommunicator`] sums in host memory: threads, TCP, MPI. [`ViaHost`](crate::ViaHost) makes it a communicator of every
//!   backend.
//! - [`Communicator`] sums in a backend's own memory, in the order of its queue: NCCL.
//!
//! Deliberately not here: a rendezvous of processes, which `syncbn-comm` has; gathers, broadcasts and barriers, which batch norm does not
//! need.

use std::error::Error as StdError;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Backend;
use crate::collective::CollectiveId;
use crate::group::Group;
use crate::membership::Membership;
use crate::message::Pass;

/// Numbers of a caller's, in a backend's memory.
pub enum Numbers<'a, B: Backend> {
    /// Of type `f32`.
    F32(B::MemMut<'a, f32>),
    /// Of type `f64`.
    F64(B::MemMut<'a, f64>),
}

/// Sums over the ranks of a group, in a backend's own memory.
///
/// Every rank of the group takes part in the same collectives in the same order. After a failure the group is poisoned: every
/// later call fails at once, and the ranks make a new group. Users pass a communicator to a layer or to
/// [`Group::new`](crate::Group::new), and do not call these methods.
///
/// `docs/adding-a-communicator.md` in the repository says how to write one.
pub trait Communicator<B: Backend>: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;
    /// The number of ranks in the group.
    fn world_size(&self) -> NonZeroUsize;
    /// Replaces this rank's sums in the workspace by the group's. Every rank gets the same bits. Core does not call it in a group of
    /// one.
    ///
    /// A device-native communicator enqueues the sum and returns. A failure that it notices later is returned by
    /// [`Communicator::status`], with [`CommError::late`] set.
    ///
    /// # Errors
    ///
    /// [`CommErrorKind::Unsent`] if no other rank has heard of the call; otherwise the group is poisoned.
    fn sum_workspace(
        &self,
        id: &CollectiveId,
        pass: Pass,
        backend: &B,
        queue: &B::Queue,
        workspace: &mut B::Workspace,
    ) -> Result<(), CommError>;
    /// Replaces numbers of a caller's by their sum over the ranks. Every rank gets the same bits.
    ///
    /// # Errors
    ///
    /// As [`sum_workspace`](Self::sum_workspace); the numbers are then unspecified.
    fn sum_numbers(
        &self,
        id: &CollectiveId,
        backend: &B,
        queue: &B::Queue,
        numbers: Numbers<'_, B>,
    ) -> Result<(), CommError>;
    /// What the kernels of one pass need to sum by themselves, in their peers' memory ([`Meeting::Inside`](crate::Meeting::Inside)).
    ///
    /// Core asks once a pass, and to prepare for passes. Provided is `None`, after which core calls
    /// [`sum_workspace`](Self::sum_workspace) between the kernels. All ranks have to answer alike, and alike for forward and backward
    /// passes of as many channels.
    ///
    /// # Errors
    ///
    /// A failure before any work; nothing has been enqueued.
    fn peers(&self, id: &CollectiveId, channels: usize, backend: &B) -> Result<Option<B::Peers>, CommError> {
        let _ = (id, channels, backend);
        Ok(None)
    }
    /// Poisons the group, because this rank's device failed after the sum: the other ranks go on, and get an error at their next call.
    fn poison(&self, cause: &CommError);
    /// Whether the group works. Does not wait. Core asks before each collective pass.
    ///
    /// # Errors
    ///
    /// The failure that has poisoned the group.
    fn status(&self) -> Result<(), CommError>;
    /// This rank's counters of the group. A communicator that several layers may share owns one and returns it, so that all of them
    /// use the same counters.
    fn membership(&self) -> Option<Arc<Membership>> {
        None
    }
    /// The group of this communicator. A [`Group`] returns itself.
    fn into_group(self) -> Group<B>
    where
        Self: Sized + 'static,
    {
        Group::new(self)
    }
}

/// Sums over the ranks of a group, in host memory. [`ViaHost`](crate::ViaHost) makes it a [`Communicator`] of any backend.
pub trait HostCommunicator: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;
    /// The number of ranks in the group.
    fn world_size(&self) -> NonZeroUsize;
    /// Replaces `values` by their sum over the ranks. Waits for all ranks.
    ///
    /// The values are added in `f64`, in the order of the ranks, so that every rank and every run gets the same bits. Ranks compare
    /// `id`, all of it.
    ///
    /// # Errors
    ///
    /// Of any kind but [`CommErrorKind::Unsent`]. `values` are then unspecified, and the group is poisoned.
    fn all_reduce_sum(&self, id: &CollectiveId, values: &mut [f64]) -> Result<(), CommError>;
    /// Poisons the group, because this rank's device failed after the sum: the other ranks go on, and get an error at their next call.
    fn poison(&self, cause: &CommError);
    /// Whether the group works. Does not wait.
    ///
    /// # Errors
    ///
    /// The failure that has poisoned the group.
    fn status(&self) -> Result<(), CommError>;
    /// This rank's counters of the group. A communicator that several layers may share owns one and returns it, so that all of them
    /// use the same counters.
    fn membership(&self) -> Option<Arc<Membership>> {
        None
    }
}

impl<C: HostCommunicator + ?Sized> HostCommunicator for Arc<C> {
    fn rank(&self) -> usize {
        (**self).rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        (**self).world_size()
    }
    fn all_reduce_sum(&self, id: &CollectiveId, values: &mut [f64]) -> Result<(), CommError> {
        (**self).all_reduce_sum(id, values)
    }
    fn poison(&self, cause: &CommError) {
        (**self).poison(cause);
    }
    fn status(&self) -> Result<(), CommError> {
        (**self).status()
    }
    fn membership(&self) -> Option<Arc<Membership>> {
        (**self).membership()
    }
}

impl<B: Backend, C: Communicator<B> + ?Sized> Communicator<B> for Arc<C> {
    fn rank(&self) -> usize {
        (**self).rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        (**self).world_size()
    }
    fn sum_workspace(
        &self,
        id: &CollectiveId,
        pass: Pass,
        backend: &B,
        queue: &B::Queue,
        workspace: &mut B::Workspace,
    ) -> Result<(), CommError> {
        (**self).sum_workspace(id, pass, backend, queue, workspace)
    }
    fn sum_numbers(
        &self,
        id: &CollectiveId,
        backend: &B,
        queue: &B::Queue,
        numbers: Numbers<'_, B>,
    ) -> Result<(), CommError> {
        (**self).sum_numbers(id, backend, queue, numbers)
    }
    fn peers(&self, id: &CollectiveId, channels: usize, backend: &B) -> Result<Option<B::Peers>, CommError> {
        (**self).peers(id, channels, backend)
    }
    fn poison(&self, cause: &CommError) {
        (**self).poison(cause);
    }
    fn status(&self) -> Result<(), CommError> {
        (**self).status()
    }
    fn membership(&self) -> Option<Arc<Membership>> {
        (**self).membership()
    }
}

/// The failure of a collective, as one rank saw it. A poisoned group returns it again, so it can be cloned.
///
/// Its text contains the text of what failed underneath, so [`source`](StdError::source) begins with the source of that.
#[derive(Clone, Debug)]
pub struct CommError {
    /// The rank that reports it.
    pub rank: usize,
    /// The number of ranks in its group.
    pub world_size: usize,
    /// The collective in which it happened, if it was one.
    pub call: Option<CollectiveId>,
    /// Whether work that depends on the collective had been enqueued on the device when it failed. State that was written since then may
    /// be wrong.
    pub late: bool,
    /// What went wrong.
    pub kind: CommErrorKind,
}

impl fmt::Display for CommError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.world_size)?;
        if let Some(call) = &self.call {
            write!(f, ", {call}")?;
        }
        write!(f, ": {}", self.kind)?;
        if let (CommErrorKind::OutOfStep { others }, Some(call)) = (&self.kind, &self.call)
            && let Some(what) = others.iter().find_map(|(_, other)| call.difference(other))
        {
            write!(f, "; they differ in {what}")?;
        }
        Ok(())
    }
}

impl StdError for CommError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.kind {
            CommErrorKind::Transport(cause) | CommErrorKind::Unsent(cause) => cause.source(),
            _ => None,
        }
    }
}

/// What went wrong in a collective.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CommErrorKind {
    /// A rank dropped its communicator, or panicked, while other ranks needed it.
    Left {
        /// The rank that is gone.
        rank: usize,
        /// Whether it was unwinding from a panic.
        panicked: bool,
    },
    /// Some ranks did not make the call in time.
    Timeout {
        /// Those ranks.
        missing: Vec<usize>,
        /// The time-out.
        timeout: Duration,
    },
    /// The sum was enqueued on the device and did not end in time: a rank is missing, late, or in another collective. The device
    /// cannot tell which.
    Unfinished {
        /// The time-out.
        timeout: Duration,
    },
    /// Other ranks are in other collectives.
    OutOfStep {
        /// Ranks that are known to be in another collective, and in which.
        others: Vec<(usize, CollectiveId)>,
    },
    /// Ranks make different calls: one splits the group while another sums, for instance.
    Disagree(String),
    /// The message has another length than its [`CollectiveId`] says.
    MessageLength {
        /// What the id says.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// This rank's device failed before its numbers were sent. The group works, and the call may be repeated.
    Unsent(Arc<dyn StdError + Send + Sync>),
    /// The group has failed earlier. Make a new one.
    Poisoned(Arc<CommError>),
    /// The library, network or device underneath failed.
    Transport(Arc<dyn StdError + Send + Sync>),
}

impl fmt::Display for CommErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left { rank, panicked: true } => write!(f, "rank {rank} panicked"),
            Self::Left { rank, panicked: false } => write!(f, "rank {rank} left the group"),
            Self::Timeout { missing, timeout } => {
                write!(f, "ranks {missing:?} did not come within {timeout:?}")
            }
            Self::Unfinished { timeout } => {
                write!(f, "not summed within {timeout:?}: a rank is missing, late, or in another collective")
            }
            Self::OutOfStep { others } => {
                f.write_str("out of step")?;
                for (at, (rank, call)) in others.iter().enumerate() {
                    write!(f, "{} rank {rank} is in {call}", if at == 0 { ":" } else { "," })?;
                }
                Ok(())
            }
            Self::Disagree(what) => write!(f, "ranks disagree: {what}"),
            Self::MessageLength { expected, got } => {
                write!(f, "the message has {got} numbers, expected {expected}")
            }
            Self::Unsent(cause) => write!(f, "nothing was sent: {cause}"),
            Self::Poisoned(cause) => write!(f, "the group is poisoned by an earlier failure: {cause}"),
            Self::Transport(cause) => cause.fmt(f),
        }
    }
}
