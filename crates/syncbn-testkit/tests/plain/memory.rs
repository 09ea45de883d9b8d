//! The plain backend's memory: handles, as a device's is, so that a flawed kernel can reach what it was not given.

use std::any::Any;
use std::convert::Infallible;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use syncbn_core::host_memory::{message_to_batches, moments_to_message};
use syncbn_core::statistics::{Batch, Moments};
use syncbn_core::{Backend, Dtype, Pass, Scalar, Storage, saved_len};

use super::{Flaw, Peers, Plain};

/// Memory that many may hold.
pub(crate) type Shared<T> = Arc<RwLock<Vec<T>>>;

/// A part of such memory; none of it where there are no elements.
#[derive(Clone)]
pub(crate) struct Part<'a, T> {
    of: Option<&'a Shared<T>>,
    range: Range<usize>,
}

impl<'a, T> Part<'a, T> {
    pub(crate) fn new(of: &'a Shared<T>, range: Range<usize>) -> Self {
        Self { of: Some(of), range }
    }

    fn whole(of: &'a Shared<T>) -> Self {
        Self::new(of, 0..of.read().unwrap_or_else(PoisonError::into_inner).len())
    }

    fn shorter(&self) -> Part<'_, T> {
        Part { of: self.of, range: self.range.clone() }
    }

    /// As many elements from the start of what it is a part of.
    pub(super) fn at_start(&self) -> Self {
        Self { of: self.of, range: 0..self.range.len() }
    }

    /// Its values.
    pub(super) fn read(&self) -> Read<'a, T> {
        let guard = self.of.map(|of| of.read().unwrap_or_else(PoisonError::into_inner));
        Read { guard, range: self.range.clone() }
    }

    /// Its values, to be written.
    pub(super) fn write(&self) -> Write<'a, T> {
        let guard = self.of.map(|of| of.write().unwrap_or_else(PoisonError::into_inner));
        Write { guard, range: self.range.clone() }
    }
}

pub(super) struct Read<'a, T> {
    guard: Option<RwLockReadGuard<'a, Vec<T>>>,
    range: Range<usize>,
}

impl<T> Deref for Read<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.guard.as_ref().map_or(&[], |guard| &guard[self.range.clone()])
    }
}

pub(super) struct Write<'a, T> {
    guard: Option<RwLockWriteGuard<'a, Vec<T>>>,
    range: Range<usize>,
}

impl<T> Deref for Write<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.guard.as_ref().map_or(&[], |guard| &guard[self.range.clone()])
    }
}

impl<T> DerefMut for Write<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.guard.as_mut().map_or(&mut [], |guard| &mut guard[self.range.clone()])
    }
}

/// What the device has been told to fill, in order: the state of a layer of `f32`, the counter last.
#[derive(Debug, Default)]
pub(super) struct Seen {
    vectors: Vec<Shared<f32>>,
    counter: Option<Shared<i64>>,
}

impl Seen {
    fn note<T: Scalar>(&mut self, buffer: &Shared<T>) {
        let any: &dyn Any = buffer;
        if let Some(vector) = any.downcast_ref::<Shared<f32>>() {
            self.vectors.push(vector.clone());
        } else if let Some(counter) = any.downcast_ref::<Shared<i64>>() {
            self.counter = Some(counter.clone());
        }
    }

    /// Counts a batch more and moves the running mean, the last vector but one, as no kernel may unless it is told to.
    pub(super) fn meddle(&self) {
        let (Some(counter), [.., mean, _]) = (&self.counter, &self.vectors[..]) else { return };
        Part::whole(counter).write()[0] += 1;
        Part::whole(mean).write()[0] += 1.0;
    }
}

/// The moments of one rank, then the statistics of the group; and the sums of a backward pass.
pub(crate) struct Workspace {
    pub(super) params: Dtype,
    pub(super) moments: Vec<Moments>,
    pub(super) group: Vec<Batch>,
    pub(super) sums: Vec<f64>,
}

impl Backend for Plain {
    type Queue = ();
    type Workspace = Workspace;
    type Saved = Shared<f64>;
    type Peers = Peers;
    type Mem<'a, T: Scalar> = Part<'a, T>;
    type MemMut<'a, T: Scalar> = Part<'a, T>;
    type Error = Infallible;

    fn mem_len<T: Scalar>(mem: &Part<'_, T>) -> usize {
        mem.range.len()
    }
    fn mem_mut_len<T: Scalar>(mem: &Part<'_, T>) -> usize {
        mem.range.len()
    }
    fn reborrow<'s, T: Scalar>(mem: &'s Part<'_, T>) -> Part<'s, T> {
        mem.shorter()
    }
    fn reborrow_mut<'s, T: Scalar>(mem: &'s mut Part<'_, T>) -> Part<'s, T> {
        mem.shorter()
    }
    fn as_mem<'s, T: Scalar>(mem: &'s Part<'_, T>) -> Part<'s, T> {
        mem.shorter()
    }
    fn empty<'a, T: Scalar>() -> Part<'a, T> {
        Part { of: None, range: 0..0 }
    }
    fn empty_mut<'a, T: Scalar>() -> Part<'a, T> {
        Self::empty()
    }

    fn read<T: Scalar>(&self, (): &(), mem: Part<'_, T>, values: &mut [T]) -> Result<(), Infallible> {
        values.copy_from_slice(&mem.read());
        Ok(())
    }
    fn write<T: Scalar>(&self, (): &(), mem: Part<'_, T>, values: &[T]) -> Result<(), Infallible> {
        if let Some(buffer) = mem.of {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).note(buffer);
        }
        mem.write().copy_from_slice(values);
        Ok(())
    }

    fn workspace(&self, (): &(), channels: usize, params: Dtype) -> Result<Workspace, Infallible> {
        let moments = vec![Moments::default(); channels];
        Ok(Workspace {
            params,
            moments,
            group: vec![Batch::default(); channels],
            sums: vec![0.0; 2 * channels],
        })
    }
    fn saved(&self, (): &(), channels: usize) -> Result<Shared<f64>, Infallible> {
        self.upload(&(), &vec![0.0; saved_len(channels)])
    }
    fn saved_mem(saved: &Shared<f64>) -> Part<'_, f64> {
        Part::whole(saved)
    }
    fn saved_mem_mut(saved: &mut Shared<f64>) -> Part<'_, f64> {
        Part::whole(saved)
    }

    fn read_message(
        &self,
        (): &(),
        pass: Pass,
        workspace: &mut Workspace,
        message: &mut [f64],
    ) -> Result<(), Infallible> {
        match pass {
            Pass::Forward => {
                moments_to_message(&workspace.moments, workspace.params, message);
                self.merge_parts(workspace.moments.len(), message);
            }
            Pass::Backward => message.copy_from_slice(&workspace.sums),
        }
        Ok(())
    }
    fn write_message(
        &self,
        (): &(),
        pass: Pass,
        workspace: &mut Workspace,
        message: &[f64],
    ) -> Result<(), Infallible> {
        match pass {
            Pass::Forward => {
                let Workspace { params, moments, group, .. } = workspace;
                let mut message = message.to_vec();
                if self.flaw == Flaw::LocalCount {
                    message[0] = moments[0].count;
                }
                message_to_batches(&message, *params, group);
            }
            Pass::Backward => workspace.sums.copy_from_slice(message),
        }
        Ok(())
    }
}

impl Plain {
    /// The message as it was before its sums were sent in parts, or in fewer: what was the head goes with the tail.
    fn merge_parts(&self, channels: usize, message: &mut [f64]) {
        let parts = (message.len() - 1) / channels;
        let spared = match self.flaw {
            Flaw::MessageOfTwoParts => parts / 2 - 1,
            Flaw::MessageOfFourParts if parts == 6 => 1,
            _ => return,
        };
        for half in [0, parts / 2] {
            let tail = half + parts / 2 - 1;
            for (part, c) in
                (0..spared).flat_map(|i| (0..channels).map(move |c| (half + parts / 2 - 2 - i, c)))
            {
                let head = std::mem::take(&mut message[1 + part * channels + c]);
                message[1 + tail * channels + c] += head;
            }
        }
    }
}

impl Storage for Plain {
    type Buffer<T: Scalar> = Shared<T>;

    fn upload<T: Scalar>(&self, (): &(), values: &[T]) -> Result<Shared<T>, Infallible> {
        Ok(Arc::new(RwLock::new(values.to_vec())))
    }
    fn mem<T: Scalar>(buffer: &Shared<T>) -> Part<'_, T> {
        Part::whole(buffer)
    }
    fn mem_mut<T: Scalar>(buffer: &mut Shared<T>) -> Part<'_, T> {
        Part::whole(buffer)
    }
}
