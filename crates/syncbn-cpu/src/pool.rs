//! The threads that kernels work on: one pool of the backend's own, started when the first large tensor comes.
//!
//! A kernel waits only for this pool. The pool's threads run only pieces of kernels, and a piece waits for nothing. So every kernel
//! ends, whatever pool the caller runs in and whatever locks it holds.
//!
//! A process that was forked from one with a pool has none of its threads, and works on the thread that calls.
//!
//! There are as many threads as `RAYON_NUM_THREADS` says, or as many as the processor offers. All ranks of a process share them.

use std::sync::OnceLock;
use std::{env, panic, process, thread};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::CpuError;

/// Work on fewer elements is done by the calling thread: waking other threads would take longer.
pub(crate) const SERIAL: usize = 1 << 16;

/// Runs `work` on every item, and stops early at an error. `elements` is the size of all items together.
pub(crate) fn for_each<I: Send>(
    elements: usize,
    mut items: impl Iterator<Item = I>,
    work: impl Fn(I) -> Result<(), CpuError> + Sync,
) -> Result<(), CpuError> {
    if elements < SERIAL || threads() == 1 || is_forked() {
        return items.try_for_each(work);
    }
    let items: Vec<I> = items.collect();
    run(|| items.into_par_iter().with_max_len(1).try_for_each(&work))?
}

/// The number of threads of the pool, started or not.
pub(crate) fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    let asked = || env::var("RAYON_NUM_THREADS").ok()?.parse().ok().filter(|&threads| threads > 0);
    let offered = || thread::available_parallelism().map_or(1, usize::from);
    *THREADS.get_or_init(|| asked().unwrap_or_else(offered))
}

/// Runs `work` on the pool, and waits without doing anything else.
///
/// A thread of another rayon pool would run other tasks of that pool while it waits here, and such a task may need a lock that this
/// thread's caller holds. So a new thread, which belongs to no pool, waits in its place.
fn run<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R, CpuError> {
    let pool = pool()?;
    if rayon::current_thread_index().is_none() {
        return Ok(pool.install(work));
    }
    let name = thread::Builder::new().name("syncbn-cpu-waiting".into());
    thread::scope(|scope| {
        let waiting = name.spawn_scoped(scope, || pool.install(work)).map_err(CpuError::no_threads)?;
        Ok(waiting.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    })
}

/// The process that has started the pool, and the pool.
static POOL: OnceLock<(u32, ThreadPool)> = OnceLock::new();

/// Whether the pool's threads are those of the process that this one was forked from.
fn is_forked() -> bool {
    POOL.get().is_some_and(|&(process, _)| process != process::id())
}

fn pool() -> Result<&'static ThreadPool, CpuError> {
    if let Some((_, pool)) = POOL.get() {
        return Ok(pool);
    }
    let named = ThreadPoolBuilder::new().thread_name(|index| format!("syncbn-cpu-{index}"));
    let pool = named.num_threads(threads()).build().map_err(CpuError::no_threads)?;
    // Of two that were built at once, one is taken.
    Ok(&POOL.get_or_init(|| (process::id(), pool)).1)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Whether work on so many elements stays on the thread that asks for it.
    fn stays(elements: usize) -> bool {
        let seen = Mutex::new(Vec::new());
        let note = |_| {
            seen.lock().unwrap().push(thread::current().id());
            Ok(())
        };
        for_each(elements, 0..100, note).unwrap();
        let seen = seen.into_inner().unwrap();
        assert_eq!(seen.len(), 100);
        seen.iter().all(|&thread| thread == thread::current().id())
    }

    #[test]
    fn little_work_stays_on_the_calling_thread_and_much_is_left_to_the_pool() {
        assert!(stays(0));
        assert!(stays(SERIAL - 1));
        assert_eq!(stays(SERIAL), threads() == 1);
    }

    #[test]
    fn an_error_is_handed_on_from_the_calling_thread_and_from_the_pool() {
        let error = || CpuError::OutOfMemory { what: "test", bytes: 1 };
        for elements in [1, SERIAL] {
            let result = for_each(elements, 0..10, |item| if item == 7 { Err(error()) } else { Ok(()) });
            assert_eq!(result, Err(error()));
        }
    }
}
