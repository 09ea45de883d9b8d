//! Capturing passes in a graph. Replays use memory long after the calls that borrowed it have returned.
//!
//! No borrow lasts as long as a graph, and safe code may begin a capture. So passes refuse a stream that captures, except in
//! [`allow_capture`].

use std::cell::Cell;

use cudarc::driver::{CudaStream, DriverError, sys};

use crate::error::CudaError;

thread_local! {
    /// How many calls of `allow_capture` this thread is in.
    static ALLOWED: Cell<usize> = const { Cell::new(0) };
}

/// Runs `body`, in which passes may be enqueued on streams that capture a graph; elsewhere they are refused with
/// [`CudaError::Capturing`]. The permission is this thread's, for as long as the body runs.
///
/// Run the step once before, on the stream that captures: what a capture cannot do (compiling, allocating, connecting ranks) is
/// then done. cudarc's own memory has to be untracked (`CudaContext::disable_event_tracking` before it is allocated).
///
/// # Safety
/// Until the last replay of a graph that holds work of the body has run, whatever the borrows of the body's calls say:
/// - Lifetime: all memory that the body's passes borrow, the layers (their parameters, running statistics and scratch)
///   and the communicators live, and stay where they are.
/// - Order: other work that uses that memory, the layers' other passes included, is ordered before or after a replay as a whole
///   (the same stream, or an event), and no two replays run at once.
pub unsafe fn allow_capture<R>(body: impl FnOnce() -> R) -> R {
    struct Allowed;
    impl Drop for Allowed {
        fn drop(&mut self) {
            ALLOWED.with(|allowed| allowed.set(allowed.get() - 1));
        }
    }
    ALLOWED.with(|allowed| allowed.set(allowed.get() + 1));
    let _allowed = Allowed;
    body()
}

/// Whether the stream captures a graph. An error if that was not allowed.
pub(crate) fn check_capture(stream: &CudaStream) -> Result<bool, CudaError> {
    let capturing = is_capturing(stream)?;
    if capturing && ALLOWED.with(Cell::get) == 0 { Err(CudaError::Capturing) } else { Ok(capturing) }
}

/// For operations that cannot be captured.
pub(crate) fn refuse_capture(stream: &CudaStream, what: &'static str) -> Result<(), CudaError> {
    if is_capturing(stream)? { Err(CudaError::NotCaptured { what }) } else { Ok(()) }
}

/// Whether the stream captures a graph.
pub(crate) fn is_capturing(stream: &CudaStream) -> Result<bool, CudaError> {
    use sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    let status = stream.capture_status().map_err(CudaError::driver("asking for the capture's status"))?;
    Ok(status != CU_STREAM_CAPTURE_STATUS_NONE)
}

/// While it lives, this thread may make calls that concern no stream (allocate, load modules, query events) during a capture.
pub(crate) struct RelaxedCapture(sys::CUstreamCaptureMode);

impl RelaxedCapture {
    pub(crate) fn begin() -> Result<Self, CudaError> {
        let mode = exchange(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
            .map_err(CudaError::driver("allowing allocation during capture"))?;
        Ok(Self(mode))
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        let restored = exchange(self.0);
        debug_assert!(restored.is_ok());
    }
}

fn exchange(mut mode: sys::CUstreamCaptureMode) -> Result<sys::CUstreamCaptureMode, DriverError> {
    // SAFETY: the driver reads and writes the one value that the pointer is for.
    unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) }.result()?;
    Ok(mode)
}
