//! The one place where errors get their context: operation, layer and rank.

use std::sync::Arc;

use crate::backend::Backend;
use crate::communicator::CommError;
use crate::error::{Error, ErrorKind, Operation, Stage, Tensor};
use crate::geometry::Geometry;
use crate::group::Group;
use crate::meeting::PassError;
use crate::scalar::{Element, Scalar};
use crate::view::{IntoView, IntoViewMut, View, ViewMut};

/// One operation of one layer. Its methods turn failures into [`Error`]s with that context.
pub(crate) struct PassContext<'a, B: Backend> {
    pub(crate) layer: &'a Arc<str>,
    pub(crate) group: &'a Group<B>,
    pub(crate) operation: Operation,
}

impl<B: Backend> PassContext<'_, B> {
    pub(crate) fn error(&self, kind: impl Into<ErrorKind>) -> Error {
        Error {
            operation: self.operation,
            layer: Arc::clone(self.layer),
            rank: self.group.rank(),
            world_size: self.group.world_size().get(),
            kind: Box::new(kind.into()),
        }
    }

    /// The result of a backend's step.
    pub(crate) fn device<R>(&self, stage: Stage, result: Result<R, B::Error>) -> Result<R, Error> {
        result.map_err(|source| self.error(ErrorKind::Backend { stage, source: Box::new(source) }))
    }

    pub(crate) fn communication<R>(&self, result: Result<R, CommError>) -> Result<R, Error> {
        result.map_err(|source| self.error(ErrorKind::Communicator(source)))
    }

    /// The failure of a whole pass.
    pub(crate) fn pass_error(&self, error: PassError<B::Error>) -> Error {
        match error {
            PassError::Backend { stage, source } => {
                self.error(ErrorKind::Backend { stage, source: Box::new(source) })
            }
            PassError::Sum(source) => self.error(ErrorKind::Communicator(source)),
            PassError::NoPeers => self.error(ErrorKind::NoPeers),
        }
    }

    pub(crate) fn view<'v, T: Element>(
        &self,
        tensor: Tensor,
        view: impl IntoView<'v, B, T>,
    ) -> Result<View<'v, B, T>, Error> {
        view.into_view().map_err(|source| self.error(ErrorKind::Shape { tensor, source }))
    }

    pub(crate) fn view_mut<'v, T: Element>(
        &self,
        tensor: Tensor,
        view: impl IntoViewMut<'v, B, T>,
    ) -> Result<ViewMut<'v, B, T>, Error> {
        view.into_view_mut().map_err(|source| self.error(ErrorKind::Shape { tensor, source }))
    }

    pub(crate) fn channels(&self, expected: usize, x: &Geometry) -> Result<(), Error> {
        let (shape, got) = (x.shape(), x.channels());
        if expected == got {
            return Ok(());
        }
        Err(self.error(ErrorKind::Channels { tensor: Tensor::X, shape, expected, got }))
    }

    pub(crate) fn same_geometry(
        &self,
        tensor: Tensor,
        expected: &Geometry,
        got: &Geometry,
    ) -> Result<(), Error> {
        if expected == got {
            return Ok(());
        }
        Err(self.error(ErrorKind::Geometry { tensor, expected: *expected, got: *got }))
    }

    pub(crate) fn length(&self, tensor: Tensor, expected: usize, got: usize) -> Result<(), Error> {
        if expected == got { Ok(()) } else { Err(self.error(ErrorKind::Length { tensor, expected, got })) }
    }

    pub(crate) fn mem_length<P: Scalar>(
        &self,
        tensor: Tensor,
        expected: usize,
        mem: Option<&B::Mem<'_, P>>,
    ) -> Result<(), Error> {
        mem.map_or(Ok(()), |mem| self.length(tensor, expected, B::mem_len(mem)))
    }

    pub(crate) fn mem_mut_length<P: Scalar>(
        &self,
        tensor: Tensor,
        expected: usize,
        mem: Option<&B::MemMut<'_, P>>,
    ) -> Result<(), Error> {
        mem.map_or(Ok(()), |mem| self.length(tensor, expected, B::mem_mut_len(mem)))
    }
}
