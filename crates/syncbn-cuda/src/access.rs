//! The memory of one kernel's arguments: checked, ordered after earlier uses, and recorded as used.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream};

use crate::error::CudaError;
use crate::raw::capture::{check_capture, refuse_capture};
use crate::raw::driver::{self, Function, Launch};
use crate::raw::owned::{Order, Owned, Region, Use};
use crate::raw::params::{Params, PeersParams};
use crate::raw::queue::is_same;

/// A queue on which work may be enqueued: if it captures a graph, that was allowed. A pass checks this once, for all its work.
#[derive(Clone, Copy)]
pub(crate) struct OpenQueue<'q> {
    stream: &'q Arc<CudaStream>,
    pub(crate) capturing: bool,
}

impl<'q> OpenQueue<'q> {
    pub(crate) fn new(stream: &'q Arc<CudaStream>) -> Result<Self, CudaError> {
        Ok(Self { stream, capturing: check_capture(stream)? })
    }
}

/// The memory that one piece of work on a queue uses.
pub(crate) struct Access<'q, 'm> {
    queue: &'q Arc<CudaStream>,
    capturing: bool,
    /// To be recorded after the work.
    events: Vec<&'m CudaEvent>,
}

impl<'q, 'm> Access<'q, 'm> {
    /// For work that a graph may capture, if that was allowed.
    pub(crate) fn begin(queue: OpenQueue<'q>) -> Self {
        let OpenQueue { stream, capturing } = queue;
        Self { queue: stream, capturing, events: Vec::new() }
    }

    /// For work that the host waits for, which no graph can capture.
    pub(crate) fn waiting(queue: &'q Arc<CudaStream>, what: &'static str) -> Result<Self, CudaError> {
        refuse_capture(queue, what)?;
        Ok(Self { queue, capturing: false, events: Vec::new() })
    }

    /// The pointer to at least `len` elements that are read.
    pub(crate) fn read(
        &mut self,
        what: &'static str,
        region: Region<'m>,
        len: usize,
    ) -> Result<u64, CudaError> {
        self.used(what, region, len, Use::Read)
    }

    /// The pointer to at least `len` elements that are written.
    pub(crate) fn write(
        &mut self,
        what: &'static str,
        region: Region<'m>,
        len: usize,
    ) -> Result<u64, CudaError> {
        self.used(what, region, len, Use::Write)
    }

    /// The pointer to exactly `len` elements, for a read that the host waits for while the memory is borrowed.
    pub(crate) fn read_once(
        &self,
        what: &'static str,
        region: Region<'m>,
        len: usize,
    ) -> Result<u64, CudaError> {
        if region.len != len {
            return Err(CudaError::Length { what, expected: region.len, got: len });
        }
        self.check(what, &region, len)?;
        if let Order::Owned(owned) = region.order {
            owned.order_after_write(self.queue, what)?;
        }
        Ok(region.pointer)
    }

    /// Orders the work after all earlier work that called this with the same memory.
    pub(crate) fn come_after(&self, what: &'static str, turn: &Owned) -> Result<(), CudaError> {
        turn.order(self.queue, self.capturing, Use::Write, what)
    }

    fn used(
        &mut self,
        what: &'static str,
        region: Region<'m>,
        len: usize,
        intent: Use,
    ) -> Result<u64, CudaError> {
        self.check(what, &region, len)?;
        match region.order {
            Order::Owned(owned) => owned.order(self.queue, self.capturing, intent, what)?,
            Order::Event { used: Some(event), .. } => self.events.push(event),
            Order::Event { used: None, .. } | Order::Promised | Order::Empty => {}
        }
        Ok(region.pointer)
    }

    /// Checks that this device and queue may use the memory, and that it is large enough.
    fn check(&self, what: &'static str, region: &Region<'_>, len: usize) -> Result<(), CudaError> {
        if region.len < len {
            return Err(CudaError::Length { what, expected: len, got: region.len });
        }
        if matches!(region.order, Order::Empty) {
            return Ok(());
        }
        let context = self.queue.context();
        if region.context != context.cu_ctx() as usize {
            return Err(CudaError::OtherDevice { tensor: what, ordinal: context.ordinal() });
        }
        match region.order {
            Order::Event { stream, thread, .. } if !is_same((stream, thread), self.queue) => {
                Err(CudaError::OtherStream { what })
            }
            _ => Ok(()),
        }
    }

    /// Enqueues one kernel, which uses only the memory asked for before.
    pub(crate) fn launch<P: Params>(
        self,
        function: Function,
        launch: Launch,
        params: P,
        peers: Option<PeersParams>,
    ) -> Result<(), CudaError> {
        self.enqueue(|queue| driver::launch(queue, function, launch, params, peers))
    }

    /// Enqueues work, which uses only the memory asked for before.
    pub(crate) fn enqueue(
        self,
        work: impl FnOnce(&CudaStream) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        work(self.queue)?;
        for event in self.events {
            // The work is enqueued already. A failure shows at the context's next use, as cudarc's own do.
            self.queue.context().record_err(event.record(self.queue));
        }
        Ok(())
    }
}
