//! The counters of a group that every rank keeps by itself, and that ranks compare.

use std::sync::atomic::{AtomicU64, Ordering};

/// One rank's counters of a group: the trainer's step, the number of layers, and the number of plain sums.
///
/// A communicator that several layers may share owns one and returns it from [`membership`](crate::Communicator::membership), so
/// that all of them use the same counters. Write `Arc<Membership>` as a field, made by `Arc::default()`.
#[derive(Debug)]
pub struct Membership {
    id: u64,
    step: AtomicU64,
    layers: AtomicU64,
    plain_sums: AtomicU64,
}

impl Default for Membership {
    /// The counters of a new group.
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            step: AtomicU64::new(0),
            layers: AtomicU64::new(0),
            plain_sums: AtomicU64::new(0),
        }
    }
}

impl Membership {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    pub(crate) fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    /// The number of a new layer, in the order of construction.
    pub(crate) fn next_layer(&self) -> u64 {
        self.layers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn plain_sums(&self) -> &AtomicU64 {
        &self.plain_sums
    }
}
