//! How processes become ranks: what their launcher has told them, and how they get the few bytes with which a library
//! such as NCCL lets them meet.
//!
//! [`Place::from_env`] reads what torchrun, Open MPI and SLURM set; [`share`] hands rank 0's bytes to all ranks over TCP,
//! within a deadline, and names the ranks that did not come.
//!
//! Deliberately not here: sums. What meets here meets once.

mod env;
mod exchange;

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::time::Duration;

pub use exchange::share;

/// A process's place among all that its launcher has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// This process, from 0.
    pub rank: usize,
    /// The number of processes.
    pub world_size: NonZeroUsize,
    /// This process among those of its machine, from 0: which of the machine's devices it takes.
    pub local_rank: usize,
    /// Where rank 0 listens, as host and port.
    pub meeting: Meeting,
}

/// Where rank 0 listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    /// The host's name or address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Place {
    /// What the launcher has set, the first of these families whose rank is there:
    ///
    /// | launcher | rank | world size | local rank |
    /// |---|---|---|---|
    /// | torchrun | `RANK` | `WORLD_SIZE` | `LOCAL_RANK` |
    /// | Open MPI | `OMPI_COMM_WORLD_RANK` | `OMPI_COMM_WORLD_SIZE` | `OMPI_COMM_WORLD_LOCAL_RANK` |
    /// | SLURM | `SLURM_PROCID` | `SLURM_NTASKS` | `SLURM_LOCALID` |
    ///
    /// Rank 0 listens at `MASTER_ADDR` (without it: SLURM's `SLURM_LAUNCH_NODE_IPADDR`; this machine, if the launcher says
    /// that all ranks are on it), one port above `MASTER_PORT`, since torchrun itself listens at that one; `SYNCBN_PORT` names
    /// another.
    pub fn from_env() -> Result<Self, BootstrapError> {
        env::place(&|name| std::env::var(name).ok())
    }
}

/// Processes could not become ranks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// No launcher's variables are there.
    #[error(
        "no rank in the environment: expected RANK, OMPI_COMM_WORLD_RANK or SLURM_PROCID, as torchrun, mpirun or srun set them"
    )]
    NoLauncher,
    /// A variable that goes with the rank is missing.
    #[error("the environment has {present} but not {missing}")]
    MissingVariable {
        /// The variable that is there.
        present: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// A variable is no number, or none that fits the others.
    #[error("{name} is `{value}`, expected {expected}")]
    BadVariable {
        /// The variable.
        name: &'static str,
        /// What it is.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// Rank 0 cannot listen.
    #[error("rank 0 cannot listen at port {port}: {source}; SYNCBN_PORT names another port")]
    Listen {
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// Rank 0 was not reached, or did not answer.
    #[error(
        "rank {rank} of {world_size} got no answer from rank 0 at {meeting} within {timeout:?}: {reason}"
    )]
    NoAnswer {
        /// The rank that reports it.
        rank: usize,
        /// The number of ranks.
        world_size: usize,
        /// Where rank 0 should be.
        meeting: Meeting,
        /// The time that was waited.
        timeout: Duration,
        /// What the last attempt said.
        reason: String,
    },
    /// Some ranks did not come to rank 0 in time.
    #[error("ranks {missing:?} of {world_size} did not come within {timeout:?}")]
    Missing {
        /// The ranks that did not come.
        missing: Vec<usize>,
        /// The number of ranks.
        world_size: usize,
        /// The time that rank 0 waited.
        timeout: Duration,
    },
    /// A process came to rank 0 that does not belong to the same world.
    #[error(
        "a process came as rank {rank} of {got}, expected one of the other ranks of {expected}, each once"
    )]
    Stranger {
        /// The rank that it says it is.
        rank: usize,
        /// The number of ranks that it knows of.
        got: usize,
        /// The number of ranks.
        expected: usize,
    },
}
