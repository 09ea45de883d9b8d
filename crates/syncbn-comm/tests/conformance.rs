//! Every law of the test kit for communicators, on thread ranks.

use std::num::NonZeroUsize;
use std::time::Duration;

use syncbn_comm::threads::{ThreadComm, ThreadGroup};
use syncbn_testkit::comm::{Body, on_threads};
use syncbn_testkit::{CommHarness, Outcome};

struct ThreadHarness;

impl CommHarness for ThreadHarness {
    type Comm = ThreadComm;

    fn name(&self) -> &'static str {
        "threads"
    }

    fn run(&self, world_size: NonZeroUsize, timeout: Duration, body: &Body<'_, ThreadComm>) -> Outcome {
        on_threads(ThreadGroup::new(world_size, timeout)?, body)
    }

    fn split(&self, comm: &ThreadComm, color: Option<u32>, key: i64) -> Outcome<Option<ThreadComm>> {
        Ok(comm.split(color, key)?)
    }
}

syncbn_testkit::communicator_conformance!(threads: ThreadHarness);
