//! Device memory: borrowed parts of the caller's buffers, and buffers that a layer owns.
//!
//! Limits of the device are checked where a kernel binds the memory.

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
    /// The part that a tensor of this geometry takes.
    pub(crate) fn of(self, geometry: &Geometry, element: usize) -> Self {
        Self { size: self.size.min(geometry.len() as u64 * element as u64), ..self }
    }

    /// The 4-byte words that contain it, if they can be copied.
    pub(crate) fn words(self, what: &'static str, usage: wgpu::BufferUsages) -> Result<Self, WgpuError> {
        let Self { buffer, offset, size } = self;
        let alignment = wgpu::COPY_BUFFER_ALIGNMENT;
        if !offset.is_multiple_of(alignment) {
            return Err(WgpuError::Alignment {
                tensor: what,
                offset,
                limit: "COPY_BUFFER_ALIGNMENT",
                alignment,
            });
        }
        let size = size.saturating_add(3) / 4 * 4;
        self.fits(what, size, usage)?;
        Ok(Self { buffer, offset, size })
    }

    /// An error if so many bytes of the buffer cannot be used in this way.
    pub(crate) fn fits(
        self,
        tensor: &'static str,
        size: u64,
        needed: wgpu::BufferUsages,
    ) -> Result<(), WgpuError> {
        let end = self.offset.saturating_add(size);
        if end > self.buffer.size() {
            return Err(WgpuError::OutOfBuffer { tensor, end, size: self.buffer.size() });
        }
        let got = self.buffer.usage();
        if got.contains(needed) { Ok(()) } else { Err(WgpuError::Usage { tensor, needed, got }) }
    }
}

/// Device memory that is read: `len` elements of a buffer.
#[derive(Debug)]
pub struct Mem<'a, T: Scalar> {
    place: Place<'a>,
    marker: PhantomData<&'a [T]>,
}

/// Device memory that is written: `len` elements of a buffer.
#[derive(Debug)]
pub struct MemMut<'a, T: Scalar> {
    place: Place<'a>,
    marker: PhantomData<&'a mut [T]>,
}

/// Elements of a buffer. Memory of no elements has no buffer.
#[derive(Clone, Copy, Debug, Default)]
struct Place<'a> {
    buffer: Option<&'a wgpu::Buffer>,
    offset: u64,
    len: usize,
    /// Whether nothing else uses the rest of the last word.
    padded: bool,
}

impl<'a> Place<'a> {
    fn slice<T: Scalar>(self) -> Option<Slice<'a>> {
        let Self { buffer, offset, len, padded: _ } = self;
        let size = (len as u64).saturating_mul(size_of::<T>() as u64);
        buffer.map(|buffer| Slice { buffer, offset, size })
    }
}

impl<'a, T: Scalar> Mem<'a, T> {
    /// `len` elements, from byte `offset` on. The buffer needs the usage `STORAGE`; the offset has to be a multiple of the device's
    /// `min_storage_buffer_offset_alignment`; halves are read two at a time, so the buffer has to contain all 4 bytes of the last
    /// word. Otherwise the call that uses the memory returns an error.
    #[must_use]
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64, len: usize) -> Self {
        Self::at(Place { buffer: Some(buffer), offset, len, padded: false })
    }

    /// Memory of no elements.
    #[must_use]
    pub fn empty() -> Self {
        Self::at(Place::default())
    }

    fn at(place: Place<'a>) -> Self {
        Self { place, marker: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.place.len
    }

    pub(crate) fn slice(&self) -> Option<Slice<'a>> {
        self.place.slice::<T>()
    }

    pub(crate) fn reborrow(&self) -> Mem<'_, T> {
        Mem::at(self.place)
    }
}

impl<'a, T: Scalar> MemMut<'a, T> {
    /// As [`Mem::new`]. wgpu's buffers are shared handles, so the caller makes sure that no two of these overlap. The half
    /// after an odd number of halves is not changed.
    #[must_use]
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64, len: usize) -> Self {
        Self::at(Place { buffer: Some(buffer), offset, len, padded: false })
    }

    /// Memory of no elements.
    #[must_use]
    pub fn empty() -> Self {
        Self::at(Place::default())
    }

    fn at(place: Place<'a>) -> Self {
        Self { place, marker: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.place.len
    }

    /// Whether nothing else uses the rest of the last word.
    pub(crate) fn is_padded(&self) -> bool {
        self.place.padded
    }

    pub(crate) fn slice(&self) -> Option<Slice<'_>> {
        self.place.slice::<T>()
    }

    pub(crate) fn reborrow_mut(&mut self) -> MemMut<'_, T> {
        MemMut::at(self.place)
    }

    pub(crate) fn as_mem(&self) -> Mem<'_, T> {
        Mem::at(self.place)
    }
}

/// Device memory that a layer owns: parameters, their gradients, running statistics.
///
/// An optimiser can work on it in place. [`Buffer::inner`] is wgpu's own buffer, to be bound and copied, read and written;
/// [`Buffer::from_wgpu`] makes a `Buffer` of the application's. A pass is submitted before its call returns, and a queue runs
/// submissions in order: commands that the application submits afterwards see the results of the pass, and the next pass sees
/// theirs. Within [`Queue::hold`](crate::Queue::hold), where passes are not submitted yet, use
/// [`Queue::record`](crate::Queue::record) for such commands. Call the layer's `weight_mut` or `bias_mut` before them, so that the
/// layer knows of the change.
#[derive(Debug)]
pub struct Buffer<T: Scalar> {
    inner: wgpu::Buffer,
    len: usize,
    padded: bool,
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
        let mut bytes = bytes_of(values);
        bytes.resize(size as usize, 0);
        let inner = filled(device, "memory of a layer", Self::USAGE, &bytes)?;
        Ok(Self { inner, len: values.len(), padded: true, marker: PhantomData })
    }

    /// What such a buffer is used for.
    pub const USAGE: wgpu::BufferUsages =
        wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

    /// The first `len` elements of the application's own buffer, which needs the usages [`Buffer::USAGE`] and room for whole words
    /// of 4 bytes. It stays shared: what the application writes to it, the layer reads.
    ///
    /// # Errors
    ///
    /// [`WgpuError::Usage`], [`WgpuError::OutOfBuffer`].
    pub fn from_wgpu(inner: wgpu::Buffer, len: usize) -> Result<Self, WgpuError> {
        let place = Place { buffer: Some(&inner), offset: 0, len, padded: false };
        if let Some(slice) = place.slice::<T>() {
            slice.words("the memory of a layer", Self::USAGE)?;
        }
        Ok(Self { inner, len, padded: false, marker: PhantomData })
    }

    /// wgpu's buffer, which may be longer than the elements: they begin at its first byte, in the device's order of bytes.
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

    fn place(&self) -> Place<'_> {
        Place { buffer: Some(&self.inner), offset: 0, len: self.len, padded: self.padded }
    }

    pub(crate) fn mem(&self) -> Mem<'_, T> {
        Mem::at(self.place())
    }

    pub(crate) fn mem_mut(&mut self) -> MemMut<'_, T> {
        MemMut::at(self.place())
    }
}

/// A size that copies and bindings may have, and that is not 0.
pub(crate) fn padded(size: usize) -> u64 {
    (size as u64).next_multiple_of(16).max(16)
}

pub(crate) fn bytes_of<T: Scalar>(values: &[T]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of_val(values).saturating_add(16));
    for value in values {
        bytes.extend_from_slice(value.to_le_bytes().as_ref());
    }
    bytes
}

/// The values of these bytes; what remains is padding.
pub(crate) fn values_of<T: Scalar>(bytes: &[u8], values: &mut [T]) {
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size_of::<T>())) {
        *value = T::from_le_bytes(bytes).unwrap_or_default();
    }
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
