//! One rank's state in an NCCL group: what is enqueued and not finished, and what has failed.
//!
//! Whoever calls NCCL holds the gate, and has looked for a failure since it does. The first failure aborts the communicator and is
//! kept; every later call gets it back.
//!
//! Deliberately not here: when to look. The watchdog looks now and then, layers before every pass.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaEvent, CudaStream};
use syncbn_core::{CollectiveId, CommError, CommErrorKind};

use super::calls::Calls;
use crate::access::OpenQueue;
use crate::device::Cuda;
use crate::error::{CudaError, NcclError};
use crate::raw::nccl::Comm;

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
    /// Should a call hang, the watchdog cannot get through the gate.
    calls: Calls,
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
    id: CollectiveId,
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
            calls: Calls::default(),
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

    /// Enqueues a sum of as many numbers as the identity says. What fails before NCCL is asked has told nobody anything.
    pub(super) fn sum(
        &self,
        id: &CollectiveId,
        backend: &Cuda,
        queue: &Arc<CudaStream>,
        len: usize,
        enqueue: impl FnOnce(OpenQueue<'_>, &Comm) -> Result<(), CudaError>,
    ) -> Result<(), CommError> {
        let unsent = |error: CudaError| self.error(Some(id), false, CommErrorKind::Unsent(Arc::new(error)));
        if id.length != len {
            let kind = CommErrorKind::MessageLength { expected: id.length, got: len };
            return Err(self.error(Some(id), false, kind));
        }
        backend.same_device(&self.cuda).map_err(unsent)?;
        let open = backend.open_queue(queue).map_err(unsent)?;
        self.cuda.bind().map_err(unsent)?;
        let watched = self.world_size.get() > 1 && !open.capturing;

        let mut gate = lock(&self.gate);
        self.calls.begin(id).map_err(|first| self.poisoned(first))?;
        let summed = enqueue(open, &self.comm);
        self.calls.end();
        match summed {
            Err(CudaError::Nccl(error)) => Err(self.nccl_failed(Some(id), error)),
            Err(error) => Err(unsent(error)),
            // The peers have this rank's numbers: it cannot go on without them.
            Ok(()) if watched => gate.watch(&self.cuda, queue, id).map_err(|error| {
                self.fail(self.error(Some(id), false, CommErrorKind::Transport(Arc::new(error))))
            }),
            Ok(()) => Ok(()),
        }
    }

    /// Ends the group: a peer's next sum does not end, and its watchdog tells it so.
    pub(super) fn poison(&self, cause: &CommError) {
        let _held = lock(&self.gate);
        self.fail(cause.clone());
    }

    /// Whether the group still works, without waiting: while another thread is in a call, that call will tell.
    pub(super) fn status(&self) -> Result<(), CommError> {
        let held = self.gate.try_lock();
        self.not_poisoned()?;
        match held {
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
        let late = |id: &CollectiveId| self.error(Some(id), true, CommErrorKind::Unfinished { timeout });
        match self.gate.try_lock() {
            Ok(_) if self.calls.failure().is_some() => {}
            Ok(mut gate) => {
                if let Err(error) = self.comm.async_error() {
                    let id = gate.unfinished.front().map(|sum| sum.id.clone());
                    self.nccl_failed(id.as_ref(), error);
                }
                gate.forget_finished();
                if let Some(sum) = gate.unfinished.front().filter(|sum| sum.since.elapsed() >= timeout) {
                    self.fail(late(&sum.id));
                }
            }
            // A call that hangs keeps the gate; aborting is what ends it.
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => {
                if self.calls.fail_if_stuck(timeout, late) {
                    self.comm.abort();
                }
            }
        }
    }

    /// Ends it: once its sums have run, or at once where something has failed.
    pub(super) fn close(&self) {
        let mut gate = lock(&self.gate);
        let began = Instant::now();
        while self.calls.failure().is_none() && !gate.forget_finished() && began.elapsed() < self.timeout {
            thread::sleep(PAUSE);
        }
        if gate.unfinished.is_empty() && self.calls.failure().is_none() {
            self.comm.destroy();
        } else {
            self.comm.abort();
        }
    }

    /// NCCL's error: refused calls concern this call alone, anything else what was enqueued before, too. The caller holds the gate.
    fn nccl_failed(&self, id: Option<&CollectiveId>, error: NcclError) -> CommError {
        let late = !error.callers;
        self.fail(self.error(id, late, CommErrorKind::Transport(Arc::new(error))))
    }

    /// Poisons the group with its first failure, which is returned. The caller holds the gate.
    fn fail(&self, error: CommError) -> CommError {
        let first = self.calls.fail(error);
        self.comm.abort();
        first
    }

    fn not_poisoned(&self) -> Result<(), CommError> {
        self.calls.failure().map_or(Ok(()), |first| Err(self.poisoned(first)))
    }

    fn poisoned(&self, first: CommError) -> CommError {
        let (call, late) = (first.call.clone(), first.late);
        self.error(call.as_ref(), late, CommErrorKind::Poisoned(Arc::new(first)))
    }

    fn error(&self, id: Option<&CollectiveId>, late: bool, kind: CommErrorKind) -> CommError {
        CommError { rank: self.rank, world_size: self.world_size.get(), call: id.cloned(), late, kind }
    }
}

impl Gate {
    /// Marks the place behind what was just enqueued.
    fn watch(&mut self, cuda: &Cuda, queue: &CudaStream, id: &CollectiveId) -> Result<(), CudaError> {
        let failed = CudaError::driver("marking a sum's end");
        self.forget_finished();
        let event = self.spare.pop().map_or_else(|| cuda.context().new_event(None), Ok);
        let event = event.and_then(|event| event.record(queue).map(|()| event)).map_err(failed)?;
        self.unfinished.push_back(Unfinished { id: id.clone(), since: Instant::now(), event });
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
