//! Memory that several devices of a host reach: inboxes, shared within a process or between processes, and the page in the host's memory
//! in which kernels report a failure.

use std::collections::HashMap;
use std::mem::offset_of;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::{CudaContext, sys};

use super::capture::RelaxedCapture;
use super::driver::{self, DeviceMemory};
use super::params::{PACKET_BYTES, Report};
use crate::error::CudaError;

/// The driver's handle of memory that other processes may open.
pub(crate) type Handle = [u8; 64];

/// A rank's inbox. Every rank that may write to it holds it.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Unique in this process.
    pub(crate) id: u64,
    memory: Option<DeviceMemory>,
    exported: AtomicBool,
}

impl Inbox {
    /// So many bytes, all 0. Other ranks of this process find it by its id.
    pub(crate) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Arc<Self>, CudaError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let stream = context.default_stream();
        let mut memory = DeviceMemory::new(context, bytes)?;
        driver::zero(&stream, &mut memory, bytes)?;
        stream.synchronize().map_err(CudaError::driver("clearing memory"))?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let inbox = Arc::new(Self { id, memory: Some(memory), exported: AtomicBool::new(false) });
        inboxes().insert(id, Arc::downgrade(&inbox));
        Ok(inbox)
    }

    /// The inbox of this id, made by a rank of this process.
    pub(crate) fn find(id: u64) -> Option<Arc<Self>> {
        inboxes().get(&id).and_then(Weak::upgrade)
    }

    pub(crate) fn pointer(&self) -> u64 {
        self.memory.as_ref().map_or(0, DeviceMemory::pointer)
    }

    /// The current packets from this one on.
    ///
    /// # Errors
    ///
    /// Those of the driver, also after a kernel has failed.
    pub(crate) fn peek(&self, first: usize, count: usize) -> Result<Vec<[u32; 4]>, CudaError> {
        let mut packets = vec![[0; 4]; count];
        let Some(memory) = &self.memory else { return Ok(packets) };
        let _relaxed = RelaxedCapture::begin()?;
        let stream = memory.context().new_stream().map_err(CudaError::driver("making a stream"))?;
        let from = memory.pointer() + (first * PACKET_BYTES) as u64;
        // SAFETY: callers ask for places within the memory, which is on the stream's device. Kernels write it in whole words, so that
        // what is read is a value that was there.
        unsafe { driver::download(&stream, from, packets.as_flattened_mut()) }?;
        Ok(packets)
    }

    fn context(&self) -> Option<&Arc<CudaContext>> {
        self.memory.as_ref().map(DeviceMemory::context)
    }

    /// For other processes of this host. From now on it is not freed before the process ends, since nobody tells when a peer's last
    /// kernel has written to it.
    pub(crate) fn export(&self) -> Result<Handle, CudaError> {
        let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: the driver writes the handle; the memory is an allocation of its own.
        unsafe { sys::cuIpcGetMemHandle(&raw mut handle, self.pointer()) }
            .result()
            .map_err(CudaError::driver("sharing memory with other processes"))?;
        self.exported.store(true, Ordering::Relaxed);
        Ok(handle.reserved.map(|byte| byte.to_ne_bytes()[0]))
    }

    /// Lets kernels of this context write to it, where it belongs to another device.
    pub(crate) fn open_to(&self, context: &CudaContext) -> Result<(), CudaError> {
        let Some(owner) = self.context().filter(|owner| owner.cu_ctx() != context.cu_ctx()) else {
            return Ok(());
        };
        context.bind_to_thread().map_err(CudaError::driver("binding the context"))?;
        // SAFETY: both contexts are live.
        let enabled = unsafe { sys::cuCtxEnablePeerAccess(owner.cu_ctx(), 0) };
        match enabled {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            other => other.result().map_err(CudaError::driver("reaching a peer's memory")),
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        inboxes().remove(&self.id);
        if self.exported.load(Ordering::Relaxed) {
            std::mem::forget(self.memory.take());
        }
    }
}

fn inboxes() -> MutexGuard<'static, HashMap<u64, Weak<Inbox>>> {
    static INBOXES: LazyLock<Mutex<HashMap<u64, Weak<Inbox>>>> = LazyLock::new(Mutex::default);
    lock(&INBOXES)
}

/// Another process's inbox, mapped into this one.
#[derive(Debug)]
pub(crate) struct Mapped {
    context: Arc<CudaContext>,
    pub(crate) pointer: u64,
}

impl Mapped {
    pub(crate) fn open(context: &Arc<CudaContext>, handle: &Handle) -> Result<Self, CudaError> {
        context.bind_to_thread().map_err(CudaError::driver("binding the context"))?;
        let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| i8::from_ne_bytes([byte])) };
        let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut pointer = 0;
        // SAFETY: the driver checks the handle, and writes the pointer.
        unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut pointer, handle, flags) }
            .result()
            .map_err(CudaError::driver("opening another process's memory"))?;
        Ok(Self { context: context.clone(), pointer })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let close = || {
            // Kernels may still write to it.
            self.context.synchronize()?;
            // SAFETY: the pointer came from cuIpcOpenMemHandle, nobody else closes it, and no kernel uses it.
            unsafe { sys::cuIpcCloseMemHandle(self.pointer) }.result()
        };
        self.context.record_err(close());
    }
}

/// A [`Report`] in the host's memory, which kernels write to.
#[derive(Debug)]
pub(crate) struct ReportPage {
    context: Arc<CudaContext>,
    host: *mut Report,
    pub(crate) pointer: u64,
}

// SAFETY: the page belongs to no thread; it is read and written with volatile accesses alone.
unsafe impl Send for ReportPage {}
// SAFETY: as for Send.
unsafe impl Sync for ReportPage {}

impl ReportPage {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        let failed = CudaError::driver("allocating memory of the host's");
        context.bind_to_thread().map_err(CudaError::driver("binding the context"))?;
        let (mut host, mut pointer) = (null_mut(), 0);
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: the driver writes the address.
        unsafe { sys::cuMemHostAlloc(&raw mut host, size_of::<Report>(), flags) }.result().map_err(failed)?;
        let mut page = Self { context: context.clone(), host: host.cast(), pointer: 0 };
        // SAFETY: the memory is as large as a report, aligned to a page, and nobody else has it yet; all of a report may be 0.
        unsafe { page.host.write_bytes(0, 1) };
        // SAFETY: the driver writes the device's address of memory that it has allocated.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut pointer, host, 0) }
            .result()
            .map_err(CudaError::driver("mapping memory of the host's"))?;
        page.pointer = pointer;
        Ok(page)
    }

    /// What a kernel has reported, once it has.
    pub(crate) fn read(&self) -> Option<Report> {
        let done = self.word(offset_of!(Report, done)).load(Ordering::Acquire) != 0;
        // SAFETY: the page lives as long as self; a report is plain numbers, all of which were written before `done` was.
        done.then(|| unsafe { self.host.read_volatile() })
    }

    /// Lets every kernel that waits give up.
    pub(crate) fn stop(&self) {
        self.word(offset_of!(Report, stop)).store(1, Ordering::Release);
    }

    /// One of the two numbers that host and device write and read at the same time.
    fn word(&self, at: usize) -> &AtomicU32 {
        // SAFETY: the number lies in the page, which lives as long as self, and is written by atomic or volatile stores alone.
        unsafe { AtomicU32::from_ptr(self.host.wrapping_byte_add(at).cast()) }
    }
}

impl Drop for ReportPage {
    fn drop(&mut self) {
        let free = || {
            // Kernels may still write to it.
            self.context.synchronize()?;
            // SAFETY: the memory came from cuMemHostAlloc, and nobody else frees it.
            unsafe { sys::cuMemFreeHost(self.host.cast()) }.result()
        };
        self.context.record_err(free());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
