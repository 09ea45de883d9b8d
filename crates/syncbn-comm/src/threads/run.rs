//! Runs one body in every rank of a new group.
//!
//! Deliberately not here: the group itself. Whoever starts threads of their own takes [`ThreadGroup::new`].

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{ThreadComm, ThreadGroup};

/// Runs `body` on a thread of its own for each rank of a new group, waits for all, and returns what they returned, by rank.
///
/// A rank leaves the group when its communicator is dropped: at the latest when the body returns, if it has not put it elsewhere. If a
/// body panics, the other ranks' collectives fail, and once all have ended the earliest panic is raised again in the caller: the cause, and not the
/// panics of ranks that were told of it.
///
/// # Errors
///
/// The operating system's, if it cannot start as many threads; [`TooManyRanks`](super::TooManyRanks).
pub fn run<R: Send>(
    world_size: NonZeroUsize,
    timeout: Duration,
    body: impl Fn(ThreadComm) -> R + Sync,
) -> io::Result<Vec<R>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let group = ThreadGroup::new(world_size, timeout).map_err(invalid)?;
    let results = thread::scope(|scope| {
        // If one cannot be started, those that were not are dropped with their communicators, which releases the others.
        let start = |comm: ThreadComm| {
            let name = format!("rank {}", comm.rank);
            thread::Builder::new().name(name).spawn_scoped(scope, || caught(&body, comm))
        };
        let ranks: Vec<_> = group.into_iter().map(start).collect::<io::Result<_>>()?;
        let join =
            |rank: thread::ScopedJoinHandle<'_, _>| rank.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok::<_, io::Error>(ranks.into_iter().map(join).collect::<Vec<_>>())
    })?;
    let mut first = None;
    let mut returned = Vec::with_capacity(results.len());
    for (rank, result) in results.into_iter().enumerate() {
        match result {
            Ok(value) => returned.push(value),
            Err(panic) if panic.first == rank || first.is_none() => first = Some(panic.payload),
            Err(_) => {}
        }
    }
    first.map_or(Ok(returned), |payload| resume_unwind(payload))
}

struct Panic {
    payload: Box<dyn std::any::Any + Send>,
    /// The rank that panicked first.
    first: usize,
}

/// What the body returns, or its panic.
fn caught<R>(body: &impl Fn(ThreadComm) -> R, comm: ThreadComm) -> Result<R, Panic> {
    let (rank, meeting) = (comm.rank, Arc::clone(&comm.meeting));
    catch_unwind(AssertUnwindSafe(|| body(comm))).map_err(|payload| {
        // The body may have put its communicator where the panic does not drop it.
        meeting.leave(rank, true);
        Panic { payload, first: meeting.first_panic(rank) }
    })
}
