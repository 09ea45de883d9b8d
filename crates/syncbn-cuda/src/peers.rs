//! Ranks of one host that meet inside the kernels: each writes its numbers into its peers' device memory.
//!
//! A sum over the ranks then needs no kernel and no call of its own: the kernel that sums sends each channel's numbers when they are ready,
//! and the next kernel, or the same one where a pass is one launch, waits for those that it needs. The ranks' messages are added in the
//! order of the ranks, so the bits are those of a communicator in host memory.
//!
//! # Which ranks
//!
//! One rank to a device, up to 16 ranks of one host (tested with 2 and 4, and with 8 emulated ones), as threads of one process or as
//! processes. The devices have to reach each other's memory (`NVLink`, or `PCIe` with peer access), and processes need CUDA's IPC, which
//! containers may forbid. All ranks together test this once, when the group is made. If it fails, [`PeerCommunicator::reason`] tells
//! why, and sums use the communicator beneath. So do a caller's own numbers, and layers of more than 8192 channels. So do groups over
//! several hosts: peers inside each host and NCCL between one rank of each would still cost NCCL's 11 us or more, and so gain nothing
//! over NCCL alone.
//!
//! # Why nothing deadlocks
//!
//! Passes of one device run one after the other, whatever their groups and streams: a stream waits, on the device, for the previous
//! pass. Groups that share devices have to be used in the same order on all of them.
//!
//! A pass of two kernels: the first sends (`moments`, `grad_sums`) and never waits for a peer. The second waits (`normalize`,
//! `grad_input`). So the kernel for which another waits is never blocked by a kernel that waits.
//!
//! A pass of one kernel (`forward`, `backward`) sends and waits. Each of its blocks has channels of its own, in the order of the blocks,
//! and sends the numbers of all of them before it waits for any; the first block also sends which call it is. Suppose that a pass stood
//! still, and take the lowest channel that some rank has not sent. All lower channels have been sent by all ranks, so on that rank all
//! blocks before this channel's end. Then this channel's block starts, and sends. Ranks may take different ways: a rank with more samples
//! may need two kernels, of which the first waits for nothing.
//!
//! Both rest on devices that start blocks in the order of their numbers: passes of one kernel for the reason above, and blocks of
//! `normalize` that walk planes because the first blocks receive for them. CUDA does not promise that order, but scans with look-back
//! (CUB's) rely on it, too. If it did not hold, the wait would end as an error, after as many time-outs as there are ranks.
//!
//! Kernels of another library that wait for their peers, such as NCCL's on a stream of its own, use few of a device's multiprocessors.
//! Blocks that send run at the same time on the others, so what waits for them ends, too.
//!
//! # Failures
//!
//! A call returns before the device has done it, so failures show later: in [`Communicator::status`], which layers ask before every
//! pass, and in [`PeerCommunicator::wait`]. A kernel that waits compares its call with its peers': layer, pass, length, use,
//! step and settings. It gives up when they differ, when the group's time-out is over, or when the group is poisoned; then it
//! writes no running statistics, and later kernels give up at once. A rank that has failed sends nothing more, so its peers
//! time out. Its layers refuse use until a snapshot is loaded.
//!
//! # Graphs
//!
//! Passes are counted on the device, so graphs that hold them can be replayed, by all ranks alike. A replay's use and step are
//! those of the capture, so a rank that skips a replay looks like one that is late.

mod direct;
mod join;
mod token;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::CudaStream;
use syncbn_core::{CollectiveId, CommError, CommErrorKind, Communicator, Membership, Numbers, Pass};

use crate::device::Cuda;
use crate::error::CudaError;
use crate::nccl::NcclCommunicator;
use crate::workspace::Workspace;
use direct::Direct;

pub use token::Peers;

/// The pause between two checks of a wait.
const PAUSE: Duration = Duration::from_micros(200);

/// A rank of a group that meets inside the kernels where it can, and through another communicator where it cannot.
pub struct PeerCommunicator {
    cuda: Cuda,
    over: Arc<dyn Communicator<Cuda>>,
    membership: Arc<Membership>,
    joined: join::Joined,
}

impl PeerCommunicator {
    /// Joins the ranks of a communicator, with one device per rank. Collective: every rank calls it, with the same time-out, which
    /// bounds how long a kernel waits for its peers. It has to cover the difference in the ranks' speed.
    ///
    /// The communicator beneath may be NCCL's, or one of the host's, in which case NCCL is not needed:
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use syncbn_comm::tcp::TcpCommunicator;
    /// use syncbn_core::{Group, ViaHost};
    /// use syncbn_cuda::Cuda;
    /// use syncbn_cuda::peers::PeerCommunicator;
    ///
    /// let timeout = Duration::from_secs(60);
    /// let tcp = TcpCommunicator::from_env(timeout)?;
    /// let cuda = Cuda::open(syncbn_comm::LaunchEnv::from_env()?.local_rank)?;
    /// let group = Group::<Cuda>::new(PeerCommunicator::new(&cuda, ViaHost(tcp), timeout)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the communicator beneath, over which the ranks exchange their addresses. Peers whose memory cannot be reached are no error.
    pub fn new(
        cuda: &Cuda,
        over: impl Communicator<Cuda> + 'static,
        timeout: Duration,
    ) -> Result<Self, CommError> {
        let joined = join::join(cuda, &over, timeout)?;
        if let Err(reason) = &joined {
            log::info!("rank {}: sums go through the communicator beneath: {reason}", over.rank());
        }
        let membership = over.membership().unwrap_or_default();
        Ok(Self { cuda: cuda.clone(), over: Arc::new(over), membership, joined })
    }

    /// Opens the device of this process's local rank, and joins all processes of the launcher, with NCCL beneath
    /// ([`NcclCommunicator::from_env`]).
    ///
    /// # Errors
    ///
    /// As [`NcclCommunicator::from_env`]; [`CudaError::FirstSum`] if the ranks could not exchange their addresses.
    pub fn from_env(timeout: Duration) -> Result<(Cuda, Self), CudaError> {
        let (cuda, nccl) = NcclCommunicator::from_env(timeout)?;
        let joined = Self::new(&cuda, nccl, timeout);
        let communicator = joined.map_err(|error| CudaError::FirstSum { reason: error.to_string() })?;
        Ok((cuda, communicator))
    }

    /// Why the ranks do not meet inside their kernels; `None` where they do.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.joined.as_ref().err().map(String::as_str)
    }

    /// Waits until the queue's work is done, replayed graphs included. After `timeout` this rank's kernels give up, which releases
    /// the queue, and the group is poisoned.
    ///
    /// # Errors
    ///
    /// [`CommErrorKind::Unfinished`] after `timeout`, and the failure that has poisoned the group.
    pub fn wait(&self, queue: &CudaStream, timeout: Duration) -> Result<(), CommError> {
        let began = Instant::now();
        let driver = |error| {
            let cause = CudaError::driver("waiting for the queue")(error);
            self.error(None, false, CommErrorKind::Transport(Arc::new(cause)))
        };
        let event = queue.record_event(None).map_err(driver)?;
        while !event.try_is_complete().map_err(driver)? {
            self.status()?;
            if began.elapsed() >= timeout {
                let error = self.error(None, true, CommErrorKind::Unfinished { timeout });
                self.poison(&error);
                return Err(error);
            }
            thread::sleep(PAUSE);
        }
        self.status()
    }

    fn error(&self, call: Option<&CollectiveId>, late: bool, kind: CommErrorKind) -> CommError {
        let (rank, world_size) = (self.rank(), self.world_size().get());
        CommError { rank, world_size, call: call.cloned(), late, kind }
    }
}

impl Communicator<Cuda> for PeerCommunicator {
    fn rank(&self) -> usize {
        self.over.rank()
    }

    fn world_size(&self) -> NonZeroUsize {
        self.over.world_size()
    }

    /// Uses the communicator beneath. A pass whose ranks meet inside its kernels does not call this.
    fn sum_workspace(
        &self,
        id: &CollectiveId,
        pass: Pass,
        backend: &Cuda,
        queue: &Arc<CudaStream>,
        workspace: &mut Workspace,
    ) -> Result<(), CommError> {
        self.over.sum_workspace(id, pass, backend, queue, workspace)
    }

    /// Uses the communicator beneath.
    fn sum_numbers(
        &self,
        id: &CollectiveId,
        backend: &Cuda,
        queue: &Arc<CudaStream>,
        numbers: Numbers<'_, Cuda>,
    ) -> Result<(), CommError> {
        self.over.sum_numbers(id, backend, queue, numbers)
    }

    fn peers(&self, id: &CollectiveId, channels: usize, backend: &Cuda) -> Result<Option<Peers>, CommError> {
        let Some(direct) = self.joined.as_ref().ok().filter(|_| Direct::has_room(channels)) else {
            return Ok(None);
        };
        backend
            .same_device(&self.cuda)
            .map_err(|error| self.error(Some(id), false, CommErrorKind::Unsent(Arc::new(error))))?;
        Ok(Some(Peers { direct: Arc::clone(direct), params: direct.params(id) }))
    }

    /// This rank's kernels give up. The peers are told through the communicator beneath, and their kernels time out.
    fn poison(&self, cause: &CommError) {
        if let Ok(direct) = &self.joined {
            direct.fail(cause.clone());
        }
        self.over.poison(cause);
    }

    fn status(&self) -> Result<(), CommError> {
        let failure = self.joined.as_ref().ok().and_then(|direct| direct.failure());
        let Some(first) = failure else { return self.over.status() };
        if self.over.status().is_ok() {
            self.over.poison(&first);
        }
        Err(self.error(first.call.as_ref(), first.late, CommErrorKind::Poisoned(Arc::new(first.clone()))))
    }

    fn membership(&self) -> Option<Arc<Membership>> {
        Some(Arc::clone(&self.membership))
    }
}

impl fmt::Debug for PeerCommunicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = self.reason().unwrap_or("inside the kernels");
        write!(f, "PeerCommunicator(rank {} of {}, {how})", self.rank(), self.world_size())
    }
}
