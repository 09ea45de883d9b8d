//! Capturing a stream into a graph. A graph is a list of work, in the order in which it was captured.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::stream::{Stream, Work};

/// Captures that forbid calls that are not relaxed, in all threads.
static GLOBAL: AtomicUsize = AtomicUsize::new(0);
// Those that forbid them in the thread that captures.
thread_local!(static OF_THREAD: Cell<usize> = const { Cell::new(0) });

/// A capture that is going on.
pub(crate) struct Capture {
    work: Mutex<Vec<Work>>,
    /// The streams whose work is captured.
    streams: Mutex<Vec<Arc<Stream>>>,
    broken: AtomicBool,
    ended: AtomicBool,
    mode: u32,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Capture {
    /// The mode is CUDA's: 0 for all threads, 1 for this one, 2 relaxed.
    pub(crate) fn begin(stream: &Arc<Stream>, mode: u32) {
        GLOBAL.fetch_add(usize::from(mode == 0), Ordering::SeqCst);
        OF_THREAD.set(OF_THREAD.get() + usize::from(mode == 1));
        let capture = Self {
            work: Mutex::default(),
            streams: Mutex::default(),
            broken: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            mode,
        };
        Arc::new(capture).join(stream);
    }

    /// Whether a call that is not relaxed would break a capture.
    pub(crate) fn forbids() -> bool {
        GLOBAL.load(Ordering::SeqCst) + OF_THREAD.get() > 0
    }

    pub(crate) fn join(self: &Arc<Self>, stream: &Arc<Stream>) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).push(stream.clone());
        stream.set_capture(Some(self.clone()));
    }

    pub(crate) fn add(&self, work: Work) {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).push(work);
    }

    /// After a call that a capture does not allow.
    pub(crate) fn break_it(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// What was captured; `None` if the capture is broken.
    pub(crate) fn end(&self) -> Option<Vec<Work>> {
        GLOBAL.fetch_sub(usize::from(self.mode == 0), Ordering::SeqCst);
        OF_THREAD.set(OF_THREAD.get().saturating_sub(usize::from(self.mode == 1)));
        self.ended.store(true, Ordering::SeqCst);
        let streams = std::mem::take(&mut *self.streams.lock().unwrap_or_else(PoisonError::into_inner));
        for stream in streams {
            stream.set_capture(None);
        }
        let work = std::mem::take(&mut *self.work.lock().unwrap_or_else(PoisonError::into_inner));
        (!self.is_broken()).then_some(work)
    }
}
