//! Many training steps of thread ranks with batches of any size: the same bits on every rank, no growth of memory.
//!
//! Three layers in two groups: two over all ranks, one over every other rank. Each rank draws 0 to 5 samples a step.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use ndarray::Array3;
use syncbn_comm::{ThreadComm, threads};
use syncbn_core::{Config, Group, HostCommunicator as _, State, SyncBatchNorm, ViaHost};
use syncbn_cpu::{Cpu, backward_array, forward_array};
use syncbn_examples::Result;

/// Trains, and fails when ranks differ or memory grows.
#[derive(Parser)]
struct Args {
    /// Ranks, each a thread.
    #[arg(long, default_value = "8")]
    ranks: NonZeroUsize,
    /// Steps of training.
    #[arg(long, default_value_t = 20_000)]
    steps: u64,
}

const CHANNELS: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(60);

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
    let start = Instant::now();
    let ranks = threads::run(args.ranks, TIMEOUT, |comm| train(comm, args.steps))?;
    let seconds = start.elapsed().as_secs_f64();
    let states: Vec<Rank> = ranks.into_iter().collect::<Result<_>>()?;
    for (rank, Rank { states: mine, .. }) in states.iter().enumerate() {
        // Ranks of the same parity share all three layers, all ranks the first two.
        let peer = &states[rank % 2.min(states.len())].states;
        if mine != peer || mine[..2] != states[0].states[..2] {
            return Err(format!("rank {rank} ended with other bits").into());
        }
    }
    let grown = states.iter().filter_map(|rank| rank.grown).max();
    let sums = 6 * args.steps;
    println!(
        "{} steps of {} ranks: the same bits; {:.0} sums a second; resident memory grew by {} from a tenth of the way to the end",
        args.steps,
        args.ranks,
        sums as f64 / seconds,
        grown.map_or_else(|| "an unknown amount".to_owned(), |kib| format!("{kib} KiB")),
    );
    match grown {
        Some(kib) if kib > 4096 => Err("memory grows".into()),
        _ => Ok(()),
    }
}

/// What a rank ends with.
struct Rank {
    states: Vec<State<f32>>,
    /// By how many KiB the process has grown; `None` where the system does not tell.
    grown: Option<i64>,
}

fn train(comm: ThreadComm, steps: u64) -> Result<Rank> {
    let rank = comm.rank();
    let part = comm.split(Some(u32::from(rank % 2 == 1)), 0)?.ok_or("a split without this rank")?;
    let (all, half) = (Group::new(ViaHost(Arc::new(comm))), Group::new(ViaHost(part)));
    let layer = |name, group: &Group<Cpu>| {
        SyncBatchNorm::<Cpu, f32>::new(name, Config::new(CHANNELS), Cpu, &(), group.clone())
    };
    let mut layers = [layer("first", &all)?, layer("second", &all)?, layer("third", &half)?];
    let mut random = fastrand::Rng::with_seed(rank as u64);
    let (mut early, tenth) = (None, steps / 10);
    for step in 0..steps {
        all.set_step(step);
        half.set_step(step);
        let samples = random.usize(0..=5);
        let x = Array3::from_shape_simple_fn((samples, CHANNELS, 3), || random.f32() * 4.0 - 1.0);
        for layer in &mut layers {
            let (y, saved) = forward_array(layer, &x)?;
            backward_array(layer, &saved, &x, &y)?;
        }
        if step == tenth {
            early = resident_kib();
        }
    }
    let grown = early.zip(resident_kib()).map(|(early, late)| late - early);
    let states = layers.iter_mut().map(|layer| layer.state(&())).collect::<std::result::Result<_, _>>()?;
    Ok(Rank { states, grown })
}

fn resident_kib() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}
