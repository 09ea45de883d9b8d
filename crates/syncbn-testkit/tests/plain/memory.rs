//! The plain backend's memory: handles, as a device's is, so that a flawed kernel can reach what it was not given.
//!
//! Deliberately not here: kernels.

use std::any::Any;
use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use syncbn_core::{Backend, Pass, Scalar, Storage};

use super::Plain;

/// Memory that many may hold.
pub(crate) type Shared<T> = Arc<RwLock<Vec<T>>>;

/// Its values.
pub(super) fn read<T>(memory: &Shared<T>) -> RwLockReadGuard<'_, Vec<T>> {
    memory.read().unwrap_or_else(PoisonError::into_inner)
}

/// Its values, to be written.
pub(super) fn write<T>(memory: &Shared<T>) -> RwLockWriteGuard<'_, Vec<T>> {
    memory.write().unwrap_or_else(PoisonError::into_inner)
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
        write(counter)[0] += 1;
        write(mean)[0] += 1.0;
    }
}

/// Per channel: count, mean, M2 of one rank; S1/M and S2/M of a group; or the two sums of a backward pass.
pub(crate) struct Sums {
    pub(super) count: f64,
    pub(super) first: Vec<f64>,
    pub(super) second: Vec<f64>,
}

impl Sums {
    /// Times a factor, for groups that cannot add.
    #[allow(dead_code)] // not every test that includes this file has such a group
    pub(crate) fn scale(&mut self, factor: f64) {
        self.count *= factor;
        self.first.iter_mut().chain(&mut self.second).for_each(|v| *v *= factor);
    }
}

#[derive(Clone, Default)]
pub(crate) struct Saved {
    pub(super) count: f64,
    pub(super) mean: Vec<f64>,
    pub(super) invstd: Vec<f64>,
}

impl Backend for Plain {
    type Queue = ();
    type Sums = Sums;
    type Saved = Saved;
    type Mem<'a, T: Scalar> = &'a Shared<T>;
    type MemMut<'a, T: Scalar> = &'a Shared<T>;
    type Error = Infallible;

    fn mem_len<T: Scalar>(mem: &&Shared<T>) -> usize {
        read(mem).len()
    }
    fn mem_mut_len<T: Scalar>(mem: &&Shared<T>) -> usize {
        read(mem).len()
    }
    fn reborrow<'s, T: Scalar>(mem: &'s &Shared<T>) -> &'s Shared<T> {
        mem
    }
    fn reborrow_mut<'s, T: Scalar>(mem: &'s mut &Shared<T>) -> &'s Shared<T> {
        mem
    }
    fn as_mem<'s, T: Scalar>(mem: &'s &Shared<T>) -> &'s Shared<T> {
        mem
    }

    fn sums(&self, (): &(), channels: usize) -> Result<Sums, Infallible> {
        Ok(Sums { count: 0.0, first: vec![0.0; channels], second: vec![0.0; channels] })
    }
    fn saved(&self, (): &(), channels: usize) -> Result<Saved, Infallible> {
        Ok(Saved { count: 0.0, mean: vec![0.0; channels], invstd: vec![0.0; channels] })
    }

    fn read_sums(&self, (): &(), pass: Pass, sums: &Sums, message: &mut [f64]) -> Result<(), Infallible> {
        let channels = sums.first.len();
        match pass {
            Pass::Backward => {
                message[..channels].copy_from_slice(&sums.first);
                message[channels..].copy_from_slice(&sums.second);
            }
            Pass::Forward => {
                message[0] = sums.count;
                for c in 0..channels {
                    let (mean, m2) = (sums.first[c], sums.second[c]);
                    message[1 + c] = sums.count * mean;
                    message[1 + channels + c] = m2 + sums.count * mean * mean;
                }
            }
        }
        Ok(())
    }
    fn write_sums(&self, (): &(), pass: Pass, sums: &mut Sums, message: &[f64]) -> Result<(), Infallible> {
        let channels = sums.first.len();
        let message = match pass {
            Pass::Backward => message,
            Pass::Forward => {
                sums.count = message[0];
                &message[1..]
            }
        };
        sums.first.copy_from_slice(&message[..channels]);
        sums.second.copy_from_slice(&message[channels..]);
        Ok(())
    }
}

impl Storage for Plain {
    type Buffer<T: Scalar> = Shared<T>;

    fn upload<T: Scalar>(&self, (): &(), values: &[T]) -> Result<Shared<T>, Infallible> {
        Ok(Arc::new(RwLock::new(values.to_vec())))
    }
    fn write<T: Scalar>(&self, (): &(), buffer: &mut Shared<T>, values: &[T]) -> Result<(), Infallible> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).note(buffer);
        write(buffer).copy_from_slice(values);
        Ok(())
    }
    fn download<T: Scalar>(&self, (): &(), buffer: &Shared<T>) -> Result<Vec<T>, Infallible> {
        Ok(read(buffer).clone())
    }
    fn mem<T: Scalar>(buffer: &Shared<T>) -> &Shared<T> {
        buffer
    }
    fn mem_mut<T: Scalar>(buffer: &mut Shared<T>) -> &Shared<T> {
        buffer
    }
}
