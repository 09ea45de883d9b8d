//! The two communicators that every backend can use: [`ViaHost`], and [`SingleRank`].

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::backend::Backend;
use crate::collective::CollectiveId;
use crate::communicator::{CommError, CommErrorKind, Communicator, HostCommunicator, Numbers};
use crate::membership::Membership;
use crate::message::Pass;
use crate::scalar::Element;

/// Makes a [`HostCommunicator`] (threads, TCP, MPI) a [`Communicator`] of any backend.
///
/// For each sum it reads a few numbers per channel from the device, which waits for the device, sums them in host memory, and writes
/// them back. It works for any number of ranks to a device.
///
/// ```
/// use std::sync::Arc;
/// use std::num::NonZeroUsize;
/// use example_backend::Plain;
/// use syncbn_core::{CollectiveId, CommError, Config, Group, HostCommunicator, SyncBatchNorm, ViaHost};
///
/// /// A group of one rank, as a host communicator.
/// struct Alone;
///
/// impl HostCommunicator for Alone {
///     fn rank(&self) -> usize {
///         0
///     }
///     fn world_size(&self) -> NonZeroUsize {
///         NonZeroUsize::MIN
///     }
///     fn all_reduce_sum(&self, _: &CollectiveId, _values: &mut [f64]) -> Result<(), CommError> {
///         Ok(()) // the sum over one rank
///     }
///     fn poison(&self, _: &CommError) {}
///     fn status(&self) -> Result<(), CommError> {
///         Ok(())
///     }
/// }
///
/// let group = Group::<Plain>::new(ViaHost(Alone)); // or ViaHost(Arc::new(..)), where the communicator is shared
/// let norm = SyncBatchNorm::<Plain, f32>::new("norm", Config::new(8), Plain, &(), group)?;
/// assert_eq!(norm.group().world_size().get(), 1);
/// # Ok::<(), syncbn_core::Error>(())
/// ```
///
/// # Errors
///
/// Those of the host communicator. A device that fails before the sum is [`CommErrorKind::Unsent`]: nothing was sent, and the pass may
/// be called again. A device that fails after the sum is [`CommErrorKind::Transport`], and poisons the group, since the other ranks have
/// gone on.
#[derive(Clone, Debug)]
pub struct ViaHost<C>(pub C);

impl<C: HostCommunicator> ViaHost<C> {
    fn error(&self, id: &CollectiveId, kind: CommErrorKind) -> CommError {
        let (rank, world_size) = (self.0.rank(), self.0.world_size().get());
        CommError { rank, world_size, call: Some(id.clone()), late: false, kind }
    }

    /// Sums what `read` gives and passes the sum to `write`. If `write` fails, the other ranks have gone on, so the group is poisoned.
    fn sum<E: std::error::Error + Send + Sync + 'static>(
        &self,
        id: &CollectiveId,
        read: impl FnOnce() -> Result<Vec<f64>, E>,
        write: impl FnOnce(&[f64]) -> Result<(), E>,
    ) -> Result<(), CommError> {
        let unsent = |cause| self.error(id, CommErrorKind::Unsent(Arc::new(cause)));
        let mut values = read().map_err(unsent)?;
        self.0.all_reduce_sum(id, &mut values)?;
        write(&values).map_err(|cause| {
            let error = self.error(id, CommErrorKind::Transport(Arc::new(cause)));
            self.0.poison(&error);
            error
        })
    }

    fn numbers<B: Backend, T: Element>(
        &self,
        id: &CollectiveId,
        backend: &B,
        queue: &B::Queue,
        mut mem: B::MemMut<'_, T>,
    ) -> Result<(), CommError> {
        let mut values = vec![T::default(); B::mem_mut_len(&mem)];
        let read = backend.read(queue, B::as_mem(&mem), &mut values);
        let wide = || read.map(|()| values.iter().map(|value| value.to_f64()).collect());
        self.sum(id, wide, |sums| {
            let narrow: Vec<T> = sums.iter().map(|&sum| T::from_f64(sum)).collect();
            backend.write(queue, B::reborrow_mut(&mut mem), &narrow)
        })
    }
}

impl<B: Backend, C: HostCommunicator> Communicator<B> for ViaHost<C> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn world_size(&self) -> NonZeroUsize {
        self.0.world_size()
    }

    fn sum_workspace(
        &self,
        id: &CollectiveId,
        pass: Pass,
        backend: &B,
        queue: &B::Queue,
        workspace: &mut B::Workspace,
    ) -> Result<(), CommError> {
        let mut message = vec![0.0; id.length];
        let read = backend.read_message(queue, pass, workspace, &mut message);
        self.sum(id, || read.map(|()| message), |sums| backend.write_message(queue, pass, workspace, sums))
    }

    fn sum_numbers(
        &self,
        id: &CollectiveId,
        backend: &B,
        queue: &B::Queue,
        numbers: Numbers<'_, B>,
    ) -> Result<(), CommError> {
        match numbers {
            Numbers::F32(mem) => self.numbers(id, backend, queue, mem),
            Numbers::F64(mem) => self.numbers(id, backend, queue, mem),
        }
    }

    fn poison(&self, cause: &CommError) {
        self.0.poison(cause);
    }

    fn status(&self) -> Result<(), CommError> {
        self.0.status()
    }

    fn membership(&self) -> Option<Arc<Membership>> {
        self.0.membership()
    }
}

/// The group of one rank: local batch norm. Its sums do nothing and never fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleRank;

impl<B: Backend> Communicator<B> for SingleRank {
    fn rank(&self) -> usize {
        0
    }
    fn world_size(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }
    fn sum_workspace(
        &self,
        _: &CollectiveId,
        _: Pass,
        _: &B,
        _: &B::Queue,
        _: &mut B::Workspace,
    ) -> Result<(), CommError> {
        Ok(())
    }
    fn sum_numbers(&self, _: &CollectiveId, _: &B, _: &B::Queue, _: Numbers<'_, B>) -> Result<(), CommError> {
        Ok(())
    }
    /// Does nothing: there are no other ranks.
    fn poison(&self, _: &CommError) {}
    fn status(&self) -> Result<(), CommError> {
        Ok(())
    }
}
