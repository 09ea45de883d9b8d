//! The handle of a device: opened once, cloned freely.

use std::fmt;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::CUdevice_attribute::{
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
};
use cudarc::driver::{CudaContext, CudaStream};
use syncbn_core::{Element, Geometry};

use crate::access::OpenQueue;
use crate::error::CudaError;
use crate::kernel::Kernel;
use crate::module::{Modules, Specialization};
use crate::plan::LaunchPlan;
use crate::raw::driver::{self, Function};
use crate::raw::nvrtc::nvrtc;
use crate::raw::owned::Owned;
use crate::workspace::Pool;

/// A CUDA device as a backend. Cheap to clone; its queues are `Arc<CudaStream>`.
#[derive(Clone)]
pub struct Cuda(Arc<Device>);

struct Device {
    context: Arc<CudaContext>,
    multiprocessors: usize,
    /// Bytes of shared memory of a multiprocessor.
    shared_memory: usize,
    can_overlap: bool,
    may_overlap: bool,
    modules: Modules,
    pool: Arc<Pool>,
    /// Memory that every kernel which meets peers counts as writing, so that such passes run one after the other on a device.
    turn: OnceLock<Owned>,
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({})", self.0.context.ordinal())
    }
}

impl Cuda {
    /// The device of this ordinal, through its primary context.
    ///
    /// # Errors
    ///
    /// [`CudaError::MissingLibrary`] without NVIDIA's driver or NVRTC; [`CudaError::NoDevice`]; [`CudaError::TooOld`] before Volta;
    /// [`CudaError::Driver`].
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        driver::find()?;
        let count = CudaContext::device_count().map_err(CudaError::driver("counting devices"))?;
        let found = usize::try_from(count).unwrap_or(0);
        if ordinal >= found {
            return Err(CudaError::NoDevice { ordinal, found });
        }
        Self::new(CudaContext::new(ordinal).map_err(CudaError::driver("opening the device"))?)
    }

    /// The device of a context that the caller has.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn new(context: Arc<CudaContext>) -> Result<Self, CudaError> {
        let during = "asking for the device's properties";
        let (major, minor) = context.compute_capability().map_err(CudaError::driver(during))?;
        if major < 7 {
            return Err(CudaError::TooOld { ordinal: context.ordinal(), major, minor });
        }
        let attribute = |which| {
            let value = context.attribute(which).map_err(CudaError::driver(during))?;
            Ok::<_, CudaError>(usize::try_from(value).unwrap_or(0))
        };
        let multiprocessors = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1);
        let shared_memory = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?;
        let modules = Modules::new(10 * major + minor)?;
        let pool = Arc::new(Pool::new(context.clone()));
        // Only kernels compiled for such a device wait for the previous kernel.
        let can_overlap = modules.capability() >= 90 && driver::version()? >= driver::CAPTURES_OVERLAPS;
        // For tools that trace one kernel at a time.
        let may_overlap =
            can_overlap && std::env::var_os("SYNCBN_CUDA_OVERLAP").is_none_or(|value| value != "0");
        Ok(Self(Arc::new(Device {
            context,
            multiprocessors,
            shared_memory,
            can_overlap,
            may_overlap,
            modules,
            pool,
            turn: OnceLock::new(),
        })))
    }

    /// The context to which all memory and streams have to belong.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.0.context
    }

    /// The CUDA versions of the driver and of the compiler, by name.
    ///
    /// # Errors
    ///
    /// [`CudaError::MissingLibrary`], [`CudaError::Driver`].
    pub fn versions(&self) -> Result<[(String, String); 2], CudaError> {
        let driver = driver::version()?;
        let (major, minor) = nvrtc()?.version();
        Ok([
            ("cuda driver".to_owned(), format!("{}.{}", driver / 1000, driver % 1000 / 10)),
            ("nvrtc".to_owned(), format!("{major}.{minor}")),
        ])
    }

    pub(crate) fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    /// Bytes of shared memory of a multiprocessor.
    pub(crate) fn shared_memory(&self) -> usize {
        self.0.shared_memory
    }

    /// Whether the device can start a kernel before the previous one has ended (programmatic dependent launch).
    pub(crate) fn can_overlap(&self) -> bool {
        self.0.can_overlap
    }

    /// Whether it is also allowed. If not, kernels run one after the other; they prefetch all the same.
    pub(crate) fn may_overlap(&self) -> bool {
        self.0.may_overlap
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.0.pool
    }

    pub(crate) fn kernel<T: Element>(
        &self,
        kernel: &'static Kernel,
        plan: &LaunchPlan,
        peers: bool,
    ) -> Result<Function, CudaError> {
        let specialization =
            Specialization { kernel, dtype: T::DTYPE, vec: plan.vec, columns: plan.columns, peers };
        self.function(specialization)
    }

    pub(crate) fn function(&self, specialization: Specialization) -> Result<Function, CudaError> {
        self.0.modules.get(&self.0.context, specialization)
    }

    pub(crate) fn turn(&self) -> Result<&Owned, CudaError> {
        if let Some(turn) = self.0.turn.get() {
            return Ok(turn);
        }
        let turn = Owned::new(&self.0.context, size_of::<u32>())?;
        Ok(self.0.turn.get_or_init(|| turn))
    }

    /// Makes the device current in this thread, for libraries that ask CUDA which one is.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        self.0.context.bind_to_thread().map_err(CudaError::driver("binding the context"))
    }

    pub(crate) fn same_device(&self, other: &Self) -> Result<(), CudaError> {
        self.check_context(&other.0.context)
    }

    /// The queue, if it belongs to this device and may be used.
    pub(crate) fn open_queue<'q>(&self, queue: &'q Arc<CudaStream>) -> Result<OpenQueue<'q>, CudaError> {
        self.check_queue(queue)?;
        OpenQueue::new(queue)
    }

    pub(crate) fn check_queue(&self, queue: &CudaStream) -> Result<(), CudaError> {
        self.check_context(queue.context())
    }

    fn check_context(&self, context: &CudaContext) -> Result<(), CudaError> {
        if context.cu_ctx() == self.0.context.cu_ctx() {
            return Ok(());
        }
        Err(CudaError::OtherQueue { ordinal: self.0.context.ordinal() })
    }
}

/// Core has compared them, but a kernel can also be called directly.
pub(crate) fn same_geometry(tensor: &'static str, x: &Geometry, other: &Geometry) -> Result<(), CudaError> {
    if x == other { Ok(()) } else { Err(CudaError::OtherGeometry { tensor }) }
}
