//! Running a kernel: block after block, each thread of a block as a coroutine.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};
use std::thread::yield_now;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::device::settings;
use crate::module::Kernel;

/// The most bytes of stack that a kernel's thread uses.
const STACK: usize = 64 << 10;
const WARP: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Dim {
    x: u32,
    y: u32,
    z: u32,
}

impl Dim {
    fn line(x: u32) -> Self {
        Self { x, y: 1, z: 1 }
    }
}

/// As in kernel.h.
#[repr(C)]
struct Block {
    index: Dim,
    dim: Dim,
    grid: Dim,
    dynamic_shared: *mut u8,
    wait: unsafe extern "C" fn(*mut Thread, u32),
}

/// As in kernel.h.
#[repr(C)]
struct Thread {
    index: Dim,
    block: *const Block,
    yielder: *const Yielder<(), Wait>,
    lanes: *mut u64,
    shuffles: u32,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wait {
    /// Its next turn.
    Turn,
    /// The other threads of its warp.
    Warp,
    /// The other threads of its block.
    Block,
    /// Nothing more: it has ended.
    Ended,
}

/// One launch.
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) shared: usize,
    /// The kernel's parameters, one after the other, each at a multiple of 16 bytes.
    pub(crate) params: Vec<u128>,
    /// Where each parameter begins in `params`.
    pub(crate) starts: Vec<usize>,
}

impl Launch {
    /// Runs the grid. The error says which block cannot go on, and why.
    pub(crate) fn run(&self) -> Result<(), String> {
        // Shared by all streams: a process may have only so many mappings.
        static STACKS: Mutex<Vec<DefaultStack>> = Mutex::new(Vec::new());
        let mut all = STACKS.lock().unwrap_or_else(PoisonError::into_inner);
        let first = all.len().saturating_sub(self.threads as usize);
        let mut stacks = all.split_off(first);
        drop(all);
        let mut shared = vec![0; self.shared.div_ceil(16)];
        let last = self.blocks.saturating_sub(1);
        let backwards = settings().is_ok_and(|settings| settings.backwards);
        let index = |turn| if backwards { last - turn } else { turn };
        let result =
            (0..self.blocks).try_for_each(|turn| self.run_block(index(turn), &mut stacks, &mut shared));
        STACKS.lock().unwrap_or_else(PoisonError::into_inner).append(&mut stacks);
        result
    }

    fn run_block(
        &self,
        index: u32,
        stacks: &mut Vec<DefaultStack>,
        shared: &mut [u128],
    ) -> Result<(), String> {
        shared.fill(u128::MAX);
        let block = Block {
            index: Dim { x: index, y: 0, z: 0 },
            dim: Dim::line(self.threads),
            grid: Dim::line(self.blocks),
            dynamic_shared: shared.as_mut_ptr().cast(),
            wait,
        };
        let count = self.threads as usize;
        let mut lanes = vec![0_u64; count.next_multiple_of(WARP) * 2];
        let mut threads: Vec<Thread> = (0..count)
            .map(|thread| Thread {
                index: Dim { x: thread as u32, y: 0, z: 0 },
                block: &raw const block,
                yielder: std::ptr::null(),
                lanes: lanes[thread / WARP * WARP * 2..].as_mut_ptr(),
                shuffles: 0,
            })
            .collect();
        // From here on the threads are used through this pointer alone.
        let first = threads.as_mut_ptr();
        let mut coroutines = Vec::with_capacity(count);
        for index in 0..count {
            let stack = stacks.pop().map_or_else(|| DefaultStack::new(STACK), Ok);
            let stack = stack.map_err(|error| format!("no memory for a thread's stack: {error}"))?;
            coroutines.push(self.coroutine(stack, first.wrapping_add(index)));
        }
        let result = self.take_turns(first, &mut coroutines);
        for coroutine in coroutines {
            if coroutine.done() {
                stacks.push(coroutine.into_stack());
            } else {
                // Its stack holds only the kernel's frames, which own nothing.
                std::mem::forget(coroutine);
            }
        }
        result.map_err(|waits| format!("block {index} of {} cannot go on: {waits}", self.kernel.name()))
    }

    fn coroutine(&self, stack: DefaultStack, thread: *mut Thread) -> Coroutine<(), Wait, ()> {
        let kernel = self.kernel;
        let base = self.params.as_ptr();
        let mut params: Vec<*mut c_void> =
            self.starts.iter().map(|&start| base.wrapping_add(start).cast_mut().cast()).collect();
        Coroutine::with_stack(stack, move |yielder, ()| {
            // SAFETY: the thread outlives its coroutine, and nobody else uses it now.
            unsafe { (*thread).yielder = yielder };
            // SAFETY: there is a pointer to each parameter, of the type that the kernel told the size of.
            unsafe { kernel.call(params.as_mut_ptr()) };
        })
    }

    /// Gives every thread its turns until all have ended.
    fn take_turns(
        &self,
        first: *mut Thread,
        coroutines: &mut [Coroutine<(), Wait, ()>],
    ) -> Result<(), String> {
        let mut waits = vec![Wait::Turn; coroutines.len()];
        while waits.iter().any(|wait| *wait != Wait::Ended) {
            let (mut turns, mut stopped) = (0, 0);
            for (index, (coroutine, wait)) in coroutines.iter_mut().zip(&mut waits).enumerate() {
                if *wait == Wait::Turn {
                    self.kernel.set_current(first.wrapping_add(index));
                    *wait = match coroutine.resume(()) {
                        CoroutineResult::Yield(wait) => wait,
                        CoroutineResult::Return(()) => Wait::Ended,
                    };
                    turns += 1;
                    stopped += usize::from(*wait != Wait::Turn);
                }
            }
            let warps = waits.chunks_mut(WARP).filter(|warp| all_wait_for(warp, Wait::Warp));
            let released = warps.map(|warp| release(warp, Wait::Warp)).count();
            let all = all_wait_for(&waits, Wait::Block);
            if all {
                release(&mut waits, Wait::Block);
            }
            if turns == 0 && released == 0 && !all && waits.iter().any(|wait| *wait != Wait::Ended) {
                let count = |of| waits.iter().filter(|wait| **wait == of).count();
                let [warp, block, ended] = [Wait::Warp, Wait::Block, Wait::Ended].map(count);
                return Err(format!("{warp} threads at a shuffle, {block} at a barrier, {ended} ended"));
            }
            if stopped == 0 {
                // All wait for memory that another device or process writes.
                yield_now();
            }
        }
        Ok(())
    }
}

/// Whether some wait for this, and all others have ended.
fn all_wait_for(waits: &[Wait], what: Wait) -> bool {
    waits.contains(&what) && waits.iter().all(|wait| [what, Wait::Ended].contains(wait))
}

fn release(waits: &mut [Wait], what: Wait) {
    waits.iter_mut().filter(|wait| **wait == what).for_each(|wait| *wait = Wait::Turn);
}

/// Called by a kernel's thread: gives the turn to the next.
unsafe extern "C" fn wait(thread: *mut Thread, what: u32) {
    let what = match what {
        0 => Wait::Turn,
        1 => Wait::Warp,
        _ => Wait::Block,
    };
    // SAFETY: the kernel passes the thread that runs, whose coroutine has set the yielder.
    let yielder = unsafe { (*thread).yielder };
    // SAFETY: the yielder lives as long as the coroutine that calls this.
    unsafe { &*yielder }.suspend(what);
}
