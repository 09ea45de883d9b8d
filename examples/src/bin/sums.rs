//! What a sum over the ranks costs where they meet in host memory: microseconds a sum, and sums a second, of ranks that are threads and
//! of ranks that are processes over TCP on this machine.
//!
//! Deliberately not here: NCCL, whose sums are part of `cargo xtask bench --backend cuda`.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use syncbn_comm::{TcpCommunicator, threads};
use syncbn_core::{CollectiveId, HostCommunicator};
use syncbn_examples::{Result, processes};

/// Prints a line for each number of ranks, way of carrying them, and length of a sum.
#[derive(Parser)]
struct Args {
    /// How many ranks.
    #[arg(long, value_delimiter = ',', default_value = "2,4,8,16")]
    ranks: Vec<NonZeroUsize>,
    /// How many numbers a sum has: 257 are the forward sum of 64 channels, 8193 of 2048.
    #[arg(long, value_delimiter = ',', default_value = "257,8193")]
    numbers: Vec<usize>,
    /// How many sums a round times; the median of five rounds is printed.
    #[arg(long, default_value = "1000")]
    sums: u32,
}

const TIMEOUT: Duration = Duration::from_secs(60);
const ROUNDS: usize = 5;

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
    if processes::is_rank()? {
        return measure(&TcpCommunicator::from_env(TIMEOUT)?, "processes", args);
    }
    println!("| ranks | | numbers | us a sum | sums a second |\n|--:|---|--:|--:|--:|");
    for ranks in &args.ranks {
        let measured = threads::run(*ranks, TIMEOUT, |comm| measure(&comm, "threads", args))?;
        measured.into_iter().collect::<Result<()>>()?;
        processes::start(*ranks)?;
    }
    Ok(())
}

fn measure(comm: &impl HostCommunicator, carried: &str, args: &Args) -> Result<()> {
    for numbers in &args.numbers {
        let mut values = vec![1.0; *numbers];
        let id = CollectiveId::new("sums", *numbers);
        let mut round = || -> Result<f64> {
            let start = Instant::now();
            for _ in 0..args.sums {
                values.fill(1.0);
                comm.all_reduce_sum(&id, &mut values)?;
            }
            Ok(start.elapsed().as_secs_f64() / f64::from(args.sums))
        };
        round()?;
        let mut times = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<_>>>()?;
        times.sort_unstable_by(f64::total_cmp);
        let median = times[ROUNDS / 2];
        if comm.rank() == 0 {
            let (ranks, micros, rate) = (comm.world_size(), 1e6 * median, 1.0 / median);
            println!("| {ranks} | {carried} | {numbers} | {micros:.1} | {rate:.0} |");
        }
    }
    Ok(())
}
