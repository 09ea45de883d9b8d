//! Measures a backend and writes `results.json` and `meta.json`. Needs nothing but itself: it can be carried to a machine
//! without a Rust toolchain.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use syncbn_bench::cpu::CpuDevice;
use syncbn_bench::results::{Meta, Row, Run, at};
use syncbn_bench::shapes::{self, Case};

/// Times a layer's forward and backward pass.
#[derive(Parser)]
struct Arguments {
    /// What to measure.
    #[arg(long)]
    backend: BackendName,
    /// A list of tensors, one a line, such as `bf16 nhwc 2x64x256x512`; the default list if absent.
    #[arg(long)]
    shapes: Option<PathBuf>,
    /// Measures as one of several ranks, one process to a GPU, as torchrun, mpirun or srun starts them; rank 0 writes.
    #[cfg(feature = "cuda")]
    #[arg(long)]
    launched: bool,
    /// Where the results go.
    #[arg(long, default_value = "target/bench/results")]
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendName {
    Cpu,
    /// The first CUDA device, with NCCL.
    #[cfg(feature = "cuda")]
    Cuda,
    /// The fastest GPU that wgpu finds.
    #[cfg(feature = "wgpu")]
    Wgpu,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cases = match &arguments.shapes {
        Some(path) => shapes::parse(&fs::read_to_string(path).map_err(at(path))?)?,
        None => shapes::parse(shapes::DEFAULT)?,
    };
    let run = match arguments.backend {
        BackendName::Cpu => {
            let device = CpuDevice::new()?;
            all(device.meta(), &cases, |case| device.measure(case))?
        }
        #[cfg(feature = "cuda")]
        BackendName::Cuda => {
            use syncbn_bench::cuda::CudaDevice;
            let device = if arguments.launched { CudaDevice::launched()? } else { CudaDevice::new(0)? };
            let run = all(device.meta()?, &cases, |case| device.measure(case))?;
            if !device.writes() {
                return Ok(());
            }
            run
        }
        #[cfg(feature = "wgpu")]
        BackendName::Wgpu => {
            let device = syncbn_bench::wgpu::WgpuDevice::new()?;
            all(device.meta(), &cases, |case| device.measure(case))?
        }
    };
    run.write(&arguments.out)?;
    println!("wrote {} figures to {}", run.rows.len(), arguments.out.display());
    Ok(())
}

fn all(meta: Meta, cases: &[Case], mut measure: impl FnMut(&Case) -> Result<Vec<Row>>) -> Result<Run> {
    let mut rows = Vec::new();
    for case in cases {
        let measured = measure(case).with_context(|| case.to_string())?;
        for row in &measured {
            let copy = row.copy_us.map_or(String::new(), |copy| format!(", copy of x {copy:.1}"));
            println!("{case} {} {}: {:.1} us{copy}", row.implementation, row.op, row.median_us);
        }
        rows.extend(measured);
    }
    Ok(Run { meta, rows })
}
