//! What the network must be able to do: one operation, the in-place sum over the ranks of a few numbers per channel.
//!
//! Two kinds of communicator meet here. One that works in the device's own memory and order (NCCL) implements
//! [`Communicator`] for its backend. One that works in host memory (threads, MPI) implements [`HostCommunicator`], and
//! [`Staged`] makes it a communicator of every backend.
//!
//! Deliberately not here: any way of finding the ranks, and gathers, broadcasts or barriers, which nothing needs.

use std::error::Error as StdError;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Backend, Pass};

/// Which collective a rank is about to take part in. Ranks whose calls differ have fallen out of step.
///
/// ```
/// use syncbn_core::{Call, Pass};
///
/// let third = Call { sequence: 2, ..Call::new("bn1", Pass::Backward, 64) };
/// assert_eq!(third.to_string(), "backward of layer `bn1` (64 channels, use 2)");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The layer's name.
    pub layer: Arc<str>,
    /// Which of the layer's two sums.
    pub pass: Pass,
    /// The layer's channels; with the pass, the length of the message.
    pub channels: usize,
    /// Which use of the layer in its group, from 0; backward has the number of its forward. So a rank that has left out a use, or
    /// goes back through two of them in another order, is told apart from its peers.
    pub sequence: u64,
}

impl Call {
    /// The first use of a layer.
    #[must_use]
    pub fn new(layer: impl Into<Arc<str>>, pass: Pass, channels: usize) -> Self {
        Self { layer: layer.into(), pass, channels, sequence: 0 }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, pass, channels, sequence } = self;
        write!(f, "{pass} of layer `{layer}` ({channels} channels, use {sequence})")
    }
}

/// Sums over the ranks of a group, in a backend's own memory.
///
/// Every rank of the group calls the same layers in the same order. After a failure the group is poisoned: every later
/// call fails at once, and a new group has to be made.
pub trait Communicator<B: Backend>: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;
    /// The number of ranks in the group.
    fn world_size(&self) -> NonZeroUsize;
    /// Replaces `sums` by their sum over the ranks; every rank gets the same bits. In a world of one they are left as they are.
    ///
    /// A device-native communicator enqueues the sum and returns; its failures may show later, in
    /// [`Communicator::status`].
    fn all_reduce_sum(
        &self,
        call: &Call,
        backend: &B,
        queue: &B::Queue,
        sums: &mut B::Sums,
    ) -> Result<(), CommError>;
    /// Whether the group still works, without waiting. Layers ask before they enqueue anything.
    fn status(&self) -> Result<(), CommError>;
}

/// Sums over the ranks of a group, in host memory. [`Staged`] makes it a [`Communicator`] of any backend.
pub trait HostCommunicator: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;
    /// The number of ranks in the group.
    fn world_size(&self) -> NonZeroUsize;
    /// Replaces `values` by their sum over the ranks, added in the order of the ranks so that every rank and every run
    /// gets the same bits. Waits for all ranks. On an error `values` are unspecified and the group is poisoned.
    fn all_reduce_sum(&self, call: &Call, values: &mut [f64]) -> Result<(), CommError>;
    /// Whether the group still works, without waiting.
    fn status(&self) -> Result<(), CommError>;
}

impl<C: HostCommunicator + ?Sized> HostCommunicator for Arc<C> {
    fn rank(&self) -> usize {
        (**self).rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        (**self).world_size()
    }
    fn all_reduce_sum(&self, call: &Call, values: &mut [f64]) -> Result<(), CommError> {
        (**self).all_reduce_sum(call, values)
    }
    fn status(&self) -> Result<(), CommError> {
        (**self).status()
    }
}

/// A host communicator in the service of a backend: reads the small sums back, sums them, and writes them again.
///
/// This is the only type in the project that waits for a device.
#[derive(Clone, Debug)]
pub struct Staged<C>(pub C);

impl<B: Backend, C: HostCommunicator> Communicator<B> for Staged<C> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn world_size(&self) -> NonZeroUsize {
        self.0.world_size()
    }

    fn all_reduce_sum(
        &self,
        call: &Call,
        backend: &B,
        queue: &B::Queue,
        sums: &mut B::Sums,
    ) -> Result<(), CommError> {
        if self.0.world_size() == NonZeroUsize::MIN {
            // Alone, a rank's sums are the group's and keep their form: `normalize` is told so, and takes var = M2/m.
            return self.0.status();
        }
        let device = |source: B::Error| CommError {
            rank: self.0.rank(),
            world_size: self.0.world_size().get(),
            call: Some(call.clone()),
            late: false,
            kind: CommErrorKind::Transport(Arc::new(source)),
        };
        let mut message = vec![0.0; call.pass.message_len(call.channels)];
        backend.read_sums(queue, call.pass, sums, &mut message).map_err(device)?;
        self.0.all_reduce_sum(call, &mut message)?;
        backend.write_sums(queue, call.pass, sums, &message).map_err(device)
    }

    fn status(&self) -> Result<(), CommError> {
        self.0.status()
    }
}

/// The group of one rank: plain, local batch norm.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl<B: Backend> Communicator<B> for Solo {
    fn rank(&self) -> usize {
        0
    }
    fn world_size(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }
    fn all_reduce_sum(&self, _: &Call, _: &B, _: &B::Queue, _: &mut B::Sums) -> Result<(), CommError> {
        Ok(())
    }
    fn status(&self) -> Result<(), CommError> {
        Ok(())
    }
}

/// The failure of a collective, as one rank saw it. It can be cloned, since a poisoned group repeats it.
#[derive(Clone, Debug)]
pub struct CommError {
    /// The rank that reports it.
    pub rank: usize,
    /// The number of ranks in its group.
    pub world_size: usize,
    /// The collective in which it happened, if it was one.
    pub call: Option<Call>,
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
        write!(f, ": {}", self.kind)
    }
}

impl StdError for CommError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.kind.source()
    }
}

/// What went wrong in a collective.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommErrorKind {
    /// A rank dropped its communicator, or panicked, while others still needed it.
    #[error("rank {rank} {}", if *panicked { "panicked" } else { "left the group" })]
    Left {
        /// The rank that is gone.
        rank: usize,
        /// Whether it was unwinding from a panic.
        panicked: bool,
    },
    /// Some ranks did not come in time.
    #[error("ranks {missing:?} did not come within {timeout:?}")]
    Timeout {
        /// The ranks that were not there.
        missing: Vec<usize>,
        /// The time that was waited.
        timeout: Duration,
    },
    /// The sum was enqueued on the device and did not end in time: a rank is missing, late, or in another collective, and
    /// the device cannot tell which.
    #[error("not summed within {timeout:?}: a rank is missing, late, or in another collective")]
    Unfinished {
        /// The time that was waited.
        timeout: Duration,
    },
    /// Another rank is in another collective.
    #[error("out of step: rank {other_rank} is in {other}")]
    OutOfStep {
        /// The rank that does something else.
        other_rank: usize,
        /// What it does.
        other: Box<Call>,
    },
    /// Ranks disagree on something other than a layer's call: a split of the group beside an `all_reduce`, for instance.
    #[error("ranks disagree: {0}")]
    Disagree(String),
    /// The message has another length than the call says.
    #[error("the message has {got} numbers, expected {expected}")]
    MessageLength {
        /// What [`Pass::message_len`] gives.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// The group failed earlier; make a new one.
    #[error("the group is poisoned by an earlier failure: {0}")]
    Poisoned(Arc<CommError>),
    /// The library or device underneath failed.
    #[error("{0}")]
    Transport(#[source] Arc<dyn StdError + Send + Sync>),
}
