//! The errors of the device, and of the libraries behind it.
//!
//! Deliberately not here: errors about shapes and arguments, which are the core's.

use cudarc::driver::DriverError;
use syncbn_comm::BootstrapError;
use syncbn_core::Dtype;

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
        /// The package to install.
        install: &'static str,
    },
    /// The directory for compiled kernels is a relative path.
    #[error("SYNCBN_CACHE_DIR is `{}`, expected an absolute path, or nothing for no cache", path.display())]
    CacheDirectory {
        /// The value that is set.
        path: std::path::PathBuf,
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
        /// The bytes that were asked for.
        bytes: usize,
    },
    /// A call of the driver failed.
    #[error("{during}: {source}")]
    Driver {
        /// What was tried.
        during: &'static str,
        /// The driver's code and text.
        source: DriverError,
    },
    /// NVRTC did not compile a kernel.
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
    /// Memory was borrowed for another stream.
    #[error("{what} was lent for another stream than the one that is used now")]
    OtherStream {
        /// The memory.
        what: &'static str,
    },
    /// The stream captures a graph, whose replays would use memory after its borrow has ended.
    #[error(
        "the stream captures a graph, whose replays may use memory after it is gone: `allow_capture` says what has to hold"
    )]
    Capturing,
    /// The operation cannot be captured in a graph.
    #[error("{what} cannot be part of a captured graph: run the step once before the capture")]
    NotCaptured {
        /// The operation.
        what: &'static str,
    },
    /// Captured work would have to wait for work that is not captured.
    #[error("{what} is in use on a stream that is not captured: wait for that stream before the capture")]
    Uncaptured {
        /// The memory that is in use.
        what: &'static str,
    },
    /// The workspace is for another layer.
    #[error("the workspace is for {channels} channels with parameters of type {params}")]
    OtherWorkspace {
        /// The channels that it is for.
        channels: usize,
        /// The parameters that it is for.
        params: Dtype,
    },
    /// Two tensors of one call differ in shape or layout.
    #[error("{tensor} has another shape or layout than x")]
    OtherGeometry {
        /// The tensor.
        tensor: &'static str,
    },
    /// The tensor needs more blocks than a grid may have.
    #[error("a tensor of {channels} channels needs more blocks than a grid may have")]
    TooLarge {
        /// The channels.
        channels: usize,
    },
    /// NCCL refused something.
    #[error(transparent)]
    Nccl(#[from] NcclError),
    /// The ranks of a group did not meet in time.
    #[error("{during}: not all ranks came in time")]
    NotMet {
        /// What was tried.
        during: &'static str,
    },
    /// The launcher's environment is incomplete, or the processes did not find each other.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The first sum of a new group failed, or was wrong.
    #[error("the first sum of a new group: {reason}")]
    FirstSum {
        /// What was wrong.
        reason: String,
    },
    /// The system did not start a thread.
    #[error("the watchdog's thread cannot be started: {source}")]
    Thread {
        /// The system's error.
        source: std::io::Error,
    },
    /// The rank or the number of ranks is out of range.
    #[error("rank {rank} of {world_size}, expected a rank below the size and a size of at most 2^31 - 1")]
    Rank {
        /// The rank.
        rank: usize,
        /// The number of ranks.
        world_size: usize,
    },
    /// Memory has another length than the operation needs.
    #[error("{what} has {got} elements, expected {expected}")]
    Length {
        /// The memory.
        what: &'static str,
        /// The number of elements that the operation needs.
        expected: usize,
        /// The number of elements of the memory.
        got: usize,
    },
}

/// A call of NCCL failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{during}: NCCL's error {code}, {text}{}{detail}", if .detail.is_empty() { "" } else { ": " })]
#[non_exhaustive]
pub struct NcclError {
    /// What was tried.
    pub during: &'static str,
    /// NCCL's code.
    pub code: i32,
    /// NCCL's text for the code.
    pub text: String,
    /// NCCL's text of the last error, if it has one.
    pub detail: String,
    /// Whether NCCL refused the arguments, before any work.
    pub callers: bool,
}

impl CudaError {
    pub(crate) fn driver(during: &'static str) -> impl FnOnce(DriverError) -> Self {
        move |source| Self::Driver { during, source }
    }
}
