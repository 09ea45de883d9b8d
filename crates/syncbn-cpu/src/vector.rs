//! Loops with the widest vectors that the processor has, chosen when the program runs.
//!
//! Plain loops that the compiler vectorises are compiled once per instruction set. They use no fused operations and a
//! fixed order of sums; the tests hold that for any number of threads on one processor.
//!
//! Deliberately not here: intrinsics.

use pulp::Arch;

/// Runs `work`, whose loops must all be inlined into it, with the best instruction set.
#[inline(always)]
pub(crate) fn vector<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}
