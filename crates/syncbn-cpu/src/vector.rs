//! Loops with the widest vectors that the processor has, chosen when the program runs.
//!
//! Plain loops that the compiler vectorises are compiled once per instruction set. Sums along a plane, which it does not
//! vectorise, are written in vectors (`sums`).
//!
//! Deliberately not here: intrinsics.

use pulp::Arch;

/// Runs `work`, whose loops must all be inlined into it, with the best instruction set.
#[inline(always)]
pub(crate) fn vector<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}
