//! Modules and launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::slice;

use super::streams::stream;
use super::{Code, code, current};
use crate::launch::Launch;
use crate::module::Kernel;
use crate::stream::Stream;

/// Bytes of static shared memory that a kernel counts as having, and the most dynamic ones.
const STATIC_SHARED: c_uint = 16 << 10;
const MOST_SHARED: c_uint = 232_448 - STATIC_SHARED;

/// `CUlaunchConfig`.
#[repr(C)]
struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: *const Stream,
    attributes: *const c_void,
    attribute_count: c_uint,
}

/// A module has one kernel, and is never unloaded: its handle is that of the kernel.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut *const Kernel, image: *const u8) -> Code {
    // A device may be able to load a kernel only when nothing runs there.
    match current() {
        Ok(device) => device.synchronize(),
        Err(error) => return error,
    }
    match Kernel::load(image) {
        Ok(kernel) => {
            *module = Box::into_raw(Box::new(kernel));
            Code::Success
        }
        Err(error) => {
            eprintln!("emulated device: {error}");
            Code::InvalidValue
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(_module: *const Kernel) -> Code {
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *const Kernel,
    module: *const Kernel,
    name: *const c_char,
) -> Code {
    if CStr::from_ptr(name).to_bytes() != (*module).name().as_bytes() {
        return Code::NotFound;
    }
    *function = module;
    Code::Success
}

/// Of a kernel, only its static shared memory is asked for.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, _which: c_int, _function: *const Kernel) -> Code {
    *value = STATIC_SHARED as c_int;
    Code::Success
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(_function: *const Kernel, _which: c_int, _value: c_int) -> Code {
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernelEx(
    config: *const Config,
    function: *const Kernel,
    params: *const *const u8,
    _extra: *const c_void,
) -> Code {
    let (config, kernel) = (&*config, *function);
    code(current().and_then(|device| {
        let [blocks, threads] = [config.grid[0], config.block[0]];
        let line = config.grid[1..] == [1, 1] && config.block[1..] == [1, 1];
        if !line || blocks == 0 || !(1..=1024).contains(&threads) || config.shared > MOST_SHARED {
            return Err(Code::InvalidValue);
        }
        let (mut words, mut starts) = (Vec::new(), Vec::new());
        for (index, size) in kernel.param_sizes().into_iter().enumerate() {
            starts.push(words.len());
            words.resize(words.len() + size.div_ceil(16), 0_u128);
            let target = words.as_mut_ptr().add(starts[index]).cast::<u8>();
            slice::from_raw_parts(*params.add(index), size).as_ptr().copy_to(target, size);
        }
        let launch =
            Launch { kernel, blocks, threads, shared: config.shared as usize, params: words, starts };
        stream(device, config.stream).enqueue(move || launch.run());
        Ok(())
    }))
}
