//! How many sums a group of processes does in a second over loopback: `cargo run --release --example tcp_calls_per_second`.
//!
//! It starts itself once for each rank, and says also how much memory a rank has gained from a tenth of the way to the end.

use std::error::Error;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use syncbn_comm::TcpCommunicator;
use syncbn_core::{CollectiveId, CollectiveKind, Dtype, HostCommunicator, Pass};

const CHANNELS: usize = 256;
const CALLS: u64 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::var_os("RANK").is_some() {
        return rank();
    }
    for world_size in [2_usize, 4, 8, 16] {
        let start = |rank| start(rank, world_size);
        let ranks = (0..world_size).map(start).collect::<Result<Vec<Child>, _>>()?;
        for mut rank in ranks {
            if !rank.wait()?.success() {
                return Err("a rank failed".into());
            }
        }
    }
    Ok(())
}

fn start(rank: usize, world_size: usize) -> std::io::Result<Child> {
    let variables = [
        ("RANK", rank.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("WORLD_SIZE", world_size.to_string()),
        ("MASTER_ADDR", "localhost".into()),
        ("SYNCBN_PORT", (29_600 + world_size).to_string()),
    ];
    Command::new(std::env::current_exe()?).envs(variables).spawn()
}

fn rank() -> Result<(), Box<dyn Error>> {
    let comm = TcpCommunicator::from_env(Duration::from_secs(60))?;
    let pass = Pass::Forward;
    let id =
        CollectiveId::new("bn", pass.message_len(CHANNELS, Dtype::F32)).with_kind(CollectiveKind::Pass(pass));
    let mut values = vec![0.0; id.length];
    let mut sum = |number: u64| comm.all_reduce_sum(&id.clone().with_use(number, 0), &mut values);
    let tenth = CALLS / 10;
    (0..tenth).try_for_each(&mut sum)?;
    let (memory, start) = (resident(), Instant::now());
    (tenth..CALLS).try_for_each(&mut sum)?;
    let elapsed = start.elapsed().as_secs_f64();
    if comm.rank() == 0 {
        let (ranks, calls) = (comm.world_size(), (CALLS - tenth) as f64);
        let grown =
            memory.zip(resident()).map_or("unknown".into(), |(before, now)| format!("{} KiB", now - before));
        let micros = elapsed / calls * 1e6;
        println!(
            "{ranks} processes: {:.0} sums a second, {micros:.0} us a sum, grown by {grown}",
            calls / elapsed
        );
    }
    Ok(())
}

/// The memory that this process holds, in KiB, where the system tells.
fn resident() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
