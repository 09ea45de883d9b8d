//! Where the ranks are: threads of this process, or processes, on the CPU or on GPUs.

use std::io;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use syncbn_candle::Group;
use syncbn_comm::{BootstrapError, LaunchEnv, TcpCommunicator, threads};
use syncbn_core::HostCommunicator;

use crate::Result;

/// How long a rank waits for the others: rank 0 evaluates and writes files while they wait.
const TIMEOUT: Duration = Duration::from_secs(600);

const NOT_ALONE: &str = "one process has the whole batch: start it without a launcher";

/// The ranks of a run.
#[derive(Clone, Debug)]
pub enum World {
    /// Threads of this process, on so many GPUs; 0: on the CPU.
    Threads {
        /// The number of ranks.
        ranks: NonZeroUsize,
        /// The number of GPUs, which the ranks take in turn.
        gpus: usize,
    },
    /// This process is one of a launcher's, which meet over TCP.
    Tcp {
        /// This process's connections.
        communicator: Arc<TcpCommunicator>,
        /// Its number on its host.
        local_rank: usize,
        /// The number of GPUs of its host, which the ranks take in turn; 0: on the CPU.
        gpus: usize,
    },
    /// This process is one of a launcher's, each with a GPU, which meet over NCCL and inside their kernels.
    #[cfg(feature = "cuda")]
    Nccl(Place),
}

/// A rank's device and group.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it computes.
    pub device: Device,
    /// Whom it meets.
    pub group: Group,
}

impl World {
    /// Joins the launcher's other processes over TCP.
    pub fn tcp(gpus: usize) -> Result<Self> {
        let env = LaunchEnv::from_env()?;
        let communicator = Arc::new(TcpCommunicator::new(&env, TIMEOUT)?);
        Ok(Self::Tcp { communicator, local_rank: env.local_rank, gpus })
    }

    /// Joins the launcher's other processes over NCCL.
    #[cfg(feature = "cuda")]
    pub fn nccl() -> Result<Self> {
        let (device, group) = Group::from_env(TIMEOUT)?;
        Ok(Self::Nccl(Place { device, group }))
    }

    /// The number of ranks.
    #[must_use]
    pub fn size(&self) -> NonZeroUsize {
        match self {
            Self::Threads { ranks, .. } => *ranks,
            Self::Tcp { communicator, .. } => communicator.world_size(),
            #[cfg(feature = "cuda")]
            Self::Nccl(place) => place.group.world_size(),
        }
    }

    /// Whether rank 0 is here, which tells what happens.
    #[must_use]
    pub fn speaks(&self) -> bool {
        match self {
            Self::Threads { .. } => true,
            Self::Tcp { communicator, .. } => communicator.rank() == 0,
            #[cfg(feature = "cuda")]
            Self::Nccl(place) => place.group.rank() == 0,
        }
    }

    /// One rank in place of all.
    pub fn alone(&self) -> Result<Self> {
        match self {
            Self::Threads { gpus, .. } => Ok(Self::Threads { ranks: NonZeroUsize::MIN, gpus: *gpus }),
            Self::Tcp { .. } => Err(NOT_ALONE.into()),
            #[cfg(feature = "cuda")]
            Self::Nccl(_) => Err(NOT_ALONE.into()),
        }
    }

    /// Runs the ranks of this process.
    pub fn run<R: Send>(&self, body: impl Fn(&Place) -> Result<R> + Sync) -> Result<Vec<R>> {
        match self {
            Self::Threads { ranks, gpus } => {
                let rank = |communicator: threads::ThreadComm| {
                    body(&place(communicator.rank(), *gpus, communicator)?)
                };
                threads::run(*ranks, TIMEOUT, rank)?.into_iter().collect()
            }
            Self::Tcp { communicator, local_rank, gpus } => {
                Ok(vec![body(&place(*local_rank, *gpus, Arc::clone(communicator))?)?])
            }
            #[cfg(feature = "cuda")]
            Self::Nccl(place) => Ok(vec![body(place)?]),
        }
    }
}

/// A rank on the CPU, or on one of its host's GPUs.
fn place(local_rank: usize, gpus: usize, communicator: impl HostCommunicator + 'static) -> Result<Place> {
    let device = if gpus == 0 { Device::Cpu } else { Device::new_cuda(local_rank % gpus)? };
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        let group = Group::peers(&device, communicator, TIMEOUT)?;
        return Ok(Place { device, group });
    }
    Ok(Place { device, group: Group::via_host(communicator) })
}

/// Whether this process is a launcher's rank.
pub fn is_rank() -> Result<bool> {
    match LaunchEnv::from_env() {
        Ok(_) => Ok(true),
        Err(BootstrapError::NoLauncher) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Starts this program, with the same arguments, as every rank, and waits for all.
pub fn start(processes: NonZeroUsize) -> Result<()> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let ranks = (0..processes.get()).map(|rank| start_one(rank, processes, port));
    let mut failed = Vec::new();
    for (rank, child) in ranks.collect::<io::Result<Vec<Child>>>()?.iter_mut().enumerate() {
        let status = child.wait()?;
        if !status.success() {
            failed.push(format!("rank {rank}: {status}"));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}

fn start_one(rank: usize, processes: NonZeroUsize, port: u16) -> io::Result<Child> {
    let variables = [
        ("RANK", rank.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("WORLD_SIZE", processes.to_string()),
        ("MASTER_ADDR", "localhost".into()),
        ("SYNCBN_PORT", port.to_string()),
        ("SYNCBN_SECRET", format!("the ranks of process {}", std::process::id())),
    ];
    Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).envs(variables).spawn()
}
