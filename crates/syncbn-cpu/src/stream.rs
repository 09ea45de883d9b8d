//! Writes past the cache. An ordinary write to memory that is not in the cache first reads what it is about to overwrite,
//! and then pushes out of the cache what somebody may still want; a large output costs half as much without.
//!
//! The only unsafe code of this crate: the processor's instructions for it have no safe names. Deliberately not here:
//! the choice of what is written so.

#![allow(unsafe_code)]

/// Outputs of so many bytes are written past the cache: smaller ones are likely to be wanted by the next layer while they
/// are still there.
pub(crate) const FROM: usize = 4 << 20;

/// Copies `source`, which should be in the cache, over `target`, of the same length, past the cache where the processor can.
#[inline(always)]
pub(crate) fn copy<T: Copy>(source: &[T], target: &mut [T]) {
    debug_assert_eq!(source.len(), target.len());
    #[cfg(target_arch = "x86_64")]
    x86_64::copy(source, target);
    #[cfg(not(target_arch = "x86_64"))]
    target.copy_from_slice(source);
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::{__m128i, _mm_sfence, _mm_stream_si128};

    /// The bytes that the cache moves at a time. Written only in part, a line is not combined into one write.
    const LINE: usize = 64;
    const VECTORS: usize = LINE / size_of::<__m128i>();

    #[inline(always)]
    pub(super) fn copy<T: Copy>(source: &[T], target: &mut [T]) {
        // SAFETY: every pattern of bits is a line, and elements have no padding (they are numbers).
        let (head, lines, tail) = unsafe { target.align_to_mut::<Line>() };
        let (first, rest) = source.split_at(head.len());
        let (middle, last) = rest.split_at(rest.len() - tail.len());
        head.copy_from_slice(first);
        tail.copy_from_slice(last);
        for (line, source) in lines.iter_mut().zip(middle.chunks_exact(LINE / size_of::<T>())) {
            // SAFETY: a chunk has the bytes of a line, every pattern of which is one; it may lie at any address.
            let source = unsafe { source.as_ptr().cast::<Line>().read_unaligned() };
            for (target, vector) in line.0.iter_mut().zip(source.0) {
                // SAFETY: writes the 16 bytes that `target` borrows, which are aligned.
                unsafe { _mm_stream_si128(target, vector) };
            }
        }
        // SAFETY: no memory is touched. Orders these writes before any later one, as the memory model expects of all writes.
        unsafe { _mm_sfence() };
    }

    #[repr(align(64))]
    #[derive(Clone, Copy)]
    struct Line([__m128i; VECTORS]);
}
