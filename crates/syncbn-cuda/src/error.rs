//! What can go wrong on the device.
//!
//! Deliberately not here: errors about shapes and arguments, which are the core's.

use cudarc::driver::DriverError;

/// The device, its driver or its compiler failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A library could not be loaded.
    #[error("{library} cannot be loaded ({reason}); install {install}")]
    MissingLibrary {
        /// Its file name.
        library: &'static str,
        /// What the loader said.
        reason: String,
        /// What brings it.
        install: &'static str,
    },
    /// There is no such device.
    #[error("there is no CUDA device {ordinal}: the driver sees {found}")]
    NoDevice {
        /// The ordinal that was asked for.
        ordinal: usize,
        /// How many devices there are.
        found: usize,
    },
    /// The device lacks what the kernels need.
    #[error("device {ordinal} has compute capability {major}.{minor}, expected 7.0 or newer")]
    TooOld {
        /// The device.
        ordinal: usize,
        /// The major version of its compute capability.
        major: i32,
        /// The minor version of its compute capability.
        minor: i32,
    },
    /// Device memory is exhausted.
    #[error("device memory is exhausted: {bytes} bytes were asked for")]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
    },
    /// The driver refused something.
    #[error("{during}: {source}")]
    Driver {
        /// What was tried.
        during: &'static str,
        /// The driver's code and text.
        source: DriverError,
    },
    /// NVRTC refused a kernel.
    #[error("NVRTC refused kernel {kernel} ({options}): {log}")]
    Compile {
        /// The kernel.
        kernel: &'static str,
        /// The options that it was compiled with.
        options: String,
        /// The compiler's messages.
        log: String,
    },
    /// Memory belongs to another device.
    #[error("the memory of {tensor} belongs to another device or context than the backend, device {ordinal}")]
    OtherDevice {
        /// Whose memory.
        tensor: &'static str,
        /// The backend's device.
        ordinal: usize,
    },
    /// The queue belongs to another device.
    #[error("the stream belongs to another device or context than the backend, device {ordinal}")]
    OtherQueue {
        /// The backend's device.
        ordinal: usize,
    },
    /// Memory or statistics were bound to another stream.
    #[error(
        "{what} belongs to another stream than the one that is used now; use one stream from forward to backward"
    )]
    OtherStream {
        /// What was bound.
        what: &'static str,
    },
    /// The grid does not fit the device.
    #[error("a tensor of {channels} channels needs more blocks than a grid may have")]
    TooLarge {
        /// The channels.
        channels: usize,
    },
    /// A copy has another length than its target.
    #[error("a buffer has {expected} elements, {got} values were given")]
    Length {
        /// The buffer's length.
        expected: usize,
        /// The length of what was given.
        got: usize,
    },
}

impl CudaError {
    pub(crate) fn driver(during: &'static str) -> impl FnOnce(DriverError) -> Self {
        move |source| Self::Driver { during, source }
    }
}
