//! Torch's memory and streams, borrowed for one call.
//!
//! What is promised here: the caller of a pass holds its tensors until it returns (they are the call's arguments), and torch's
//! allocator frees CUDA memory in the order of the stream that the work was given to. As with torch's own operations, nobody
//! may change a tensor in another thread while an operation reads it.

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::{NonNull, null_mut};
use std::slice;
use std::sync::{Arc, OnceLock};

use syncbn_core::{Backend, Dtype, Scalar};
use syncbn_cpu::Cpu;
use syncbn_cuda::cudarc::driver::{CudaStream, result::ctx, sys};
use syncbn_cuda::{Cuda, Mem, MemMut, allow_capture, has_driver};

use crate::error::Refused;
use crate::tensor::Place;

/// A torch tensor's memory, which lives as long as the call that it is an argument of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) pointer: u64,
    /// In elements.
    pub(crate) len: usize,
    pub(crate) dtype: Dtype,
    pub(crate) place: Place,
}

impl Memory {
    fn element_bytes(self) -> usize {
        match self.dtype {
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F64 | Dtype::I64 => 8,
            _ => 4,
        }
    }

    /// Refuses a tensor that has elements and no memory (a fake one, or one on the meta device), or lies askew.
    pub(crate) fn check(self, name: &'static str) -> Result<(), Refused> {
        if self.len > 0 && (self.pointer == 0 || !self.pointer.is_multiple_of(self.element_bytes() as u64)) {
            return Err(Refused::NoMemory { name });
        }
        Ok(())
    }

    fn end(self) -> u64 {
        self.pointer.saturating_add((self.len * self.element_bytes()) as u64)
    }

    fn overlaps(self, other: Self) -> bool {
        self.place == other.place
            && self.len > 0
            && other.len > 0
            && self.pointer < other.end()
            && other.pointer < self.end()
    }
}

/// Refuses a pass that would write what it also reads or writes elsewhere.
pub(crate) fn check_apart(
    written: &[(&'static str, Memory)],
    read: &[(&'static str, Memory)],
) -> Result<(), Refused> {
    for (at, &(name, memory)) in written.iter().enumerate() {
        let others = written.iter().skip(at + 1).chain(read);
        if let Some(&(other, _)) = others.clone().find(|(_, other)| memory.overlaps(*other)) {
            return Err(Refused::Overlap { name, other });
        }
    }
    Ok(())
}

/// A backend that works on torch's memory.
pub(crate) trait Lent: Backend {
    /// Memory to be read.
    fn mem<'a, T: Scalar>(&self, name: &'static str, memory: &'a Memory)
    -> Result<Self::Mem<'a, T>, Refused>;
    /// Memory to be written. [`check_apart`] has been asked.
    fn mem_mut<'a, T: Scalar>(
        &self,
        name: &'static str,
        memory: &'a mut Memory,
    ) -> Result<Self::MemMut<'a, T>, Refused>;
}

/// Refuses memory of another type, or elsewhere.
fn check<T: Scalar>(name: &'static str, memory: Memory, place: Place) -> Result<(), Refused> {
    if memory.place != place {
        return Err(Refused::Device { name, got: memory.place.to_string(), expected: place.to_string() });
    }
    if memory.dtype != T::DTYPE {
        return Err(Refused::Type { name, got: memory.dtype, expected: T::DTYPE });
    }
    memory.check(name)
}

impl Lent for Cpu {
    fn mem<'a, T: Scalar>(&self, name: &'static str, memory: &'a Memory) -> Result<&'a [T], Refused> {
        check::<T>(name, *memory, Place::Cpu)?;
        let Some(pointer) = NonNull::new(memory.pointer as *mut T) else { return Ok(&[]) };
        // SAFETY: a torch tensor of this type has `len` elements side by side from here on, aligned as `check` has seen; it
        // lives as long as the call, and nobody writes it meanwhile (the module's promise, and `check_apart`).
        Ok(unsafe { slice::from_raw_parts(pointer.as_ptr(), memory.len) })
    }

    fn mem_mut<'a, T: Scalar>(
        &self,
        name: &'static str,
        memory: &'a mut Memory,
    ) -> Result<&'a mut [T], Refused> {
        check::<T>(name, *memory, Place::Cpu)?;
        let Some(pointer) = NonNull::new(memory.pointer as *mut T) else { return Ok(&mut []) };
        // SAFETY: as for `mem`; `check_apart` has seen that no other argument of the call is in this memory.
        Ok(unsafe { slice::from_raw_parts_mut(pointer.as_ptr(), memory.len) })
    }
}

impl Lent for Cuda {
    fn mem<'a, T: Scalar>(&self, name: &'static str, memory: &'a Memory) -> Result<Mem<'a, T>, Refused> {
        check::<T>(name, *memory, Place::Cuda(self.context().ordinal()))?;
        // SAFETY: the tensor belongs to this device and lives as long as the call; what frees or writes its memory later is in
        // the order of the stream that the pass is given, as for every operation of torch's.
        Ok(unsafe { Mem::from_raw(self, memory.pointer, memory.len) })
    }

    fn mem_mut<'a, T: Scalar>(
        &self,
        name: &'static str,
        memory: &'a mut Memory,
    ) -> Result<MemMut<'a, T>, Refused> {
        check::<T>(name, *memory, Place::Cuda(self.context().ordinal()))?;
        // SAFETY: as for `mem`; `check_apart` has seen that no other argument of the call is in this memory.
        Ok(unsafe { MemMut::from_raw(self, memory.pointer, memory.len) })
    }
}

/// The stream of torch's at this address, which `torch._C._cuda_getCurrentRawStream` has just given for the device: torch's
/// streams live as long as the process. Wrapped once, since a pass has to know its stream again.
pub(crate) fn stream(cuda: &Cuda, address: u64) -> Arc<CudaStream> {
    thread_local! {
        static LAST: RefCell<Vec<Arc<CudaStream>>> = const { RefCell::new(Vec::new()) };
    }
    let handle = address as sys::CUstream;
    LAST.with_borrow_mut(|known| {
        let same = |stream: &&Arc<CudaStream>| {
            stream.cu_stream() == handle && Arc::ptr_eq(stream.context(), cuda.context())
        };
        if let Some(stream) = known.iter().find(same) {
            return Arc::clone(stream);
        }
        // SAFETY: the handle is the current stream of this device, whose primary context torch and cudarc share; torch never
        // destroys its streams, and whoever hands torch a stream of their own keeps it (documented).
        let stream = unsafe { cuda.context().wrap_borrowed_stream(handle) };
        known.push(Arc::clone(&stream));
        stream
    })
}

/// Runs a pass on a CUDA device, in a graph's capture too, and leaves this thread's current device as it was.
pub(crate) fn on_device<R>(pass: impl FnOnce() -> R) -> R {
    let before = current_context();
    // SAFETY: torch's graphs keep the memory that they were captured with; layers and their group are never freed once a capture
    // has used them (`Layer::keep`); replays are ordered by torch's user, as with every operation of torch's.
    let result = unsafe { allow_capture(pass) };
    if before != current_context() {
        // None: torch makes a device's context current at its first use, and until then its own number of the device counts.
        // SAFETY: it was this thread's current context a moment ago, or there was none.
        let restored = unsafe { ctx::set_current(before.unwrap_or(null_mut())) };
        debug_assert!(restored.is_ok());
    }
    result
}

/// None where there is no driver, which cudarc would panic about.
fn current_context() -> Option<sys::CUcontext> {
    static HAS_DRIVER: OnceLock<bool> = OnceLock::new();
    HAS_DRIVER.get_or_init(has_driver).then(|| ctx::get_current().ok().flatten()).flatten()
}

/// What may own memory of a CUDA device: its drop leaves this thread's current device as it was.
pub(crate) struct OnDevice<T>(ManuallyDrop<T>);

impl<T> OnDevice<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }
}

impl<T> Deref for OnDevice<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for OnDevice<T> {
    fn drop(&mut self) {
        // SAFETY: once, and nothing uses it afterwards.
        on_device(|| unsafe { ManuallyDrop::drop(&mut self.0) });
    }
}
