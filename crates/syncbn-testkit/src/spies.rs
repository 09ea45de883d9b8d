//! Communicators for tests, around another one: they record collectives, or fail in certain ways.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use syncbn_core::{
    Backend, CollectiveId, CommError, CommErrorKind, Communicator, HostCommunicator, Membership, Numbers,
    Pass,
};

/// Records every collective, and can be made to fail late, as a device-native communicator may.
pub struct Spy<B: Backend> {
    inner: Arc<dyn Communicator<B>>,
    calls: Mutex<Vec<CollectiveId>>,
    failed: AtomicBool,
}

impl<B: Backend> Spy<B> {
    /// Around this communicator.
    #[must_use]
    pub fn new(inner: Arc<dyn Communicator<B>>) -> Arc<Self> {
        Arc::new(Self { inner, calls: Mutex::default(), failed: AtomicBool::new(false) })
    }

    /// The collectives since the last call.
    #[must_use]
    pub fn take_calls(&self) -> Vec<CollectiveId> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// From now on the group has failed late: after its work had been enqueued.
    pub fn fail_late(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    fn note(&self, id: &CollectiveId) {
        self.calls.lock().unwrap().push(id.clone());
    }
}

impl<B: Backend> Communicator<B> for Spy<B> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        self.inner.world_size()
    }
    fn sum_workspace(
        &self,
        id: &CollectiveId,
        pass: Pass,
        backend: &B,
        queue: &B::Queue,
        workspace: &mut B::Workspace,
    ) -> Result<(), CommError> {
        self.status()?;
        self.note(id);
        self.inner.sum_workspace(id, pass, backend, queue, workspace)
    }
    fn sum_numbers(
        &self,
        id: &CollectiveId,
        backend: &B,
        queue: &B::Queue,
        numbers: Numbers<'_, B>,
    ) -> Result<(), CommError> {
        self.status()?;
        self.note(id);
        self.inner.sum_numbers(id, backend, queue, numbers)
    }
    fn peers(&self, id: &CollectiveId, channels: usize, backend: &B) -> Result<Option<B::Peers>, CommError> {
        let peers = self.inner.peers(id, channels, backend)?;
        if peers.is_some() {
            self.note(id);
        }
        Ok(peers)
    }
    fn poison(&self, cause: &CommError) {
        self.inner.poison(cause);
    }
    fn membership(&self) -> Option<Arc<Membership>> {
        self.inner.membership()
    }
    fn status(&self) -> Result<(), CommError> {
        if !self.failed.load(Ordering::SeqCst) {
            return self.inner.status();
        }
        Err(CommError {
            rank: self.rank(),
            world_size: self.world_size().get(),
            call: None,
            late: true,
            kind: CommErrorKind::Left { rank: 0, panicked: false },
        })
    }
}

/// Always reports that its group works, as if another rank left just after the question. The sum itself fails.
pub struct Unaware<B: Backend>(pub Arc<dyn Communicator<B>>);

impl<B: Backend> Communicator<B> for Unaware<B> {
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
        self.0.sum_workspace(id, pass, backend, queue, workspace)
    }
    fn sum_numbers(
        &self,
        id: &CollectiveId,
        backend: &B,
        queue: &B::Queue,
        numbers: Numbers<'_, B>,
    ) -> Result<(), CommError> {
        self.0.sum_numbers(id, backend, queue, numbers)
    }
    fn peers(&self, id: &CollectiveId, channels: usize, backend: &B) -> Result<Option<B::Peers>, CommError> {
        self.0.peers(id, channels, backend)
    }
    fn poison(&self, cause: &CommError) {
        self.0.poison(cause);
    }
    fn membership(&self) -> Option<Arc<Membership>> {
        self.0.membership()
    }
    fn status(&self) -> Result<(), CommError> {
        Ok(())
    }
}

/// Fails once before anything is sent, as if the device failed.
pub struct Unsteady<B: Backend> {
    inner: Arc<dyn Communicator<B>>,
    fails: AtomicBool,
}

impl<B: Backend> Unsteady<B> {
    /// Around this communicator; fails only if `fail` is true.
    #[must_use]
    pub fn new(inner: Arc<dyn Communicator<B>>, fail: bool) -> Self {
        Self { inner, fails: AtomicBool::new(fail) }
    }

    fn may_fail(&self, id: &CollectiveId) -> Result<(), CommError> {
        if !self.fails.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let kind = CommErrorKind::Unsent(Arc::new(std::io::Error::other("the device has hiccups")));
        let (rank, world_size) = (self.rank(), self.world_size().get());
        Err(CommError { rank, world_size, call: Some(id.clone()), late: false, kind })
    }
}

impl<B: Backend> Communicator<B> for Unsteady<B> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        self.inner.world_size()
    }
    fn sum_workspace(
        &self,
        id: &CollectiveId,
        pass: Pass,
        backend: &B,
        queue: &B::Queue,
        workspace: &mut B::Workspace,
    ) -> Result<(), CommError> {
        self.may_fail(id)?;
        self.inner.sum_workspace(id, pass, backend, queue, workspace)
    }
    fn sum_numbers(
        &self,
        id: &CollectiveId,
        backend: &B,
        queue: &B::Queue,
        numbers: Numbers<'_, B>,
    ) -> Result<(), CommError> {
        self.may_fail(id)?;
        self.inner.sum_numbers(id, backend, queue, numbers)
    }
    fn peers(&self, id: &CollectiveId, channels: usize, backend: &B) -> Result<Option<B::Peers>, CommError> {
        self.may_fail(id)?;
        self.inner.peers(id, channels, backend)
    }
    fn poison(&self, cause: &CommError) {
        self.inner.poison(cause);
    }
    fn membership(&self) -> Option<Arc<Membership>> {
        self.inner.membership()
    }
    fn status(&self) -> Result<(), CommError> {
        self.inner.status()
    }
}

/// Records what a rank sends, in host memory.
pub struct Recorder<C>(pub C, pub Mutex<Vec<Vec<f64>>>);

impl<C: HostCommunicator> HostCommunicator for Recorder<C> {
    fn rank(&self) -> usize {
        self.0.rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        self.0.world_size()
    }
    fn all_reduce_sum(&self, id: &CollectiveId, values: &mut [f64]) -> Result<(), CommError> {
        self.1.lock().unwrap().push(values.to_vec());
        self.0.all_reduce_sum(id, values)
    }
    fn poison(&self, cause: &CommError) {
        self.0.poison(cause);
    }
    fn membership(&self) -> Option<Arc<Membership>> {
        self.0.membership()
    }
    fn status(&self) -> Result<(), CommError> {
        self.0.status()
    }
}
