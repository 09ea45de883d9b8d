//! Detects a lost device without waiting, and without wgpu's callback for it, which belongs to the application.

use crate::error::WgpuError;
use crate::scope::caught;

/// An error if the device is lost. A new buffer of a lost device cannot be mapped. Nothing else shows at once: submissions are dropped
/// silently, and polling interferes with other threads that poll.
pub(crate) fn check(device: &wgpu::Device, during: &'static str) -> Result<(), WgpuError> {
    let sign = wgpu::BufferDescriptor {
        label: Some("sign of life"),
        size: 4,
        usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    };
    let buffer = caught(device, during, || device.create_buffer(&sign))?;
    match buffer.get_mapped_range(..) {
        Ok(_) => Ok(()),
        Err(_) => Err(WgpuError::DeviceLost { during }),
    }
}
