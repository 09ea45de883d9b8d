//! The device.

/// The processor that the program runs on. Its queue is `()`: a kernel has done its work when it returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu;
