//! The command line: a training run, the demo, or the measurement of time alone.

use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use candle_core::DType;
use candle_trainer::resnet::Size;
use candle_trainer::trainer::{Settings, Way};
use candle_trainer::world::{self, World};
use candle_trainer::{Result, data, demo, speed};
use clap::{Parser, Subcommand};

/// A residual network on handwritten digits, trained by candle on several ranks with batch norm over all of them.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains in one way.
    Train(Train),
    /// Trains in the three ways, and fails where a claim does not hold.
    Demo(Demo),
    /// Measures a forward and a backward pass beside candle's own.
    Speed {
        /// How often each layer runs.
        #[arg(long, default_value_t = 20)]
        rounds: usize,
    },
}

#[derive(clap::Args)]
struct Network {
    /// The number of ranks, each a thread.
    #[arg(long, default_value = "8")]
    ranks: NonZeroUsize,
    /// Trains on so many GPUs, which the ranks take in turn; 0: on the CPU.
    #[arg(long, default_value_t = 0)]
    gpus: usize,
    /// Samples of a rank in a step.
    #[arg(long, default_value_t = 1)]
    samples: usize,
    /// Passes over the samples.
    #[arg(long, default_value_t = 3)]
    epochs: usize,
    /// Channels of the first stage; He et al. have 16.
    #[arg(long, default_value_t = 8)]
    width: usize,
    /// Blocks of each stage; 3 make a ResNet-20.
    #[arg(long, default_value_t = 3)]
    blocks: usize,
    /// The highest learning rate.
    #[arg(long, default_value_t = 0.05)]
    rate: f64,
    /// What variables and orders are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(clap::Args)]
struct Train {
    #[command(flatten)]
    network: Network,
    /// Whose samples a batch norm's statistics are of.
    #[arg(long, value_enum, default_value_t = Way::Sync)]
    way: Way,
    /// Trains on the PNG and JPEG files of this folder, which has a folder for each class, in place of the digits.
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
    /// Height and width to which these images are resized.
    #[arg(long, default_value_t = 32)]
    side: usize,
    /// Starts so many processes, each a rank, which meet over TCP.
    #[arg(long, value_name = "N", conflicts_with = "tcp")]
    processes: Option<NonZeroUsize>,
    /// This process is a rank, as torchrun, mpirun or srun has started it; the ranks meet over TCP.
    #[arg(long)]
    tcp: bool,
    /// This process is a rank with a GPU, as torchrun, mpirun or srun has started it; the ranks meet over NCCL.
    #[cfg(feature = "cuda")]
    #[arg(long, conflicts_with_all = ["tcp", "processes"])]
    nccl: bool,
    /// Writes variables and optimiser to this safetensors file after every epoch.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Goes on from this file, with the same settings.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Demo {
    #[command(flatten)]
    network: Network,
    /// Writes what was found to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the picture to this file.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/demo/candle.svg"))]
    svg: PathBuf,
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
    let out = &mut io::stdout();
    match args.command {
        Command::Train(train) => run_train(train, out),
        Command::Demo(Demo { network, json, svg }) => {
            let report = demo::run(&settings(&network), &svg, out)?;
            if let Some(path) = json {
                fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
            }
            demo::judge(&report, out)
        }
        Command::Speed { rounds } => {
            let times = speed::SHAPES.map(|shape| speed::measure(shape, rounds));
            demo::show_times(&times.into_iter().collect::<Result<Vec<_>>>()?, out)
        }
    }
}

fn run_train(train: Train, out: &mut dyn Write) -> Result<()> {
    if let Some(processes) = train.processes
        && !world::is_rank()?
    {
        return world::start(processes);
    }
    let world = world(&train)?;
    let data = match &train.images {
        Some(folder) => data::folder(folder, train.side, DType::F32)?,
        None => data::digits(DType::F32)?,
    };
    let Train { network, way, checkpoint, resume, .. } = train;
    let settings = Settings { way, world, checkpoint, resume, ..settings(&network) };
    let outcome = demo::with_progress(&settings, &data)?;
    if settings.world.speaks() {
        for (epoch, accuracy) in outcome.accuracies.iter().enumerate() {
            writeln!(out, "epoch {:>3} of this run: accuracy {:5.1} %", epoch + 1, 100.0 * accuracy)?;
        }
        writeln!(out, "{:.0} images/s", outcome.images_per_second)?;
    }
    Ok(())
}

fn world(train: &Train) -> Result<World> {
    #[cfg(feature = "cuda")]
    if train.nccl {
        return World::nccl();
    }
    let tcp = train.tcp || train.processes.is_some();
    if tcp { World::tcp(train.network.gpus) } else { Ok(threads(&train.network)) }
}

fn threads(network: &Network) -> World {
    World::Threads { ranks: network.ranks, gpus: network.gpus }
}

fn settings(network: &Network) -> Settings {
    let &Network { samples, epochs, width, blocks, rate, seed, .. } = network;
    Settings {
        way: Way::Sync,
        world: threads(network),
        samples,
        epochs,
        size: Size { width, blocks },
        rate,
        seed,
        dtype: DType::F32,
        checkpoint: None,
        resume: None,
        stop_after: None,
    }
}
