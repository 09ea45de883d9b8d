//! The ranks of this process: threads, each with its own backend and its links to the others.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::thread;

use syncbn_core::{Backend, Group, Scalar, SingleRank, Storage};

use crate::Result;
use crate::device::{Device, Place};

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
    /// All ranks, whose gradients are summed.
    pub all: Group<B>,
    /// Its batch norms' group: all ranks, or the rank alone.
    pub norms: Group<B>,
}

impl<B: Backend> Seat<B> {
    /// The rank's part of a batch of `batch` samples, which is divided evenly; the whole where the rank is alone.
    #[must_use]
    pub fn share(&self, batch: usize) -> Range<usize> {
        self.rank * batch / self.world_size..(self.rank + 1) * batch / self.world_size
    }
}

impl<B: Storage> Seat<B> {
    /// Replaces `values` by their sum over all ranks, whatever the batch norms' group.
    pub fn all_reduce(&self, name: &str, values: &mut [f64]) -> Result<()> {
        let Self { backend, queue, all, .. } = self;
        let mut buffer = backend.upload(queue, values)?;
        all.all_reduce::<f64>(name, backend, queue, B::mem_mut(&mut buffer))?;
        Ok(backend.read(queue, B::mem(&buffer), values)?)
    }

    /// What a buffer of the device holds.
    pub fn values<T: Scalar>(&self, buffer: &B::Buffer<T>) -> Result<Vec<T>> {
        let mem = B::mem(buffer);
        let mut values = vec![T::default(); B::mem_len(&mem)];
        self.backend.read(&self.queue, mem, &mut values)?;
        Ok(values)
    }
}

/// Runs `job` on every rank that this process has, each a thread, and returns what they returned, by rank.
pub fn run<D: Device, R: Send>(
    device: &D,
    way: Way,
    ranks: NonZeroUsize,
    job: impl Fn(&Seat<D::Backend>) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let world_size = way.world_size(ranks);
    let start = |Place { rank, join }: Place<D::Backend>| {
        let (backend, queue) = device.open(rank)?;
        let all = join(&backend)?;
        let norms = if way == Way::Synchronised { all.clone() } else { Group::new(SingleRank) };
        job(&Seat { rank, world_size: world_size.get(), backend, queue, all, norms })
    };
    let start = &start;
    let places = if way == Way::Single { vec![alone()] } else { device.group(world_size)? };
    let results: Vec<Result<R>> = thread::scope(|scope| {
        let threads: Vec<_> = places.into_iter().map(|place| scope.spawn(move || start(place))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("it panicked".into())))
            .collect()
    });
    collect(way, results)
}

/// The only rank of its group.
fn alone<B: Backend>() -> Place<B> {
    Place { rank: 0, join: Box::new(|_| Ok(Group::new(SingleRank))) }
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
            seat.all_reduce("ones", &mut [1.0])
        })
        .unwrap_err();
        assert!(error.to_string().contains("synchronised, rank 1: broken"), "{error}");
    }
}
