//! One rank's state in an NCCL group: what is enqueued and not finished, and what has failed.
//!
//! Whoever calls NCCL holds the gate. The first failure aborts the communicator and is kept; every later call gets it back.
//!
//! Deliberately not here: when to look. The watchdog looks now and then, layers before every pass.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaEvent, CudaStream};
use syncbn_core::{Call, CommError, CommErrorKind};

use crate::device::Cuda;
use crate::error::{CudaError, NcclError};
use crate::raw::driver::is_capturing;
use crate::raw::nccl::Comm;
use crate::scratch::Sums;

/// How often a wait looks.
const PAUSE: Duration = Duration::from_micros(200);

pub(super) struct Group {
    pub(super) rank: usize,
    pub(super) world_size: NonZeroUsize,
    pub(super) timeout: Duration,
    cuda: Cuda,
    /// Joins and splits: non-blocking.
    joined: Mutex<Comm>,
    /// Sums: blocking, so that a call enqueues on the caller's thread.
    comm: Comm,
    gate: Mutex<Gate>,
    /// The call into NCCL that is under way: should it hang, the watchdog cannot get through the gate.
    calling: Mutex<Option<(Instant, Call)>>,
    failure: OnceLock<CommError>,
}

/// What only one thread at a time may do: call NCCL, and count what it has enqueued.
#[derive(Default)]
struct Gate {
    unfinished: VecDeque<Unfinished>,
    /// Events that are free again.
    spare: Vec<CudaEvent>,
}

/// A sum that the device has not finished, as far as is known.
struct Unfinished {
    call: Call,
    since: Instant,
    event: CudaEvent,
}

impl Group {
    pub(super) fn new(
        cuda: &Cuda,
        joined: Comm,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<Self, CudaError> {
        let (size, rank) = joined.size_and_rank()?;
        let bad =
            CudaError::Rank { rank: rank.unsigned_abs() as usize, world_size: size.unsigned_abs() as usize };
        let world_size = usize::try_from(size).ok().and_then(NonZeroUsize::new);
        let (Some(world_size), Ok(rank)) = (world_size, usize::try_from(rank)) else { return Err(bad) };
        let Some(comm) = joined.split(Some(0), 0, true, deadline)? else { return Err(bad) };
        Ok(Self {
            rank,
            world_size,
            timeout,
            cuda: cuda.clone(),
            joined: Mutex::new(joined),
            comm,
            gate: Mutex::default(),
            calling: Mutex::default(),
            failure: OnceLock::new(),
        })
    }

    pub(super) fn split(
        &self,
        color: Option<i32>,
        key: i32,
        deadline: Instant,
    ) -> Result<Option<Comm>, CudaError> {
        lock(&self.joined).split(color, key, false, deadline)
    }

    pub(super) fn all_reduce_sum(
        &self,
        call: &Call,
        backend: &Cuda,
        queue: &Arc<CudaStream>,
        sums: &mut Sums,
    ) -> Result<(), CommError> {
        let early =
            |error: CudaError| self.error(Some(call), false, CommErrorKind::Transport(Arc::new(error)));
        backend.same_device(&self.cuda).map_err(early)?;
        sums.check(queue).map_err(early)?;
        self.cuda.bind().map_err(early)?;
        let watched = self.world_size.get() > 1 && !is_capturing(queue).map_err(early)?;

        let mut gate = lock(&self.gate);
        self.not_poisoned()?;
        *lock(&self.calling) = Some((Instant::now(), call.clone()));
        let count = call.pass.message_len(call.channels);
        let summed = sums.all_reduce(&self.comm, count, queue);
        *lock(&self.calling) = None;
        match summed {
            Err(CudaError::Nccl(error)) => Err(self.nccl_failed(Some(call), error)),
            Err(error) => Err(early(error)),
            Ok(()) if watched => gate.watch(&self.cuda, queue, call).map_err(early),
            Ok(()) => Ok(()),
        }
    }

    /// Whether the group still works, without waiting: while another thread is in a call, that call will tell.
    pub(super) fn status(&self) -> Result<(), CommError> {
        self.not_poisoned()?;
        match self.gate.try_lock() {
            Ok(_held) => self.comm.async_error().map_err(|error| self.nccl_failed(None, error)),
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => Ok(()),
        }
    }

    /// Until the queue is done, or `timeout` is over.
    pub(super) fn wait(&self, queue: &CudaStream, timeout: Duration) -> Result<(), CommError> {
        let broken = |error: CudaError| self.error(None, false, CommErrorKind::Transport(Arc::new(error)));
        let driver = |error| broken(CudaError::driver("waiting for the queue")(error));
        let began = Instant::now();
        let event = queue.record_event(None).map_err(driver)?;
        while !event.try_is_complete().map_err(driver)? {
            self.status()?;
            if began.elapsed() >= timeout {
                let _held = lock(&self.gate);
                return Err(self.fail(self.error(None, true, CommErrorKind::Unfinished { timeout })));
            }
            thread::sleep(PAUSE);
        }
        self.status()
    }

    /// The watchdog's look: what is finished is forgotten, what takes too long or has failed ends the group.
    pub(super) fn look(&self) {
        let timeout = self.timeout;
        let late = |call: &Call| self.error(Some(call), true, CommErrorKind::Unfinished { timeout });
        match self.gate.try_lock() {
            Ok(mut gate) => {
                if let Err(error) = self.comm.async_error() {
                    let call = gate.unfinished.front().map(|sum| sum.call.clone());
                    self.nccl_failed(call.as_ref(), error);
                }
                gate.forget_finished();
                if let Some(sum) = gate.unfinished.front().filter(|sum| sum.since.elapsed() >= timeout) {
                    self.fail(late(&sum.call));
                }
            }
            // A call that hangs keeps the gate; aborting is what ends it.
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => {
                let calling = lock(&self.calling).clone();
                if let Some((_, call)) = calling.filter(|(since, _)| since.elapsed() >= timeout) {
                    self.fail(late(&call));
                }
            }
        }
    }

    /// Ends it: once its sums have run, or at once where something has failed.
    pub(super) fn close(&self) {
        let mut gate = lock(&self.gate);
        let began = Instant::now();
        while self.failure.get().is_none() && !gate.forget_finished() && began.elapsed() < self.timeout {
            thread::sleep(PAUSE);
        }
        if gate.unfinished.is_empty() && self.failure.get().is_none() {
            self.comm.destroy();
        } else {
            self.comm.abort();
        }
    }

    /// NCCL's error: refused calls concern this call alone, anything else what was enqueued before, too.
    fn nccl_failed(&self, call: Option<&Call>, error: NcclError) -> CommError {
        let late = !error.callers;
        self.fail(self.error(call, late, CommErrorKind::Transport(Arc::new(error))))
    }

    /// Poisons the group with its first failure, which is returned.
    fn fail(&self, error: CommError) -> CommError {
        let first = self.failure.get_or_init(|| error).clone();
        self.comm.abort();
        first
    }

    fn not_poisoned(&self) -> Result<(), CommError> {
        match self.failure.get() {
            None => Ok(()),
            Some(first) => Err(self.error(
                first.call.as_ref(),
                first.late,
                CommErrorKind::Poisoned(Arc::new(first.clone())),
            )),
        }
    }

    fn error(&self, call: Option<&Call>, late: bool, kind: CommErrorKind) -> CommError {
        CommError { rank: self.rank, world_size: self.world_size.get(), call: call.cloned(), late, kind }
    }
}

impl Gate {
    /// Marks the place behind what was just enqueued.
    fn watch(&mut self, cuda: &Cuda, queue: &CudaStream, call: &Call) -> Result<(), CudaError> {
        let failed = CudaError::driver("marking a sum's end");
        self.forget_finished();
        let event = self.spare.pop().map_or_else(|| cuda.context().new_event(None), Ok);
        let event = event.and_then(|event| event.record(queue).map(|()| event)).map_err(failed)?;
        self.unfinished.push_back(Unfinished { call: call.clone(), since: Instant::now(), event });
        Ok(())
    }

    /// Whether nothing is left. A device that fails finishes nothing: that shows as a time-out, if not before.
    fn forget_finished(&mut self) -> bool {
        while self.unfinished.front().is_some_and(|sum| sum.event.is_complete()) {
            self.spare.extend(self.unfinished.pop_front().map(|sum| sum.event));
        }
        self.unfinished.is_empty()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
