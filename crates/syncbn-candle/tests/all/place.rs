//! The tests' device: the CPU, which is always there.

use candle_core::Device;

pub(crate) fn available() -> bool {
    true
}

pub(crate) fn device() -> Device {
    Device::Cpu
}
