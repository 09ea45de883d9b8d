//! What the emulator has to notice, each fault on a device of its own. `cargo xtask test-emulated` runs this.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![cfg(target_os = "linux")]

use std::env;
use std::ffi::{CString, c_int, c_void};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::ptr::{null, null_mut};

use libloading::Library;

/// A device whose kernels take one pointer to f32.
struct Device {
    cuda: Library,
}

type Code = c_int;
const LAUNCH_FAILED: Code = 719;
const SIGABRT: c_int = 6;
const THREADS: u32 = 64;

/// `CUlaunchConfig`.
#[repr(C)]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: *const c_void,
    attributes: *const c_void,
    attribute_count: u32,
}

impl Device {
    fn open(ordinal: c_int) -> Self {
        // SAFETY: the library has no initialisers.
        let cuda = unsafe { Library::new("libcuda.so.1") }.unwrap();
        let device = Self { cuda };
        let mut context: *mut c_void = null_mut();
        device.call2("cuDevicePrimaryCtxRetain", &raw mut context, ordinal);
        device.call1("cuCtxSetCurrent", context);
        device
    }

    fn call1<A>(&self, name: &str, a: A) -> Code {
        // SAFETY: each caller passes what the function takes.
        let function = unsafe { self.cuda.get::<unsafe extern "C" fn(A) -> Code>(name) }.unwrap();
        // SAFETY: as before.
        unsafe { function(a) }
    }

    fn call2<A, B>(&self, name: &str, a: A, b: B) -> Code {
        // SAFETY: each caller passes what the function takes.
        let function = unsafe { self.cuda.get::<unsafe extern "C" fn(A, B) -> Code>(name) }.unwrap();
        // SAFETY: as before.
        unsafe { function(a, b) }
    }

    fn call3<A, B, C>(&self, name: &str, a: A, b: B, c: C) -> Code {
        // SAFETY: each caller passes what the function takes.
        let function = unsafe { self.cuda.get::<unsafe extern "C" fn(A, B, C) -> Code>(name) }.unwrap();
        // SAFETY: as before.
        unsafe { function(a, b, c) }
    }

    fn synchronize(&self) -> Code {
        // SAFETY: the function takes nothing.
        let function =
            unsafe { self.cuda.get::<unsafe extern "C" fn() -> Code>("cuCtxSynchronize") }.unwrap();
        // SAFETY: as before.
        unsafe { function() }
    }

    fn allocate(&self, bytes: usize) -> usize {
        let mut address = 0_usize;
        assert_eq!(self.call2("cuMemAlloc_v2", &raw mut address, bytes), 0);
        address
    }

    /// Compiles the kernel `test` with this body, and launches a block of it.
    fn launch(&self, body: &str, x: usize) {
        self.launch_grid(1, body, x);
    }

    fn launch_grid(&self, blocks: u32, body: &str, mut x: usize) {
        let source = format!("extern \"C\" __global__ void test(float* x) {{ {body} }}");
        let source = CString::new(source).unwrap();
        let mut program: *mut c_void = null_mut();
        self.call2("nvrtcCreateProgram", &raw mut program, source.as_ptr());
        assert_eq!(self.call3("nvrtcCompileProgram", program, 0_i32, null::<c_void>()), 0);
        let mut size = 0_usize;
        self.call2("nvrtcGetCUBINSize", program, &raw mut size);
        let mut image = vec![0_u8; size];
        self.call2("nvrtcGetCUBIN", program, image.as_mut_ptr());
        let (mut module, mut function): (*mut c_void, *mut c_void) = (null_mut(), null_mut());
        assert_eq!(self.call2("cuModuleLoadData", &raw mut module, image.as_ptr()), 0);
        assert_eq!(self.call3("cuModuleGetFunction", &raw mut function, module, c"test".as_ptr()), 0);
        let config = Config {
            grid: [blocks, 1, 1],
            block: [THREADS, 1, 1],
            shared: 0,
            stream: null(),
            attributes: null(),
            attribute_count: 0,
        };
        let params = [(&raw mut x).cast::<c_void>()];
        assert_eq!(self.call3("cuLaunchKernelEx", &raw const config, function, params.as_ptr()), 0);
    }

    fn read(&self, from: usize) -> Vec<f32> {
        let mut values = vec![0.0_f32; THREADS as usize];
        // SAFETY: the function takes an address in memory, one on the device, a length and a stream.
        let function = unsafe {
            self.cuda.get::<unsafe extern "C" fn(*mut f32, usize, usize, *const c_void) -> Code>(
                "cuMemcpyDtoHAsync_v2",
            )
        }
        .unwrap();
        // SAFETY: both have as many bytes.
        assert_eq!(unsafe { function(values.as_mut_ptr(), from, values.len() * 4, null()) }, 0);
        values
    }
}

#[test]
fn threads_meet_at_barriers_and_shuffles() {
    let device = Device::open(0);
    let x = device.allocate(THREADS as usize * 4);
    let body = "__shared__ double all[64]; all[threadIdx.x] = threadIdx.x; __syncthreads();
        double other = __shfl_xor_sync(0xffffffffu, all[63 - threadIdx.x], 1); x[threadIdx.x] = (float)other;";
    device.launch(body, x);
    let expected: Vec<f32> = (0..THREADS).map(|thread| (63 - (thread ^ 1)) as f32).collect();
    assert_eq!(device.read(x), expected);
    assert_eq!(device.call1("cuMemFree_v2", x), 0);
}

#[test]
fn a_barrier_that_only_some_threads_come_to_is_an_error() {
    let device = Device::open(1);
    let x = device.allocate(THREADS as usize * 4);
    // Warps that wait for different things.
    device
        .launch("if (threadIdx.x % 2) __syncthreads(); else x[0] = __shfl_xor_sync(0xffffffffu, 1.0, 1);", x);
    assert_eq!(device.synchronize(), LAUNCH_FAILED);
}

#[test]
fn what_is_written_behind_a_region_is_found_when_it_is_freed() {
    let Some(x) = written_behind("what_is_written_behind_a_region_is_found_when_it_is_freed") else { return };
    Device::open(2).call1("cuMemFree_v2", x);
    panic!("it was not found");
}

#[test]
fn what_is_written_behind_a_region_that_is_never_freed_is_found_at_the_end() {
    let _ = written_behind("what_is_written_behind_a_region_that_is_never_freed_is_found_at_the_end");
}

/// In a process of its own, which has to abort, that runs the test of this name again: a region that was written behind.
fn written_behind(test: &str) -> Option<usize> {
    const CHILD: &str = "SYNCBN_TEST_CHILD";
    if env::var_os(CHILD).is_none() {
        let mut child = Command::new(env::current_exe().unwrap());
        let output = child.args(["--exact", "--nocapture", test]).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.signal(), Some(SIGABRT), "{said}");
        assert!(said.contains("written behind a region of 256 bytes"), "{said}");
        return None;
    }
    let device = Device::open(2);
    let x = device.allocate(THREADS as usize * 4);
    device.launch("x[threadIdx.x + 1] = 0;", x);
    assert_eq!(device.synchronize(), 0);
    std::mem::forget(device); // the library stays loaded, as in a program that uses CUDA
    Some(x)
}

#[test]
fn blocks_start_in_the_order_that_was_asked_for() {
    let device = Device::open(0);
    let x = device.allocate(THREADS as usize * 4);
    let body = "if (threadIdx.x > 0) return;
        bool first = atomicCAS((unsigned*)x + 2, 0xffffffffu, 0u) == 0xffffffffu; x[blockIdx.x] = first ? 1 : 2;";
    device.launch_grid(2, body, x);
    let backwards = env::var("SYNCBN_EMULATED_ORDER").is_ok_and(|order| order == "backwards");
    assert_eq!(device.read(x)[..2], if backwards { [2.0, 1.0] } else { [1.0, 2.0] });
}

#[test]
fn memory_that_nobody_has_written_holds_nans() {
    let device = Device::open(3);
    let x = device.allocate(THREADS as usize * 4);
    assert!(device.read(x).iter().all(|value| value.is_nan()));
}
