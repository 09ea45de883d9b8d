//! Catches wgpu's errors, for which wgpu would otherwise panic or call the application's handler.
//!
//! Error scopes belong to a thread and are popped on the thread that pushed them. On native interfaces their result is known at once, so
//! nothing here waits for the device.
//!
//! Deliberately not here: handlers for uncaptured errors and for a lost device. A device has one of each, and it belongs to the
//! application.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::WgpuError;

/// Runs `work`, which only calls wgpu, and returns wgpu's error as ours. wgpu panics if it is given a handle of another instance that it
/// does not know; such a panic is returned as an error, too. Unwinding pops the scopes and releases wgpu's locks.
pub(crate) fn caught<R>(
    device: &wgpu::Device,
    during: &'static str,
    work: impl FnOnce() -> R,
) -> Result<R, WgpuError> {
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let result = catch_unwind(AssertUnwindSafe(work));
    let errors = [internal.pop_now(), memory.pop_now(), validation.pop_now()];
    match errors.into_iter().flatten().next() {
        Some(error) => Err(WgpuError::caught(during, error)),
        None => result.map_err(|panic| WgpuError::Panicked { during, message: told(&*panic) }),
    }
}

fn told(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

trait PopNow {
    fn pop_now(self) -> Option<wgpu::Error>;
}

impl PopNow for wgpu::ErrorScopeGuard {
    fn pop_now(self) -> Option<wgpu::Error> {
        pollster::block_on(self.pop())
    }
}
