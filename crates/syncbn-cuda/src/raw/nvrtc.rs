//! NVRTC: CUDA C++ to machine code at run time.
//!
//! `SYNCBN_NVRTC` names the library's file where the loader does not find it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use libloading::Library;

use super::library;
use crate::error::CudaError;

type Program = *mut c_void;

/// The library, loaded.
pub(crate) struct Nvrtc {
    library: Library,
    version: (c_int, c_int),
}

const NAMES: &[&str] =
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];

fn missing(reason: String) -> CudaError {
    CudaError::MissingLibrary {
        library: "libnvrtc",
        reason,
        install: "the CUDA toolkit, or the PyPI package nvidia-cuda-nvrtc, and set SYNCBN_NVRTC to the library's file",
    }
}

/// The library, which is loaded once for a process.
pub(crate) fn nvrtc() -> Result<&'static Nvrtc, CudaError> {
    static NVRTC: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
    NVRTC.get_or_init(Nvrtc::load).as_ref().map_err(|reason| missing(reason.clone()))
}

impl Nvrtc {
    fn load() -> Result<Self, String> {
        let library = library::open(Some("SYNCBN_NVRTC"), NAMES)?;
        let mut nvrtc = Self { library, version: (0, 0) };
        nvrtc.version = nvrtc.ask_version()?;
        Ok(nvrtc)
    }

    pub(crate) fn version(&self) -> (i32, i32) {
        self.version
    }

    fn ask_version(&self) -> Result<(c_int, c_int), String> {
        type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
        let (mut major, mut minor) = (0, 0);
        let version = self.symbol::<Version>(c"nvrtcVersion")?;
        // SAFETY: the two pointers are for one number each.
        let code = unsafe { version(&raw mut major, &raw mut minor) };
        if code == 0 { Ok((major, minor)) } else { Err(format!("nvrtcVersion gave {code}")) }
    }

    /// The architectures that it can compile for, as 80 for `sm_80`.
    pub(crate) fn architectures(&self) -> Result<Vec<i32>, CudaError> {
        type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
        let mut count = 0;
        let number = self.symbol::<Count>(c"nvrtcGetNumSupportedArchs").map_err(missing)?;
        // SAFETY: the pointer is for one number.
        let code = unsafe { number(&raw mut count) };
        let mut found = vec![0; usize::try_from(count).unwrap_or(0)];
        let list = self.symbol::<Count>(c"nvrtcGetSupportedArchs").map_err(missing)?;
        // SAFETY: the vector has room for as many numbers as the library just said.
        let listed = unsafe { list(found.as_mut_ptr()) };
        if code == 0 && listed == 0 { Ok(found) } else { Err(missing("it lists no architectures".into())) }
    }

    /// Compiles to a cubin for `sm_`, to PTX for `compute_` architectures.
    pub(crate) fn compile(
        &self,
        kernel: &'static str,
        source: &str,
        options: &[String],
    ) -> Result<Vec<u8>, CudaError> {
        let fail = |log: String| CudaError::Compile { kernel, options: options.join(" "), log };
        let program = LoadedProgram::new(self, source).map_err(fail)?;
        let cubin = options.iter().any(|option| option.contains("=sm_"));
        program.compile(options, cubin).map_err(fail)
    }

    fn symbol<F: Copy>(&self, name: &CStr) -> Result<F, String> {
        // SAFETY: each caller names the function's type as nvrtc.h declares it; the library is never unloaded.
        unsafe { self.library.get::<F>(name.to_bytes_with_nul()) }.map(|s| *s).map_err(|e| e.to_string())
    }
}

struct LoadedProgram<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
    // The program may refer to it.
    _source: CString,
}

type Strings = *const *const c_char;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut u8) -> c_int;

impl<'a> LoadedProgram<'a> {
    fn new(nvrtc: &'a Nvrtc, source: &str) -> Result<Self, String> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            Strings,
            Strings,
        ) -> c_int;
        let source = CString::new(source).map_err(|e| e.to_string())?;
        let mut program = null_mut();
        let create = nvrtc.symbol::<Create>(c"nvrtcCreateProgram")?;
        // SAFETY: the source ends in 0 and lives as long as the program; no headers are given.
        let code = unsafe { create(&raw mut program, source.as_ptr(), null(), 0, null(), null()) };
        if code != 0 {
            return Err(format!("nvrtcCreateProgram gave {code}"));
        }
        Ok(Self { nvrtc, program, _source: source })
    }

    fn compile(&self, options: &[String], cubin: bool) -> Result<Vec<u8>, String> {
        type Compile = unsafe extern "C" fn(Program, c_int, Strings) -> c_int;
        let options: Vec<CString> = options
            .iter()
            .map(|o| CString::new(o.as_str()))
            .collect::<Result<_, _>>()
            .map_err(|e| e.to_string())?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let compile = self.nvrtc.symbol::<Compile>(c"nvrtcCompileProgram")?;
        // SAFETY: the program is live; the options end in 0 and live until the call is over.
        let code = unsafe { compile(self.program, pointers.len() as c_int, pointers.as_ptr()) };
        if code != 0 {
            let log = self.text(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")?;
            return Err(String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned());
        }
        if cubin {
            self.text(c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN")
        } else {
            self.text(c"nvrtcGetPTXSize", c"nvrtcGetPTX")
        }
    }

    fn text(&self, size_name: &CStr, text_name: &CStr) -> Result<Vec<u8>, String> {
        let mut size = 0;
        let ask = self.nvrtc.symbol::<Size>(size_name)?;
        // SAFETY: the program is live; the pointer is for one number.
        let code = unsafe { ask(self.program, &raw mut size) };
        let mut text = vec![0; size];
        let get = self.nvrtc.symbol::<Text>(text_name)?;
        // SAFETY: the vector has as many bytes as the library just said.
        let got = unsafe { get(self.program, text.as_mut_ptr()) };
        if code == 0 && got == 0 { Ok(text) } else { Err(format!("{text_name:?} gave {code} and {got}")) }
    }
}

impl Drop for LoadedProgram<'_> {
    fn drop(&mut self) {
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        if let Ok(destroy) = self.nvrtc.symbol::<Destroy>(c"nvrtcDestroyProgram") {
            // SAFETY: the program is live, and is not used again. The call cannot fail on a live program.
            unsafe { destroy(&raw mut self.program) };
        }
    }
}
