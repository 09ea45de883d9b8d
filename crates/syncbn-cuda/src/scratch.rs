//! What the kernels need besides the caller's memory: the sums of a layer, and the saved statistics of its forward passes.
//!
//! Deliberately not here: what is in them, beyond its place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaStream};

use crate::device::Cuda;
use crate::error::CudaError;
use crate::raw::driver::is_capturing;
use crate::raw::memory::Scratch;
use crate::raw::nccl::Comm;
use crate::tile::most_partials;

const F64: usize = size_of::<f64>();

/// A layer's sums: the message, M2, and where blocks leave their parts.
#[derive(Debug)]
pub struct Sums {
    pub(crate) scratch: Scratch,
    channels: usize,
    partials: usize,
    tickets: usize,
    /// The stream that used it last: another one has to wait for it.
    stream: Arc<CudaStream>,
}

impl Sums {
    pub(crate) fn new(cuda: &Cuda, queue: &Arc<CudaStream>, channels: usize) -> Result<Self, CudaError> {
        let (partials, tickets) = most_partials(cuda.multiprocessors(), channels);
        let mut sums = Self {
            scratch: Scratch::new(queue.context(), 0)?,
            channels,
            partials: 2 * partials,
            tickets,
            stream: queue.clone(),
        };
        // One ticket more: the state's.
        let bytes = (3 * channels + 2 + sums.partials) * F64 + (tickets + 1) * size_of::<u32>();
        sums.scratch = Scratch::zeroed(queue, bytes)?;
        Ok(sums)
    }

    /// Orders this queue's work after that of the queue before.
    pub(crate) fn enter(&mut self, queue: &Arc<CudaStream>) -> Result<(), CudaError> {
        if self.stream != *queue {
            queue.join(&self.stream).map_err(CudaError::driver("ordering two streams"))?;
            self.stream = queue.clone();
        }
        Ok(())
    }

    pub(crate) fn check(&self, queue: &Arc<CudaStream>) -> Result<(), CudaError> {
        if self.stream == *queue { Ok(()) } else { Err(CudaError::OtherStream { what: "the sums" }) }
    }

    /// Enqueues the sum of the message's first `count` numbers over the ranks.
    pub(crate) fn all_reduce(
        &mut self,
        comm: &Comm,
        count: usize,
        queue: &CudaStream,
    ) -> Result<(), CudaError> {
        self.scratch.all_reduce(comm, count, queue)
    }

    pub(crate) fn message(&self) -> u64 {
        self.scratch.pointer()
    }

    pub(crate) fn m2(&self) -> u64 {
        self.message() + ((2 * self.channels + 1) * F64) as u64
    }

    pub(crate) fn partials(&self) -> u64 {
        // They are read two numbers at a time.
        (self.m2() + (self.channels * F64) as u64).next_multiple_of(2 * F64 as u64)
    }

    pub(crate) fn tickets(&self) -> u64 {
        self.partials() + (self.partials * F64) as u64
    }

    pub(crate) fn state_ticket(&self) -> u64 {
        self.tickets() + (self.tickets * size_of::<u32>()) as u64
    }
}

/// The statistics of one forward pass, `[mean | invstd | M]`, on loan from the device's pool.
#[derive(Debug)]
pub struct Saved {
    slot: Option<Slot>,
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Slot {
    scratch: Scratch,
    channels: usize,
    stream: Arc<CudaStream>,
    /// A captured graph writes it at every replay, so it is never lent again.
    captured: bool,
}

impl Saved {
    pub(crate) fn pointer(&self, queue: &Arc<CudaStream>) -> Result<u64, CudaError> {
        match &self.slot {
            Some(slot) if slot.stream == *queue => Ok(slot.scratch.pointer()),
            _ => Err(CudaError::OtherStream { what: "the saved statistics" }),
        }
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.give_back(slot);
        }
    }
}

/// Saved statistics that are not in use, by stream and channels: work on a stream runs in order, so the next forward on it
/// may have them at once.
#[derive(Debug)]
pub(crate) struct Pool {
    context: Arc<CudaContext>,
    free: Mutex<HashMap<(usize, usize), Vec<Slot>>>,
    /// Those that graphs may still write.
    retired: Mutex<Vec<Slot>>,
}

impl Pool {
    pub(crate) fn new(context: Arc<CudaContext>) -> Self {
        Self { context, free: Mutex::default(), retired: Mutex::default() }
    }

    pub(crate) fn take(
        self: &Arc<Self>,
        queue: &Arc<CudaStream>,
        channels: usize,
    ) -> Result<Saved, CudaError> {
        let captured = is_capturing(queue)?;
        let key = (queue.cu_stream() as usize, channels);
        let pooled =
            self.free.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&key).and_then(Vec::pop);
        let mut slot = match pooled {
            Some(slot) => slot,
            None => Slot {
                scratch: Scratch::new(&self.context, (2 * channels + 1) * F64)?,
                channels,
                stream: queue.clone(),
                captured,
            },
        };
        slot.captured = captured;
        Ok(Saved { slot: Some(slot), pool: self.clone() })
    }

    fn give_back(&self, slot: Slot) {
        if slot.captured {
            self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
            return;
        }
        let key = (slot.stream.cu_stream() as usize, slot.channels);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().push(slot);
    }
}
