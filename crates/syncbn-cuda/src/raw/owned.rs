//! Device memory that this crate owns. It records the streams that use it, so it may be used on any stream, and it is freed when nothing
//! on the device can use it any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, sys};

use super::capture::{RelaxedCapture, is_capturing};
use super::driver::{self, DeviceMemory};
use super::queue::Queue;
use crate::error::CudaError;

/// The address of borrowed memory, and what orders its uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region<'a> {
    pub(crate) pointer: u64,
    pub(crate) len: usize,
    /// The context's handle, as a number: only compared.
    pub(crate) context: usize,
    pub(crate) order: Order<'a>,
}

/// What orders the uses of memory on several streams.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order<'a> {
    /// Nothing: there are no elements.
    Empty,
    /// The caller, by a promise.
    Promised,
    /// cudarc: the stream waits for earlier uses already, and every use records the event, if the memory is tracked.
    Event { stream: &'a CudaStream, thread: Option<ThreadId>, used: Option<&'a CudaEvent> },
    /// The memory's own record.
    Owned(&'a Owned),
}

/// Device memory, and which streams use it.
#[derive(Debug)]
pub(crate) struct Owned {
    memory: DeviceMemory,
    uses: Mutex<Uses>,
    /// A graph may use it at every replay.
    captured: AtomicBool,
}

/// The streams that may have unfinished work which uses the memory.
#[derive(Debug, Default)]
struct Uses {
    /// The stream of the last write.
    writer: Option<Queue>,
    /// The streams that have read since.
    readers: Vec<Queue>,
}

/// How work uses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

impl Owned {
    pub(crate) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, CudaError> {
        let memory = DeviceMemory::new(context, bytes)?;
        Ok(Self { memory, uses: Mutex::default(), captured: AtomicBool::new(false) })
    }

    pub(crate) fn zeroed(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, CudaError> {
        let mut owned = Self::new(stream.context(), bytes)?;
        driver::zero(stream, &mut owned.memory, bytes)?;
        owned.uses().writer = Some(Queue::of(stream));
        Ok(owned)
    }

    /// Its first `len` elements, of whatever type fits.
    pub(crate) fn region(&self, len: usize) -> Region<'_> {
        let context = self.memory.context().cu_ctx() as usize;
        Region { pointer: self.memory.pointer(), len, context, order: Order::Owned(self) }
    }

    pub(crate) fn pointer(&self) -> u64 {
        self.memory.pointer()
    }

    /// Whether a graph may use it.
    pub(crate) fn is_captured(&self) -> bool {
        self.captured.load(Ordering::Acquire)
    }

    /// Orders the next work of this queue after conflicting uses on other streams, and records it as a use.
    pub(crate) fn order(
        &self,
        queue: &Arc<CudaStream>,
        capturing: bool,
        intent: Use,
        what: &'static str,
    ) -> Result<(), CudaError> {
        let mut uses = self.uses();
        if capturing {
            self.captured.store(true, Ordering::Release);
        }
        match intent {
            Use::Read if uses.queues().any(|used| used.is(queue)) => {}
            Use::Read => {
                uses.writer.iter().try_for_each(|writer| join(queue, writer, capturing, what))?;
                uses.readers.push(Queue::of(queue));
            }
            Use::Write => {
                let others = uses.queues().filter(|used| !used.is(queue));
                others.into_iter().try_for_each(|used| join(queue, used, capturing, what))?;
                uses.readers.clear();
                if !uses.writer.as_ref().is_some_and(|writer| writer.is(queue)) {
                    uses.writer = Some(Queue::of(queue));
                }
            }
        }
        Ok(())
    }

    /// Orders the next work of this queue after the last write. It is not recorded: the caller waits for it while the memory is
    /// borrowed.
    pub(crate) fn order_after_write(
        &self,
        queue: &Arc<CudaStream>,
        what: &'static str,
    ) -> Result<(), CudaError> {
        let writer = self.uses().writer.clone().filter(|writer| !writer.is(queue));
        writer.map_or(Ok(()), |writer| join(queue, &writer, false, what))
    }

    /// The caller has exclusive access, and has waited for the queue that wrote to it last.
    pub(crate) fn is_idle(&self) {
        *self.uses() = Uses::default();
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uses {
    fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.readers.iter().chain(&self.writer)
    }
}

/// Orders the queue after the work of the other stream so far. Captured work and other work cannot wait for each other; other work that
/// has ended need not be waited for: a step is run once on any stream, waited for, and then captured. For another thread's per-thread
/// stream nothing but the host can wait, with all that the device has to do.
fn join(queue: &CudaStream, other: &Queue, capturing: bool, what: &'static str) -> Result<(), CudaError> {
    if other.is_elsewhere() {
        let waited = || {
            queue.context().synchronize().map_err(CudaError::driver("waiting for another thread's stream"))
        };
        return if capturing { Err(CudaError::Uncaptured { what }) } else { waited() };
    }
    let other = &*other.stream;
    match (capturing, is_capturing(other)?) {
        (true, false) if has_ended(other)? => Ok(()),
        (true, false) => Err(CudaError::Uncaptured { what }),
        (false, true) => Err(CudaError::Capturing),
        _ => queue.join(other).map_err(CudaError::driver("ordering two streams")),
    }
}

/// Whether the stream has done all that it was given. Asking is no part of a capture.
fn has_ended(stream: &CudaStream) -> Result<bool, CudaError> {
    let _relaxed = RelaxedCapture::begin()?;
    // SAFETY: the wrapper's stream is live.
    match unsafe { sys::cuStreamQuery(stream.cu_stream()) }.result() {
        Ok(()) => Ok(true),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
        Err(source) => Err(CudaError::Driver { during: "asking whether a stream has ended", source }),
    }
}
