//! The demo's command line. It exits with a failure when one of the demo's claims does not hold.

use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use syncbn_examples::device::Device;
use syncbn_examples::processes::{self, Process};
use syncbn_examples::{Result, demo, device};

/// Batch norm on one process, on local ranks and on synchronised ranks, side by side.
#[derive(Parser)]
struct Args {
    /// Where batch norm runs.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    backend: Backend,
    /// What connects the ranks.
    #[arg(long, value_enum, default_value_t = Comm::Threads)]
    comm: Comm,
    /// Ranks of the toy model, each with one sample; at least 2. Threads: 4 if absent. NCCL: as many as there are.
    #[arg(long, value_parser = at_least_two)]
    ranks: Option<NonZeroUsize>,
    /// Starts this program as so many processes, each a rank, connected by TCP; at least 2.
    #[arg(long, value_parser = at_least_two, conflicts_with_all = ["comm", "ranks"])]
    processes: Option<NonZeroUsize>,
    /// Writes what was found to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the picture of the loss curves to this file.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/demo/loss.svg"))]
    svg: PathBuf,
    /// What weights and data are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Backend {
    /// The processor.
    Cpu,
    /// NVIDIA's GPUs; ranks share them where there are fewer.
    Cuda,
    /// The fastest GPU that wgpu finds, shared by the ranks.
    Wgpu,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Comm {
    /// Ranks are threads, and meet in host memory.
    Threads,
    /// NCCL, one GPU to a rank: all GPUs of this machine, or one a process under torchrun, mpirun or srun.
    Nccl,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    match (args.backend, args.comm) {
        (Backend::Cpu, Comm::Threads) => show_host(device::Host, args),
        (Backend::Cpu | Backend::Wgpu, Comm::Nccl) => Err("NCCL needs `--backend cuda`".into()),
        #[cfg(feature = "cuda")]
        (Backend::Cuda, comm) => on_gpus(comm, args),
        #[cfg(not(feature = "cuda"))]
        (Backend::Cuda, _) => Err("this demo was built without the feature `cuda`".into()),
        #[cfg(feature = "wgpu")]
        (Backend::Wgpu, Comm::Threads) => show_host(syncbn_examples::wgpu::Gpu::new()?, args),
        #[cfg(not(feature = "wgpu"))]
        (Backend::Wgpu, Comm::Threads) => Err("this demo was built without the feature `wgpu`".into()),
    }
}

#[cfg(feature = "cuda")]
fn on_gpus(comm: Comm, args: Args) -> Result<()> {
    use syncbn_examples::cuda::{Gpus, NcclProcess, NcclThreads};
    if comm == Comm::Threads {
        return show_host(Gpus::new()?, args);
    }
    match NcclProcess::new()? {
        Some(process) => show(&process, args),
        None => show(&NcclThreads::new()?, args),
    }
}

/// Runs the demo on threads, or on processes where they are asked for.
fn show_host<D: Device>(device: D, args: Args) -> Result<()> {
    match args.processes {
        None => show(&device, args),
        Some(_) if processes::is_rank()? => show(&Process::join(device)?, args),
        Some(number) => processes::start(number),
    }
}

/// Runs the demo; of several processes, one speaks.
fn show(device: &impl Device, args: Args) -> Result<()> {
    let Args { ranks, json, svg, seed, .. } = args;
    let out: &mut dyn Write = if device.speaks() { &mut io::stdout() } else { &mut io::sink() };
    let report = demo::run(device, &demo::Options { ranks, seed, svg }, out)?;
    if let Some(path) = json.filter(|_| device.speaks()) {
        demo::make_parent(&path)?;
        fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    demo::judge(&report, out)
}

fn at_least_two(text: &str) -> Result<NonZeroUsize> {
    let ranks: NonZeroUsize = text.parse()?;
    if ranks.get() >= 2 { Ok(ranks) } else { Err("one rank has nothing to synchronise with".into()) }
}
