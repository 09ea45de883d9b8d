//! Devices and their contexts.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};

use super::{CURRENT, Code, code, current};
use crate::device::{Device, devices, settings};
use crate::memory::SIZE;

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> Code {
    if let Err(error) = settings() {
        eprintln!("emulated devices: {error}");
        return Code::InvalidValue;
    }
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    *version = 13_000;
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    *count = devices().len() as c_int;
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code {
    if usize::try_from(ordinal).map_or(true, |ordinal| ordinal >= devices().len()) {
        return Code::InvalidDevice;
    }
    *device = ordinal;
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut u8, room: c_int, _device: c_int) -> Code {
    let text = b"syncbn's emulated device\0";
    text.as_ptr().copy_to(name, text.len().min(usize::try_from(room).unwrap_or(0)));
    Code::Success
}

/// The devices of one ordinal are one device in all processes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) -> Code {
    *uuid = *b"emulated device ";
    (*uuid)[15] = device.to_le_bytes()[0];
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> Code {
    *bytes = SIZE;
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, which: c_int, _device: c_int) -> Code {
    *value = Device::attribute(which);
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut c_int, _device: c_int, _peer: c_int) -> Code {
    *can = 1;
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *const Device, device: c_int) -> Code {
    let Some(device) = usize::try_from(device).ok().and_then(|ordinal| devices().get(ordinal)) else {
        return Code::InvalidDevice;
    };
    *context = device;
    Code::Success
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Code {
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxSetCurrent(context: *const Device) -> Code {
    CURRENT.set(context.as_ref());
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut *const Device) -> Code {
    *context = CURRENT.get().map_or(null(), |device| device);
    Code::Success
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Code {
    code(current().and_then(|device| {
        device.synchronize();
        current().map(drop)
    }))
}

/// Devices share the process's memory.
#[unsafe(no_mangle)]
extern "C" fn cuCtxEnablePeerAccess(_peer: *mut c_void, _flags: c_uint) -> Code {
    Code::PeerAccessAlreadyEnabled
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: c_int, name: *mut *const c_char) -> Code {
    *name = text(error);
    if (*name).is_null() { Code::InvalidValue } else { Code::Success }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(error: c_int, text_of: *mut *const c_char) -> Code {
    cuGetErrorName(error, text_of)
}

fn text(error: c_int) -> *const c_char {
    let text = match error {
        0 => c"CUDA_SUCCESS",
        1 => c"CUDA_ERROR_INVALID_VALUE",
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        101 => c"CUDA_ERROR_INVALID_DEVICE",
        201 => c"CUDA_ERROR_INVALID_CONTEXT",
        500 => c"CUDA_ERROR_NOT_FOUND",
        600 => c"CUDA_ERROR_NOT_READY",
        704 => c"CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED",
        719 => c"CUDA_ERROR_LAUNCH_FAILED",
        900 => c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        901 => c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        _ => return null_mut(),
    };
    text.as_ptr()
}
