//! How processes become ranks: what their launcher has told them, and how they get the few bytes with which a library
//! such as NCCL lets them meet.
//!
//! [`LaunchEnv::from_env`] reads what torchrun, Open MPI and SLURM set; [`share`] hands rank 0's bytes to all ranks over TCP,
//! within a deadline, and names the ranks that did not come.
//!
//! Rank 0 listens at every address of its machine, and the others try every address of its name. Both sides prove that they
//! belong to the job: `wire` is what they say, `accept` and `connect` are the two sides. Connections of others, silent ones and slow
//! ones are not accepted, and delay no rank.
//!
//! Deliberately not here: sums. A rendezvous happens once.

pub(crate) mod accept;
pub(crate) mod connect;
pub(crate) mod connection;
mod env;
pub(crate) mod exchange;
mod resolve;
mod token;
pub(crate) mod wire;

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::time::Duration;

pub use exchange::share;
pub use token::JobToken;

/// The most processes that can meet.
pub const MAX_WORLD_SIZE: usize = 1 << 20;

/// What a process's launcher has told it: its place among all that were started, and where they meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchEnv {
    /// This process, from 0.
    pub rank: usize,
    /// The number of processes.
    pub world_size: NonZeroUsize,
    /// This process among those of its machine, from 0: which of the machine's devices it takes.
    pub local_rank: usize,
    /// Where rank 0 listens, as host and port.
    pub rendezvous: Rendezvous,
    /// What proves that a process belongs to this job.
    pub token: JobToken,
}

/// Where rank 0 listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendezvous {
    /// The host's name or address; of a name, every address is tried.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl LaunchEnv {
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
    ///
    /// The job's token is that of `SYNCBN_SECRET`, or of the launcher's job id: `TORCHELASTIC_RUN_ID`; `PMIX_NAMESPACE` or
    /// `OMPI_MCA_ess_base_jobid`; `SLURM_JOB_ID` and, under srun, `SLURM_STEP_ID`. Without any of them it is the same for all jobs.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::NoLauncher`] without any launcher's variables; [`MissingVariable`](BootstrapError::MissingVariable),
    /// [`NotUnicode`](BootstrapError::NotUnicode), [`BadVariable`](BootstrapError::BadVariable), [`Rank`](BootstrapError::Rank): of theirs.
    pub fn from_env() -> Result<Self, BootstrapError> {
        env::launch_env(&|name| std::env::var_os(name))
    }

    /// Whether the numbers can be true.
    fn check(&self) -> Result<(), BootstrapError> {
        let (rank, world_size) = (self.rank, self.world_size.get());
        if rank < world_size && world_size <= MAX_WORLD_SIZE {
            return Ok(());
        }
        Err(BootstrapError::Rank { rank, world_size })
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
    /// A variable is there, and is not text.
    #[error("{name} is not UTF-8")]
    NotUnicode {
        /// The variable.
        name: &'static str,
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
    /// The rank or the number of ranks is out of range.
    #[error(
        "rank {rank} of {world_size}, expected a lower rank than the number of ranks, which is at most {MAX_WORLD_SIZE}"
    )]
    Rank {
        /// The rank.
        rank: usize,
        /// The number of ranks.
        world_size: usize,
    },
    /// The rendezvous has port 0, at which nobody can be reached.
    #[error(
        "the rendezvous has port 0, at which nobody can be reached: rank 0 has to announce one (TcpCommunicator::host)"
    )]
    NoPort,
    /// The system has no sockets, or no random numbers, to give.
    #[error("the system refused what meeting other ranks needs: {source}")]
    System {
        /// What the system said.
        source: io::Error,
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
        "rank {rank} of {world_size} got no answer from rank 0 at {rendezvous} within {timeout:?}: {reason}"
    )]
    NoAnswer {
        /// The rank that reports it.
        rank: usize,
        /// The number of ranks.
        world_size: usize,
        /// Where rank 0 should be.
        rendezvous: Rendezvous,
        /// The time that was waited.
        timeout: Duration,
        /// What the last attempt said.
        reason: String,
    },
    /// Some ranks did not come to rank 0 in time.
    #[error("ranks {} of {world_size} did not come within {timeout:?}{}", Few(missing), Rejected(rejected))]
    Missing {
        /// The ranks that did not come.
        missing: Vec<usize>,
        /// The number of ranks.
        world_size: usize,
        /// The time that was waited.
        timeout: Duration,
        /// The connections that rank 0 did not accept, and why.
        rejected: Vec<String>,
    },
    /// Rank 0 was told of another number of ranks.
    #[error("rank {rank} was started as one of {got} ranks, and rank 0 as one of {expected}")]
    WorldSize {
        /// The rank that reports it.
        rank: usize,
        /// The number of ranks that it knows of.
        got: usize,
        /// The number that rank 0 knows of.
        expected: usize,
    },
    /// All ranks met at rank 0, and some could not be connected to each other.
    #[error(
        "rank {rank} of {world_size} was not connected to ranks {} within {timeout:?}{}{}",
        Few(missing),
        if reason.is_empty() { "" } else { ": " },
        reason
    )]
    Unlinked {
        /// The rank that reports it.
        rank: usize,
        /// The number of ranks.
        world_size: usize,
        /// The ranks that it has no connection to.
        missing: Vec<usize>,
        /// The time that was waited.
        timeout: Duration,
        /// What was tried, and what came instead.
        reason: String,
    },
    /// Another process has come to rank 0 with this process's rank.
    #[error("another process was started as rank {rank} of {world_size}, too")]
    TwoOfOneRank {
        /// The rank.
        rank: usize,
        /// The number of ranks.
        world_size: usize,
    },
}

/// The first of many ranks.
struct Few<'a>(&'a [usize]);

impl fmt::Display for Few<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..32) {
            Some(first) if self.0.len() > 32 => write!(f, "{first:?} and {} more", self.0.len() - 32),
            _ => write!(f, "{:?}", self.0),
        }
    }
}

struct Rejected<'a>(&'a [String]);

impl fmt::Display for Rejected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; not accepted: {}", self.0.join("; ")) }
    }
}
