//! The checks of arguments before a pass begins. Kernels rely on them and check nothing again.

use crate::backend::{Backend, saved_len};
use crate::config::check_momentum;
use crate::context::PassContext;
use crate::error::{Error, ErrorKind, Tensor};
use crate::kernels::RunningMut;
use crate::meeting::Gradients;
use crate::saved::{SavedRef, Scope};
use crate::scalar::{Element, Param, Scalar};
use crate::view::{View, ViewMut};

use super::{Backward, Forward, FunctionalBatchNorm, Recompute, Statistics, UpdateRunning};

type Affine<'s, 'a, B, P> = (Option<&'s <B as Backend>::Mem<'a, P>>, Option<&'s <B as Backend>::Mem<'a, P>>);

impl<B: Backend, P: Param> FunctionalBatchNorm<B, P> {
    pub(super) fn check_forward<T: Element<Param = P>>(
        &self,
        context: &PassContext<'_, B>,
        args: &Forward<'_, B, T>,
    ) -> Result<(), Error> {
        self.check_tensors(context, &args.x, &args.y, (args.weight.as_ref(), args.bias.as_ref()))?;
        let channels = self.config.channels;
        context.mem_mut_length(Tensor::Saved, saved_len(channels), Some(&args.saved))?;
        let alone = match &args.statistics {
            Statistics::Group { running } => {
                if let Some(running) = running {
                    self.check_running(context, running)?;
                }
                self.group.world_size().get() == 1
            }
            Statistics::Local => true,
            Statistics::Frozen { mean, var } => {
                context.mem_length(Tensor::RunningMean, channels, Some(mean))?;
                context.mem_length(Tensor::RunningVar, channels, Some(var))?;
                false
            }
        };
        let geometry = args.x.geometry();
        if alone && geometry.per_channel() == 1 {
            return Err(context.error(ErrorKind::OneElement { shape: geometry.shape() }));
        }
        Ok(())
    }

    pub(super) fn check_recompute<T: Element<Param = P>>(
        &self,
        context: &PassContext<'_, B>,
        args: &Recompute<'_, B, T>,
    ) -> Result<(), Error> {
        self.check_saved(context, &args.saved)?;
        context.same_geometry(Tensor::X, &args.saved.token.geometry, args.x.geometry())?;
        self.check_tensors(context, &args.x, &args.y, (args.weight.as_ref(), args.bias.as_ref()))
    }

    pub(super) fn check_update_running(
        &self,
        context: &PassContext<'_, B>,
        args: &UpdateRunning<'_, B, P>,
    ) -> Result<(), Error> {
        self.check_saved(context, &args.saved)?;
        let scope = args.saved.token.scope;
        if scope != Scope::Group {
            return Err(context.error(ErrorKind::NotTheGroups { scope }));
        }
        self.check_running(context, &args.running)
    }

    pub(super) fn check_backward<T: Element<Param = P>>(
        &self,
        context: &PassContext<'_, B>,
        args: &Backward<'_, B, T>,
    ) -> Result<(), Error> {
        self.check_saved(context, &args.saved)?;
        let expected = &args.saved.token.geometry;
        context.same_geometry(Tensor::X, expected, args.x.geometry())?;
        context.same_geometry(Tensor::Dy, expected, args.gradients.dy().geometry())?;
        if let Gradients::OutOfPlace { dx, .. } = &args.gradients {
            context.same_geometry(Tensor::Dx, expected, dx.geometry())?;
        }
        let channels = self.config.channels;
        context.mem_length(Tensor::Weight, channels, args.weight.as_ref())?;
        context.mem_mut_length(Tensor::DWeight, channels, args.d_weight.as_ref())?;
        context.mem_mut_length(Tensor::DBias, channels, args.d_bias.as_ref())
    }

    fn check_tensors<T: Element<Param = P>>(
        &self,
        context: &PassContext<'_, B>,
        x: &View<'_, B, T>,
        y: &ViewMut<'_, B, T>,
        (weight, bias): Affine<'_, '_, B, P>,
    ) -> Result<(), Error> {
        let channels = self.config.channels;
        context.channels(channels, x.geometry())?;
        context.same_geometry(Tensor::Y, x.geometry(), y.geometry())?;
        context.mem_length(Tensor::Weight, channels, weight)?;
        context.mem_length(Tensor::Bias, channels, bias)
    }

    fn check_running<S: Scalar>(
        &self,
        context: &PassContext<'_, B>,
        running: &RunningMut<'_, B, S>,
    ) -> Result<(), Error> {
        let channels = self.config.channels;
        check_momentum(running.momentum).map_err(|e| context.error(e))?;
        context.mem_mut_length(Tensor::RunningMean, channels, Some(&running.mean))?;
        context.mem_mut_length(Tensor::RunningVar, channels, Some(&running.var))?;
        context.mem_mut_length(Tensor::NumBatchesTracked, 1, Some(&running.num_batches_tracked))
    }

    fn check_saved(&self, context: &PassContext<'_, B>, saved: &SavedRef<'_, B>) -> Result<(), Error> {
        self.check_owner(context, &saved.token)?;
        context.channels(self.config.channels, &saved.token.geometry)?;
        context.mem_length(Tensor::Saved, saved_len(self.config.channels), Some(&saved.mem))
    }
}
