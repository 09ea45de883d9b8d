//! Ranks as processes over TCP: a law's test starts its own binary once for each rank of a group, and each of these processes runs
//! the same law up to the group that it belongs to.
//!
//! Laws make the same groups in the same order in every process, so a group's number is enough to find it.
//!
//! Deliberately not here: other hosts.

use std::cell::RefCell;
use std::env;
use std::io::Write;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use syncbn_comm::{JobToken, LaunchEnv, Rendezvous, TcpCommunicator};

use super::Body;
use crate::outcome::{Outcome, Verdict};
use crate::rank::{panic_text, together};
use crate::{broken, ensure};

/// Tells a process its rank, the number of ranks, the port and the group's number.
const RANK: &str = "SYNCBN_TESTKIT_RANK";
/// What a rank that has done its part exits with. A process that never reached its group ends with another code.
const DONE: i32 = 43;
/// How long ranks wait for each other to start, on a busy machine.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a group's processes may take in all.
const PATIENCE: Duration = Duration::from_secs(180);

thread_local! {
    /// The test that this thread runs, and how many groups it has made.
    static TEST: RefCell<Option<(String, u64)>> = const { RefCell::new(None) };
}

/// Notes that a law begins, in the test of this name.
pub(crate) fn begin(test: &str) {
    TEST.set(Some((test.to_owned(), 0)));
}

/// Runs `body` once in each of so many new processes. To be called by a law that runs as a test.
pub fn on_processes(
    world_size: NonZeroUsize,
    timeout: Duration,
    body: &Body<'_, TcpCommunicator>,
) -> Outcome {
    let next = TEST.with_borrow_mut(|test| {
        let (name, groups) = test.as_mut()?;
        *groups += 1;
        Some((name.clone(), *groups))
    });
    let Some((test, group)) = next else { return Err(broken!("no law runs as a test on this thread")) };
    match env::var(RANK) {
        Err(_) => start(&test, group, world_size),
        Ok(place) => {
            let (mine, env) = parse(&place)?;
            if mine == group { end(run(&env, timeout, body)) } else { Ok(()) }
        }
    }
}

/// Starts the ranks and waits for them.
fn start(test: &str, group: u64, world_size: NonZeroUsize) -> Outcome {
    let port = free_port();
    let start_one = |rank: usize| {
        Command::new(env::current_exe()?)
            .args(["--exact", test, "--nocapture"])
            .env(RANK, format!("{rank} {world_size} {port} {group}"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    };
    let ranks = (0..world_size.get()).map(start_one).collect::<Result<Vec<_>, _>>()?;
    let deadline = Instant::now() + PATIENCE;
    together(ranks.into_iter().map(|rank| wait(rank, deadline)).collect()).map(drop)
}

fn wait(mut rank: Child, deadline: Instant) -> Outcome {
    while rank.try_wait()?.is_none() {
        if Instant::now() > deadline {
            rank.kill()?;
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    let output = rank.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(DONE), "its process ended with {}: {said}", output.status);
    Ok(())
}

/// Group number and place of a process that [`start`] has started.
fn parse(place: &str) -> Outcome<(u64, LaunchEnv)> {
    let numbers: Vec<u64> = place.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [rank, world_size, port, group] = numbers[..] else { return Err(broken!("{RANK} is `{place}`")) };
    let env = LaunchEnv {
        rank: rank as usize,
        world_size: NonZeroUsize::try_from(world_size as usize)?,
        local_rank: rank as usize,
        rendezvous: Rendezvous { host: "localhost".into(), port: port as u16 },
        token: JobToken::of_secret(&format!("a law at port {port}")),
    };
    Ok((group, env))
}

fn run(env: &LaunchEnv, timeout: Duration, body: &Body<'_, TcpCommunicator>) -> Outcome {
    let communicator = TcpCommunicator::new(env, JOIN_TIMEOUT)?.with_timeout(timeout);
    catch_unwind(AssertUnwindSafe(|| body(communicator)))
        .unwrap_or_else(|panic| Err(broken!("panicked: {}", panic_text(&*panic))))
}

/// Ends the process of a rank.
fn end(outcome: Outcome) -> ! {
    let code = match outcome {
        Ok(()) => DONE,
        Err(Verdict::Broken(why) | Verdict::Skipped(why)) => {
            // The exit code says that it failed if nobody reads why.
            let _ = writeln!(std::io::stderr(), "{why}");
            1
        }
    };
    std::process::exit(code)
}

/// A port that nobody listens at, below those that the system gives to outgoing connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let from = (std::process::id() % 97 * 120) as u16;
    loop {
        let port = 20_000 + (from + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let is_free = |host| TcpListener::bind((host, port)).is_ok();
        if is_free("0.0.0.0") && is_free("::") {
            return port;
        }
    }
}
