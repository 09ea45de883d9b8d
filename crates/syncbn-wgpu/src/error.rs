//! What can go wrong on the device.

/// A failure of the device or its driver, or memory that cannot be used on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WgpuError {
    /// There is no GPU that wgpu can use.
    #[error(
        "there is no adapter for {backends} ({reason}); install a GPU's driver, or on Debian mesa-vulkan-drivers and libvulkan1"
    )]
    NoAdapter {
        /// The interfaces that were tried.
        backends: String,
        /// What wgpu said.
        reason: String,
    },
    /// The adapter gave no device.
    #[error("adapter `{adapter}` gives no device: {source}")]
    NoDevice {
        /// Its name.
        adapter: String,
        /// What wgpu said.
        source: wgpu::RequestDeviceError,
    },
    /// The device allows less than is needed.
    #[error("{limit} is {got}, {needed} is needed")]
    Limit {
        /// The limit, as wgpu calls it.
        limit: &'static str,
        /// What the work needs.
        needed: u64,
        /// What the device allows.
        got: u64,
    },
    /// The device's arithmetic does not allow sums in twice the precision of `f32`.
    #[error("adapter `{adapter}` cannot be used: {what} is not what IEEE 754 says")]
    Arithmetic {
        /// Its name.
        adapter: String,
        /// What was computed wrongly.
        what: &'static str,
    },
    /// A tensor's offset is not one that a binding may have.
    #[error("{tensor} begins at byte {offset}, expected a multiple of {limit}, {alignment}")]
    Alignment {
        /// Whose memory.
        tensor: &'static str,
        /// Where it begins.
        offset: u64,
        /// The limit, as wgpu calls it.
        limit: &'static str,
        /// What it is.
        alignment: u64,
    },
    /// A tensor reaches beyond its buffer.
    #[error("{tensor} ends at byte {end} of a buffer of {size}; whole words of 4 bytes are read and written")]
    OutOfBuffer {
        /// Whose memory.
        tensor: &'static str,
        /// Where its last word ends.
        end: u64,
        /// The buffer's size.
        size: u64,
    },
    /// A buffer may not be used in the way that is needed.
    #[error("the buffer of {tensor} has the usages {got:?}, {needed:?} is needed")]
    Usage {
        /// Whose memory.
        tensor: &'static str,
        /// What it is to be used for.
        needed: wgpu::BufferUsages,
        /// What it was created for.
        got: wgpu::BufferUsages,
    },
    /// Two tensors of which one is written and one only read lie in one buffer, which WebGPU forbids.
    #[error("{read} and {written} lie in one buffer: one kernel may not read and write the same buffer")]
    SharedBuffer {
        /// What is read.
        read: &'static str,
        /// What is written.
        written: &'static str,
    },
    /// Device memory is exhausted.
    #[error("device memory is exhausted while {during}: {source}")]
    OutOfMemory {
        /// What was tried.
        during: &'static str,
        /// What wgpu said.
        source: wgpu::Error,
    },
    /// wgpu refused something: memory of another device, for instance.
    #[error("{during}: {source}")]
    Refused {
        /// What was tried.
        during: &'static str,
        /// What wgpu said.
        source: wgpu::Error,
    },
    /// wgpu panicked, as it does where it is given something of another instance.
    #[error("wgpu panicked while {during}: {message}")]
    Panicked {
        /// What was tried.
        during: &'static str,
        /// What it said.
        message: String,
    },
    /// A queue that is recording the application's commands was used for something else.
    #[error("the queue is recording the application's commands: use it when `record` has returned")]
    Recording,
    /// A queue does not belong to the device.
    #[error("the queue belongs to another device")]
    ForeignQueue,
    /// A workspace does not belong to the device.
    #[error("the workspace belongs to another device")]
    ForeignWorkspace,
    /// A workspace is for another number of channels.
    #[error("the workspace is for {got} channels, expected {expected}")]
    Channels {
        /// The tensor's channels.
        expected: usize,
        /// The workspace's.
        got: usize,
    },
    /// The device is lost: it was destroyed, or its driver gave up.
    #[error("the device is lost, seen while {during}")]
    DeviceLost {
        /// What was tried.
        during: &'static str,
    },
    /// The workspace lacks what a kernel needs: kernels were called in another order than core calls them.
    #[error("{what} is not there: the kernels were called out of order")]
    OutOfOrder {
        /// What was looked for.
        what: &'static str,
    },
    /// The number of values differs from the length of the memory or of the message.
    #[error("{got} values were given, expected {expected}")]
    Length {
        /// The length of the memory or message.
        expected: usize,
        /// The length of what was given.
        got: usize,
    },
}

impl WgpuError {
    /// What an error scope has caught.
    pub(crate) fn caught(during: &'static str, source: wgpu::Error) -> Self {
        match source {
            wgpu::Error::OutOfMemory { .. } => Self::OutOfMemory { during, source },
            _ => Self::Refused { during, source },
        }
    }
}
