//! What can go wrong on a CPU.
//!
//! Errors about arguments are core's, which reports them before it calls a kernel.

/// The failure of an operation of the [`Cpu`](crate::Cpu) backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// Memory for scratch, saved statistics or parameters could not be had.
    #[error("out of memory: {bytes} bytes for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// Values were to be copied between buffers of different lengths.
    #[error("{what} has {got} elements, expected {expected}")]
    Length {
        /// The caller's of the two.
        what: &'static str,
        /// The length of the backend's.
        expected: usize,
        /// The length of the caller's.
        got: usize,
    },
    /// Memory is not the tensor that it was taken for.
    #[error("the output is not the tensor that it was taken for: {cause}")]
    Shape {
        /// What `ndarray` says.
        cause: String,
    },
    /// The threads that kernels work on could not be started.
    #[error("cannot start the threads that kernels work on: {cause}")]
    Threads {
        /// What the operating system says.
        cause: String,
    },
}

impl CpuError {
    pub(crate) fn shape(cause: &ndarray::ShapeError) -> Self {
        Self::Shape { cause: cause.to_string() }
    }

    pub(crate) fn no_threads(cause: impl std::fmt::Display) -> Self {
        Self::Threads { cause: cause.to_string() }
    }
}
