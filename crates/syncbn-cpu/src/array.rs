//! `ndarray`: views as tensors, without copying, and passes that allocate their results.
//!
//! A view's channel axis is axis 1: (N, C, *spatial), in the order of that shape or with permuted strides, channels last.
//! [`channels_last`] takes arrays whose shape says so too: (N, *spatial, C).
//!
//! Nothing is copied: a view with gaps gives a [`ShapeError`] that says how to close them.

use ndarray::{Array, Array1, ArrayBase, ArrayView, ArrayViewMut, Data, DataMut, Dimension};
use syncbn_core::{
    Element, Error, Geometry, Gradients, IntoView, IntoViewMut, Kernels, Layout, ParamGradients,
    SavedStatistics, ShapeError, SyncBatchNorm, View, ViewMut,
};

use crate::device::Cpu;

impl<'a, T: Element, D: Dimension> IntoView<'a, Cpu, T> for ArrayView<'a, T, D> {
    fn into_view(self) -> Result<View<'a, Cpu, T>, ShapeError> {
        borrowed(&self, 1)
    }
}

impl<'a, T: Element, D: Dimension> IntoViewMut<'a, Cpu, T> for ArrayViewMut<'a, T, D> {
    fn into_view_mut(self) -> Result<ViewMut<'a, Cpu, T>, ShapeError> {
        borrowed_mut(self, 1)
    }
}

impl<'a, T: Element, S: Data<Elem = T>, D: Dimension> IntoView<'a, Cpu, T> for &'a ArrayBase<S, D> {
    fn into_view(self) -> Result<View<'a, Cpu, T>, ShapeError> {
        borrowed(&self.view(), 1)
    }
}

impl<'a, T: Element, S: DataMut<Elem = T>, D: Dimension> IntoViewMut<'a, Cpu, T> for &'a mut ArrayBase<S, D> {
    fn into_view_mut(self) -> Result<ViewMut<'a, Cpu, T>, ShapeError> {
        borrowed_mut(self.view_mut(), 1)
    }
}

/// An array of shape (N, *spatial, C) as a tensor to be read.
///
/// # Errors
///
/// [`ShapeError`]: less than two axes, no channels, or memory with gaps or in another order.
pub fn channels_last<T: Element, S: Data<Elem = T>, D: Dimension>(
    array: &ArrayBase<S, D>,
) -> Result<View<'_, Cpu, T>, ShapeError> {
    borrowed(&array.view(), array.ndim().saturating_sub(1))
}

/// An array of shape (N, *spatial, C) as a tensor to be written.
///
/// # Errors
///
/// As [`channels_last`].
pub fn channels_last_mut<T: Element, S: DataMut<Elem = T>, D: Dimension>(
    array: &mut ArrayBase<S, D>,
) -> Result<ViewMut<'_, Cpu, T>, ShapeError> {
    let channel_axis = array.ndim().saturating_sub(1);
    borrowed_mut(array.view_mut(), channel_axis)
}

fn borrowed<'a, T: Element, D: Dimension>(
    array: &ArrayView<'a, T, D>,
    channel_axis: usize,
) -> Result<View<'a, Cpu, T>, ShapeError> {
    let geometry = Geometry::strided(array.shape(), array.strides(), channel_axis)?;
    // Dense in one of the two orders, so `ndarray` has it as a slice in memory order; an array without elements may have
    // any strides, and needs no memory.
    View::new(array.to_slice_memory_order().unwrap_or_default(), geometry)
}

fn borrowed_mut<T: Element, D: Dimension>(
    array: ArrayViewMut<'_, T, D>,
    channel_axis: usize,
) -> Result<ViewMut<'_, Cpu, T>, ShapeError> {
    let geometry = Geometry::strided(array.shape(), array.strides(), channel_axis)?;
    ViewMut::new(array.into_slice_memory_order().unwrap_or_default(), geometry)
}

/// Normalises `x`, of shape (N, C, *spatial), and returns y with what the backward pass needs.
///
/// As [`SyncBatchNorm::forward`], with y in new memory of the same shape and layout.
///
/// # Errors
///
/// As [`SyncBatchNorm::forward`].
pub fn forward_array<T, S, D>(
    layer: &mut SyncBatchNorm<Cpu, T::Param>,
    x: &ArrayBase<S, D>,
) -> Result<(Array<T, D>, SavedStatistics<Cpu>), Error>
where
    Cpu: Kernels<T>,
    T: Element,
    S: Data<Elem = T>,
    D: Dimension,
{
    let view = x.into_view();
    let mut y = zeros_like(x, &view);
    let saved = layer.forward(&(), view, &mut y)?;
    Ok((y, saved))
}

/// The gradients of a backward pass.
#[derive(Clone, Debug)]
pub struct ArrayGradients<T: Element, D: Dimension> {
    /// The gradient of x, of the same shape and layout.
    pub dx: Array<T, D>,
    /// The gradient of the weight, over this rank's elements, if the layer is affine.
    pub weight: Option<Array1<T::Param>>,
    /// The gradient of the bias, over this rank's elements, if the layer is affine.
    pub bias: Option<Array1<T::Param>>,
}

/// The gradients of x, and of the layer's weight and bias if it has them; `x` as the forward pass read it, `dy` of the same
/// shape and layout.
///
/// As [`SyncBatchNorm::backward`], with the gradients in new memory.
///
/// # Errors
///
/// As [`SyncBatchNorm::backward`].
pub fn backward_array<T, S, R, D>(
    layer: &mut SyncBatchNorm<Cpu, T::Param>,
    saved: &SavedStatistics<Cpu>,
    x: &ArrayBase<S, D>,
    dy: &ArrayBase<R, D>,
) -> Result<ArrayGradients<T, D>, Error>
where
    Cpu: Kernels<T>,
    T: Element,
    S: Data<Elem = T>,
    R: Data<Elem = T>,
    D: Dimension,
{
    let parameter =
        layer.config().affine.then(|| Array1::from_elem(layer.config().channels, T::Param::default()));
    let (mut weight, mut bias) = (parameter.clone(), parameter);
    let parameters = ParamGradients {
        weight: weight.as_mut().and_then(Array1::as_slice_mut),
        bias: bias.as_mut().and_then(Array1::as_slice_mut),
    };
    let view = x.into_view();
    let mut dx = zeros_like(x, &view);
    layer.backward(&(), saved, view, Gradients::out_of_place(dy, &mut dx), parameters)?;
    Ok(ArrayGradients { dx, weight, bias })
}

/// Zeros of the same shape and layout; nothing if the array is not usable.
fn zeros_like<T: Element, S: Data<Elem = T>, D: Dimension>(
    array: &ArrayBase<S, D>,
    view: &Result<View<'_, Cpu, T>, ShapeError>,
) -> Array<T, D> {
    let zeros = |shape: D| Array::from_elem(shape, T::default());
    match view.as_ref().map(|view| view.geometry().layout()) {
        Err(_) => zeros(D::zeros(array.ndim())),
        Ok(Layout::ChannelsFirst) => zeros(array.raw_dim()),
        Ok(Layout::ChannelsLast) => {
            // Made as (N, *spatial, C), then seen as (N, C, *spatial).
            let (mut shape, mut order) = (array.raw_dim(), array.raw_dim());
            shape.slice_mut()[1..].rotate_left(1);
            order.slice_mut().iter_mut().enumerate().for_each(|(axis, from)| *from = axis);
            order.slice_mut()[1..].rotate_right(1);
            zeros(shape).permuted_axes(order)
        }
    }
}
