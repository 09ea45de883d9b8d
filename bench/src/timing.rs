//! What a number of repetitions comes to, and what a device has to offer to be measured.

use std::sync::Arc;

use anyhow::Result;
use syncbn_core::{Communicator, Element, Storage};

/// How often everything is repeated; the median of an odd number is one of them.
pub const REPETITIONS: usize = 31;

/// What the repetitions of one thing came to, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    /// The middle one.
    pub median_us: f64,
    /// The least.
    pub min_us: f64,
}

impl Times {
    /// Of these samples, in microseconds; `None` of none. Of an even number, the median is the upper of the two in the middle.
    #[must_use]
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        Some(Self { median_us: *samples.get(samples.len() / 2)?, min_us: *samples.first()? })
    }
}

/// Work that is to be timed: it is called once untimed, and then as often as the device needs.
pub type Work<'a> = &'a mut dyn FnMut() -> Result<()>;

/// A group of one rank to measure with, and its name in the results.
pub type Group<B> = (&'static str, Arc<dyn Communicator<B>>);

/// A device that can be measured.
pub trait Device {
    /// The backend that runs on it.
    type Backend: Storage;

    /// The backend's handle.
    fn backend(&self) -> &Self::Backend;
    /// Where work is given to.
    fn queue(&self) -> &<Self::Backend as syncbn_core::Backend>::Queue;
    /// What to measure with.
    fn groups(&self) -> Vec<Group<Self::Backend>>;
    /// Enqueues a copy of a tensor to another of the same length.
    fn copy<T: Element>(
        &self,
        from: &<Self::Backend as Storage>::Buffer<T>,
        to: &mut <Self::Backend as Storage>::Buffer<T>,
    ) -> Result<()>;
    /// The device's time for the work, over [`REPETITIONS`], with the caches emptied before each. The work enqueues, and
    /// does not wait.
    fn device_time(&self, work: Work<'_>) -> Result<Times>;
    /// The host's time to enqueue the work on an idle device; `None` where the host does the work itself.
    fn host_time(&self, work: Work<'_>) -> Result<Option<Times>>;
    /// The time on the wall clock from enqueueing the work until the device has done it, for one of several ranks that start
    /// together; `None` for a rank alone.
    fn wall_time(&self, work: Work<'_>) -> Result<Option<Times>> {
        let _ = work;
        Ok(None)
    }
}
