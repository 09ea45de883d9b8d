//! The layer for parameters that somebody else owns: what adapters to frameworks call.
//!
//! It has a name, settings, a group and scratch. Weight, bias, running statistics and the memory for what is saved are
//! borrowed for each call. `meet` is how a pass meets its group.

mod args;
mod check;
mod meet;

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::Backend;
use crate::communicator::Communicator;
use crate::config::{Config, check_momentum};
use crate::context::PassContext;
use crate::error::{Error, ErrorKind, Operation, Stage, Tensor};
use crate::geometry::Geometry;
use crate::group::Group;
use crate::kernels::{GradInputArgs, GradSource, GradSumsArgs, Kernels, NormalizeArgs, RunningMut, Source};
use crate::meeting::{BackwardArgs, ForwardArgs, Gradients, Meeting};
use crate::message::Pass;
use crate::saved::{SavedToken, Scope};
use crate::scalar::{Element, Param};
use crate::view::{View, ViewMut, shorter, shorter_mut};

pub use args::{Backward, Forward, Recompute, Statistics, UpdateRunning};

/// Batch normalisation over all ranks of a group, over borrowed memory.
///
/// Every method takes `&self`, so that one value serves a graph's forward and backward closures; it is `Send` and `Sync`.
/// Calls that are collective have to come in the same order on every rank.
///
/// Core cannot see that a borrowed weight has changed between a forward and its backward pass: the backward pass uses what it
/// is given. [`SyncBatchNorm`](crate::SyncBatchNorm), which owns its parameters, refuses.
pub struct FunctionalBatchNorm<B: Backend, P: Param> {
    name: Arc<str>,
    /// No other layer of this process has it.
    id: u64,
    /// The place in the order of construction of the group's layers.
    ordinal: u64,
    config: Config,
    backend: B,
    group: Group<B>,
    uses: AtomicU64,
    workspaces: Mutex<Vec<B::Workspace>>,
    params: PhantomData<P>,
}

impl<B: Backend, P: Param> FunctionalBatchNorm<B, P> {
    /// A layer of this name, which errors show and ranks compare.
    ///
    /// Of `config`, the passes use channels, eps and momentum; ranks compare all of it.
    pub fn new(
        name: &str,
        config: Config,
        backend: B,
        queue: &B::Queue,
        group: impl Communicator<B> + 'static,
    ) -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (name, group): (Arc<str>, _) = (name.into(), group.into_group());
        let context = PassContext { layer: &name, group: &group, operation: Operation::Construct };
        config.validate().map_err(|e| context.error(e))?;
        let workspace = backend.workspace(queue, config.channels, P::DTYPE);
        let workspace = context.device(Stage::Allocation, workspace)?;
        let ordinal = group.next_layer();
        Ok(Self {
            name,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            ordinal,
            config,
            backend,
            group,
            uses: AtomicU64::new(0),
            workspaces: Mutex::new(vec![workspace]),
            params: PhantomData,
        })
    }

    /// The name that errors show.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &Group<B> {
        &self.group
    }

    /// The device.
    #[must_use]
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Another weight of the newest batch in the running statistics: 0 to 1, or `None` for the cumulative average. Every rank
    /// sets the same.
    pub fn set_momentum(&mut self, momentum: Option<f64>) -> Result<(), Error> {
        check_momentum(momentum).map_err(|e| self.context(Operation::SetMode).error(e))?;
        self.config.momentum = momentum;
        Ok(())
    }

    /// Puts the layer into another group. Its uses count from 0 again and it gets a place in the new group's order, so every rank
    /// of the new group does this, or makes a new layer, in the same order. What was saved in the old group is refused in the new.
    pub fn set_group(&mut self, group: impl Communicator<B> + 'static) {
        self.group = group.into_group();
        self.ordinal = self.group.next_layer();
        *self.uses.get_mut() = 0;
    }

    /// Lets the backend compile and allocate whatever activations `T` of this geometry need.
    pub fn prepare<T>(&self, queue: &B::Queue, geometry: &Geometry) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let prepared = self.backend.prepare(queue, geometry);
        self.context(Operation::Prepare).device(Stage::Preparation, prepared)
    }

    /// `y = (x - mean) / sqrt(var + eps) weight + bias` (Ioffe and Szegedy 2015, algorithm 1).
    ///
    /// With [`Statistics::Group`] every rank of the group has to call this, with its own x, of any batch size, 0 included.
    ///
    /// Returns before the device has done the work, unless the communicator works in host memory. If it fails, running
    /// statistics are as they were, and y and what was to be saved are unspecified; only after a late failure of the
    /// communicator ([`CommError::late`](crate::CommError::late)) running statistics cannot be trusted.
    ///
    /// # Errors
    ///
    /// Tensors that do not fit each other or the layer; a single element per channel without other ranks; a failure of the
    /// device or of the group. One that comes after this rank's numbers went to the group poisons the group.
    pub fn forward<T>(&self, queue: &B::Queue, args: Forward<'_, B, T>) -> Result<SavedToken, Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let context = self.context(Operation::Forward);
        self.check_forward(&context, &args)?;
        let Forward { x, mut y, statistics, weight, bias, mut saved } = args;
        let (geometry, eps) = (*x.geometry(), self.config.eps);
        let (scope, mut running) = match statistics {
            Statistics::Group { running } => (Scope::Group, running),
            Statistics::Local => (Scope::Local, None),
            Statistics::Frozen { mean, var } => {
                let source = Source::Frozen { mean, var, saved };
                self.normalize(&context, queue, NormalizeArgs { x, y, source, weight, bias, eps })?;
                return Ok(self.token(Scope::Frozen, 0, geometry));
            }
        };
        let mut workspace = self.take_workspace(&context, queue)?;
        let args = ForwardArgs {
            x: x.reborrow(),
            y: y.reborrow(),
            weight: shorter::<B, _>(weight.as_ref()),
            bias: shorter::<B, _>(bias.as_ref()),
            eps,
            running: running.as_mut().map(RunningMut::reborrow),
            saved: B::reborrow_mut(&mut saved),
            workspace: &mut workspace,
        };
        let run = |meeting: Meeting<'_, B>| self.backend.forward(queue, args, meeting);
        let use_number = match scope {
            Scope::Group => self.next_use(&context, queue, run),
            Scope::Local | Scope::Frozen => self.alone(&context, queue, run).map(|()| 0),
        };
        self.give_back(workspace);
        Ok(self.token(scope, use_number?, geometry))
    }

    /// The forward pass again, for activation checkpointing: the saved statistics are used, so no rank is asked, nothing is
    /// updated, and y has the same bits as the first time if weight and bias have.
    pub fn recompute<T>(&self, queue: &B::Queue, args: Recompute<'_, B, T>) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let context = self.context(Operation::Recompute);
        self.check_recompute(&context, &args)?;
        let Recompute { saved, x, y, weight, bias } = args;
        let source = Source::Saved { saved: saved.mem, running: None };
        let eps = self.config.eps;
        self.normalize(&context, queue, NormalizeArgs { x, y, source, weight, bias, eps })
    }

    /// Moves running statistics by what a forward pass with [`Statistics::Group`] has saved: the same bits as if that pass had
    /// done it itself. For functional frameworks, whose passes write nothing but results. No rank is asked.
    pub fn update_running(&self, queue: &B::Queue, args: UpdateRunning<'_, B, P>) -> Result<(), Error>
    where
        B: Kernels<P>,
    {
        let context = self.context(Operation::UpdateRunning);
        self.check_update_running(&context, &args)?;
        let UpdateRunning { saved, running } = args;
        let empty = [0, self.config.channels];
        let x = context.view(Tensor::X, View::<B, P>::channels_first(B::empty(), &empty))?;
        let y = context.view_mut(Tensor::Y, ViewMut::channels_first(B::empty_mut(), &empty))?;
        let source = Source::Saved { saved: saved.mem, running: Some(running) };
        let eps = self.config.eps;
        self.normalize(&context, queue, NormalizeArgs { x, y, source, weight: None, bias: None, eps })
    }

    /// The gradients of x, weight and bias (Ioffe and Szegedy 2015, section 3, over the group's batch).
    ///
    /// `dx = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M)` with the group's sums, `d_bias = sum_dy` and
    /// `d_weight = sum_dy_xmu invstd` with this rank's: data-parallel trainers reduce the gradients of all parameters
    /// themselves. If the forward pass was the group's, every rank has to call this, in the same order, whether or not it needs
    /// dx. With frozen statistics `dx = weight invstd dy`.
    ///
    /// Gradients are overwritten, not added to. Returns before the device has done the work, unless the communicator works in
    /// host memory. If it fails, what was to be written is unspecified; nothing else is touched.
    ///
    /// # Errors
    ///
    /// As for [`forward`](Self::forward); and if what was saved belongs to another layer or another group.
    pub fn backward<T>(&self, queue: &B::Queue, args: Backward<'_, B, T>) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let context = self.context(Operation::Backward);
        self.check_backward(&context, &args)?;
        let token = args.saved.token;
        if token.scope == Scope::Frozen {
            return self.backward_frozen(&context, queue, args);
        }
        let Backward { saved, x, mut gradients, weight, mut d_weight, mut d_bias } = args;
        let nothing_wanted =
            matches!(gradients, Gradients::ParametersOnly { .. }) && d_weight.is_none() && d_bias.is_none();
        if token.scope == Scope::Local && nothing_wanted {
            return Ok(());
        }
        let mut workspace = self.take_workspace(&context, queue)?;
        let args = BackwardArgs {
            x: x.reborrow(),
            gradients: gradients.reborrow(),
            saved: B::reborrow(&saved.mem),
            weight: shorter::<B, _>(weight.as_ref()),
            d_weight: shorter_mut::<B, _>(d_weight.as_mut()),
            d_bias: shorter_mut::<B, _>(d_bias.as_mut()),
            workspace: &mut workspace,
        };
        let run = |meeting: Meeting<'_, B>| self.backend.backward(queue, args, meeting);
        let result = match token.scope {
            Scope::Group => self.meet(&context, queue, Pass::Backward, token.use_number, run),
            Scope::Local | Scope::Frozen => self.alone(&context, queue, run),
        };
        self.give_back(workspace);
        result
    }

    fn backward_frozen<T>(
        &self,
        context: &PassContext<'_, B>,
        queue: &B::Queue,
        args: Backward<'_, B, T>,
    ) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let Backward { saved, x, mut gradients, weight, mut d_weight, mut d_bias } = args;
        if d_weight.is_some() || d_bias.is_some() {
            let mut workspace = self.take_workspace(context, queue)?;
            let args = GradSumsArgs {
                x: x.reborrow(),
                dy: gradients.dy(),
                saved: B::reborrow(&saved.mem),
                d_weight: shorter_mut::<B, _>(d_weight.as_mut()),
                d_bias: shorter_mut::<B, _>(d_bias.as_mut()),
                workspace: &mut workspace,
            };
            let result = context.device(Stage::GradSums, self.backend.grad_sums(queue, args));
            self.give_back(workspace);
            result?;
        }
        if let Some(grad) = gradients.as_grad() {
            let (x, saved, source) = (x.reborrow(), B::reborrow(&saved.mem), GradSource::Frozen);
            let weight = shorter::<B, _>(weight.as_ref());
            let args = GradInputArgs { x, grad, saved, source, weight };
            context.device(Stage::GradInput, self.backend.grad_input(queue, args))?;
        }
        context.device(Stage::Flush, self.backend.flush(queue))
    }

    fn normalize<T>(
        &self,
        context: &PassContext<'_, B>,
        queue: &B::Queue,
        args: NormalizeArgs<'_, B, T>,
    ) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        context.device(Stage::Normalize, self.backend.normalize(queue, args))?;
        context.device(Stage::Flush, self.backend.flush(queue))
    }

    /// A workspace that no other pass has; there are as many as passes were ever enqueued at once.
    fn take_workspace(&self, context: &PassContext<'_, B>, queue: &B::Queue) -> Result<B::Workspace, Error> {
        let kept = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.map_or_else(
            || {
                let new = self.backend.workspace(queue, self.config.channels, P::DTYPE);
                context.device(Stage::Allocation, new)
            },
            Ok,
        )
    }

    fn give_back(&self, workspace: B::Workspace) {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
    }

    fn token(&self, scope: Scope, use_number: u64, geometry: Geometry) -> SavedToken {
        SavedToken { group: self.group.id(), layer: self.id, use_number, scope, parameters: 0, geometry }
    }

    pub(crate) fn context(&self, operation: Operation) -> PassContext<'_, B> {
        PassContext { layer: &self.name, group: &self.group, operation }
    }

    pub(crate) fn is_owner(&self, token: &SavedToken) -> bool {
        token.layer == self.id
    }

    /// Refuses what another layer saved, or this one in another group.
    pub(crate) fn check_owner(&self, context: &PassContext<'_, B>, token: &SavedToken) -> Result<(), Error> {
        if !self.is_owner(token) {
            return Err(context.error(ErrorKind::ForeignSaved));
        }
        let (saved, current) = (token.group, self.group.id());
        if saved == current { Ok(()) } else { Err(context.error(ErrorKind::OtherGroup { saved, current })) }
    }
}

impl<B: Backend, P: Param> fmt::Debug for FunctionalBatchNorm<B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionalBatchNorm")
            .field("name", &self.name)
            .field("config", &self.config)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}
