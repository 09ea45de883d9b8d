//! Where a step runs: the layer's identity, its device, its scratch and its group, and the one place where errors get their context.
//!
//! Deliberately not here: what a step computes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{Backend, Pass};
use crate::communicator::{Call, CommError, Communicator};
use crate::error::{Error, ErrorKind, Operation, Stage, Tensor};
use crate::geometry::Geometry;
use crate::scalar::{Element, Scalar};
use crate::view::{IntoView, IntoViewMut, View, ViewMut};

/// A layer's name and identity: two layers may have the same name, and still not each other's saved statistics.
#[derive(Clone, Debug)]
pub struct LayerTag {
    name: Arc<str>,
    id: u64,
}

impl LayerTag {
    /// A new identity with this name, which errors show.
    #[must_use]
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { name: name.into(), id: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// The device, queue and group that a step uses, and the layer that it belongs to.
pub struct Site<'a, B: Backend> {
    /// The layer.
    pub layer: &'a LayerTag,
    /// The device.
    pub backend: &'a B,
    /// The order in which the device works.
    pub queue: &'a B::Queue,
    /// The group.
    pub communicator: &'a dyn Communicator<B>,
}

/// The scratch in which a layer sums, with the number of channels that it is for, and the count of the layer's collective uses.
///
/// The count tells ranks apart that have fallen out of step (see [`Call::sequence`]), so the ranks of a group make theirs, or
/// [`restart`](Self::restart) it, at the same point of their work.
pub struct Sums<B: Backend> {
    pub(crate) channels: usize,
    pub(crate) inner: B::Sums,
    uses: u64,
}

impl<B: Backend> Sums<B> {
    /// Scratch on the device for this number of channels.
    pub fn new(backend: &B, queue: &B::Queue, channels: usize) -> Result<Self, B::Error> {
        Ok(Self { channels, inner: backend.sums(queue, channels)?, uses: 0 })
    }

    /// Counts from 0 again: for a new group, some of whose ranks may be new themselves.
    pub fn restart(&mut self) {
        self.uses = 0;
    }

    /// The number of the use that begins.
    pub(crate) fn next_use(&mut self) -> u64 {
        let this = self.uses;
        self.uses = this.wrapping_add(1);
        this
    }
}

impl<'a, B: Backend> Site<'a, B> {
    /// The step's context for errors.
    pub(crate) fn during(&self, operation: Operation) -> Step<'a, B> {
        let Self { layer, backend, queue, communicator } = *self;
        Step { site: Site { layer, backend, queue, communicator }, operation }
    }
}

/// A [`Site`] in the course of one operation: everything that may fail goes through it, and gets its name there.
pub(crate) struct Step<'a, B: Backend> {
    pub(crate) site: Site<'a, B>,
    operation: Operation,
}

impl<B: Backend> Step<'_, B> {
    pub(crate) fn error(&self, kind: impl Into<ErrorKind>) -> Error {
        Error {
            operation: self.operation,
            layer: self.site.layer.name.clone(),
            rank: self.site.communicator.rank(),
            world_size: self.world_size(),
            kind: Box::new(kind.into()),
        }
    }

    pub(crate) fn world_size(&self) -> usize {
        self.site.communicator.world_size().get()
    }

    /// The result of a backend's step.
    pub(crate) fn device<R>(&self, stage: Stage, result: Result<R, B::Error>) -> Result<R, Error> {
        result.map_err(|source| self.error(ErrorKind::Backend { stage, source: Box::new(source) }))
    }

    fn communication<R>(&self, result: Result<R, CommError>) -> Result<R, Error> {
        result.map_err(|source| self.error(ErrorKind::Communicator(source)))
    }

    pub(crate) fn group_works(&self) -> Result<(), Error> {
        self.communication(self.site.communicator.status())
    }

    /// The group's sums in place of this rank's; `sequence` numbers the layer's use.
    pub(crate) fn all_reduce(&self, pass: Pass, sequence: u64, sums: &mut Sums<B>) -> Result<(), Error> {
        let call = Call { layer: self.site.layer.name.clone(), pass, channels: sums.channels, sequence };
        let site = &self.site;
        let result = site.communicator.all_reduce_sum(&call, site.backend, site.queue, &mut sums.inner);
        self.communication(result)
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
