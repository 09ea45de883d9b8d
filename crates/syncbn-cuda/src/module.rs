//! From kernel source to a loaded kernel: specialised, compiled, kept on disk and in memory.
//!
//! Deliberately not here: what the kernels are given.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::CudaContext;
use syncbn_core::Dtype;

use crate::cache::Cache;
use crate::error::CudaError;
use crate::raw::driver::Function;
use crate::raw::nvrtc::{Nvrtc, nvrtc};

const SHARED: &str = concat!(
    include_str!("../kernels/number.cuh"),
    include_str!("../kernels/tile.cuh"),
    include_str!("../kernels/reduce.cuh")
);

const KERNELS: &[(&str, &str)] = &[
    ("moments", include_str!("../kernels/moments.cu")),
    ("normalize", include_str!("../kernels/normalize.cu")),
    ("grad_sums", include_str!("../kernels/grad_sums.cu")),
    ("grad_input", include_str!("../kernels/grad_input.cu")),
];

/// One specialisation of one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) kernel: &'static str,
    pub(crate) dtype: Dtype,
    pub(crate) vec: usize,
    pub(crate) columns: bool,
}

impl Key {
    fn source(&self) -> String {
        let own = KERNELS.iter().find(|(name, _)| *name == self.kernel).map_or("", |(_, source)| source);
        format!("{SHARED}{own}")
    }

    fn options(&self, architecture: &str) -> Vec<String> {
        vec![
            format!("-DELEMENT={}", self.dtype),
            format!("-DVEC={}", self.vec),
            format!("-DCOLUMNS={}", i32::from(self.columns)),
            format!("--gpu-architecture={architecture}"),
            "--std=c++17".into(),
            "-lineinfo".into(),
        ]
    }

    fn compile(&self, nvrtc: &Nvrtc, architecture: &str, cache: &Cache) -> Result<Vec<u8>, CudaError> {
        let (source, options) = (self.source(), self.options(architecture));
        let version = format!("{:?}", nvrtc.version());
        let key = [source.as_bytes(), &options.join(" ").into_bytes(), version.as_bytes()];
        if let Some(image) = cache.get(&key) {
            return Ok(image);
        }
        let image = nvrtc.compile(self.kernel, &source, &options)?;
        cache.put(&key, &image);
        Ok(image)
    }
}

/// The kernels that a device has loaded so far.
pub(crate) struct Modules {
    architecture: String,
    cache: Cache,
    loaded: Mutex<HashMap<Key, Function>>,
}

impl Modules {
    /// For a device of this compute capability: machine code where NVRTC knows it, else PTX of the newest that it does.
    pub(crate) fn new(capability: i32) -> Result<Self, CudaError> {
        let known = nvrtc()?.architectures()?;
        let architecture = if known.contains(&capability) {
            format!("sm_{capability}")
        } else {
            let nearest = known.into_iter().filter(|&known| known < capability).max().unwrap_or(capability);
            format!("compute_{nearest}")
        };
        Ok(Self { architecture, cache: Cache::from_env(), loaded: Mutex::default() })
    }

    /// The kernel, compiled and loaded at its first use.
    pub(crate) fn get(&self, context: &CudaContext, key: Key) -> Result<Function, CudaError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.get(&key) {
            return Ok(*function);
        }
        let image = key.compile(nvrtc()?, &self.architecture, &self.cache)?;
        let function = Function::load(context, &image, key.kernel)?;
        loaded.insert(key, function);
        Ok(function)
    }
}

/// Compiles every specialisation of every kernel for an architecture such as `sm_90`, without a device; returns how many
/// there are.
pub fn compile_all(architecture: &str) -> Result<usize, CudaError> {
    let nvrtc = nvrtc()?;
    let mut count = 0;
    for (kernel, _) in KERNELS {
        for (dtype, widest) in [(Dtype::F32, 4), (Dtype::F64, 2), (Dtype::F16, 8), (Dtype::Bf16, 8)] {
            for vec in [1, 2, 4, 8].into_iter().filter(|&vec| vec <= widest) {
                for columns in [false, true] {
                    let key = Key { kernel, dtype, vec, columns };
                    nvrtc.compile(kernel, &key.source(), &key.options(architecture))?;
                    count += 1;
                }
            }
        }
    }
    Ok(count)
}
