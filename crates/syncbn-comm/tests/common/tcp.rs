//! TCP ranks as threads of a test, and ports for them.

use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use syncbn_comm::{BootstrapError, JobToken, LaunchEnv, Rendezvous, TcpCommunicator};

/// A port that nobody listens at, below those that the system gives to outgoing connections.
pub(crate) fn free_port() -> u16 {
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

pub(crate) fn env(rank: usize, world_size: usize, port: u16) -> LaunchEnv {
    LaunchEnv {
        rank,
        world_size: NonZeroUsize::new(world_size).unwrap(),
        local_rank: rank,
        rendezvous: Rendezvous { host: "localhost".into(), port },
        token: JobToken::of_secret("the test's"),
    }
}

/// All ranks of a new group, each joined on a thread of its own.
pub(crate) fn tcp_group(
    world_size: usize,
    timeout: Duration,
) -> Result<Vec<TcpCommunicator>, BootstrapError> {
    let port = free_port();
    thread::scope(|scope| {
        let join = |rank| {
            scope.spawn(move || TcpCommunicator::new(&env(rank, world_size, port), Duration::from_secs(60)))
        };
        let ranks: Vec<_> = (0..world_size).map(join).collect();
        ranks.into_iter().map(|rank| Ok(rank.join().unwrap()?.with_timeout(timeout))).collect()
    })
}
