//! Many training steps with batches of any size, on ranks that are threads or processes: the same bits on every rank, no growth of
//! memory, and ranks that sleep while they wait.
//!
//! Three layers in two groups: two over all ranks, one over every other rank. Each rank draws 0 to 5 samples a step.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use ndarray::Array3;
use syncbn_comm::{TcpCommunicator, ThreadComm, threads};
use syncbn_core::{CollectiveId, CommError, Config, Group, HostCommunicator, State, SyncBatchNorm, ViaHost};
use syncbn_cpu::{Cpu, backward_array, forward_array};
use syncbn_examples::{Result, processes};

/// Trains, and fails when ranks differ, memory grows, or a rank that waits does not sleep.
#[derive(Parser)]
struct Args {
    /// Ranks, each a thread.
    #[arg(long, default_value = "8")]
    ranks: NonZeroUsize,
    /// Ranks, each a process that this program starts, connected by TCP.
    #[arg(long, conflicts_with = "ranks")]
    processes: Option<NonZeroUsize>,
    /// Steps of training.
    #[arg(long, default_value_t = 20_000)]
    steps: u64,
}

const CHANNELS: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long all other ranks wait for rank 0 at the end.
const WAIT: Duration = Duration::from_secs(2);
/// How many KiB a process may grow.
const MOST_GROWTH: f64 = 4096.0;
/// How much of a core a rank that waits may use.
const MOST_CORE: f64 = 0.05;

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
    match args.processes {
        None => {
            let soak = |comm| soak(comm, ThreadComm::split, args.steps);
            threads::run(args.ranks, TIMEOUT, soak)?.into_iter().collect()
        }
        Some(_) if processes::is_rank()? => {
            soak(TcpCommunicator::from_env(TIMEOUT)?, TcpCommunicator::split, args.steps)
        }
        Some(number) => processes::start(number),
    }
}

/// Divides a group by colour and key.
type Split<C> = fn(&C, Option<u32>, i64) -> std::result::Result<Option<C>, CommError>;

fn soak<C: HostCommunicator + 'static>(comm: C, split: Split<C>, steps: u64) -> Result<()> {
    let parity = u32::from(comm.rank() % 2 == 1);
    let half = Arc::new(split(&comm, Some(parity), 0)?.ok_or("a split without this rank")?);
    let comm = Arc::new(comm);
    let start = Instant::now();
    let Trained { states: [first, second, third], early, late } = train(&comm, &half, steps)?;
    let seconds = start.elapsed().as_secs_f64();
    check_same(&*comm, &[first, second])?;
    check_same(&*half, &[third])?;
    let grown = largest(&*comm, late - early)?;
    let [early, late] = [largest(&*comm, early)?, largest(&*comm, late)?];
    let core = largest(&*comm, core_while_waiting(&*comm)?)?;
    if comm.rank() == 0 {
        println!(
            "{steps} steps of {} ranks: the same bits; {:.0} sums a second; at most {early} KiB resident after a tenth of the steps, \
             {late} at the end, {grown} more in one process; a rank that waits uses at most {:.1} % of a core",
            comm.world_size(),
            (6 * steps) as f64 / seconds,
            100.0 * core,
        );
    }
    if grown > MOST_GROWTH {
        return Err("memory grows".into());
    }
    if core > MOST_CORE { Err("a rank that waits does not sleep".into()) } else { Ok(()) }
}

/// What a rank ends with.
struct Trained {
    states: [State<f32>; 3],
    /// The KiB of its process that were resident after a tenth of the steps.
    early: f64,
    /// The same at the end.
    late: f64,
}

fn train<C: HostCommunicator + 'static>(all: &Arc<C>, half: &Arc<C>, steps: u64) -> Result<Trained> {
    let rank = all.rank();
    let [all, half] = [all, half].map(|group| Group::new(ViaHost(Arc::clone(group))));
    let layer = |name, group: &Group<Cpu>| {
        SyncBatchNorm::<Cpu, f32>::new(name, Config::new(CHANNELS), Cpu, &(), group.clone())
    };
    let mut layers = [layer("first", &all)?, layer("second", &all)?, layer("third", &half)?];
    let mut random = fastrand::Rng::with_seed(rank as u64);
    let mut early = 0.0;
    for step in 0..steps {
        all.set_step(step);
        half.set_step(step);
        let samples = random.usize(0..=5);
        let x = Array3::from_shape_simple_fn((samples, CHANNELS, 3), || random.f32() * 4.0 - 1.0);
        for layer in &mut layers {
            let (y, saved) = forward_array(layer, &x)?;
            backward_array(layer, &saved, &x, &y)?;
        }
        if step == steps / 10 {
            early = resident_kib()?;
        }
    }
    let late = resident_kib()?;
    let [first, second, third] = &mut layers;
    Ok(Trained { states: [first.state(&())?, second.state(&())?, third.state(&())?], early, late })
}

/// Whether all ranks of a group hold these very bits: each rank's, as whole numbers, are their mean.
fn check_same(comm: &impl HostCommunicator, states: &[State<f32>]) -> Result<()> {
    let mine: Vec<f64> = states.iter().flat_map(bits).collect();
    let mut sums = mine.clone();
    comm.all_reduce_sum(&CollectiveId::new("states", mine.len()), &mut sums)?;
    let ranks = comm.world_size().get() as f64;
    if sums.iter().zip(&mine).all(|(sum, mine)| *sum == ranks * mine) {
        return Ok(());
    }
    Err(format!("rank {} of {ranks} ended with other bits", comm.rank()).into())
}

fn bits(state: &State<f32>) -> Vec<f64> {
    let vectors = [&state.weight, &state.bias, &state.running_mean, &state.running_var];
    let numbers = vectors.into_iter().flatten().flatten().map(|number| f64::from(number.to_bits()));
    numbers.chain(state.num_batches_tracked.map(|tracked| tracked as f64)).collect()
}

/// The largest of the ranks' numbers.
fn largest(comm: &impl HostCommunicator, mine: f64) -> Result<f64> {
    let mut all = vec![0.0; comm.world_size().get()];
    all[comm.rank()] = mine;
    comm.all_reduce_sum(&CollectiveId::new("largest", all.len()), &mut all)?;
    Ok(all.into_iter().fold(f64::NEG_INFINITY, f64::max))
}

/// Which part of a core this rank uses while it waits for rank 0; 0 on rank 0.
fn core_while_waiting(comm: &impl HostCommunicator) -> Result<f64> {
    let before = ticks()?;
    if comm.rank() == 0 {
        thread::sleep(WAIT);
    }
    comm.all_reduce_sum(&CollectiveId::new("wait", 1), &mut [0.0])?;
    let used = (ticks()? - before) * TICK;
    Ok(if comm.rank() == 0 { 0.0 } else { used / WAIT.as_secs_f64() })
}

/// What the system counts a thread's time in, in seconds.
const TICK: f64 = 0.01;

/// The time that this thread has used, as user and in the system.
fn ticks() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let [user, system] = fields.get(11..13).ok_or("no times in /proc/thread-self/stat")? else {
        return Err("no times in /proc/thread-self/stat".into());
    };
    Ok(user.parse::<f64>()? + system.parse::<f64>()?)
}

fn resident_kib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number =
        line.and_then(|line| line.split_whitespace().next()).ok_or("no VmRSS in /proc/self/status")?;
    Ok(number.parse()?)
}
