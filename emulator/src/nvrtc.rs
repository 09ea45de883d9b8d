//! NVRTC's functions: compiling by the C++ compiler of the machine. A compiled kernel is a shared library.

#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every unsafe function here is NVRTC's of its name, and relies on what NVRTC's documentation asks of its caller"
)]

use std::ffi::{CStr, c_char, c_int};
use std::process::Command;
use std::{env, fs, ptr};

use crate::source::to_cpp;

const SUCCESS: c_int = 0;
const COMPILATION_FAILED: c_int = 6;

/// What every kernel is compiled with. As on a device, products may be fused with additions.
const OPTIONS: [&str; 10] = [
    "-std=c++17",
    "-O1",
    "-w",
    "-shared",
    "-fPIC",
    // A function of two kernels has the shared memory of each: the loader is not to join what has one name.
    "-fno-gnu-unique",
    "-march=native",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-ffp-contract=fast",
];

/// A source, and what became of it.
struct Program {
    source: String,
    library: Vec<u8>,
    log: Vec<u8>,
}

impl Program {
    fn compile(&self, options: &[String]) -> Result<Vec<u8>, String> {
        let text = |error: std::io::Error| error.to_string();
        let folder = tempfile::tempdir().map_err(text)?;
        let [source, library] = ["kernel.cpp", "kernel.so"].map(|name| folder.path().join(name));
        fs::write(&source, to_cpp(&self.source)?).map_err(text)?;
        let mut command = compiler();
        command.args(OPTIONS).arg("-D__CUDA_ARCH__=900");
        command.args(options.iter().filter(|option| option.starts_with("-D")));
        let output = command.arg(&source).arg("-o").arg(&library).output();
        let output = output.map_err(|error| format!("the C++ compiler could not be started: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        fs::read(&library).map_err(text)
    }
}

/// The C++ compiler.
fn compiler() -> Command {
    Command::new(env::var_os("CXX").unwrap_or_else(|| "c++".into()))
}

/// The first number marks the emulator. The second changes with what kernels are made of here: this crate, the compiler and the processor
/// that it compiles for. Caches of compiled kernels depend on both.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> c_int {
    let mut parts: Vec<u8> =
        [include_str!("kernel.h"), include_str!("source.rs"), include_str!("nvrtc.rs")].concat().into();
    let macros = compiler().args(["-march=native", "-dM", "-E", "-x", "c++", "/dev/null"]).output();
    parts.extend(macros.map(|output| output.stdout).unwrap_or_default());
    let add = |hash: i32, byte: u8| hash.wrapping_mul(31).wrapping_add(byte.into());
    *major = 0;
    *minor = parts.into_iter().fold(0, add) & i32::MAX;
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetNumSupportedArchs(count: *mut c_int) -> c_int {
    *count = 1;
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetSupportedArchs(architectures: *mut c_int) -> c_int {
    *architectures = 90;
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcCreateProgram(program: *mut *mut Program, source: *const c_char) -> c_int {
    let source = CStr::from_ptr(source).to_string_lossy().into_owned();
    *program = Box::into_raw(Box::new(Program { source, library: Vec::new(), log: Vec::new() }));
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcCompileProgram(
    program: *mut Program,
    count: c_int,
    options: *const *const c_char,
) -> c_int {
    let option = |index| CStr::from_ptr(*options.add(index)).to_string_lossy().into_owned();
    let options: Vec<_> = (0..usize::try_from(count).unwrap_or(0)).map(option).collect();
    match (*program).compile(&options) {
        Ok(library) => (*program).library = library,
        Err(log) => {
            (*program).log = log.into_bytes();
            (*program).log.push(0);
            return COMPILATION_FAILED;
        }
    }
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcDestroyProgram(program: *mut *mut Program) -> c_int {
    drop(Box::from_raw(*program));
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetProgramLogSize(program: *mut Program, size: *mut usize) -> c_int {
    *size = (*program).log.len();
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetProgramLog(program: *mut Program, log: *mut u8) -> c_int {
    ptr::copy_nonoverlapping((*program).log.as_ptr(), log, (*program).log.len());
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetCUBINSize(program: *mut Program, size: *mut usize) -> c_int {
    *size = (*program).library.len();
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetCUBIN(program: *mut Program, library: *mut u8) -> c_int {
    ptr::copy_nonoverlapping((*program).library.as_ptr(), library, (*program).library.len());
    SUCCESS
}
