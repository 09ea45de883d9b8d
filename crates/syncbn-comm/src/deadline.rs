//! One deadline for several waits. It is measured on the monotonic clock: setting the system's clock does not move it.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// None if it lies beyond what the clock can tell.
    at: Option<Instant>,
}

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Self {
        Self { at: Instant::now().checked_add(timeout) }
    }

    /// The time that is left; [`Duration::MAX`] if there is no end.
    pub(crate) fn left(self) -> Duration {
        self.at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn has_passed(self) -> bool {
        self.left().is_zero()
    }
}
