//! The device-native communicator: one NCCL sum forward and one backward, in stream order, on one device per rank.
//!
//! A call enqueues and returns, so failures show later: in [`Communicator::status`], which layers ask before every pass, and
//! in [`NcclCommunicator::wait`]. A watchdog thread ends what takes longer than the group's time-out (a rank that died, is
//! late, or is in another call): it aborts NCCL's communicator, which releases the stream, and poisons the group; the error
//! names the first layer and pass that was not finished. Work inside a replayed graph is seen by `wait` alone.
//!
//! NCCL honours deadlines only for non-blocking communicators, and enqueues without a thread of its own only for blocking ones. So each
//! group has two: a non-blocking one for joining and splitting, and a blocking one, split from it, for sums.
//!
//! Every rank gets the same bits, and so does every run with the same NCCL on the same machines; the order in which ranks are
//! added is NCCL's.
//!
//! Deliberately not here: several ranks on one device, which NCCL refuses; [`ViaHost`](syncbn_core::ViaHost) with threads does
//! that.

mod calls;
mod group;
mod watchdog;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::CudaStream;
use syncbn_comm::LaunchEnv;
use syncbn_comm::bootstrap::share;
use syncbn_core::{CollectiveId, CommError, Communicator, Numbers, Param, Pass, Storage};

use crate::device::Cuda;
use crate::error::CudaError;
use crate::raw::memory::MemMut;
use crate::raw::nccl::{Comm, RawId, nccl};
use crate::raw::transfer;
use crate::workspace::Workspace;
use group::Group;
use watchdog::Watchdog;

/// NCCL's unique id, 128 bytes. Rank 0 makes it, and every rank of a new group needs it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NcclId([u8; 128]);

impl NcclId {
    /// A new one. With `NCCL_COMM_ID` set (NCCL's own rendezvous) every rank makes it for itself.
    ///
    /// # Errors
    ///
    /// [`CudaError::MissingLibrary`] without NCCL; [`CudaError::Nccl`].
    pub fn new() -> Result<Self, CudaError> {
        Ok(Self(nccl()?.unique_id()?.0))
    }

    /// From the bytes that another rank got from [`as_bytes`](Self::as_bytes).
    #[must_use]
    pub fn from_bytes(bytes: [u8; 128]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be sent to the other ranks.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 128] {
        &self.0
    }
}

impl fmt::Debug for NcclId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NcclId(..)")
    }
}

/// A rank's place in an NCCL group.
///
/// It may be shared by any threads; its calls run one after the other, in the same order on every rank. Dropping it waits for
/// the sums that it has enqueued, as long as the group's time-out at most. Graphs that hold its sums must be dropped before.
pub struct NcclCommunicator {
    group: Arc<Group>,
    cuda: Cuda,
    /// Ends with the communicator. A rank alone needs none.
    watchdog: Option<Watchdog>,
}

impl NcclCommunicator {
    /// Joins the group of this id, with one device per rank. Collective: every rank calls it, and it returns once all have
    /// come and one sum has gone through, or after `timeout`, which also bounds how long a sum may take: it has to cover the
    /// difference in the ranks' speed, and what is queued before a sum.
    ///
    /// # Errors
    ///
    /// [`CudaError::NotMet`] after the time-out; [`CudaError::Nccl`]; [`CudaError::FirstSum`] if the first sum was wrong or did not end;
    /// [`CudaError::Rank`].
    pub fn new(
        cuda: &Cuda,
        id: &NcclId,
        rank: usize,
        world_size: NonZeroUsize,
        timeout: Duration,
    ) -> Result<Self, CudaError> {
        let world_size = world_size.get();
        let count = |number: usize| i32::try_from(number).ok();
        let (Some(place), Some(size)) = (count(rank).filter(|_| rank < world_size), count(world_size)) else {
            return Err(CudaError::Rank { rank, world_size });
        };
        let deadline = deadline(timeout);
        cuda.bind()?;
        Self::assemble(cuda, Comm::init(RawId(id.0), size, place, deadline)?, timeout, deadline)
    }

    /// Opens the device of this process's local rank and joins all processes of the launcher, as [`LaunchEnv::from_env`] finds
    /// them. With `NCCL_COMM_ID` set, NCCL's own rendezvous is used; otherwise rank 0 listens, and ranks that do not come are
    /// named.
    ///
    /// # Errors
    ///
    /// [`CudaError::Bootstrap`], which names the ranks that did not come; and as [`Cuda::open`] and [`new`](Self::new).
    pub fn from_env(timeout: Duration) -> Result<(Cuda, Self), CudaError> {
        let began = Instant::now();
        let env = LaunchEnv::from_env()?;
        let cuda = Cuda::open(env.local_rank)?;
        let id = if std::env::var_os("NCCL_COMM_ID").is_some() {
            NcclId::new()?
        } else {
            NcclId(share(&env, timeout, || NcclId::new().map(|id| id.0))?)
        };
        let left = timeout.saturating_sub(began.elapsed());
        let deadline = deadline(left);
        cuda.bind()?;
        let (rank, size) = (env.rank, env.world_size.get());
        let count = |number| i32::try_from(number).map_err(|_| CudaError::Rank { rank, world_size: size });
        let comm = Comm::init(RawId(id.0), count(size)?, count(rank)?, deadline)?;
        let communicator = Self::assemble(&cuda, comm, timeout, deadline)?;
        Ok((cuda, communicator))
    }

    /// Divides the group: ranks of one color form a new group, ordered by key, and by old rank where keys are equal. A rank
    /// without a color belongs to none and gets `None`. Collective, within the group's time-out; the new groups are independent
    /// of this one.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new). Do not use this group after an error: some ranks may be in the call still.
    pub fn split(&self, color: Option<u16>, key: i32) -> Result<Option<Self>, CudaError> {
        let deadline = deadline(self.group.timeout);
        self.cuda.bind()?;
        let joined = self.group.split(color.map(i32::from), key, deadline)?;
        joined.map(|comm| Self::assemble(&self.cuda, comm, self.group.timeout, deadline)).transpose()
    }

    /// Waits until the queue's work is done, sums in replayed graphs included; after `timeout` the group is aborted, which
    /// releases the queue, and poisoned.
    ///
    /// # Errors
    ///
    /// [`CommErrorKind::Unfinished`](syncbn_core::CommErrorKind::Unfinished) after `timeout`, and the failure that has poisoned the group.
    pub fn wait(&self, queue: &CudaStream, timeout: Duration) -> Result<(), CommError> {
        self.group.wait(queue, timeout)
    }

    fn assemble(cuda: &Cuda, joined: Comm, timeout: Duration, deadline: Instant) -> Result<Self, CudaError> {
        let group = Arc::new(Group::new(cuda, joined, timeout, deadline)?);
        let watchdog = (group.world_size.get() > 1).then(|| Watchdog::start(&group)).transpose()?;
        let communicator = Self { group, cuda: cuda.clone(), watchdog };
        communicator.prove(8)?;
        communicator.prove(8192)?;
        Ok(communicator)
    }

    /// A first sum, of ones: it proves that the ranks reach each other, and makes NCCL connect them now rather than in the
    /// first step, which may be a graph's. NCCL sums short and long messages in different ways.
    fn prove(&self, numbers: usize) -> Result<(), CudaError> {
        let failed = |reason: String| CudaError::FirstSum { reason };
        let queue = self.cuda.context().default_stream();
        let mut ones = vec![1.0_f64; numbers];
        let mut buffer = self.cuda.upload(&queue, &ones)?;
        let id = CollectiveId::new("(a new group)", numbers);
        let summed = self.sum_mem(&id, &self.cuda, &queue, buffer.mem_mut());
        summed.and_then(|()| self.wait(&queue, self.group.timeout)).map_err(|e| failed(e.to_string()))?;
        transfer::read(&queue, &buffer.mem(), &mut ones)?;
        let expected = self.group.world_size.get() as f64;
        match ones.iter().find(|&&sum| sum != expected) {
            None => Ok(()),
            Some(got) => Err(failed(format!("it is {got}, expected {expected}"))),
        }
    }

    fn sum_mem<P: Param>(
        &self,
        id: &CollectiveId,
        backend: &Cuda,
        queue: &Arc<CudaStream>,
        mut mem: MemMut<'_, P>,
    ) -> Result<(), CommError> {
        let len = mem.region.len;
        self.group.sum(id, backend, queue, len, |queue, comm| transfer::sum(queue, comm, &mut mem))
    }
}

fn deadline(timeout: Duration) -> Instant {
    let now = Instant::now();
    // A year, if the time-out is more than the clock can count.
    now.checked_add(timeout).unwrap_or_else(|| now + Duration::from_secs(365 * 24 * 3600))
}

impl Communicator<Cuda> for NcclCommunicator {
    fn rank(&self) -> usize {
        self.group.rank
    }

    fn world_size(&self) -> NonZeroUsize {
        self.group.world_size
    }

    /// Enqueues the sum. An error with [`CommError::late`] concerns work that was enqueued before.
    fn sum_workspace(
        &self,
        id: &CollectiveId,
        pass: Pass,
        backend: &Cuda,
        queue: &Arc<CudaStream>,
        workspace: &mut Workspace,
    ) -> Result<(), CommError> {
        self.sum_mem(id, backend, queue, workspace.message_mut(pass))
    }

    /// Enqueues the sum, which is formed in the numbers' own type.
    fn sum_numbers(
        &self,
        id: &CollectiveId,
        backend: &Cuda,
        queue: &Arc<CudaStream>,
        numbers: Numbers<'_, Cuda>,
    ) -> Result<(), CommError> {
        match numbers {
            Numbers::F32(mem) => self.sum_mem(id, backend, queue, mem),
            Numbers::F64(mem) => self.sum_mem(id, backend, queue, mem),
        }
    }

    /// Aborts this rank's communicator. The next sum of its peers does not end, so they time out.
    fn poison(&self, cause: &CommError) {
        self.group.poison(cause);
    }

    fn status(&self) -> Result<(), CommError> {
        self.group.status()
    }
}

impl fmt::Debug for NcclCommunicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NcclCommunicator(rank {} of {})", self.group.rank, self.group.world_size)
    }
}

impl Drop for NcclCommunicator {
    fn drop(&mut self) {
        drop(self.watchdog.take());
        self.group.close();
    }
}
