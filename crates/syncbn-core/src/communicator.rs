//! What the network must be able to do: sums over the ranks.
//!
//! Two kinds of communicator meet here. One that works in the device's own memory and order (NCCL) implements
//! [`Communicator`] for its backend. One that works in host memory (threads, TCP, MPI) implements [`HostCommunicator`], and
//! [`ViaHost`](crate::ViaHost) makes it a communicator of every backend.
//!
//! Deliberately not here: any way of finding the ranks, and gathers, broadcasts or barriers, which nothing needs.

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

/// A caller's own numbers, in a backend's memory.
pub enum Numbers<'a, B: Backend> {
    /// Of type `f32`.
    F32(B::MemMut<'a, f32>),
    /// Of type `f64`.
    F64(B::MemMut<'a, f64>),
}

/// Sums over the ranks of a group, in a backend's own memory.
///
/// Every rank of the group takes part in the same collectives in the same order. After a failure the group is poisoned: every
/// later call fails at once, and a new group has to be made.
pub trait Communicator<B: Backend>: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;
    /// The number of ranks in the group.
    fn world_size(&self) -> NonZeroUsize;
    /// Replaces a pass's sums in the workspace by their sum over the ranks; every rank gets the same bits. It is not called in a
    /// group of one.
    ///
    /// A device-native communicator enqueues the sum and returns; its failures may show later, in
    /// [`Communicator::status`].
    fn sum_workspace(
        &self,
        id: &CollectiveId,
        pass: Pass,
        backend: &B,
        queue: &B::Queue,
        workspace: &mut B::Workspace,
    ) -> Result<(), CommError>;
    /// Replaces a caller's own numbers by their sum over the ranks; every rank gets the same bits.
    fn sum_numbers(
        &self,
        id: &CollectiveId,
        backend: &B,
        queue: &B::Queue,
        numbers: Numbers<'_, B>,
    ) -> Result<(), CommError>;
    /// What lets the kernels of one pass meet their peers themselves ([`Meeting::Inside`](crate::Meeting::Inside)). Asked once a
    /// pass, on every rank alike; with `None`, [`sum_workspace`](Self::sum_workspace) is called between the kernels.
    fn peers(&self, id: &CollectiveId, pass: Pass, backend: &B) -> Result<Option<B::Peers>, CommError> {
        let _ = (id, pass, backend);
        Ok(None)
    }
    /// This rank cannot go on, though its peers have its numbers already: poisons the group, so that they hear of it.
    fn poison(&self, cause: &CommError);
    /// Whether the group still works, without waiting. Layers ask before they enqueue anything.
    fn status(&self) -> Result<(), CommError>;
    /// What this rank counts of the group, where the communicator counts it: then all that share the communicator count together.
    fn membership(&self) -> Option<Arc<Membership>> {
        None
    }
    /// The group that layers take: a new one of this communicator, or what is a [`Group`] already.
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
    /// Replaces `values` by their sum over the ranks, added in `f64` in the order of the ranks so that every rank and every run
    /// gets the same bits. Waits for all ranks. On an error `values` are unspecified and the group is poisoned.
    fn all_reduce_sum(&self, id: &CollectiveId, values: &mut [f64]) -> Result<(), CommError>;
    /// This rank cannot go on, though its peers have its numbers already: poisons the group, so that they hear of it.
    fn poison(&self, cause: &CommError);
    /// Whether the group still works, without waiting.
    fn status(&self) -> Result<(), CommError>;
    /// What this rank counts of the group, where the communicator counts it: then all that share the communicator count together.
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
    fn peers(&self, id: &CollectiveId, pass: Pass, backend: &B) -> Result<Option<B::Peers>, CommError> {
        (**self).peers(id, pass, backend)
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

/// The failure of a collective, as one rank saw it. It can be cloned, since a poisoned group repeats it.
///
/// Its text says all that is known; [`source`](StdError::source) goes on behind what the text has said.
#[derive(Clone, Debug)]
pub struct CommError {
    /// The rank that reports it.
    pub rank: usize,
    /// The number of ranks in its group.
    pub world_size: usize,
    /// The collective in which it happened, if it was one.
    pub call: Option<CollectiveId>,
    /// Whether work that depends on the collective was already enqueued on the device when it failed: state that was
    /// written since cannot be trusted.
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
    /// A rank dropped its communicator, or panicked, while others still needed it.
    Left {
        /// The rank that is gone.
        rank: usize,
        /// Whether it was unwinding from a panic.
        panicked: bool,
    },
    /// Some ranks did not come in time.
    Timeout {
        /// The ranks that were not there.
        missing: Vec<usize>,
        /// The time that was waited.
        timeout: Duration,
    },
    /// The sum was enqueued on the device and did not end in time: a rank is missing, late, or in another collective, and
    /// the device cannot tell which.
    Unfinished {
        /// The time that was waited.
        timeout: Duration,
    },
    /// Other ranks are in other collectives.
    OutOfStep {
        /// Where each rank was that is known to have been elsewhere.
        others: Vec<(usize, CollectiveId)>,
    },
    /// Ranks disagree on something else: a split of the group beside an `all_reduce`, for instance.
    Disagree(String),
    /// There are not as many numbers as the call's identity says.
    MessageLength {
        /// What the identity says.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// This rank's device failed before its numbers went to the group: no rank has heard of it, and nothing was counted.
    Unsent(Arc<dyn StdError + Send + Sync>),
    /// The group failed earlier; make a new one.
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
