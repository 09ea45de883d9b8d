//! The ranks: threads, each with its own backend, and what connects them.
//!
//! Deliberately not here: what a rank does.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use syncbn_comm::{ThreadComm, ThreadGroup};
use syncbn_core::{Backend, Communicator, Solo, Staged};

use crate::Result;
use crate::device::Device;
use crate::gradients::{self, GradientSum};

/// How long a rank waits for the others in a collective.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The three ways of training that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One process has the whole batch.
    Single,
    /// Every rank has a part of the batch, and normalises it with the statistics of that part.
    Local,
    /// Every rank has a part of the batch, and normalises it with the statistics of the whole.
    Synchronised,
}

impl Way {
    /// All three, in the order in which they are printed.
    pub const ALL: [Self; 3] = [Self::Single, Self::Local, Self::Synchronised];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Local => "local",
            Self::Synchronised => "synchronised",
        }
    }

    /// How many ranks it takes where the others take `ranks`.
    #[must_use]
    pub fn world_size(self, ranks: NonZeroUsize) -> NonZeroUsize {
        if self == Self::Single { NonZeroUsize::MIN } else { ranks }
    }

    fn communicator<B: Backend>(self, comm: ThreadComm) -> Arc<dyn Communicator<B>> {
        if self == Self::Synchronised { Arc::new(Staged(comm)) } else { Arc::new(Solo) }
    }
}

/// What one rank has.
pub struct Seat<B: Backend> {
    /// The rank, from 0.
    pub rank: usize,
    /// The number of ranks.
    pub world_size: usize,
    /// Where its batch norm runs.
    pub backend: B,
    /// The order in which that device works.
    pub queue: B::Queue,
    /// Its batch norms' group: all ranks, or the rank alone.
    pub communicator: Arc<dyn Communicator<B>>,
    /// The sum of gradients over all ranks, whatever the batch norms' group.
    pub gradients: GradientSum,
}

impl<B: Backend> Seat<B> {
    /// The rank's part of a batch of `batch` samples, which is divided evenly; the whole where the rank is alone.
    #[must_use]
    pub fn share(&self, batch: usize) -> Range<usize> {
        self.rank * batch / self.world_size..(self.rank + 1) * batch / self.world_size
    }
}

/// Runs `job` on every rank, each a thread, and returns what they returned, by rank.
pub fn run<D: Device, R: Send>(
    device: &D,
    way: Way,
    ranks: NonZeroUsize,
    job: impl Fn(&Seat<D::Backend>) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let size = way.world_size(ranks);
    let start = |(rank, (comm, gradients))| {
        let (backend, queue) = device.open(rank)?;
        let communicator = way.communicator(comm);
        job(&Seat { rank, world_size: size.get(), backend, queue, communicator, gradients })
    };
    let start = &start;
    let results: Vec<Result<R>> = thread::scope(|scope| {
        let seats = ThreadGroup::new(size, TIMEOUT).into_iter().zip(gradients::connect(size)).enumerate();
        let threads: Vec<_> = seats.map(|seat| scope.spawn(move || start(seat))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("it panicked".into())))
            .collect()
    });
    collect(way, results)
}

/// All results, or all failures: the first of them in time need not be the first by rank.
fn collect<R>(way: Way, results: Vec<Result<R>>) -> Result<Vec<R>> {
    let mut returned = Vec::new();
    let mut failures = Vec::new();
    for (rank, result) in results.into_iter().enumerate() {
        match result {
            Ok(value) => returned.push(value),
            Err(error) => failures.push(format!("{}, rank {rank}: {error}", way.name())),
        }
    }
    if failures.is_empty() { Ok(returned) } else { Err(failures.join("\n").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Host;

    const THREE: NonZeroUsize = NonZeroUsize::new(3).unwrap();

    #[test]
    fn shares_divide_a_batch_without_gap_or_overlap() {
        let shares = run(&Host, Way::Local, THREE, |seat| Ok(seat.share(7))).unwrap();
        assert_eq!(shares, [0..2, 2..4, 4..7]);
        let shares = run(&Host, Way::Single, THREE, |seat| Ok(seat.share(7))).unwrap();
        assert_eq!(shares[0], 0..7);
        assert_eq!(shares.len(), 1);
    }

    #[test]
    fn a_rank_that_fails_releases_the_others_and_is_named() {
        let error = run(&Host, Way::Synchronised, THREE, |seat| {
            if seat.rank == 1 {
                return Err("broken".into());
            }
            seat.gradients.all_reduce(&mut [1.0])
        })
        .unwrap_err();
        assert!(error.to_string().contains("synchronised, rank 1: broken"), "{error}");
    }
}
