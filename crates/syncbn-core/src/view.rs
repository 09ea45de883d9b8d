//! Borrowed tensors: memory that the caller owns, with the proof that it holds what its geometry says.

use std::fmt;

use crate::backend::Backend;
use crate::error::Tensor;
use crate::geometry::{Geometry, ShapeError};
use crate::meeting::Gradients;
use crate::scalar::{Element, Scalar};

/// A tensor that is read: at least [`Geometry::len`] elements of `T` in the backend's memory.
pub struct View<'a, B: Backend, T: Element> {
    mem: B::Mem<'a, T>,
    geometry: Geometry,
}

/// A tensor that is written: at least [`Geometry::len`] elements of `T` in the backend's memory.
pub struct ViewMut<'a, B: Backend, T: Element> {
    mem: B::MemMut<'a, T>,
    geometry: Geometry,
}

impl<B: Backend, T: Element> fmt::Debug for View<'_, B, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({} {:?})", T::DTYPE, self.geometry)
    }
}

impl<B: Backend, T: Element> fmt::Debug for ViewMut<'_, B, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViewMut({} {:?})", T::DTYPE, self.geometry)
    }
}

impl<'a, B: Backend, T: Element> View<'a, B, T> {
    /// Proves that `mem` holds a tensor of this geometry, from its first element on.
    pub fn new(mem: B::Mem<'a, T>, geometry: Geometry) -> Result<Self, ShapeError> {
        check_memory::<T>(B::mem_len(&mem), &geometry)?;
        Ok(Self { mem, geometry })
    }

    /// Channels-first memory whose shape is (N, C, *spatial).
    pub fn channels_first(mem: B::Mem<'a, T>, shape: &[usize]) -> Result<Self, ShapeError> {
        Self::new(mem, Geometry::channels_first(shape)?)
    }

    /// Channels-last memory whose shape is (N, *spatial, C).
    pub fn channels_last(mem: B::Mem<'a, T>, shape: &[usize]) -> Result<Self, ShapeError> {
        Self::new(mem, Geometry::channels_last(shape)?)
    }

    /// The shape and layout.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The memory, which holds at least [`Geometry::len`] elements.
    #[must_use]
    pub fn mem(&self) -> &B::Mem<'a, T> {
        &self.mem
    }

    /// The same tensor, borrowed for a shorter time.
    #[must_use]
    pub fn reborrow(&self) -> View<'_, B, T> {
        View { mem: B::reborrow(&self.mem), geometry: self.geometry }
    }
}

impl<'a, B: Backend, T: Element> ViewMut<'a, B, T> {
    /// Proves that `mem` has room for a tensor of this geometry, from its first element on.
    pub fn new(mem: B::MemMut<'a, T>, geometry: Geometry) -> Result<Self, ShapeError> {
        check_memory::<T>(B::mem_mut_len(&mem), &geometry)?;
        Ok(Self { mem, geometry })
    }

    /// Channels-first memory whose shape is (N, C, *spatial).
    pub fn channels_first(mem: B::MemMut<'a, T>, shape: &[usize]) -> Result<Self, ShapeError> {
        Self::new(mem, Geometry::channels_first(shape)?)
    }

    /// Channels-last memory whose shape is (N, *spatial, C).
    pub fn channels_last(mem: B::MemMut<'a, T>, shape: &[usize]) -> Result<Self, ShapeError> {
        Self::new(mem, Geometry::channels_last(shape)?)
    }

    /// The shape and layout.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The memory, which holds at least [`Geometry::len`] elements.
    pub fn mem_mut(&mut self) -> &mut B::MemMut<'a, T> {
        &mut self.mem
    }

    /// The same tensor, to be read for a while.
    #[must_use]
    pub fn as_view(&self) -> View<'_, B, T> {
        View { mem: B::as_mem(&self.mem), geometry: self.geometry }
    }

    /// The memory itself.
    #[must_use]
    pub fn into_mem(self) -> B::MemMut<'a, T> {
        self.mem
    }

    /// The same tensor, borrowed for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> ViewMut<'_, B, T> {
        ViewMut { mem: B::reborrow_mut(&mut self.mem), geometry: self.geometry }
    }
}

/// The same optional memory, borrowed for a shorter time.
pub(crate) fn shorter<'s, B: Backend, P: Scalar>(mem: Option<&'s B::Mem<'_, P>>) -> Option<B::Mem<'s, P>> {
    mem.map(B::reborrow)
}

/// The same optional memory, borrowed for a shorter time.
pub(crate) fn shorter_mut<'s, B: Backend, P: Scalar>(
    mem: Option<&'s mut B::MemMut<'_, P>>,
) -> Option<B::MemMut<'s, P>> {
    mem.map(B::reborrow_mut)
}

fn check_memory<T: Element>(got: usize, geometry: &Geometry) -> Result<(), ShapeError> {
    let needed = geometry.len();
    if needed > isize::MAX as usize / size_of::<T>() {
        return Err(ShapeError::Overflow { shape: geometry.shape().sizes().to_vec() });
    }
    if got < needed {
        return Err(ShapeError::Memory { shape: geometry.shape().sizes().to_vec(), needed, got });
    }
    Ok(())
}

/// What a layer accepts where it reads a tensor.
///
/// Besides a [`View`] this is the `Result` that making one gives: the layer then reports the failure with its own
/// name. Backends implement it for what their users hold, an `ndarray` view for instance.
pub trait IntoView<'a, B: Backend, T: Element> {
    /// The proven view, or what is wrong with the tensor.
    fn into_view(self) -> Result<View<'a, B, T>, ShapeError>;
}

/// What a layer accepts where it writes a tensor; see [`IntoView`].
pub trait IntoViewMut<'a, B: Backend, T: Element> {
    /// The proven view, or what is wrong with the tensor.
    fn into_view_mut(self) -> Result<ViewMut<'a, B, T>, ShapeError>;
}

impl<'a, B: Backend, T: Element> IntoView<'a, B, T> for View<'a, B, T> {
    fn into_view(self) -> Result<View<'a, B, T>, ShapeError> {
        Ok(self)
    }
}

impl<'a, B: Backend, T: Element> IntoView<'a, B, T> for Result<View<'a, B, T>, ShapeError> {
    fn into_view(self) -> Result<View<'a, B, T>, ShapeError> {
        self
    }
}

impl<'a, B: Backend, T: Element> IntoViewMut<'a, B, T> for ViewMut<'a, B, T> {
    fn into_view_mut(self) -> Result<ViewMut<'a, B, T>, ShapeError> {
        Ok(self)
    }
}

impl<'a, B: Backend, T: Element> IntoViewMut<'a, B, T> for Result<ViewMut<'a, B, T>, ShapeError> {
    fn into_view_mut(self) -> Result<ViewMut<'a, B, T>, ShapeError> {
        self
    }
}

impl<'a, B: Backend, T: Element> Gradients<'a, B, T> {
    /// dx goes to memory of its own.
    pub fn out_of_place(
        dy: impl IntoView<'a, B, T>,
        dx: impl IntoViewMut<'a, B, T>,
    ) -> Result<Self, GradientsError> {
        let dy = dy.into_view().map_err(GradientsError::of(Tensor::Dy))?;
        let dx = dx.into_view_mut().map_err(GradientsError::of(Tensor::Dx))?;
        Ok(Self::OutOfPlace { dy, dx })
    }

    /// dx is written over dy.
    pub fn in_place(dy: impl IntoViewMut<'a, B, T>) -> Result<Self, GradientsError> {
        Ok(Self::InPlace(dy.into_view_mut().map_err(GradientsError::of(Tensor::Dy))?))
    }

    /// dx is not needed: the layer is the first of its model.
    pub fn parameters_only(dy: impl IntoView<'a, B, T>) -> Result<Self, GradientsError> {
        Ok(Self::ParametersOnly { dy: dy.into_view().map_err(GradientsError::of(Tensor::Dy))? })
    }
}

/// A gradient that cannot be used, and why; a layer reports it with its own name.
#[derive(Clone, Debug)]
pub struct GradientsError {
    pub(crate) tensor: Tensor,
    pub(crate) source: ShapeError,
}

impl GradientsError {
    fn of(tensor: Tensor) -> impl FnOnce(ShapeError) -> Self {
        move |source| Self { tensor, source }
    }
}

impl fmt::Display for GradientsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.tensor, self.source)
    }
}

impl std::error::Error for GradientsError {}
