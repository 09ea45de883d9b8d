//! Streams as one thread means them: a context's per-thread stream has the same handle in all threads, and is another stream in each.

use std::sync::Arc;
use std::thread::{self, ThreadId};

use cudarc::driver::CudaStream;

/// `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

/// A stream, and the thread that means it, where that matters.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub(super) stream: Arc<CudaStream>,
    thread: Option<ThreadId>,
}

impl Queue {
    /// This stream as this thread means it.
    pub(super) fn of(stream: &Arc<CudaStream>) -> Self {
        Self { stream: stream.clone(), thread: thread_of(stream) }
    }

    /// Whether work on this stream, as this thread means it, is in order with work on that one.
    pub(super) fn is(&self, stream: &CudaStream) -> bool {
        is_same((&self.stream, self.thread), stream)
    }

    /// Whether it is another thread's, which no handle of this thread's stands for.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.thread.is_some_and(|thread| thread != thread::current().id())
    }
}

/// The thread that means it, where that matters.
pub(crate) fn thread_of(stream: &CudaStream) -> Option<ThreadId> {
    (stream.cu_stream() as usize == PER_THREAD).then(|| thread::current().id())
}

/// Whether a stream of some thread's is this one, as this thread means it. The default streams of all contexts have the same handle.
pub(crate) fn is_same((a, of): (&CudaStream, Option<ThreadId>), b: &CudaStream) -> bool {
    a.cu_stream() == b.cu_stream() && a.context().cu_ctx() == b.context().cu_ctx() && of == thread_of(b)
}
