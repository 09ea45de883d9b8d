//! TCP ranks as threads of a test.

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

pub(crate) use syncbn_testkit::comm::free_port;

use syncbn_comm::{BootstrapError, JobToken, LaunchEnv, Rendezvous, TcpCommunicator};

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
