//! The passes of a functional layer: each is checked, given scratch memory, and run alone or with the other ranks.

use std::sync::PoisonError;

use crate::backend::Backend;
use crate::context::PassContext;
use crate::error::{Error, Operation, Stage, Tensor};
use crate::geometry::Geometry;
use crate::kernels::{GradInputArgs, GradSource, GradSumsArgs, Kernels, NormalizeArgs, RunningMut, Source};
use crate::meeting::{BackwardArgs, ForwardArgs, Gradients, Meeting};
use crate::message::Pass;
use crate::saved::{SavedToken, Scope};
use crate::scalar::{Element, Param};
use crate::view::{View, ViewMut, shorter, shorter_mut};

use super::FunctionalBatchNorm;
use super::args::{Backward, Forward, Recompute, Statistics, UpdateRunning};
use super::meet::GroupCall;

#[cfg(doc)]
use crate::{Config, ErrorKind};

impl<B: Backend, P: Param> FunctionalBatchNorm<B, P> {
    /// Compiles, loads and allocates whatever passes over activations `T` of this geometry need, alone and in the group. Optional: without
    /// it the first pass does so, and takes longer. On some devices it then also waits for what runs there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Backend`]; [`ErrorKind::Communicator`] if the group's peers meet on another device.
    pub fn prepare<T>(&self, queue: &B::Queue, geometry: &Geometry) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let context = self.context(Operation::Prepare);
        let inside = context.communication(self.meets_inside())?;
        context.device(Stage::Preparation, self.backend.prepare(queue, geometry, inside))
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
        let settings = running.as_ref().map_or(self.config, |running| {
            self.config.with_momentum(running.momentum).with_non_finite(running.non_finite)
        });
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
            Scope::Group => self.next_use(&context, queue, settings, run),
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
                let (use_number, settings) = (token.use_number, self.config);
                self.meet(&context, queue, GroupCall { pass: Pass::Backward, use_number, settings }, run)
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
}
