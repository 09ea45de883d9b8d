//! Copies between the host and borrowed memory.

use syncbn_core::Scalar;

use crate::error::WgpuError;
use crate::gpu::Gpu;
use crate::memory::{Mem, MemMut, Slice, bytes_of, values_of};
use crate::queue::Queue;

const WHAT: &str = "the memory that is copied";

/// Submits, waits, and copies the memory out.
pub(crate) fn read<T: Scalar>(
    gpu: &Gpu,
    queue: &Queue,
    mem: &Mem<'_, T>,
    values: &mut [T],
) -> Result<(), WgpuError> {
    same_len(mem.len(), values.len())?;
    let Some(slice) = mem.slice().filter(|slice| slice.size > 0) else {
        return queue.submit();
    };
    let words = slice.words(WHAT, wgpu::BufferUsages::COPY_SRC)?;
    let staging = gpu.staging(words.size)?;
    queue.read(words, &staging, |bytes| values_of(bytes, values))
}

/// Overwrites the memory, after all commands that were recorded before.
pub(crate) fn write<T: Scalar>(
    gpu: &Gpu,
    queue: &Queue,
    mem: &MemMut<'_, T>,
    values: &[T],
) -> Result<(), WgpuError> {
    same_len(mem.len(), values.len())?;
    let Some(slice) = mem.slice().filter(|slice| slice.size > 0) else {
        return Ok(());
    };
    let words = slice.words(WHAT, wgpu::BufferUsages::COPY_DST)?;
    let mut bytes = bytes_of(values);
    let rest = bytes.len() % 4;
    if rest > 0 && mem.is_padded() {
        bytes.resize(words.size as usize, 0);
    } else if rest > 0 {
        // The last word also has an element that is not part of this memory.
        let last = Slice { offset: words.offset + words.size - 4, size: 4, ..words };
        let last = last.words(WHAT, wgpu::BufferUsages::COPY_SRC)?;
        let behind = queue.read(last, &gpu.staging(4)?, |word| word[rest..].to_vec())?;
        bytes.extend(behind);
    }
    queue.write(words, &bytes)
}

fn same_len(expected: usize, got: usize) -> Result<(), WgpuError> {
    if expected == got { Ok(()) } else { Err(WgpuError::Length { expected, got }) }
}
