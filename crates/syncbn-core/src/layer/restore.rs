//! Snapshots of a layer's state, and whether it can be believed.
//!
//! A device-native communicator's failure shows only after work that depends on the sum was enqueued. From then on the
//! running statistics may be wrong, so the layer refuses use until a snapshot is loaded.

use crate::backend::Storage;
use crate::communicator::CommError;
use crate::config::Config;
use crate::context::PassContext;
use crate::error::{Error, ErrorKind, Operation, Stage, Tensor};
use crate::scalar::{Param, Scalar};
use crate::state::State;

use super::SyncBatchNorm;

/// Whether the state can be believed, given collectives whose failure shows only later.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Trust {
    /// No collective has touched the state since it was made or loaded.
    Clean,
    /// Collectives have; the communicator's status tells whether they went well.
    Exposed,
    /// One failed: the state has to be loaded again.
    Lost,
    /// Loading a state failed half-way.
    HalfLoaded,
}

impl<B: Storage, P: Param> SyncBatchNorm<B, P> {
    /// A snapshot of parameters and running statistics. Waits for the device.
    pub fn state(&mut self, queue: &B::Queue) -> Result<State<P>, Error> {
        self.check_trust(Operation::SaveState, false)?;
        let state = self.download(queue)?;
        // The download has waited for the device, so a failure of the work before it shows by now.
        self.check_trust(Operation::SaveState, false)?;
        Ok(state)
    }

    fn download(&self, queue: &B::Queue) -> Result<State<P>, Error> {
        let mut state = State::default();
        if let Some(affine) = &self.affine {
            state.weight = Some(self.values(queue, &affine.weight)?);
            state.bias = Some(self.values(queue, &affine.bias)?);
        }
        if let Some(tracked) = &self.tracked {
            state.running_mean = Some(self.values(queue, &tracked.mean)?);
            state.running_var = Some(self.values(queue, &tracked.var)?);
            state.num_batches_tracked = self.values(queue, &tracked.count)?.first().copied();
        }
        Ok(state)
    }

    fn values<T: Scalar>(&self, queue: &B::Queue, buffer: &B::Buffer<T>) -> Result<Vec<T>, Error> {
        let mem = B::mem(buffer);
        let mut values = vec![T::default(); B::mem_len(&mem)];
        let read = self.inner.backend().read(queue, mem, &mut values);
        self.inner.context(Operation::SaveState).device(Stage::Download, read)?;
        Ok(values)
    }

    /// Restores a snapshot: it has to hold what the layer has, no more and no less, one value per channel.
    ///
    /// The memory stays the same, so captured work and borrowed addresses stay valid. A state that does not fit changes
    /// nothing; if the device fails half-way, the layer refuses use until a state is loaded.
    pub fn load_state(&mut self, queue: &B::Queue, state: &State<P>) -> Result<(), Error> {
        let context = self.inner.context(Operation::LoadState);
        check_state(&context, self.inner.config(), state)?;

        self.trust = Trust::HalfLoaded;
        self.parameters += 1;
        let backend = self.inner.backend();
        let put = |buffer: &mut B::Buffer<P>, values: &Option<Vec<P>>| {
            let values = values.as_deref().unwrap_or_default();
            context.device(Stage::Upload, backend.write(queue, B::mem_mut(buffer), values))
        };
        if let Some(affine) = &mut self.affine {
            put(&mut affine.weight, &state.weight)?;
            put(&mut affine.bias, &state.bias)?;
        }
        if let Some(tracked) = &mut self.tracked {
            put(&mut tracked.mean, &state.running_mean)?;
            put(&mut tracked.var, &state.running_var)?;
            let count = state.num_batches_tracked.as_slice();
            let written = backend.write(queue, B::mem_mut(&mut tracked.count), count);
            context.device(Stage::Upload, written)?;
        }
        self.trust = Trust::Clean;
        Ok(())
    }

    /// Before an operation: has a collective failed since that the state depends on? The first to ask gets the
    /// communicator's error, later ones are told to restore. A pass that is `collective` asks the group itself.
    pub(super) fn check_trust(&mut self, operation: Operation, collective: bool) -> Result<(), Error> {
        self.refuse_if_lost(operation)?;
        if collective {
            return Ok(());
        }
        match self.failed_since() {
            Some(error) => {
                self.trust = Trust::Lost;
                Err(self.inner.context(operation).error(ErrorKind::Communicator(error)))
            }
            None => Ok(()),
        }
    }

    pub(super) fn refuse_if_lost(&self, operation: Operation) -> Result<(), Error> {
        let kind = match self.trust {
            Trust::Clean | Trust::Exposed => return Ok(()),
            Trust::Lost => ErrorKind::Untrusted,
            Trust::HalfLoaded => ErrorKind::HalfLoaded,
        };
        Err(self.inner.context(operation).error(kind))
    }

    /// The late failure of a collective that the state depends on, if there was one.
    pub(super) fn failed_since(&self) -> Option<CommError> {
        let status = if self.trust == Trust::Exposed { self.group().status() } else { Ok(()) };
        status.err().filter(|error| error.late)
    }

    /// After an operation: what it means for the state.
    pub(super) fn note<R>(&mut self, updates: bool, result: Result<R, Error>) -> Result<R, Error> {
        match &result {
            Ok(_) if updates && self.trust == Trust::Clean => self.trust = Trust::Exposed,
            Err(error) if error.is_late() && self.trust == Trust::Exposed => self.trust = Trust::Lost,
            _ => {}
        }
        result
    }
}

fn check_state<B: Storage, P: Param>(
    context: &PassContext<'_, B>,
    config: &Config,
    state: &State<P>,
) -> Result<(), Error> {
    let check = |tensor, expected: bool, expected_len, got: Option<usize>| match got {
        Some(got) if expected => context.length(tensor, expected_len, got),
        None if !expected => Ok(()),
        _ => Err(context.error(ErrorKind::StateTensor { tensor, expected })),
    };
    let len = |values: &Option<Vec<P>>| values.as_ref().map(Vec::len);
    check(Tensor::Weight, config.affine, config.channels, len(&state.weight))?;
    check(Tensor::Bias, config.affine, config.channels, len(&state.bias))?;
    let tracked = config.track_running_stats;
    check(Tensor::RunningMean, tracked, config.channels, len(&state.running_mean))?;
    check(Tensor::RunningVar, tracked, config.channels, len(&state.running_var))?;
    check(Tensor::NumBatchesTracked, tracked, 1, state.num_batches_tracked.map(|_| 1))
}
