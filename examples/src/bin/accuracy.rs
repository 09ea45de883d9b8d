//! Prints how exact the results over several ranks are, beside those of one.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use syncbn_core::Kernels;
use syncbn_examples::accuracy::{Row, measure};
use syncbn_examples::device::{Device, Host};
use syncbn_examples::{Result, demo};

/// Relative errors of y, dx and the running variance against a two-pass truth, over 1, 2, 7 and 64 ranks.
#[derive(Parser)]
struct Args {
    /// What computes.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    backend: Backend,
    /// Sums by NCCL, one GPU to a rank, instead of ranks that are threads and meet in host memory.
    #[arg(long)]
    nccl: bool,
    /// Writes the errors to this file, as a list of objects.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backend {
    /// The processor.
    Cpu,
    /// NVIDIA's GPUs; ranks share them where there are fewer.
    Cuda,
    /// The fastest GPU that wgpu finds, shared by the ranks; it has no f64.
    Wgpu,
}

/// Sizes of the mean, in standard deviations. The last of `f32` is its edge: there, it has one bit left for the deviations.
const F64: [f64; 7] = [1.0, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12];
const F32: [f64; 5] = [1.0, 1e2, 1e4, 1e6, 8e6];

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    match (args.backend, args.nccl) {
        (Backend::Cpu, false) => both(&Host, "cpu", args),
        (Backend::Cpu | Backend::Wgpu, true) => Err("NCCL needs `--backend cuda`".into()),
        #[cfg(feature = "cuda")]
        (Backend::Cuda, false) => both(&syncbn_examples::cuda::Gpus::new()?, "cuda", args),
        #[cfg(feature = "cuda")]
        (Backend::Cuda, true) => both(&syncbn_examples::cuda::NcclThreads::new()?, "cuda nccl", args),
        #[cfg(not(feature = "cuda"))]
        (Backend::Cuda, _) => Err("this was built without the feature `cuda`".into()),
        #[cfg(feature = "wgpu")]
        (Backend::Wgpu, false) => {
            show(&measure::<_, f32>(&syncbn_examples::wgpu::Gpu::new()?, "wgpu", &F32)?, args)
        }
        #[cfg(not(feature = "wgpu"))]
        (Backend::Wgpu, false) => Err("this was built without the feature `wgpu`".into()),
    }
}

fn both<D: Device>(device: &D, name: &str, args: &Args) -> Result<()>
where
    D::Backend: Kernels<f64>,
{
    let mut rows = measure::<_, f64>(device, name, &F64)?;
    rows.extend(measure::<_, f32>(device, name, &F32)?);
    show(&rows, args)
}

fn show(rows: &[Row], args: &Args) -> Result<()> {
    println!("backend    dtype  mean/std  ranks  y        dx       running_var");
    for Row { backend, dtype, mean_over_std, ranks, y, dx, running_var } in rows {
        println!(
            "{backend:<11}{dtype:<7}{mean_over_std:<10.0e}{ranks:<7}{y:<9.1e}{dx:<9.1e}{running_var:.1e}"
        );
    }
    if let Some(path) = &args.json {
        demo::make_parent(path)?;
        fs::write(path, serde_json::to_string_pretty(rows)? + "\n")?;
    }
    Ok(())
}
