//! From a kernel's source to a loaded kernel: specialized, compiled, and kept on disk and in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaContext;
use syncbn_core::{Dtype, Pass};

use crate::cache::Cache;
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::plan::most_channels_per_block;
use crate::raw::driver::Function;
use crate::raw::nvrtc::{Nvrtc, nvrtc};
use crate::raw::params::declarations;

/// What every kernel is compiled with, after number.cuh and the declarations that Rust and CUDA share.
const HEADERS: &str = concat!(
    include_str!("../kernels/walk.cuh"),
    include_str!("../kernels/message.cuh"),
    include_str!("../kernels/peers.cuh"),
    include_str!("../kernels/reduce.cuh")
);

/// One specialization of one kernel: what it is compiled for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Specialization {
    pub(crate) kernel: &'static Kernel,
    pub(crate) dtype: Dtype,
    pub(crate) vec: usize,
    pub(crate) columns: bool,
    /// Whether the ranks meet inside it.
    pub(crate) peers: bool,
}

type Key = (&'static str, Dtype, usize, bool, bool);

impl Specialization {
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

    /// The parts of each of the two sums of a message, as core has it.
    fn parts_of_sum(&self) -> usize {
        let params = if self.dtype == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
        (Pass::Forward.message_len(1, params) - 1) / 2
    }

    fn source(&self) -> String {
        let numbers = include_str!("../kernels/number.cuh");
        [numbers, &declarations(), HEADERS, self.kernel.source].concat()
    }

    fn options(&self, architecture: &str) -> Vec<String> {
        let Tuning { threads, blocks, unroll } = self.kernel.tuning(self.columns, self.element_bytes());
        vec![
            format!("-DELEMENT={}", self.dtype),
            format!("-DVEC={}", self.vec),
            format!("-DCOLUMNS={}", i32::from(self.columns)),
            format!("-DPEERS={}", i32::from(self.peers)),
            format!("-DTHREADS={threads}"),
            format!("-DBLOCKS={blocks}"),
            format!("-DUNROLL={unroll}"),
            format!("-DMOST_CHANNELS_PER_BLOCK={}", most_channels_per_block(self.columns)),
            format!("-DPARTS_OF_SUM={}", self.parts_of_sum()),
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

/// A kernel, once it is loaded.
type Slot = Arc<Mutex<Option<Function>>>;

/// The kernels that a device has loaded so far.
pub(crate) struct Modules {
    capability: i32,
    architecture: String,
    cache: Cache,
    slots: Mutex<HashMap<Key, Slot>>,
}

impl Modules {
    /// For a device of this compute capability. If NVRTC does not know it, kernels are compiled to PTX of the newest older one that it
    /// knows.
    pub(crate) fn new(capability: i32) -> Result<Self, CudaError> {
        let known = nvrtc()?.architectures()?;
        let (capability, architecture) = if known.contains(&capability) {
            (capability, format!("sm_{capability}"))
        } else {
            let nearest = known.into_iter().filter(|&known| known < capability).max().unwrap_or(capability);
            (nearest, format!("compute_{nearest}"))
        };
        Ok(Self { capability, architecture, cache: Cache::from_env()?, slots: Mutex::default() })
    }

    /// What the kernels are compiled for: the device's compute capability, or an older one.
    pub(crate) fn capability(&self) -> i32 {
        self.capability
    }

    /// The kernel, compiled and loaded at its first use. Meanwhile other threads get other kernels: CUDA may load one only when the device
    /// is idle, and what runs there may wait for their passes.
    pub(crate) fn get(
        &self,
        context: &CudaContext,
        specialization: Specialization,
    ) -> Result<Function, CudaError> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Slot::clone(slots.entry(specialization.key()).or_default())
        };
        let mut loaded = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = *loaded {
            return Ok(function);
        }
        let image = specialization.compile(nvrtc()?, &self.architecture, &self.cache)?;
        let function = Function::load(context, &image, specialization.kernel.name, specialization.peers)?;
        *loaded = Some(function);
        Ok(function)
    }
}

/// Compiles every specialization of these kernels, and one more, for an architecture; returns how many there are.
pub(crate) fn compile_all(
    kernels: &[&'static Kernel],
    other: Specialization,
    architecture: &str,
) -> Result<usize, CudaError> {
    let nvrtc = nvrtc()?;
    let of_kernels = kernels.iter().flat_map(|kernel| specializations(kernel));
    let specializations: Vec<Specialization> = of_kernels.chain([other]).collect();
    for specialization in &specializations {
        nvrtc.compile(
            specialization.kernel.name,
            &specialization.source(),
            &specialization.options(architecture),
        )?;
    }
    Ok(specializations.len())
}

fn specializations(kernel: &'static Kernel) -> Vec<Specialization> {
    let mut all = Vec::new();
    for (dtype, widest) in [(Dtype::F32, 4), (Dtype::F64, 2), (Dtype::F16, 8), (Dtype::Bf16, 8)] {
        for vec in [1, 2, 4, 8].into_iter().filter(|&vec| vec <= widest) {
            for (columns, peers) in [(false, false), (true, false), (false, true), (true, true)] {
                all.push(Specialization { kernel, dtype, vec, columns, peers });
            }
        }
    }
    all
}
