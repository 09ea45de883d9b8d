//! The driver's functions. A context is a device; a handle is a pointer to what it stands for.

#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every unsafe function here is the driver's of its name, and relies on what the driver's documentation asks of its caller"
)]

mod contexts;
mod graphs;
mod kernels;
mod memory;
mod streams;

use std::cell::Cell;

use crate::device::Device;

/// The driver's results.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq)]
enum Code {
    Success = 0,
    InvalidValue = 1,
    OutOfMemory = 2,
    InvalidDevice = 101,
    InvalidContext = 201,
    NotFound = 500,
    NotReady = 600,
    PeerAccessAlreadyEnabled = 704,
    LaunchFailed = 719,
    CaptureUnsupported = 900,
    CaptureInvalidated = 901,
}

thread_local!(static CURRENT: Cell<Option<&'static Device>> = const { Cell::new(None) });

/// The device whose context is current in this thread, if it has not failed.
fn current() -> Result<&'static Device, Code> {
    let device = CURRENT.get().ok_or(Code::InvalidContext)?;
    if device.failed.get().is_some() { Err(Code::LaunchFailed) } else { Ok(device) }
}

/// The result of a function that has more than one way to fail.
fn code(result: Result<(), Code>) -> Code {
    result.err().unwrap_or(Code::Success)
}
