//! TCP ranks as threads of a test.

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use syncbn_comm::{BootstrapError, JobToken, LaunchEnv, Rendezvous, TcpCommunicator};
use syncbn_core::{CollectiveId, CommError, HostCommunicator};

use super::PATIENT;

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
    let port = syncbn_testkit::comm::free_port();
    thread::scope(|scope| {
        let join = |rank| {
            scope.spawn(move || TcpCommunicator::new(&env(rank, world_size, port), Duration::from_secs(60)))
        };
        let ranks: Vec<_> = (0..world_size).map(join).collect();
        ranks.into_iter().map(|rank| Ok(rank.join().unwrap()?.with_timeout(timeout))).collect()
    })
}

/// A group whose ranks would wait for [`PATIENT`].
pub(crate) fn group<const N: usize>() -> [TcpCommunicator; N] {
    tcp_group(N, PATIENT).unwrap().try_into().unwrap()
}

/// What each rank's body returns.
pub(crate) fn each<R: Send>(
    comms: Vec<TcpCommunicator>,
    body: impl Fn(TcpCommunicator) -> R + Sync,
) -> Vec<R> {
    thread::scope(|scope| {
        let ranks: Vec<_> = comms.into_iter().map(|comm| scope.spawn(|| body(comm))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A sum in which rank r adds r + 1.
pub(crate) fn sum(comm: &impl HostCommunicator, id: &CollectiveId) -> Result<Vec<f64>, CommError> {
    let mut values = vec![comm.rank() as f64 + 1.0; id.length];
    comm.all_reduce_sum(id, &mut values)?;
    Ok(values)
}
