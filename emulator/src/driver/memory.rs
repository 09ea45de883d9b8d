//! Memory and copies.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ffi::{c_uint, c_void};
use std::sync::{Mutex, PoisonError};

use super::streams::{RELAXED, mode, stream};
use super::{Code, code, current};
use crate::capture::Capture;
use crate::memory::{Handle, SIZE};
use crate::stream::Stream;

/// `CUipcMemHandle`.
#[repr(C)]
#[derive(Clone, Copy)]
struct IpcHandle {
    handle: Handle,
    unused: [u64; 6],
}

fn may_allocate() -> Result<(), Code> {
    if Capture::forbids() && mode() != RELAXED { Err(Code::CaptureUnsupported) } else { Ok(()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut usize, bytes: usize) -> Code {
    code(may_allocate().and_then(|()| current()).and_then(|device| {
        *address = device.memory.allocate(bytes).ok_or(Code::OutOfMemory)?;
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: usize) -> Code {
    code(may_allocate().and_then(|()| current()).and_then(|device| {
        device.synchronize();
        device.memory.free(address).map_err(|error| {
            device.fail(error);
            Code::InvalidValue
        })
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    *free = SIZE;
    *total = SIZE;
    Code::Success
}

static HOST: Mutex<Option<HashMap<usize, Layout>>> = Mutex::new(None);

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(address: *mut *mut u8, bytes: usize, _flags: c_uint) -> Code {
    let Ok(layout) = Layout::from_size_align(bytes.max(1), 4096) else { return Code::InvalidValue };
    *address = alloc_zeroed(layout);
    if (*address).is_null() {
        return Code::OutOfMemory;
    }
    let mut host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    host.get_or_insert_default().insert(*address as usize, layout);
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeHost(address: *mut u8) -> Code {
    let mut host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(layout) = host.get_or_insert_default().remove(&(address as usize)) else {
        return Code::InvalidValue;
    };
    dealloc(address, layout);
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    device: *mut usize,
    host: *mut c_void,
    _flags: c_uint,
) -> Code {
    *device = host as usize;
    Code::Success
}

/// Enqueues a copy.
unsafe fn copy(to: usize, from: usize, bytes: usize, stream: &Stream) {
    stream.enqueue(move || {
        (from as *const u8).copy_to(to as *mut u8, bytes);
        Ok(())
    });
}

/// The values are read before the call returns, as from memory that is not pinned.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: usize,
    from: *const u8,
    bytes: usize,
    on: *const Stream,
) -> Code {
    code(current().map(|device| {
        let values = std::slice::from_raw_parts(from, bytes).to_vec();
        stream(device, on).enqueue(move || {
            values.as_ptr().copy_to(to as *mut u8, bytes);
            Ok(())
        });
    }))
}

/// The values are there when the call returns, as in memory that is not pinned.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: usize, from: usize, bytes: usize, on: *const Stream) -> Code {
    code(current().and_then(|device| {
        let stream = stream(device, on);
        copy(to, from, bytes, &stream);
        if stream.capture().is_none() {
            stream.synchronize();
        }
        current().map(drop)
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: usize, from: usize, bytes: usize, on: *const Stream) -> Code {
    code(current().map(|device| copy(to, from, bytes, &stream(device, on))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD8Async(at: usize, value: u8, bytes: usize, on: *const Stream) -> Code {
    code(current().map(|device| {
        stream(device, on).enqueue(move || {
            (at as *mut u8).write_bytes(value, bytes);
            Ok(())
        });
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuIpcGetMemHandle(handle: *mut IpcHandle, address: usize) -> Code {
    code(current().and_then(|device| {
        let exported = device.memory.export(address).ok_or(Code::InvalidValue)?;
        *handle = IpcHandle { handle: exported, unused: [0; 6] };
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuIpcOpenMemHandle_v2(address: *mut usize, handle: IpcHandle, _flags: c_uint) -> Code {
    let Some(opened) = handle.handle.open() else { return Code::InvalidContext };
    *address = opened;
    Code::Success
}

#[unsafe(no_mangle)]
extern "C" fn cuIpcCloseMemHandle(_address: usize) -> Code {
    Code::Success
}
