//! The backend's handle: how a device is opened, and what differs between devices.

use std::fmt;
use std::sync::Arc;

use syncbn_core::{Element, Geometry};

use crate::error::WgpuError;
use crate::gpu::Gpu;
use crate::module::{Kernel, Key, Number};
use crate::plan::{Form, Plan, Work};
use crate::queue::Queue;
use crate::workspace::Pool;

/// A wgpu device as a backend. Cheap to clone; its queues are [`Queue`]s.
#[derive(Clone)]
pub struct Wgpu {
    gpu: Gpu,
    f16_by_bits: bool,
    pool: Arc<Pool>,
}

impl fmt::Debug for Wgpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wgpu({:?})", self.gpu)
    }
}

impl Wgpu {
    /// The fastest adapter of this machine, with all the limits that it has.
    ///
    /// # Errors
    ///
    /// [`WgpuError::NoAdapter`], [`WgpuError::NoDevice`]; and as [`new`](Self::new).
    pub fn open() -> Result<Self, WgpuError> {
        let backends = wgpu::Instance::enabled_backend_features();
        let missing = |reason: String| WgpuError::NoAdapter { backends: format!("{backends:?}"), reason };
        if backends.is_empty() {
            return Err(missing("wgpu was built without one for this platform".into()));
        }
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends,
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = pollster::block_on(instance.request_adapter(&options))
            .map_err(|error| missing(error.to_string()))?;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("syncbn"),
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let opened = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) =
            opened.map_err(|source| WgpuError::NoDevice { adapter: adapter.get_info().name, source })?;
        Self::new(device, queue)
    }

    /// The application's own device and queue. No feature is needed, and no limit beyond WebGPU's defaults; tensors may be as
    /// large as the device's `max_storage_buffer_binding_size`.
    ///
    /// The device's arithmetic is tested first. It is an error if sums in twice the precision of `f32` do not work on it.
    ///
    /// # Errors
    ///
    /// [`WgpuError::Arithmetic`], as above; [`WgpuError::Limit`] if the device allows less than WebGPU's defaults;
    /// [`WgpuError::DeviceLost`].
    pub fn new(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self, WgpuError> {
        let gpu = Gpu::new(device, queue)?;
        let f16_by_bits = crate::probe::try_out(&gpu)?;
        Ok(Self { gpu, f16_by_bits, pool: Arc::default() })
    }

    /// A queue of work for one thread.
    #[must_use]
    pub fn queue(&self) -> Queue {
        Queue::new(self.gpu.clone())
    }

    /// wgpu's device, which all memory has to belong to.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        self.gpu.device()
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Compiles what tensors of this geometry need.
    pub(crate) fn compile<T: Element>(&self, geometry: &Geometry) -> Result<(), WgpuError> {
        for (kernel, work) in [
            (Kernel::Moments, Work::Sum),
            (Kernel::Normalize, Work::Write),
            (Kernel::GradSums, Work::Sum),
            (Kernel::GradInput { in_place: false }, Work::Write),
            (Kernel::GradInput { in_place: true }, Work::Write),
        ] {
            let plan = Plan::new(geometry, size_of::<T>(), self.gpu.parallelism(), work)?;
            self.gpu.module(self.key::<T>(kernel, plan.form))?;
        }
        for kernel in [Kernel::Statistics, Kernel::GradientTerms] {
            self.gpu.module(Key::per_channel(kernel))?;
        }
        Ok(())
    }

    /// The variant of a kernel for activations of this type.
    pub(crate) fn key<T: Element>(&self, kernel: Kernel, form: Form) -> Key {
        Key { kernel, number: Number::of(T::DTYPE, self.f16_by_bits), form }
    }
}
