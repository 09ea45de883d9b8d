//! The scratch of passes, and the memory of saved statistics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaStream};
use syncbn_core::{Dtype, Geometry, Pass, saved_len};

use crate::access::Access;
use crate::error::CudaError;
use crate::plan::most_partials;
use crate::raw::capture::refuse_capture;
use crate::raw::memory::{Mem, MemMut};
use crate::raw::owned::Owned;

const F64: usize = size_of::<f64>();

/// The scratch of a pass: the message, this rank's mean and M2, and the partial sums of blocks.
#[derive(Debug)]
pub struct Workspace {
    memory: Owned,
    channels: usize,
    params: Dtype,
    /// Numbers of the partial sums, and tickets.
    partials: usize,
    tickets: usize,
}

/// The addresses of the parts of a workspace.
#[derive(Clone, Copy)]
pub(crate) struct Pointers {
    pub(crate) message: u64,
    /// Mean and M2 of each channel, of this rank's elements alone.
    pub(crate) local_moments: u64,
    pub(crate) partials: u64,
    pub(crate) tickets: u64,
    /// The ticket of the blocks that write the state.
    pub(crate) state_ticket: u64,
}

impl Workspace {
    pub(crate) fn new(
        queue: &Arc<CudaStream>,
        channels: usize,
        params: Dtype,
        multiprocessors: usize,
    ) -> Result<Self, CudaError> {
        refuse_capture(queue, "making scratch")?;
        let (partials, tickets) = most_partials(multiprocessors, channels);
        let partials = 2 * partials;
        let message = Pass::Forward.message_len(channels, params);
        // One number more, for the alignment of the partial sums, and one ticket more, the state's.
        let numbers =
            channels.checked_mul(2).and_then(|local| local.checked_add(message)?.checked_add(partials + 1));
        let bytes = numbers
            .and_then(|numbers| numbers.checked_mul(F64)?.checked_add((tickets + 1) * size_of::<u32>()));
        let bytes = bytes.ok_or(CudaError::OutOfMemory { bytes: usize::MAX })?;
        Ok(Self { memory: Owned::zeroed(queue, bytes)?, channels, params, partials, tickets })
    }

    /// Refuses tensors with other channels or parameters than it was made for.
    pub(crate) fn check(&self, geometry: &Geometry, params: Dtype) -> Result<(), CudaError> {
        if geometry.channels() == self.channels && params == self.params {
            return Ok(());
        }
        Err(CudaError::OtherWorkspace { channels: self.channels, params: self.params })
    }

    /// The addresses, for work that uses them. Kernels that read the sums also write tickets, so every use is a write.
    pub(crate) fn pointers<'a>(&'a self, access: &mut Access<'_, 'a>) -> Result<Pointers, CudaError> {
        access.write("the workspace", self.memory.region(0), 0)?;
        let message = self.memory.pointer();
        let local_moments = message + (self.message_len(Pass::Forward) * F64) as u64;
        // The kernels read two numbers at a time.
        let partials = (local_moments + (2 * self.channels * F64) as u64).next_multiple_of(2 * F64 as u64);
        let tickets = partials + (self.partials * F64) as u64;
        let state_ticket = tickets + (self.tickets * size_of::<u32>()) as u64;
        Ok(Pointers { message, local_moments, partials, tickets, state_ticket })
    }

    /// A pass's message.
    pub(crate) fn message(&self, pass: Pass) -> Mem<'_, f64> {
        Mem::of(&self.memory, self.message_len(pass))
    }

    /// A pass's message.
    pub(crate) fn message_mut(&mut self, pass: Pass) -> MemMut<'_, f64> {
        let len = self.message_len(pass);
        MemMut::of(&mut self.memory, len)
    }

    pub(crate) fn message_len(&self, pass: Pass) -> usize {
        pass.message_len(self.channels, self.params)
    }
}

/// The statistics of one forward pass. Their memory goes back to the device's pool.
#[derive(Debug)]
pub struct Saved {
    slot: Option<Slot>,
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Slot {
    memory: Owned,
    channels: usize,
    /// The stream on which it may be used again without a wait.
    stream: Arc<CudaStream>,
}

impl Slot {
    fn new(context: &Arc<CudaContext>, queue: &Arc<CudaStream>, channels: usize) -> Result<Self, CudaError> {
        let bytes =
            saved_len(channels).checked_mul(F64).ok_or(CudaError::OutOfMemory { bytes: usize::MAX })?;
        Ok(Self { memory: Owned::new(context, bytes)?, channels, stream: queue.clone() })
    }
}

impl Saved {
    pub(crate) fn mem(&self) -> Mem<'_, f64> {
        self.slot.as_ref().map_or_else(Mem::empty, |slot| Mem::of(&slot.memory, saved_len(slot.channels)))
    }

    pub(crate) fn mem_mut(&mut self) -> MemMut<'_, f64> {
        let slot = self.slot.as_mut();
        slot.map_or_else(MemMut::empty, |slot| MemMut::of(&mut slot.memory, saved_len(slot.channels)))
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.give_back(slot);
        }
    }
}

/// Memory of saved statistics that are not in use, by stream and channels. Work on a stream runs in order, so the next forward pass on
/// it does not have to wait.
#[derive(Debug)]
pub(crate) struct Pool {
    context: Arc<CudaContext>,
    free: Mutex<HashMap<(usize, usize), Vec<Slot>>>,
    /// Memory that graphs may use at any replay. It is never used again.
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
        let key = (queue.cu_stream() as usize, channels);
        let pooled =
            self.free.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&key).and_then(Vec::pop);
        let slot = pooled.map_or_else(|| Slot::new(&self.context, queue, channels), Ok)?;
        Ok(Saved { slot: Some(slot), pool: self.clone() })
    }

    fn give_back(&self, slot: Slot) {
        if slot.memory.is_captured() {
            self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
            return;
        }
        let key = (slot.stream.cu_stream() as usize, slot.channels);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().push(slot);
    }
}
