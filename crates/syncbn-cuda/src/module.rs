//! From kernel source to a loaded kernel: specialised, compiled, kept on disk and in memory.
//!
//! Deliberately not here: what the kernels are given.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::CudaContext;
use syncbn_core::Dtype;

use crate::cache::Cache;
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::plan::most_pack;
use crate::raw::driver::Function;
use crate::raw::nvrtc::{Nvrtc, nvrtc};
use crate::raw::params::{MOST_RANKS, PeersParams, Report, Tile};

const SHARED: &str = concat!(
    include_str!("../kernels/number.cuh"),
    include_str!("../kernels/tile.cuh"),
    include_str!("../kernels/message.cuh"),
    include_str!("../kernels/peers.cuh"),
    include_str!("../kernels/reduce.cuh")
);

/// One specialisation of one kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Special {
    pub(crate) kernel: &'static Kernel,
    pub(crate) dtype: Dtype,
    pub(crate) vec: usize,
    pub(crate) columns: bool,
    /// Whether the ranks meet inside it.
    pub(crate) peers: bool,
}

type Key = (&'static str, Dtype, usize, bool, bool);

impl Special {
    fn key(&self) -> Key {
        (self.kernel.name, self.dtype, self.vec, self.columns, self.peers)
    }

    fn element_bytes(&self) -> usize {
        match self.dtype {
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F64 => 8,
            _ => 4,
        }
    }

    fn source(&self) -> String {
        format!("{SHARED}{}", self.kernel.source)
    }

    fn options(&self, architecture: &str) -> Vec<String> {
        let Tuning { threads, blocks, unroll } = self.kernel.tuning(self.columns, self.element_bytes());
        vec![
            format!("-DELEMENT={}", self.dtype),
            format!("-DVEC={}", self.vec),
            format!("-DCOLUMNS={}", i32::from(self.columns)),
            format!("-DPEERS={}", i32::from(self.peers)),
            format!("-DMOST_RANKS={MOST_RANKS}"),
            format!("-DPEERS_BYTES={}", size_of::<PeersParams>()),
            format!("-DREPORT_BYTES={}", size_of::<Report>()),
            format!("-DTHREADS={threads}"),
            format!("-DBLOCKS={blocks}"),
            format!("-DUNROLL={unroll}"),
            format!("-DMOST_PACK={}", most_pack(self.columns)),
            format!("-DTILE_BYTES={}", size_of::<Tile>()),
            format!("-DARGS_BYTES={}", self.kernel.args_bytes),
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
        let image = nvrtc.compile(self.kernel.name, &source, &options)?;
        cache.put(&key, &image);
        Ok(image)
    }
}

/// The kernels that a device has loaded so far.
pub(crate) struct Modules {
    capability: i32,
    architecture: String,
    cache: Cache,
    loaded: Mutex<HashMap<Key, Function>>,
}

impl Modules {
    /// For a device of this compute capability: machine code where NVRTC knows it, else PTX of the newest that it does.
    pub(crate) fn new(capability: i32) -> Result<Self, CudaError> {
        let known = nvrtc()?.architectures()?;
        let (capability, architecture) = if known.contains(&capability) {
            (capability, format!("sm_{capability}"))
        } else {
            let nearest = known.into_iter().filter(|&known| known < capability).max().unwrap_or(capability);
            (nearest, format!("compute_{nearest}"))
        };
        Ok(Self { capability, architecture, cache: Cache::from_env()?, loaded: Mutex::default() })
    }

    /// What the kernels are compiled for: the device's compute capability, or an older one.
    pub(crate) fn capability(&self) -> i32 {
        self.capability
    }

    /// The kernel, compiled and loaded at its first use.
    pub(crate) fn get(&self, context: &CudaContext, special: Special) -> Result<Function, CudaError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.get(&special.key()) {
            return Ok(*function);
        }
        let image = special.compile(nvrtc()?, &self.architecture, &self.cache)?;
        let function = Function::load(context, &image, special.kernel.name, special.peers)?;
        loaded.insert(special.key(), function);
        Ok(function)
    }
}

/// Compiles every specialisation of these kernels, and another one, for an architecture; returns how many there are.
pub(crate) fn compile_all(
    kernels: &[&'static Kernel],
    other: Special,
    architecture: &str,
) -> Result<usize, CudaError> {
    let nvrtc = nvrtc()?;
    let of_kernels = kernels.iter().flat_map(|kernel| specials(kernel));
    let specials: Vec<Special> = of_kernels.chain([other]).collect();
    for special in &specials {
        nvrtc.compile(special.kernel.name, &special.source(), &special.options(architecture))?;
    }
    Ok(specials.len())
}

fn specials(kernel: &'static Kernel) -> Vec<Special> {
    let mut all = Vec::new();
    for (dtype, widest) in [(Dtype::F32, 4), (Dtype::F64, 2), (Dtype::F16, 8), (Dtype::Bf16, 8)] {
        for vec in [1, 2, 4, 8].into_iter().filter(|&vec| vec <= widest) {
            for (columns, peers) in [(false, false), (false, true), (true, false), (true, true)] {
                all.push(Special { kernel, dtype, vec, columns, peers });
            }
        }
    }
    all
}
