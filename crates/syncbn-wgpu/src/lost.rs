//! Asks whether a device is lost, without waiting and without the callback that tells it, which is the application's.

use crate::error::WgpuError;
use crate::scope::caught;

/// An error if the device is lost. A lost device makes buffers that cannot be mapped, and no other sign of it comes back at once:
/// submissions are dropped in silence, and polls of several threads, or a request to map withdrawn, get in each other's way.
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
