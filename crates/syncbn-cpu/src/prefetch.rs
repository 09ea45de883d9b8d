//! Asking for memory before it is needed.
//!
//! A core waits for no more than a dozen or so lines at a time, and what fetches ahead by itself stops at the end of each page. Asked
//! for some kilobytes ahead, the same loops over f32 were up to half as fast again on a Xeon, and about as fast on an EPYC.
//!
//! Deliberately not here: the loops.

use crate::vector::STRIP;

/// How far ahead along a plane, in bytes. (Across channels it is at least a row, or as many rows as are added at a time.)
const AHEAD: usize = 2048;

/// [`AHEAD`], in elements.
pub(crate) const fn elements<T>() -> usize {
    AHEAD / size_of::<T>()
}

/// Asks for what lies `distance` elements behind the strip's beginning, whether or not that is memory at all.
#[inline(always)]
pub(crate) fn ahead<T>(strip: &[T; STRIP], distance: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(sse) = pulp::core_arch::x86::Sse::try_new() {
        use std::arch::x86_64::_MM_HINT_T0;
        // A hint, which reads nothing and cannot fault, whatever the address.
        sse._mm_prefetch::<_MM_HINT_T0>(strip.as_ptr().wrapping_add(distance).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (strip, distance);
}
