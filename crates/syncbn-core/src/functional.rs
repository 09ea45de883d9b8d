//! Batch norm over borrowed memory: what adapters to frameworks call.
//!
//! [`FunctionalBatchNorm`] owns a name, settings, a group and scratch memory. Activations, weight, bias, running statistics and saved
//! statistics belong to the framework and are borrowed for each call. Its arguments are [`Forward`], [`Backward`], [`Recompute`]
//! and [`UpdateRunning`].
//!
//! # An adapter, step by step
//!
//! 1. For each layer of each rank make one [`FunctionalBatchNorm`], in the same order on every rank, with a clone of one
//!    [`Group`]. It has to live from forward to backward: a framework that has only functions makes it at the first call, and
//!    keeps it beside the running statistics. One for each call works, too, but costs an allocation of scratch.
//! 2. In the framework's forward function, make a [`View`] of x and a [`ViewMut`] of y. Most frameworks have strides:
//!    [`Geometry::strided`] and [`View::new`], over memory that begins at the tensor's first element. Allocate y, and later dx, with
//!    the strides of x. If the strides are refused ([`ShapeError::Strides`](crate::ShapeError::Strides)), copy the tensor; if dy has another
//!    memory order than x, copy dy to x's. Pass slices as `&values[..]`, since Rust infers the backend from the type of memory, and takes a
//!    `&Vec` for another type; or name the backend, as in `View::<Cpu, f32>::new`. A view that cannot be made is a [`ShapeError`](crate::ShapeError), without the layer's name. Take memory for
//!    [`saved_len`](crate::saved_len) values of `f64`, and call [`forward`](FunctionalBatchNorm::forward). Keep x, the saved values and the
//!    token ([`SavedToken::to_words`]) for the backward function.
//! 3. In the backward function, call [`backward`](FunctionalBatchNorm::backward) with them. It has to be called on every rank, in the
//!    same order, even where the framework needs no dx ([`Gradients::parameters_only`]).
//! 4. If the framework's functions may not change state, pass no running statistics to forward and move them later with
//!    [`update_running`](FunctionalBatchNorm::update_running).
//! 5. For evaluation pass [`Statistics::Frozen`] with the running statistics.
//!
//! All calls take a queue of the backend: a CUDA stream, for instance, and `()` on the CPU. A function that is generic over the type of
//! activations has the bounds `T: Element<Param = P>` and `B: Kernels<T>`; if the type is known only at run time, match on it and call
//! that function for each type of one `P`. `examples/examples/03_adapter.rs` in the repository is a whole adapter.

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

use meet::GroupCall;

pub use args::{Backward, Forward, Recompute, Statistics, UpdateRunning};

/// Batch normalisation over all ranks of a group, over borrowed memory.
///
/// `B` is the backend. `P` is the type of weight, bias and running statistics: `f64` for `f64` activations, `f32` for all others.
///
/// The passes take `&self`, and the type is `Send` and `Sync`, so that the closures of a graph can share one layer. Collective calls
/// have to be made in the same order on every rank.
///
/// The backward pass uses the weight that it is given, and cannot detect that it is another than the forward pass's.
/// [`SyncBatchNorm`](crate::SyncBatchNorm), which owns its parameters, can.
///
/// ```
/// use example_backend::Plain; // as syncbn_cpu::Cpu, memory is a slice
/// use syncbn_core::functional::{Backward, Forward, Statistics};
/// use syncbn_core::{
///     Config, FunctionalBatchNorm, Gradients, SavedRef, SingleRank, View, ViewMut, saved_len,
/// };
///
/// let norm = FunctionalBatchNorm::<Plain, f32>::new("norm", Config::new(2), Plain, &(), SingleRank)?;
/// let shape = [3, 2];
/// let x = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0];
/// let (weight, bias) = ([1.0, 2.0], [0.0, 0.5]);
/// let (mut y, mut saved) = ([0.0; 6], vec![0.0; saved_len(2)]);
/// let args = Forward::new(
///     View::channels_first(&x[..], &shape)?,
///     ViewMut::channels_first(&mut y[..], &shape)?,
///     Statistics::Group { running: None },
///     &mut saved[..],
/// );
/// let token = norm.forward(&(), args.affine(Some(&weight[..]), Some(&bias[..])))?;
/// assert!((y[0] + 1.2247).abs() < 1e-4 && (y[3] - 0.5).abs() < 1e-6);
///
/// let (dy, mut dx) = ([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0; 6]);
/// let (mut d_weight, mut d_bias) = ([0.0; 2], [0.0; 2]);
/// let gradients = Gradients::out_of_place(
///     View::<Plain, f32>::channels_first(&dy[..], &shape),
///     ViewMut::channels_first(&mut dx[..], &shape),
/// )?;
/// let args = Backward::new(SavedRef { token, mem: &saved[..] }, View::channels_first(&x[..], &shape)?, gradients)
///     .weight(Some(&weight[..]))
///     .parameters(Some(&mut d_weight[..]), Some(&mut d_bias[..]));
/// norm.backward(&(), args)?;
/// assert_eq!(d_bias, [1.0, 0.0]);
/// assert!((dx[0] + dx[2] + dx[4]).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FunctionalBatchNorm<B: Backend, P: Param> {
    name: Arc<str>,
    /// Unique among the layers of this process.
    id: u64,
    /// The number of this layer in the group's order of construction.
    ordinal: u64,
    config: Config,
    backend: B,
    group: Group<B>,
    uses: AtomicU64,
    workspaces: Mutex<Vec<B::Workspace>>,
    /// Whether the [`SyncBatchNorm`](crate::SyncBatchNorm) that owns this moves its running statistics, which ranks compare. Frameworks
    /// may move them apart on one rank and within the pass on another, so it is true for them.
    pub(crate) updates_running: bool,
    params: PhantomData<P>,
}

impl<B: Backend, P: Param> FunctionalBatchNorm<B, P> {
    /// A layer for `config.channels` channels.
    ///
    /// `name` appears in errors, and ranks compare it. `group` is a [`Group`] that layers share, or a communicator, which becomes a group
    /// of this layer alone; [`SingleRank`](crate::SingleRank) is local batch norm. The ranks of a group make their layers in the
    /// same order. `queue` is used to allocate.
    ///
    /// The passes use `channels` and `eps` of `config`. The momentum of an update is that of [`RunningMut`], and `config`'s is what a
    /// framework may read again from [`config`](Self::config). Ranks compare all settings, and the momentum of each update.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a setting is out of range, [`ErrorKind::Backend`] if the device fails. No rank is asked.
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
            updates_running: true,
            params: PhantomData,
        })
    }

    /// The layer's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The layer's group.
    #[must_use]
    pub fn group(&self) -> &Group<B> {
        &self.group
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Changes the momentum: the weight of the newest batch in the running statistics, 0 to 1, or `None` for the cumulative average. Every
    /// rank sets the same before its next pass.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if it is not a number from 0 to 1; the momentum is then unchanged.
    pub fn set_momentum(&mut self, momentum: Option<f64>) -> Result<(), Error> {
        check_momentum(momentum).map_err(|e| self.context(Operation::SetMode).error(e))?;
        self.config.momentum = momentum;
        Ok(())
    }

    /// Moves the layer to another group: after a failure, or when the number of ranks changes.
    ///
    /// The layer counts its passes from 0 again and gets the next number in the new group's order of construction. So every rank of the
    /// new group calls this, or makes a new layer, in the same order. Statistics that were saved in the old group are refused from now
    /// on ([`ErrorKind::OtherGroup`]). No rank is asked, and nothing can fail.
    pub fn set_group(&mut self, group: impl Communicator<B> + 'static) {
        self.group = group.into_group();
        self.ordinal = self.group.next_layer();
        *self.uses.get_mut() = 0;
    }

    /// Compiles and allocates whatever passes over activations `T` of this geometry need, so that the first pass is not slower than
    /// others. Optional.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Backend`].
    pub fn prepare<T>(&self, queue: &B::Queue, geometry: &Geometry) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let prepared = self.backend.prepare(queue, geometry);
        self.context(Operation::Prepare).device(Stage::Preparation, prepared)
    }

    /// `y = (x - mean) / sqrt(var + eps) weight + bias` (S. Ioffe, C. Szegedy, "Batch Normalization", 2015, algorithm 1).
    ///
    /// With [`Statistics::Group`], mean and var are those of the whole group's batch, and the call is collective: every rank of the
    /// group makes it, with its own x, of any batch size, 0 included. With the other [`Statistics`] no rank is asked. The running
    /// statistics that [`Statistics::Group`] may hold are updated.
    ///
    /// The call returns before the device has done the work, except that a communicator in host memory waits for the sums.
    ///
    /// # Shapes
    ///
    /// x: (N, C, *spatial) in either layout, C as in [`Config::channels`]. y: shape and layout of x, other memory. weight, bias, running
    /// mean and running variance: C values. `num_batches_tracked`: 1 value. saved: [`saved_len`](crate::saved_len)`(C)` values.
    ///
    /// # Errors
    ///
    /// Before any work, nothing is written and no rank has been asked:
    /// - [`ErrorKind::Channels`], [`ErrorKind::Geometry`], [`ErrorKind::Length`]: a tensor does not fit the layer or x;
    /// - [`ErrorKind::Config`]: the momentum of [`RunningMut`] is out of range;
    /// - [`ErrorKind::OneElement`]: a rank alone has one element per channel, which has no variance;
    /// - [`ErrorKind::Communicator`]: the group has failed earlier.
    ///
    /// After work has begun, y and saved are unspecified, and running statistics are unchanged unless the error is late
    /// ([`CommError::late`](crate::CommError::late)):
    /// - [`ErrorKind::Communicator`]: the sum failed. Unless its kind is [`Unsent`](crate::CommErrorKind::Unsent), the group is
    ///   poisoned; go on in a new group ([`set_group`](Self::set_group));
    /// - [`ErrorKind::Backend`]: the device failed. If that was after the sum, the group is poisoned, so that the other ranks hear of it;
    /// - [`ErrorKind::NoPeers`], [`ErrorKind::SumLeftOut`]: backend and communicator do not fit each other, or the backend is wrong.
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
        let momentum = running.as_ref().map_or(self.config.momentum, |running| running.momentum);
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
            Scope::Group => self.next_use(&context, queue, momentum, run),
            Scope::Local | Scope::Frozen => self.alone(&context, queue, run).map(|()| 0),
        };
        self.give_back(workspace);
        Ok(self.token(scope, use_number?, geometry))
    }

    /// Computes y again from the saved statistics, for activation checkpointing.
    ///
    /// No rank is asked and no running statistics are updated. y has the same bits as in the forward pass, if x, weight and bias
    /// have.
    ///
    /// # Shapes
    ///
    /// As for [`forward`](Self::forward); x has the shape and layout that it had there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ForeignSaved`], [`ErrorKind::OtherGroup`]: another layer's statistics, or another group's;
    /// [`ErrorKind::Geometry`], [`ErrorKind::Length`]: tensors that do not fit; [`ErrorKind::Backend`]. y is then
    /// unspecified.
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

    /// Updates running statistics from the saved statistics of a forward pass with [`Statistics::Group`].
    ///
    /// For functional frameworks, whose forward pass may only return results. The bits are those that the forward pass would have
    /// written. No rank is asked. A batch without elements on any rank changes nothing.
    ///
    /// # Shapes
    ///
    /// Running mean and variance: C values; `num_batches_tracked`: 1.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ForeignSaved`], [`ErrorKind::OtherGroup`]; [`ErrorKind::NotTheGroups`] if the pass used other statistics than the
    /// group's; [`ErrorKind::Config`] for a momentum out of range; [`ErrorKind::Length`]; [`ErrorKind::Backend`]. Running statistics
    /// are then unchanged.
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

    /// The gradients of x, weight and bias (Ioffe and Szegedy 2015, section 3).
    ///
    /// ```text
    /// d_bias   = sum_dy                 over this rank's elements
    /// d_weight = sum_dy_xmu invstd      over this rank's elements, with sum_dy_xmu = sum dy (x - mean)
    /// dx       = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M)      with the group's sums and count M
    /// ```
    ///
    /// Data-parallel trainers sum or average the gradients of all parameters over the ranks, so `d_weight` and `d_bias` are this rank's. If
    /// the forward pass used [`Statistics::Group`], the call is collective: every rank makes it, in the same order, whether or not it
    /// needs dx. With frozen statistics `dx = weight invstd dy`, and no rank is asked.
    ///
    /// Gradients are overwritten, not added to. The call returns before the device has done the work, except that a communicator
    /// in host memory waits for the sums.
    ///
    /// # Shapes
    ///
    /// x, dy, dx: shape and layout of the forward pass's x. weight, `d_weight`, `d_bias`: C values. saved: what the forward pass wrote.
    ///
    /// # Errors
    ///
    /// Before any work, nothing is written and no rank has been asked:
    /// - [`ErrorKind::ForeignSaved`], [`ErrorKind::OtherGroup`]: the saved statistics are another layer's or another group's;
    /// - [`ErrorKind::Geometry`], [`ErrorKind::Length`]: a tensor does not fit;
    /// - [`ErrorKind::Communicator`]: the group has failed earlier.
    ///
    /// After work has begun, all gradients are unspecified, and nothing else has been written: [`ErrorKind::Communicator`],
    /// [`ErrorKind::Backend`], [`ErrorKind::NoPeers`], [`ErrorKind::SumLeftOut`], as for [`forward`](Self::forward).
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
            Scope::Group => {
                let (use_number, momentum) = (token.use_number, self.config.momentum);
                self.meet(&context, queue, GroupCall { pass: Pass::Backward, use_number, momentum }, run)
            }
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

    /// A workspace that no other pass is using. Passes of several threads at once have one each.
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
        let (group, layer, ordinal) = (self.group.id(), self.id, self.ordinal);
        SavedToken { group, layer, ordinal, use_number, scope, parameters: 0, geometry }
    }

    pub(crate) fn context(&self, operation: Operation) -> PassContext<'_, B> {
        PassContext { layer: &self.name, group: &self.group, operation }
    }

    pub(crate) fn is_owner(&self, token: &SavedToken) -> bool {
        token.layer == self.id
    }

    /// Refuses statistics of another layer or of another group, and those from before the layer left this one and came back.
    pub(crate) fn check_owner(&self, context: &PassContext<'_, B>, token: &SavedToken) -> Result<(), Error> {
        if !self.is_owner(token) {
            return Err(context.error(ErrorKind::ForeignSaved));
        }
        let (saved, current) = (token.group, self.group.id());
        if (saved, token.ordinal) == (current, self.ordinal) {
            return Ok(());
        }
        Err(context.error(ErrorKind::OtherGroup { saved, current }))
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
