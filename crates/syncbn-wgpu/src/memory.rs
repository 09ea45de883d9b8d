//! Device memory: parts of the caller's buffers, borrowed, and buffers that a layer owns.
//!
//! Deliberately not here: any check that needs the device's limits; those are made where a kernel binds the memory.

use std::marker::PhantomData;

use syncbn_core::{Geometry, Scalar};

use crate::error::WgpuError;
use crate::scope::caught;

/// Where borrowed memory lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) size: u64,
}

impl Slice<'_> {
    /// As much of it as a tensor takes.
    pub(crate) fn of(self, geometry: &Geometry, element: usize) -> Self {
        Self { size: self.size.min(geometry.len() as u64 * element as u64), ..self }
    }
}

/// Device memory that is read: `len` elements of a buffer.
#[derive(Debug)]
pub struct Mem<'a, T: Scalar> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    marker: PhantomData<&'a [T]>,
}

/// Device memory that is written: `len` elements of a buffer.
#[derive(Debug)]
pub struct MemMut<'a, T: Scalar> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    marker: PhantomData<&'a mut [T]>,
}

fn slice<T: Scalar>(buffer: &wgpu::Buffer, offset: u64, len: usize) -> Slice<'_> {
    Slice { buffer, offset, size: (len as u64).saturating_mul(size_of::<T>() as u64) }
}

impl<'a, T: Scalar> Mem<'a, T> {
    /// `len` elements, from byte `offset` on. The buffer needs the usage `STORAGE`, the offset the device's
    /// `min_storage_buffer_offset_alignment`; halves are read two at a time, so an odd number of them needs a whole last word
    /// of 4 bytes. Whatever does not fit is a typed error of the call that is given this.
    #[must_use]
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64, len: usize) -> Self {
        Self { buffer, offset, len, marker: PhantomData }
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        slice::<T>(self.buffer, self.offset, self.len)
    }

    pub(crate) fn reborrow(&self) -> Mem<'_, T> {
        Mem::new(self.buffer, self.offset, self.len)
    }
}

impl<'a, T: Scalar> MemMut<'a, T> {
    /// As [`Mem::new`]. wgpu's buffers are shared handles, so it is the caller's promise that no two of these overlap. The half
    /// word behind an odd number of halves keeps its value.
    #[must_use]
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64, len: usize) -> Self {
        Self { buffer, offset, len, marker: PhantomData }
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        slice::<T>(self.buffer, self.offset, self.len)
    }

    pub(crate) fn reborrow_mut(&mut self) -> MemMut<'_, T> {
        MemMut::new(self.buffer, self.offset, self.len)
    }

    pub(crate) fn as_mem(&self) -> Mem<'_, T> {
        Mem::new(self.buffer, self.offset, self.len)
    }
}

/// Device memory that a layer owns.
#[derive(Debug)]
pub struct Buffer<T: Scalar> {
    inner: wgpu::Buffer,
    len: usize,
    marker: PhantomData<T>,
}

impl<T: Scalar> Buffer<T> {
    /// New memory with these values.
    pub(crate) fn upload(device: &wgpu::Device, values: &[T]) -> Result<Self, WgpuError> {
        let size = padded(size_of_val(values));
        let largest = device.limits().max_buffer_size;
        if size > largest {
            return Err(WgpuError::Limit { limit: "max_buffer_size", needed: size, got: largest });
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let inner = filled(device, "memory of a layer", usage, &bytes_of(values))?;
        Ok(Self { inner, len: values.len(), marker: PhantomData })
    }

    /// The values as bytes that a copy can take, if there are as many as the buffer has.
    pub(crate) fn bytes_for(&self, values: &[T]) -> Result<Vec<u8>, WgpuError> {
        if values.len() == self.len {
            return Ok(bytes_of(values));
        }
        Err(WgpuError::Length { expected: self.len, got: values.len() })
    }

    /// wgpu's buffer, which may be longer than the elements.
    #[must_use]
    pub fn inner(&self) -> &wgpu::Buffer {
        &self.inner
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn mem(&self) -> Mem<'_, T> {
        Mem::new(&self.inner, 0, self.len)
    }

    pub(crate) fn mem_mut(&mut self) -> MemMut<'_, T> {
        MemMut::new(&self.inner, 0, self.len)
    }
}

/// A size that copies and bindings may have, and that is not 0.
pub(crate) fn padded(size: usize) -> u64 {
    (size as u64).next_multiple_of(16).max(16)
}

fn bytes_of<T: Scalar>(values: &[T]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(padded(size_of_val(values)) as usize);
    for value in values {
        bytes.extend_from_slice(value.to_le_bytes().as_ref());
    }
    bytes.resize(padded(size_of_val(values)) as usize, 0);
    bytes
}

/// The values that were copied out; the rest is padding.
pub(crate) fn values_of<T: Scalar>(bytes: &[u8], len: usize) -> Vec<T> {
    let all = bytes.chunks_exact(size_of::<T>()).map(|bytes| T::from_le_bytes(bytes).unwrap_or_default());
    all.take(len).collect()
}

/// A new buffer with this content, whose length is a multiple of 4.
pub(crate) fn filled(
    device: &wgpu::Device,
    label: &'static str,
    usage: wgpu::BufferUsages,
    content: &[u8],
) -> Result<wgpu::Buffer, WgpuError> {
    let during = "allocating and filling a buffer";
    let buffer = caught(device, during, || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: content.len() as u64,
            usage,
            mapped_at_creation: true,
        })
    })?;
    let mut view = buffer.slice(..).get_mapped_range_mut().map_err(|_| WgpuError::DeviceLost { during })?;
    view.copy_from_slice(content);
    drop(view);
    caught(device, during, || buffer.unmap())?;
    Ok(buffer)
}

/// A new buffer of zeros.
pub(crate) fn empty(
    device: &wgpu::Device,
    label: &'static str,
    usage: wgpu::BufferUsages,
    size: u64,
) -> Result<wgpu::Buffer, WgpuError> {
    let largest = device.limits().max_buffer_size;
    if size > largest {
        return Err(WgpuError::Limit { limit: "max_buffer_size", needed: size, got: largest });
    }
    caught(device, "allocating a buffer", || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        })
    })
}
