//! Saving and loading a layer's state, and refusing use where the state may be wrong.
//!
//! A device-native communicator reports a failure only after work that depends on the sum has been enqueued. From then on the
//! running statistics may be wrong, so the layer refuses use until a state is loaded.

use crate::backend::Storage;
use crate::communicator::CommError;
use crate::config::Config;
use crate::context::PassContext;
use crate::error::{Error, ErrorKind, Operation, Stage, Tensor};
use crate::scalar::{Param, Scalar};
use crate::state::State;

use super::SyncBatchNorm;

/// Whether the state may be wrong because of a collective whose failure shows only later.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Trust {
    /// The state depends on no collective since the layer was made or a state was loaded.
    Clean,
    /// It depends on collectives. The communicator's status says whether one has failed.
    Exposed,
    /// One has failed: a state has to be loaded.
    Lost,
    /// A load failed after it had written a part of the state.
    HalfLoaded,
}

impl<B: Storage, P: Param> SyncBatchNorm<B, P> {
    /// Copies parameters and running statistics to the host. Waits for the device, and asks no rank.
    ///
    /// ```
    /// # use example_backend::Plain;
    /// use syncbn_core::{Config, SyncBatchNorm};
    ///
    /// let mut norm = SyncBatchNorm::<Plain, f32>::local("norm", Config::new(2), Plain, &())?;
    /// let state = norm.state(&())?;
    /// assert_eq!(state.weight, Some(vec![1.0, 1.0]));
    /// norm.load_state(&(), &state)?;
    /// # Ok::<(), syncbn_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Communicator`] if a collective that the state depends on has failed late; [`ErrorKind::Untrusted`],
    /// [`ErrorKind::HalfLoaded`]: an earlier failure may have spoilt the state; [`ErrorKind::Length`]: memory of another length was put in
    /// the place of weight or bias; [`ErrorKind::Backend`]. The layer is unchanged.
    pub fn state(&mut self, queue: &B::Queue) -> Result<State<P>, Error> {
        self.check_trust(Operation::SaveState, false)?;
        self.check_parameters(Operation::SaveState)?;
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

    /// Replaces parameters and running statistics by those of a state, which has exactly the tensors that the layer has, C values each.
    /// No rank is asked.
    ///
    /// The values are written to the layer's memory, so that captured graphs and addresses of it stay valid. It ends the refusals of
    /// [`ErrorKind::Untrusted`] and [`ErrorKind::HalfLoaded`]. Statistics that earlier forward passes saved are refused from now on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::StateTensor`], [`ErrorKind::Length`]: the state does not fit, or the layer's own weight or bias has another length;
    /// [`ErrorKind::StateValue`]: it has a variance or a counter
    /// below 0 (NaN is taken, since training may have made it). Nothing is changed then. [`ErrorKind::Backend`]: the device failed after a
    /// part was written, and the layer refuses use ([`ErrorKind::HalfLoaded`]) until a load succeeds.
    pub fn load_state(&mut self, queue: &B::Queue, state: &State<P>) -> Result<(), Error> {
        let context = self.inner.context(Operation::LoadState);
        check_state(&context, self.inner.config(), state)?;
        self.check_parameters(Operation::LoadState)?;

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

    /// Refuses weight and bias of a wrong length: a caller may have put other memory in their place.
    fn check_parameters(&self, operation: Operation) -> Result<(), Error> {
        let Some(affine) = &self.affine else { return Ok(()) };
        let (context, channels) = (self.inner.context(operation), self.inner.config().channels);
        context.length(Tensor::Weight, channels, B::mem_len(&B::mem(&affine.weight)))?;
        context.length(Tensor::Bias, channels, B::mem_len(&B::mem(&affine.bias)))
    }

    /// Refuses the operation if a collective that the state depends on has failed. The first call returns the communicator's error,
    /// later ones `Untrusted`. A `collective` pass asks the group itself, so that is left to it.
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

    /// Records what the result of an operation means for the state.
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
    check(Tensor::NumBatchesTracked, tracked, 1, state.num_batches_tracked.map(|_| 1))?;

    let value = |tensor, channel, got| Err(context.error(ErrorKind::StateValue { tensor, channel, got }));
    let vars = state.running_var.iter().flatten().map(|var| var.to_f64()).enumerate();
    for (channel, var) in vars {
        if var < 0.0 {
            return value(Tensor::RunningVar, channel, var);
        }
    }
    match state.num_batches_tracked {
        Some(count) if count < 0 => value(Tensor::NumBatchesTracked, 0, count as f64),
        _ => Ok(()),
    }
}
