//! What a rank counts of a group, as its peers do.

use std::sync::atomic::{AtomicU64, Ordering};

/// One rank's membership of a group: the trainer's step, and the order of its layers and plain sums.
///
/// A communicator that may be shared by several layers owns one and returns it from
/// [`membership`](crate::Communicator::membership), so that whatever shares the communicator counts together.
#[derive(Debug)]
pub struct Membership {
    id: u64,
    step: AtomicU64,
    layers: AtomicU64,
    plain_sums: AtomicU64,
}

impl Default for Membership {
    /// A new group, of which nothing was counted yet.
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

    /// The place of a new layer in the order of construction.
    pub(crate) fn next_layer(&self) -> u64 {
        self.layers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn plain_sums(&self) -> &AtomicU64 {
        &self.plain_sums
    }
}
