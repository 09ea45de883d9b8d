//! Calls of the driver that cudarc's safe layer always tracks by events: allocation, copies, modules and launches.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::capture::RelaxedCapture;
use super::library;
use super::params::{Params, PeersParams};
use crate::error::CudaError;

/// Whether the driver's library can be loaded. cudarc can tell only where it loads the library itself, which it does not in a program with
/// a dependency that links CUDA, such as candle.
pub(crate) fn find() -> Result<(), CudaError> {
    let found = library::open(None, &["libcuda.so.1", "libcuda.so", "nvcuda.dll"]);
    let missing =
        |reason| CudaError::MissingLibrary { library: "libcuda", reason, install: "NVIDIA's driver" };
    found.map(drop).map_err(missing)
}

/// Whether NVIDIA's driver can be loaded. [`Cuda::open`](crate::Cuda::open) says why not.
#[must_use]
pub fn has_driver() -> bool {
    find().is_ok()
}

/// The first driver with which kernels of a captured graph may overlap.
pub(crate) const CAPTURES_OVERLAPS: i32 = 12_030;

/// The newest version of CUDA that the driver supports, as 12030 for 12.3.
pub(crate) fn version() -> Result<i32, CudaError> {
    let mut version = 0;
    // SAFETY: the driver writes the one number that the pointer is for.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(CudaError::driver("asking for the driver's version"))?;
    Ok(version)
}

/// The error of an allocation.
pub(super) fn allocation(bytes: usize, source: DriverError) -> CudaError {
    match source.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => CudaError::OutOfMemory { bytes },
        _ => CudaError::Driver { during: "allocating", source },
    }
}

/// Device memory that is not tracked by events. Freeing it waits for the device, so no work can outlive it.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    context: Arc<CudaContext>,
    pointer: u64,
}

impl DeviceMemory {
    /// At least `bytes` bytes, uninitialised.
    pub(crate) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, CudaError> {
        context.bind_to_thread().map_err(CudaError::driver("binding the context"))?;
        let _relaxed = RelaxedCapture::begin()?;
        // SAFETY: the context is current; the pointer is freed once, by Drop.
        let pointer = unsafe { result::malloc_sync(bytes.max(1)) };
        let pointer = pointer.map_err(|source| allocation(bytes, source))?;
        Ok(Self { context: context.clone(), pointer })
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(crate) fn pointer(&self) -> u64 {
        self.pointer
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let free = || {
            self.context.bind_to_thread()?;
            let _relaxed = RelaxedCapture::begin();
            // SAFETY: the pointer came from malloc_sync and nobody else frees it. cuMemFree waits for work in flight.
            unsafe { result::free_sync(self.pointer) }
        };
        // A failure here is an earlier one of the device; cudarc reports it at the context's next use.
        self.context.record_err(free());
    }
}

/// Sets bytes to 0, in stream order.
pub(crate) fn zero(stream: &CudaStream, memory: &mut DeviceMemory, bytes: usize) -> Result<(), CudaError> {
    // SAFETY: the memory was allocated with at least this many bytes, and is borrowed mutably.
    unsafe { result::memset_d8_async(memory.pointer, 0, bytes, stream.cu_stream()) }
        .map_err(CudaError::driver("clearing memory"))
}

/// Copies bytes on the device, in stream order.
///
/// # Safety
/// Both have as many bytes, on the stream's device, until the work has run; nothing else writes them meanwhile.
pub(crate) unsafe fn copy(stream: &CudaStream, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
    stream.context().bind_to_thread().map_err(CudaError::driver("binding the context"))?;
    // SAFETY: the caller's promise.
    unsafe { result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }
        .map_err(CudaError::driver("copying on the device"))
}

/// Copies to the device and waits.
///
/// # Safety
/// `pointer` has room for the values, on the stream's device, and nothing else uses that memory meanwhile.
pub(crate) unsafe fn upload<T>(stream: &CudaStream, pointer: u64, values: &[T]) -> Result<(), CudaError> {
    stream.context().bind_to_thread().map_err(CudaError::driver("binding the context"))?;
    if values.is_empty() {
        return Ok(());
    }
    // SAFETY: the caller's promise; the values live until the wait below is over.
    let copied = unsafe { result::memcpy_htod_async(pointer, values, stream.cu_stream()) };
    copied.and_then(|()| stream.synchronize()).map_err(CudaError::driver("copying to the device"))
}

/// Waits, and copies from the device.
///
/// # Safety
/// `pointer` holds as many values, on the stream's device, and nothing writes that memory meanwhile.
pub(crate) unsafe fn download<T>(
    stream: &CudaStream,
    pointer: u64,
    values: &mut [T],
) -> Result<(), CudaError> {
    stream.context().bind_to_thread().map_err(CudaError::driver("binding the context"))?;
    if values.is_empty() {
        return stream.synchronize().map_err(CudaError::driver("waiting for the stream"));
    }
    // SAFETY: the caller's promise; the values live until the wait below is over.
    let copied = unsafe { result::memcpy_dtoh_async(values, pointer, stream.cu_stream()) };
    copied.and_then(|()| stream.synchronize()).map_err(CudaError::driver("copying from the device"))
}

/// A compiled kernel on a device. It is never unloaded, since graphs may use it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    handle: sys::CUfunction,
    /// Whether it was compiled for peers, and takes their parameters.
    peers: bool,
    /// Bytes of static shared memory of a block.
    pub(crate) shared: usize,
}

// SAFETY: a CUfunction is a handle that the driver lets every thread use, at any time while its module is loaded; modules
// are never unloaded before their context goes, and every launch goes through a stream that keeps the context.
unsafe impl Send for Function {}
// SAFETY: as for Send: the driver's launch does not write through the handle.
unsafe impl Sync for Function {}

impl Function {
    /// Loads the kernel of this name from a cubin, or from PTX that ends in a 0 byte.
    pub(crate) fn load(
        context: &CudaContext,
        image: &[u8],
        name: &str,
        peers: bool,
    ) -> Result<Self, CudaError> {
        context.bind_to_thread().map_err(CudaError::driver("binding the context"))?;
        let _relaxed = RelaxedCapture::begin()?;
        // SAFETY: the image is a whole cubin, whose header gives its length, or PTX that ends in 0.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(CudaError::driver("loading a kernel"))?;
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: the module was just loaded.
        let function = unsafe { result::module::get_function(module, name) }
            .map_err(CudaError::driver("finding a kernel"))?;
        let shared = allow_shared_memory(context, function).map_err(CudaError::driver("finding a kernel"))?;
        Ok(Self { handle: function, peers, shared })
    }
}

/// Allows launches with all the shared memory that a block can have. Returns the bytes of static shared memory.
fn allow_shared_memory(context: &CudaContext, function: sys::CUfunction) -> Result<usize, DriverError> {
    use sys::CUfunction_attribute::{
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC,
        CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
    };
    let most =
        context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    // SAFETY: the function belongs to the current context.
    let shared = unsafe { result::function::get_function_attribute(function, STATIC) }?;
    // SAFETY: as before.
    unsafe { result::function::set_function_attribute(function, DYNAMIC, (most - shared).max(0)) }?;
    Ok(usize::try_from(shared).unwrap_or(0))
}

/// The grid of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub(crate) shared: u32,
    /// Programmatic dependent launch: the kernel may start when the stream's previous kernel allows it, and waits itself before it
    /// uses what that one writes. Other work than a kernel is always waited for.
    pub(crate) overlaps: bool,
}

/// Enqueues one kernel.
pub(crate) fn launch<P: Params>(
    stream: &CudaStream,
    function: Function,
    launch: Launch,
    mut params: P,
    mut peers: Option<PeersParams>,
) -> Result<(), CudaError> {
    debug_assert_eq!(function.peers, peers.is_some());
    stream.context().bind_to_thread().map_err(CudaError::driver("binding the context"))?;
    let second = peers.as_mut().map_or(null_mut(), |peers| (&raw mut *peers).cast());
    let mut pointers: [*mut c_void; 2] = [(&raw mut params).cast(), second];
    let mut overlap = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: launch.blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: launch.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.shared,
        hStream: stream.cu_stream(),
        attrs: &raw mut overlap,
        numAttrs: u32::from(launch.overlaps),
    };
    // SAFETY: by `Params` the struct is what the kernel takes, and the second what a kernel takes that was compiled for peers; the driver
    // copies them, and the attribute, before it returns, and looks at no more pointers than the kernel has parameters.
    // The context is current, and the function belongs to it, since backend and stream were compared before.
    unsafe { sys::cuLaunchKernelEx(&raw const config, function.handle, pointers.as_mut_ptr(), null_mut()) }
        .result()
        .map_err(CudaError::driver(P::KERNEL))
}
