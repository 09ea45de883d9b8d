//! Compiled kernels: shared libraries that are loaded from memory and never unloaded.

use std::ffi::{CStr, c_char, c_void};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::slice;

use libloading::Library;
use rustix::fs::{MemfdFlags, memfd_create};

type Sizes = unsafe extern "C" fn(*mut usize) -> usize;
type Call = unsafe extern "C" fn(*mut *mut c_void);
type Current = unsafe extern "C" fn() -> *mut *mut c_void;
type Name = unsafe extern "C" fn() -> *const c_char;

/// The most parameters that a kernel may have.
const MOST_PARAMS: usize = 16;

/// A loaded kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    sizes: Sizes,
    call: Call,
    current: Current,
    name: Name,
}

impl Kernel {
    /// Loads the library that begins at this address.
    ///
    /// # Safety
    /// It is a whole library, as the compiler of this crate made it.
    pub(crate) unsafe fn load(image: *const u8) -> Result<Self, String> {
        // SAFETY: a library begins with this header.
        let header = unsafe { slice::from_raw_parts(image, 64) };
        let number = |at: usize, len: usize| {
            header[at..at + len].iter().rev().fold(0, |n, &b| n << 8 | usize::from(b))
        };
        // The table of sections is the last thing in a library.
        let len = number(0x28, 8) + number(0x3a, 2) * number(0x3c, 2);
        // SAFETY: the caller's promise.
        let bytes = unsafe { slice::from_raw_parts(image, len) };
        let text = |error: std::io::Error| error.to_string();
        let mut file = File::from(memfd_create("kernel", MemfdFlags::CLOEXEC).map_err(|e| text(e.into()))?);
        file.write_all(bytes).map_err(text)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // SAFETY: the library has no initialisers.
        let library = unsafe { Library::new(path) }.map_err(|error| error.to_string())?;
        let kernel = Self {
            sizes: symbol(&library, b"emulator_sizes\0")?,
            call: symbol(&library, b"emulator_call\0")?,
            current: symbol(&library, b"emulator_current\0")?,
            name: symbol(&library, b"emulator_name\0")?,
        };
        // The loader knows the library by its file.
        std::mem::forget((library, file));
        Ok(kernel)
    }

    pub(crate) fn name(self) -> &'static str {
        // SAFETY: the function only returns a constant.
        let name = unsafe { (self.name)() };
        // SAFETY: the constant ends in 0, and the library is never unloaded.
        unsafe { CStr::from_ptr(name) }.to_str().unwrap_or("?")
    }

    /// The bytes of each parameter.
    pub(crate) fn param_sizes(self) -> Vec<usize> {
        let mut sizes = [0; MOST_PARAMS];
        // SAFETY: there is room for as many parameters as kernels have.
        let count = unsafe { (self.sizes)(sizes.as_mut_ptr()) };
        sizes[..count].to_vec()
    }

    /// Runs one thread of the kernel.
    ///
    /// # Safety
    /// There is a pointer to each parameter, and the current thread is set.
    pub(crate) unsafe fn call(self, params: *mut *mut c_void) {
        // SAFETY: the caller's promise.
        unsafe { (self.call)(params) };
    }

    /// The kernel's thread that runs next on this thread of the processor.
    pub(crate) fn set_current<T>(self, thread: *mut T) {
        // SAFETY: the function only returns an address of this thread of the processor.
        let current = unsafe { (self.current)() };
        // SAFETY: the address is that of one pointer, which only this thread uses.
        unsafe { *current = thread.cast() };
    }
}

fn symbol<F: Copy>(library: &Library, name: &[u8]) -> Result<F, String> {
    // SAFETY: kernel.h defines the functions with these types.
    unsafe { library.get::<F>(name) }.map(|symbol| *symbol).map_err(|error| error.to_string())
}
