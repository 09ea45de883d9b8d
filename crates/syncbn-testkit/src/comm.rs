//! The harness of a communicator in host memory. Its laws are in [`laws`].
//!
//! Deliberately not here: device-native communicators. They are tested by a backend's laws, in a harness whose
//! [`group`](crate::Harness::group) makes them.

pub mod laws;
mod processes;

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use syncbn_core::HostCommunicator;

use crate::broken;
use crate::harness::{Ability, Gap, Unavailable, lack};
use crate::outcome::{Outcome, Verdict};
use crate::rank::{panic_text, together};

pub(crate) use processes::begin;
pub use processes::{free_port, on_processes};

/// A communicator under test.
pub trait CommHarness: Send + Sync {
    /// The communicator, one value per rank.
    type Comm: HostCommunicator + 'static;

    /// The short name, as `SYNCBN_REQUIRE` lists it: `threads`, `mpi`.
    fn name(&self) -> &'static str;

    /// Whether the machine has what it needs; if not, what to install.
    fn available(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    /// What the communicator does not promise, each with the reason. Laws that need it are skipped, and print the reason.
    fn gaps(&self) -> Vec<Gap> {
        Vec::new()
    }

    /// Makes a group and runs `body` once in each of its ranks, at the same time. A rank waits for its peers as long as `timeout`.
    fn run(&self, world_size: NonZeroUsize, timeout: Duration, body: &Body<'_, Self::Comm>) -> Outcome;

    /// Divides a group as MPI's `MPI_Comm_split`, if the communicator offers it.
    fn split(&self, comm: &Self::Comm, color: Option<u32>, key: i64) -> Outcome<Option<Self::Comm>> {
        let _ = (comm, color, key);
        Err(Verdict::Skipped("the communicator does not split".into()))
    }
}

/// Leaves the law as skipped if the communicator has declared that it lacks the ability.
pub fn need<H: CommHarness>(harness: &H, ability: Ability) -> Outcome {
    lack(&harness.gaps(), ability).map_or(Ok(()), |why| Err(Verdict::Skipped(why)))
}

/// What a rank does.
pub type Body<'a, C> = dyn Fn(C) -> Outcome + Sync + 'a;

/// Runs ranks as threads of this process: what most harnesses' `run` does with the communicators of a new group.
pub fn on_threads<C: HostCommunicator>(group: Vec<C>, body: &Body<'_, C>) -> Outcome {
    let answers = thread::scope(|scope| {
        let ranks: Vec<_> = group.into_iter().map(|comm| scope.spawn(move || body(comm))).collect();
        let answers = ranks.into_iter().map(|rank| {
            rank.join().unwrap_or_else(|panic| Err(broken!("panicked: {}", panic_text(&*panic))))
        });
        answers.collect::<Vec<_>>()
    });
    together(answers).map(drop)
}
