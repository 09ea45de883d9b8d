//! A group of ranks as layers take it: a communicator, and what its ranks count alike.

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

/// One rank's membership of a group: its communicator, the trainer's step, and the order of its layers. One for each rank;
/// clones are the same membership.
///
/// Layers take any [`Communicator`], which becomes a group. Layers that belong together share one group, so that their order of
/// construction is counted: make it once, and give each layer a clone. The communicators of syncbn count for themselves, so that
/// groups made of one of them, shared by an `Arc`, are the same group.
///
/// ```
/// use syncbn_core::{Group, SingleRank};
/// use example_backend::Plain;
///
/// let group = Group::<Plain>::new(SingleRank);
/// group.set_step(7);
/// let mut norms = [3.0_f32, 4.0];
/// group.all_reduce("gradient norms", &Plain, &(), &mut norms[..])?;
/// # Ok::<(), syncbn_core::CommError>(())
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
    /// The group whose ranks this communicator reaches.
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

    /// A number that no other group of this process has.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.membership.id()
    }

    /// Tells the group which of the trainer's steps begins; call it once a step on every rank.
    ///
    /// Communicators that compare calls compare it, too: a rank that has left out a whole step is then told apart from its peers
    /// at the next sum. Without it, a rank that leaves out every layer of a step cannot be: its later steps would be summed with
    /// its peers' earlier ones.
    pub fn set_step(&self, step: u64) {
        self.membership.set_step(step);
    }

    /// The trainer's step; 0 before it was told.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.membership.step()
    }

    /// Whether the group still works, without waiting.
    pub fn status(&self) -> Result<(), CommError> {
        self.communicator.status()
    }

    /// Replaces a caller's own numbers, of type `f32` or `f64` and of any length, by their sum over the ranks: gradients of
    /// other parameters, a loss, a count. `name` is what ranks compare and errors show; every rank calls it with as many numbers.
    ///
    /// Sums are formed in `f64` where the communicator works in host memory, and in the numbers' own type on a device.
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

    /// The place of a new layer in the order of construction.
    pub(crate) fn next_layer(&self) -> u64 {
        self.membership.next_layer()
    }
}

/// What it is a group of, and itself where a layer wants a group.
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
    fn peers(&self, id: &CollectiveId, pass: Pass, backend: &B) -> Result<Option<B::Peers>, CommError> {
        self.communicator.peers(id, pass, backend)
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

/// Whether the failure came before this rank's numbers went to the group.
pub(crate) fn is_unsent(result: &Result<(), CommError>) -> bool {
    matches!(result, Err(CommError { kind: CommErrorKind::Unsent(_), .. }))
}

impl<B: Backend> fmt::Debug for Group<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({}, rank {} of {})", self.id(), self.rank(), self.world_size())
    }
}
