//! The harness of a backend: how to open the device, its name, and what it cannot do.
//!
//! The kit allocates and copies memory through [`Storage`] of `syncbn-core`.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use syncbn_core::{Backend, Communicator, Scalar, Storage};

use crate::outcome::{Outcome, Verdict};
use crate::threads;

/// A backend under test.
pub trait Harness: Clone + Send + Sync + 'static {
    /// The backend.
    type Backend: Storage;

    /// The backend's short name, as `SYNCBN_REQUIRE` lists it: `cpu`, `cuda`, `wgpu`.
    fn name(&self) -> &'static str;

    /// The device and a queue for one rank. Called in each rank's own thread, for every drawn case, so make what is slow (a context,
    /// compiled kernels) once, and clone it.
    ///
    /// If the machine has no such device, return [`Unavailable`], with what to install.
    fn open(&self, rank: usize) -> Result<Opened<Self::Backend>, Unavailable>;

    /// What the backend cannot do, each with the reason. Laws that need it are skipped, and print the reason.
    fn gaps(&self) -> Vec<Gap> {
        Vec::new()
    }

    /// The most ranks that the machine can run. Threads share a device, so the default is usually right. Laws that need more are skipped
    /// and say so; drawn cases have fewer.
    fn max_world_size(&self) -> usize {
        6
    }

    /// The ranks of a new group, in order; each is called in its rank's own thread. The default: threads of this
    /// process, summing in host memory.
    fn group(&self, world_size: NonZeroUsize) -> Vec<Join<Self::Backend>> {
        threads::group(world_size)
    }

    /// A part of a buffer as borrowed memory, if the device's memory has parts. Laws about tensors in the middle of a larger buffer need
    /// it, and are skipped without it.
    fn part<T: Scalar>(
        buffer: &<Self::Backend as Storage>::Buffer<T>,
        range: Range<usize>,
    ) -> Option<<Self::Backend as Backend>::Mem<'_, T>> {
        let _ = (buffer, range);
        None
    }

    /// The same, to be written.
    fn part_mut<T: Scalar>(
        buffer: &mut <Self::Backend as Storage>::Buffer<T>,
        range: Range<usize>,
    ) -> Option<<Self::Backend as Backend>::MemMut<'_, T>> {
        let _ = (buffer, range);
        None
    }

    /// The same device with other settings that may not change a bit of any result: numbers of threads, for instance.
    fn variants(&self) -> Vec<Self> {
        Vec::new()
    }

    /// Runs one rank, in its own thread. Override it to install what a variant needs, such as a thread pool.
    fn surround<R: Send>(&self, rank: impl FnOnce() -> R + Send) -> R {
        rank()
    }
}

/// A device, and the queue that a rank gives its work to.
pub type Opened<B> = (B, <B as Backend>::Queue);

/// How a rank becomes part of a group.
pub type Join<B> = Box<dyn FnOnce(&B, &<B as Backend>::Queue) -> Outcome<Arc<dyn Communicator<B>>> + Send>;

/// The machine has no such device: why, and what to install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a law may need, and not every device or group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ability {
    /// NaN and infinity go through arithmetic as IEEE 754 says.
    NonFinite,
    /// Numbers below the smallest normal one are not flushed to 0.
    Subnormals,
    /// Squares of data near 1e30 fit the accumulator.
    WideRange,
    /// The group compares the [`CollectiveId`](syncbn_core::CollectiveId)s of its ranks, and refuses those that differ. Groups in host
    /// memory can; a group that sums in a device's memory does not see the calls of other ranks.
    ComparesCalls,
    /// The group adds in the order of its ranks, so that its sums have the same bits in every library and on every network. A group that
    /// only promises the same bits on all ranks of a run (MPI) lacks it.
    RankOrder,
    /// If a rank leaves its group, or panics, the others get an error at once.
    Departures,
    /// A rank that waits for another gives up after the caller's time-out.
    Deadlines,
}

/// An ability that a backend or communicator lacks, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What is lacking.
    pub ability: Ability,
    /// Why, for whoever reads the tests' output.
    pub reason: &'static str,
}

/// Skips the law if the backend has declared that it lacks the ability.
pub fn need<H: Harness>(harness: &H, ability: Ability) -> Outcome {
    lack(&harness.gaps(), ability).map_or(Ok(()), |why| Err(Verdict::Skipped(why)))
}

/// Why the ability is lacking, if it is.
pub(crate) fn lack(gaps: &[Gap], ability: Ability) -> Option<String> {
    let gap = gaps.iter().find(|gap| gap.ability == ability)?;
    Some(format!("no {ability:?}: {}", gap.reason))
}

/// Skips the law if the machine cannot run as many ranks.
pub fn need_ranks<H: Harness>(harness: &H, world_size: usize) -> Outcome {
    let most = harness.max_world_size();
    if world_size <= most {
        return Ok(());
    }
    Err(Verdict::Skipped(format!("needs {world_size} ranks, this machine holds {most}")))
}
