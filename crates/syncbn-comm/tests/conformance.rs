//! Every law of the test kit for communicators, on thread ranks, and on TCP ranks that are threads of one process or
//! processes.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod common;

use std::num::NonZeroUsize;
use std::time::Duration;

use common::tcp::tcp_group;
use syncbn_comm::TcpCommunicator;
use syncbn_comm::threads::{ThreadComm, ThreadGroup};
use syncbn_testkit::comm::{Body, on_processes, on_threads};
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

/// How TCP ranks are carried.
enum TcpHarness {
    Threads,
    Processes,
}

impl CommHarness for TcpHarness {
    type Comm = TcpCommunicator;

    fn name(&self) -> &'static str {
        "tcp"
    }

    fn run(&self, world_size: NonZeroUsize, timeout: Duration, body: &Body<'_, TcpCommunicator>) -> Outcome {
        match self {
            Self::Threads => on_threads(tcp_group(world_size.get(), timeout)?, body),
            Self::Processes => on_processes(world_size, timeout, body),
        }
    }

    fn split(
        &self,
        comm: &TcpCommunicator,
        color: Option<u32>,
        key: i64,
    ) -> Outcome<Option<TcpCommunicator>> {
        Ok(comm.split(color, key)?)
    }
}

syncbn_testkit::communicator_conformance!(tcp: TcpHarness::Threads);
syncbn_testkit::communicator_conformance!(tcp_processes: TcpHarness::Processes);
