//! Slices, vectors and arrays with a shape as tensors: `(&x, [N, C, H, W])` is channels-first memory of that shape. Channels-last
//! memory is what [`View::channels_last`] takes.

use syncbn_core::{Element, IntoView, IntoViewMut, ShapeError, View, ViewMut};

use crate::device::Cpu;

impl<'a, T, M, S> IntoView<'a, Cpu, T> for (&'a M, S)
where
    T: Element,
    M: AsRef<[T]> + ?Sized,
    S: AsRef<[usize]>,
{
    fn into_view(self) -> Result<View<'a, Cpu, T>, ShapeError> {
        View::channels_first(self.0.as_ref(), self.1.as_ref())
    }
}

impl<'a, T, M, S> IntoViewMut<'a, Cpu, T> for (&'a mut M, S)
where
    T: Element,
    M: AsMut<[T]> + ?Sized,
    S: AsRef<[usize]>,
{
    fn into_view_mut(self) -> Result<ViewMut<'a, Cpu, T>, ShapeError> {
        ViewMut::channels_first(self.0.as_mut(), self.1.as_ref())
    }
}
