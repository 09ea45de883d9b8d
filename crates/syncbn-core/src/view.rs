//! Borrowed tensors: memory that the caller owns, with a checked shape.
//!
//! A view is made from memory that exists already. Nothing is allocated or copied.

use std::fmt;

use crate::backend::Backend;
use crate::error::Tensor;
use crate::geometry::{Geometry, ShapeError};
use crate::meeting::Gradients;
use crate::scalar::{Element, Scalar};

/// A tensor to read: a [`Geometry`], and memory of the backend that holds at least [`Geometry::len`] elements of `T`.
///
/// What [`Backend::Mem`] is depends on the backend: `&[T]` for `syncbn-cpu`, device memory with a range for GPUs.
///
/// ```
/// use example_backend::Plain; // as syncbn_cpu::Cpu, memory is a slice
/// use syncbn_core::{ShapeError, View};
///
/// let values = vec![0.0_f32; 24];
/// let x = View::<Plain, f32>::channels_first(&values[..], &[2, 3, 4])?;
/// assert_eq!(x.geometry().channels(), 3);
/// let short = View::<Plain, f32>::channels_first(&values[..], &[2, 3, 5]);
/// assert!(matches!(short, Err(ShapeError::Memory { needed: 30, got: 24, .. })));
/// # Ok::<(), ShapeError>(())
/// ```
pub struct View<'a, B: Backend, T: Element> {
    mem: B::Mem<'a, T>,
    geometry: Geometry,
}

/// A tensor to write: a [`Geometry`], and memory of the backend that holds at least [`Geometry::len`] elements of `T`.
///
/// Made as a [`View`] is, from memory that may be written.
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
    /// A tensor of this geometry at the start of `mem`.
    ///
    /// # Errors
    ///
    /// [`ShapeError::Memory`] if `mem` is too short, [`ShapeError::Overflow`] if the bytes would not fit an `isize`. Memory may be longer
    /// than the tensor.
    pub fn new(mem: B::Mem<'a, T>, geometry: Geometry) -> Result<Self, ShapeError> {
        check_memory::<T>(B::mem_len(&mem), &geometry)?;
        Ok(Self { mem, geometry })
    }

    /// A dense channels-first tensor at the start of `mem`.
    ///
    /// # Shapes
    ///
    /// `shape` is (N, C, *spatial).
    ///
    /// # Errors
    ///
    /// Those of [`Geometry::channels_first`] and of [`new`](Self::new).
    pub fn channels_first(mem: B::Mem<'a, T>, shape: &[usize]) -> Result<Self, ShapeError> {
        Self::new(mem, Geometry::channels_first(shape)?)
    }

    /// A dense channels-last tensor at the start of `mem`.
    ///
    /// # Shapes
    ///
    /// `shape` is (N, *spatial, C).
    ///
    /// # Errors
    ///
    /// Those of [`Geometry::channels_last`] and of [`new`](Self::new).
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
    /// A tensor of this geometry at the start of `mem`.
    ///
    /// # Errors
    ///
    /// As [`View::new`].
    pub fn new(mem: B::MemMut<'a, T>, geometry: Geometry) -> Result<Self, ShapeError> {
        check_memory::<T>(B::mem_mut_len(&mem), &geometry)?;
        Ok(Self { mem, geometry })
    }

    /// A dense channels-first tensor at the start of `mem`; `shape` is (N, C, *spatial).
    ///
    /// # Errors
    ///
    /// As [`View::channels_first`].
    pub fn channels_first(mem: B::MemMut<'a, T>, shape: &[usize]) -> Result<Self, ShapeError> {
        Self::new(mem, Geometry::channels_first(shape)?)
    }

    /// A dense channels-last tensor at the start of `mem`; `shape` is (N, *spatial, C).
    ///
    /// # Errors
    ///
    /// As [`View::channels_last`].
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

    /// The same tensor, borrowed to be read.
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

/// What [`SyncBatchNorm`](crate::SyncBatchNorm) accepts where it reads a tensor: a [`View`], or the `Result` of making one.
///
/// With a `Result`, a bad shape becomes an error of the layer's call, with operation, layer and rank in it. Implement it for the
/// tensors of your framework, as `syncbn-cpu` does for `ndarray`'s views:
///
/// ```
/// use example_backend::Plain;
/// use syncbn_core::{Config, IntoView, ShapeError, SyncBatchNorm, View, ViewMut};
///
/// struct Tensor {
///     shape: Vec<usize>,
///     values: Vec<f32>,
/// }
///
/// impl<'a> IntoView<'a, Plain, f32> for &'a Tensor {
///     fn into_view(self) -> Result<View<'a, Plain, f32>, ShapeError> {
///         View::channels_first(&self.values[..], &self.shape)
///     }
/// }
///
/// let x = Tensor { shape: vec![3, 1], values: vec![1.0, 2.0, 3.0] };
/// let mut y = vec![0.0; 3];
/// let mut norm = SyncBatchNorm::local("norm", Config::new(1), Plain, &())?;
/// norm.forward(&(), &x, ViewMut::channels_first(&mut y[..], &[3, 1]))?;
/// assert!(y[1].abs() < 1e-6 && (y[2] - 1.2247).abs() < 1e-4);
/// # Ok::<(), syncbn_core::Error>(())
/// ```
pub trait IntoView<'a, B: Backend, T: Element> {
    /// The view.
    ///
    /// # Errors
    ///
    /// What is wrong with the tensor's shape, strides or memory.
    fn into_view(self) -> Result<View<'a, B, T>, ShapeError>;
}

/// What [`SyncBatchNorm`](crate::SyncBatchNorm) accepts where it writes a tensor; see [`IntoView`].
pub trait IntoViewMut<'a, B: Backend, T: Element> {
    /// The view.
    ///
    /// # Errors
    ///
    /// What is wrong with the tensor's shape, strides or memory.
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
    /// Reads dy and writes dx to memory of its own.
    ///
    /// # Shapes
    ///
    /// Both have shape and layout of x, which the backward pass checks.
    ///
    /// # Errors
    ///
    /// The tensor that cannot be viewed, and why. [`SyncBatchNorm`](crate::SyncBatchNorm) takes the `Result`, and reports it
    /// with its own name.
    pub fn out_of_place(
        dy: impl IntoView<'a, B, T>,
        dx: impl IntoViewMut<'a, B, T>,
    ) -> Result<Self, GradientsError> {
        let dy = dy.into_view().map_err(GradientsError::of(Tensor::Dy))?;
        let dx = dx.into_view_mut().map_err(GradientsError::of(Tensor::Dx))?;
        Ok(Self::OutOfPlace { dy, dx })
    }

    /// Reads dy and writes dx over it.
    ///
    /// # Errors
    ///
    /// As [`out_of_place`](Self::out_of_place).
    pub fn in_place(dy: impl IntoViewMut<'a, B, T>) -> Result<Self, GradientsError> {
        Ok(Self::InPlace(dy.into_view_mut().map_err(GradientsError::of(Tensor::Dy))?))
    }

    /// Reads dy and writes no dx, as the first layer of a model needs it. The pass is collective all the same.
    ///
    /// # Errors
    ///
    /// As [`out_of_place`](Self::out_of_place).
    pub fn parameters_only(dy: impl IntoView<'a, B, T>) -> Result<Self, GradientsError> {
        Ok(Self::ParametersOnly { dy: dy.into_view().map_err(GradientsError::of(Tensor::Dy))? })
    }
}

/// A tensor of a backward pass that cannot be used, and why. A layer reports it as [`ErrorKind::Shape`](crate::ErrorKind::Shape).
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
