//! Finding NVIDIA's libraries at run time, without cudarc: it panics where one is missing.

use std::error::Error;
use std::ffi::OsString;

use libloading::Library;

/// The first of these libraries that the loader finds. If the environment variable is set, only the file that it names. The error is the
/// loader's for the first of them.
pub(crate) fn open(variable: Option<&str>, names: &[&str]) -> Result<Library, String> {
    let named = variable.and_then(std::env::var_os);
    let names = named.map_or_else(|| names.iter().map(OsString::from).collect(), |name| vec![name]);
    let mut reason = None;
    for name in names {
        // SAFETY: the libraries are NVIDIA's driver, NVRTC and NCCL, whose initialisers have no preconditions.
        match unsafe { Library::new(&name) } {
            Ok(library) => return Ok(library),
            // The error's own text is `dlopen failed`; the loader's is its source.
            Err(error) => {
                reason.get_or_insert_with(|| {
                    error.source().map_or_else(|| error.to_string(), ToString::to_string)
                });
            }
        }
    }
    Err(reason.unwrap_or_default())
}
