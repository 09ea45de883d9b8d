//! One process for each GPU, as torchrun or mpirun starts them. This program starts itself once for each rank.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Rig, devices, needs, pixels};
use libtest_mimic::{Arguments, Trial};
use syncbn_comm::{LaunchEnv, TcpCommunicator};
use syncbn_core::{Communicator, ViaHost};
use syncbn_cuda::Cuda;
use syncbn_cuda::nccl::{NcclCommunicator, NcclId};
use syncbn_cuda::peers::PeerCommunicator;

/// What a started process does.
const ROLE: &str = "SYNCBN_TEST_ROLE";
/// How long a sum may take, and a rank may be late.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match std::env::var(ROLE).as_deref() {
        Ok("average") => average(Over::Nccl),
        Ok("average with peers") => average(Over::Peers),
        Ok("train") => train(Over::Nccl),
        Ok("train with peers") => train(Over::Peers),
        Ok("open") => open(),
        Ok(role) => panic!("no role `{role}`"),
        Err(_) => {
            let trials = vec![
                trial("processes_of_a_launcher_share_their_statistics", || share_statistics(Over::Nccl)),
                trial("processes_that_meet_inside_kernels_do_too", || share_statistics(Over::Peers)),
                trial("a_process_that_is_killed_is_an_error_in_time_for_the_others", || {
                    lose_one(Over::Nccl, "KILL");
                }),
                trial("a_peer_that_is_killed_is_an_error_in_time_for_the_others", || {
                    lose_one(Over::Peers, "KILL");
                }),
                trial("a_peer_that_stops_is_an_error_in_time_for_the_others", || {
                    lose_one(Over::Peers, "STOP");
                }),
                trial("what_is_missing_is_named_with_what_to_install", hide_libraries),
                trial("a_launcher_that_starts_too_few_is_told_who_is_missing", start_too_few),
            ];
            return libtest_mimic::run(&Arguments::from_args(), trials).exit_code();
        }
    }
    ExitCode::SUCCESS
}

fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// A rank's samples: uneven, and none on the last where there are several.
fn samples(rank: usize, world_size: usize) -> usize {
    if rank + 1 == world_size && rank > 0 { 0 } else { 2 + rank }
}

/// How the processes meet.
#[derive(Clone, Copy)]
enum Over {
    Nccl,
    /// Inside their kernels, without NCCL.
    Peers,
}

fn join(over: Over, timeout: Duration) -> (Cuda, Arc<dyn Communicator<Cuda>>) {
    match over {
        Over::Nccl => {
            let (cuda, nccl) = NcclCommunicator::from_env(timeout).unwrap();
            (cuda, Arc::new(nccl))
        }
        Over::Peers => {
            let cuda = Cuda::open(LaunchEnv::from_env().unwrap().local_rank).unwrap();
            // Only kernels are held to the time-out: a device on which a process was killed may take seconds to open.
            let tcp = TcpCommunicator::from_env(PATIENCE).unwrap();
            let peers = PeerCommunicator::new(&cuda, ViaHost(tcp), timeout).unwrap();
            assert_eq!(peers.reason().is_none(), peers.world_size().get() > 1, "{peers:?}");
            (cuda, Arc::new(peers))
        }
    }
}

/// Prints the running mean that a few steps leave.
fn average(over: Over) {
    let (cuda, communicator) = join(over, PATIENCE);
    let samples = samples(communicator.rank(), communicator.world_size().get());
    let mut rig = Rig::new(&cuda, communicator, samples);
    for _ in 0..5 {
        rig.step();
    }
    println!("{:?}", rig.written().0.running_mean.unwrap());
}

/// Trains until something fails, and prints what.
fn train(over: Over) {
    let (cuda, communicator) = join(over, TIMEOUT);
    let mut rig = Rig::new(&cuda, communicator, 3);
    loop {
        // A failure is told by the pass that comes next, or by whoever waits for the queue.
        match rig.try_step().and_then(|()| rig.layer.state(&rig.queue)) {
            Ok(state) => println!("{:?}", state.num_batches_tracked),
            Err(error) => return println!("failed: {error}"),
        }
    }
}

/// Opens a device and NCCL, both of which are missing, and prints the errors.
fn open() {
    println!("{}", Cuda::open(0).unwrap_err());
    println!("{}", NcclId::new().unwrap_err());
}

/// Without NVRTC and NCCL. Where the driver is missing, too, the error names that.
fn hide_libraries() {
    let missing = "/missing/library.so";
    let output = Command::new(std::env::current_exe().unwrap())
        .envs([(ROLE, "open"), ("SYNCBN_NVRTC", missing), ("SYNCBN_NCCL", missing)])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let [device, nccl] = said.lines().collect::<Vec<_>>()[..] else {
        panic!("{said}{}", String::from_utf8_lossy(&output.stderr))
    };
    let driver =
        device.starts_with("libcuda cannot be loaded (") && device.ends_with("install NVIDIA's driver");
    let nvrtc = device.starts_with("libnvrtc cannot be loaded (") && device.contains("set SYNCBN_NVRTC");
    assert!(driver || (nvrtc && device.contains(missing)), "{device}");
    assert!(nccl.starts_with("libnccl cannot be loaded (") && nccl.contains(missing), "{nccl}");
    assert!(nccl.contains("install NCCL 2.18") && nccl.contains("SYNCBN_NCCL"), "{nccl}");
}

impl Over {
    /// The GPUs to use; none where NCCL is needed and missing.
    fn world_size(self) -> usize {
        match (self, NcclId::new()) {
            (Self::Nccl, Err(error)) => common::missing("nccl", &error).map_or(0, |_| 0),
            _ => devices().len(),
        }
    }

    /// Starts so many ranks of `world_size` as torchrun would.
    fn start(self, action: &str, world_size: usize, started: usize) -> Vec<Child> {
        match self {
            Self::Nccl => start(action, world_size, started),
            Self::Peers => start(&format!("{action} with peers"), world_size, started),
        }
    }
}

fn start(role: &str, world_size: usize, started: usize) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rank = |rank: usize| {
        let variables = [
            (ROLE, role.to_owned()),
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("WORLD_SIZE", world_size.to_string()),
            ("MASTER_ADDR", "127.0.0.1".into()),
            ("SYNCBN_PORT", port.to_string()),
        ];
        Command::new(std::env::current_exe().unwrap())
            .envs(variables)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    (0..started).map(rank).collect()
}

fn share_statistics(over: Over) {
    let world_size = over.world_size();
    if world_size == 0 {
        return;
    }
    let mut printed = Vec::new();
    for child in over.start("average", world_size, world_size) {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        printed.push(String::from_utf8(output.stdout).unwrap());
    }
    assert!(printed.iter().all(|mean| *mean == printed[0]), "ranks differ: {printed:?}");
    let mean: Vec<f64> =
        printed[0].trim().trim_matches(['[', ']']).split(", ").map(|m| m.parse().unwrap()).collect();
    for (channel, mean) in mean.iter().enumerate() {
        let all: Vec<f64> =
            (0..world_size).flat_map(|rank| pixels(samples(rank, world_size), channel)).collect();
        let expected = all.iter().sum::<f64>() / all.len() as f64;
        assert!(
            (mean - expected).abs() <= 1e-6 * expected.abs(),
            "channel {channel}: {mean}, expected {expected}"
        );
    }
}

/// Sends the signal to the last rank, and checks the errors of all others.
fn lose_one(over: Over, signal: &str) {
    let world_size = over.world_size();
    if world_size < 2 {
        return needs("2 GPUs");
    }
    let mut ranks = over.start("train", world_size, world_size);
    let mut lines: Vec<_> =
        ranks.iter_mut().map(|rank| BufReader::new(rank.stdout.take().unwrap())).collect();
    for (rank, lines) in ranks.iter_mut().zip(&mut lines) {
        wait_for_a_step(rank, lines);
    }
    let mut lost = ranks.pop().unwrap();
    drop(lines.pop());
    let sent = Command::new("kill").args(["-s", signal, &lost.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let killed = Instant::now();
    for (rank, (child, lines)) in ranks.iter_mut().zip(lines).enumerate() {
        let last = lines.lines().map(Result::unwrap).last().unwrap();
        assert!(killed.elapsed() < TIMEOUT + PATIENCE / 4, "{:?}: {last}", killed.elapsed());
        let place = format!("rank {rank} of {world_size}");
        assert!(last.starts_with("failed: ") && last.contains(&place) && last.contains("`bn`"), "{last}");
        // NCCL does not tell who is missing.
        let named = last.contains(&format!("ranks [{}]", world_size - 1)) || matches!(over, Over::Nccl);
        assert!(named, "{last}");
        println!("{:?} after the kill, {last}", killed.elapsed());
        assert!(child.wait().unwrap().success());
    }
    let _ = lost.kill();
    lost.wait().unwrap();
}

fn wait_for_a_step(rank: &mut Child, lines: &mut BufReader<ChildStdout>) {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    if !line.starts_with("Some") {
        let _ = rank.kill();
        let said = std::io::read_to_string(rank.stderr.take().unwrap()).unwrap();
        panic!("the rank made no step: {line}{said}");
    }
}

fn start_too_few() {
    if Over::Nccl.world_size() == 0 {
        return;
    }
    let mut ranks = Over::Nccl.start("train", 3, 1);
    let output = ranks.remove(0).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("[1, 2]"), "{said}");
}
