//! Communicators that watch, one that does not, and one that fails late, as a device-native one may.
//!
//! Deliberately not here: sums of their own. They hand every sum to another communicator.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use std::sync::Arc;

use syncbn_core::{Backend, Call, CommError, CommErrorKind, Communicator, HostCommunicator};

/// Notes every call, and can be made to fail after the fact.
pub struct Spy<B: Backend> {
    inner: Arc<dyn Communicator<B>>,
    calls: Mutex<Vec<Call>>,
    failed: AtomicBool,
}

impl<B: Backend> Spy<B> {
    /// Watches this communicator.
    #[must_use]
    pub fn new(inner: Arc<dyn Communicator<B>>) -> Arc<Self> {
        Arc::new(Self { inner, calls: Mutex::default(), failed: AtomicBool::new(false) })
    }

    /// The calls since the last time this was asked.
    #[must_use]
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// From now on the group has failed, after what it was given had been enqueued.
    pub fn fail_late(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }
}

impl<B: Backend> Communicator<B> for Spy<B> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        self.inner.world_size()
    }
    fn all_reduce_sum(
        &self,
        call: &Call,
        backend: &B,
        queue: &B::Queue,
        sums: &mut B::Sums,
    ) -> Result<(), CommError> {
        self.status()?;
        self.calls.lock().unwrap().push(call.clone());
        self.inner.all_reduce_sum(call, backend, queue, sums)
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

/// Says that its group works, whatever has become of it: as when a peer leaves after a rank has asked. The sum itself fails.
pub struct Unaware<B: Backend>(pub Arc<dyn Communicator<B>>);

impl<B: Backend> Communicator<B> for Unaware<B> {
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
        self.0.all_reduce_sum(call, backend, queue, sums)
    }
    fn status(&self) -> Result<(), CommError> {
        Ok(())
    }
}

/// Notes what a rank sends, in host memory.
pub struct Recorder<C>(pub C, pub Mutex<Vec<Vec<f64>>>);

impl<C: HostCommunicator> HostCommunicator for Recorder<C> {
    fn rank(&self) -> usize {
        self.0.rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        self.0.world_size()
    }
    fn all_reduce_sum(&self, call: &Call, values: &mut [f64]) -> Result<(), CommError> {
        self.1.lock().unwrap().push(values.to_vec());
        self.0.all_reduce_sum(call, values)
    }
    fn status(&self) -> Result<(), CommError> {
        self.0.status()
    }
}
