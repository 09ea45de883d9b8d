//! A group of ranks: a communicator, with the counters that all ranks of the group keep in step.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::backend::Backend;
use crate::collective::CollectiveId;
use crate::communicator::{CommError, CommErrorKind, Communicator, Numbers};
use crate::membership::Membership;
use crate::message::Pass;
use crate::scalar::Param;

/// A group of ranks, as one rank sees it: its communicator, the trainer's step, and the numbers of its layers.
///
/// Make one for each rank and give each layer of the model a clone; clones are the same group. Layers also take a bare
/// [`Communicator`], which becomes a group of that layer alone. A communicator that has a
/// [`membership`](Communicator::membership), as all of syncbn's have, makes the same group each time: two groups of one
/// communicator behind an `Arc` are equal.
///
/// Ranks compare the step, the layer's number and its name and settings in every collective, where the communicator compares calls
/// ([`CollectiveId`]). So a rank that has left something out gets an error instead of a wrong sum.
///
/// ```
/// use example_backend::Plain;
/// use syncbn_core::{Config, Group, SingleRank, SyncBatchNorm};
///
/// let group = Group::new(SingleRank); // or Group::new(ViaHost(communicator)), Group::new(nccl)
/// let stem = SyncBatchNorm::<Plain, f32>::new("stem", Config::new(8), Plain, &(), group.clone())?;
/// let head = SyncBatchNorm::<Plain, f32>::new("head", Config::new(8), Plain, &(), group.clone())?;
/// assert_eq!(stem.group().id(), head.group().id());
/// for step in 0..2 {
///     group.set_step(step);
///     // ... forward and backward passes ...
///     let mut losses = [0.5_f32];
///     group.all_reduce("loss", &Plain, &(), &mut losses[..])?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Group<B: Backend> {
    communicator: Arc<dyn Communicator<B>>,
    membership: Arc<Membership>,
}

impl<B: Backend> Clone for Group<B> {
    fn clone(&self) -> Self {
        let Self { communicator, membership } = self;
        Self { communicator: Arc::clone(communicator), membership: Arc::clone(membership) }
    }
}

impl<B: Backend> Group<B> {
    /// The group of this communicator. No rank is asked.
    pub fn new(communicator: impl Communicator<B> + 'static) -> Self {
        let membership = communicator.membership().unwrap_or_default();
        Self { communicator: Arc::new(communicator), membership }
    }

    /// This rank, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.communicator.rank()
    }

    /// The number of ranks.
    #[must_use]
    pub fn world_size(&self) -> NonZeroUsize {
        self.communicator.world_size()
    }

    /// A number that is unique among the groups of this process. It differs between ranks.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.membership.id()
    }

    /// Sets the trainer's step. Call it at the beginning of each step, on every rank.
    ///
    /// Communicators that compare calls compare the step as well. Without it, a rank that skips all layers of a step is not noticed:
    /// its next step is summed with this step of the other ranks.
    pub fn set_step(&self, step: u64) {
        self.membership.set_step(step);
    }

    /// The trainer's step; 0 if [`set_step`](Self::set_step) was never called.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.membership.step()
    }

    /// Whether the group works. Does not wait.
    ///
    /// # Errors
    ///
    /// The failure that has poisoned the group. A device-native communicator reports here what failed after the work was enqueued, with
    /// [`CommError::late`] set.
    pub fn status(&self) -> Result<(), CommError> {
        self.communicator.status()
    }

    /// Replaces numbers by their sum over the ranks: gradients of other parameters, a loss, a count.
    ///
    /// Collective: every rank calls it with the same name and length, in the same order. Communicators in host memory add in `f64`,
    /// device-native ones in the type of the numbers. Every rank gets the same bits.
    ///
    /// # Shapes
    ///
    /// Any number of `f32` or `f64` values.
    ///
    /// # Errors
    ///
    /// As the communicator has them ([`CommErrorKind`]); the numbers are then unspecified. After every kind but
    /// [`Unsent`](CommErrorKind::Unsent) the group is poisoned.
    pub fn all_reduce<P: Param>(
        &self,
        name: &str,
        backend: &B,
        queue: &B::Queue,
        numbers: B::MemMut<'_, P>,
    ) -> Result<(), CommError> {
        self.status()?;
        let plain_sums = self.membership.plain_sums();
        let use_number = plain_sums.load(Ordering::Relaxed);
        let id = CollectiveId::new(name, B::mem_mut_len(&numbers)).with_use(use_number, self.step());
        let result = self.communicator.sum_numbers(&id, backend, queue, P::numbers(numbers));
        if !is_unsent(&result) {
            plain_sums.store(use_number.wrapping_add(1), Ordering::Relaxed);
        }
        result
    }

    /// The number of a new layer, in the order of construction.
    pub(crate) fn next_layer(&self) -> u64 {
        self.membership.next_layer()
    }
}

/// A group is a communicator, so that layers take either.
impl<B: Backend> Communicator<B> for Group<B> {
    fn rank(&self) -> usize {
        self.rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        self.world_size()
    }
    fn sum_workspace(
        &self,
        id: &CollectiveId,
        pass: Pass,
        backend: &B,
        queue: &B::Queue,
        workspace: &mut B::Workspace,
    ) -> Result<(), CommError> {
        self.communicator.sum_workspace(id, pass, backend, queue, workspace)
    }
    fn sum_numbers(
        &self,
        id: &CollectiveId,
        backend: &B,
        queue: &B::Queue,
        numbers: Numbers<'_, B>,
    ) -> Result<(), CommError> {
        self.communicator.sum_numbers(id, backend, queue, numbers)
    }
    fn peers(&self, id: &CollectiveId, channels: usize, backend: &B) -> Result<Option<B::Peers>, CommError> {
        self.communicator.peers(id, channels, backend)
    }
    fn poison(&self, cause: &CommError) {
        self.communicator.poison(cause);
    }
    fn status(&self) -> Result<(), CommError> {
        self.status()
    }
    fn membership(&self) -> Option<Arc<Membership>> {
        Some(Arc::clone(&self.membership))
    }
    fn into_group(self) -> Self {
        self
    }
}

/// Whether it failed before this rank's numbers were sent.
pub(crate) fn is_unsent(result: &Result<(), CommError>) -> bool {
    matches!(result, Err(CommError { kind: CommErrorKind::Unsent(_), .. }))
}

impl<B: Backend> fmt::Debug for Group<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({}, rank {} of {})", self.id(), self.rank(), self.world_size())
    }
}
