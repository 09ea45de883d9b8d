//! A thread that checks a group of several ranks at intervals, until the communicator is dropped.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::group::Group;
use crate::error::CudaError;
use crate::raw::capture::RelaxedCapture;

/// The longest time between two checks.
const PERIOD: Duration = Duration::from_millis(100);

pub(super) struct Watchdog {
    /// Closed by dropping it.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(super) fn start(group: &Arc<Group>) -> Result<Self, CudaError> {
        let (stop, stopped) = mpsc::channel::<()>();
        let group = Arc::clone(group);
        let period = (group.timeout / 10).clamp(Duration::from_millis(1), PERIOD);
        let watch = move || {
            // Otherwise querying an event would end another thread's capture of a graph.
            let _relaxed = RelaxedCapture::begin();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(period) {
                group.look();
            }
        };
        let thread = thread::Builder::new().name("syncbn nccl watchdog".into()).spawn(watch);
        let thread = thread.map_err(|source| CudaError::Thread { source })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It does not panic. If it did, there would be nothing left to check.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
