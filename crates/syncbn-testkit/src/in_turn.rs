//! A training step by the four kernels alone, without layers and communicators: one rank after another in one thread, for any number of
//! ranks. Messages are added here, in the order of the ranks.

use syncbn_core::backend::{
    Grad, GradInputArgs, GradSource, GradSumsArgs, MomentsArgs, NormalizeArgs, Source, saved_len,
};
use syncbn_core::{Dtype, Element, Kernels, Pass, RunningMut, Scalar, State, Storage};

use crate::outcome::Outcome;
use crate::rank::{ParameterRoom, Rank, Step, Written};
use crate::strategies::Case;
use crate::tensor::{Placed, Tensor};

/// The memory of one rank.
struct Turn<B: Storage, T: Element> {
    x: Placed<B, T>,
    dy: Placed<B, T>,
    y: Placed<B, T>,
    dx: Placed<B, T>,
    workspace: B::Workspace,
    saved: B::Saved,
    weight: Option<B::Buffer<T::Param>>,
    bias: Option<B::Buffer<T::Param>>,
    running: Option<Running<B, T>>,
    room: ParameterRoom<B, T::Param>,
}

struct Running<B: Storage, T: Element> {
    mean: B::Buffer<T::Param>,
    var: B::Buffer<T::Param>,
    tracked: B::Buffer<i64>,
}

/// One training step of a case with this x: all ranks' kernels on one device, in turn.
pub fn train<B: Storage + Kernels<T>, T: Element>(
    rank: &Rank<B>,
    case: &Case,
    x: &[Tensor<T>],
) -> Outcome<Vec<Step<T>>> {
    let turn = |(index, x)| Turn::new(rank, case, x, &case.dy(index));
    let mut turns = x.iter().enumerate().map(turn).collect::<Outcome<Vec<_>>>()?;
    turns.iter_mut().try_for_each(|turn| turn.moments(rank))?;
    let group = sum(rank, Pass::Forward, &mut turns)?;
    turns.iter_mut().try_for_each(|turn| turn.normalize(rank, case, group))?;
    turns.iter_mut().try_for_each(|turn| turn.grad_sums(rank))?;
    sum(rank, Pass::Backward, &mut turns)?;
    turns.iter_mut().try_for_each(|turn| turn.grad_input(rank))?;
    turns.iter().map(|turn| turn.read(rank)).collect()
}

/// Gives every rank the sum of all ranks' messages, if there are several.
fn sum<B: Storage, T: Element>(rank: &Rank<B>, pass: Pass, turns: &mut [Turn<B, T>]) -> Outcome<bool> {
    if turns.len() == 1 {
        return Ok(false);
    }
    let channels = turns[0].x.channels();
    let mut sum = Vec::new();
    for turn in turns.iter_mut() {
        let mut message = vec![0.0; pass.message_len(channels, T::Param::DTYPE)];
        rank.backend.read_message(&rank.queue, pass, &mut turn.workspace, &mut message)?;
        if sum.is_empty() {
            sum = message;
        } else {
            sum.iter_mut().zip(message).for_each(|(sum, part): (&mut f64, f64)| *sum += part);
        }
    }
    for turn in turns {
        rank.backend.write_message(&rank.queue, pass, &mut turn.workspace, &sum)?;
    }
    Ok(true)
}

impl<B: Storage + Kernels<T>, T: Element> Turn<B, T> {
    fn new(rank: &Rank<B>, case: &Case, x: &Tensor<T>, dy: &Tensor<T>) -> Outcome<Self> {
        let (state, layout, params): (State<T::Param>, _, Dtype) =
            (case.state(), case.layout, T::Param::DTYPE);
        let upload =
            |values: &Option<Vec<T::Param>>| values.as_ref().map(|values| rank.upload(values)).transpose();
        let running = match (upload(&state.running_mean)?, upload(&state.running_var)?) {
            (Some(mean), Some(var)) => {
                Some(Running { mean, var, tracked: rank.upload(state.num_batches_tracked.as_slice())? })
            }
            _ => None,
        };
        Ok(Self {
            x: Placed::new(rank, x, layout)?,
            dy: Placed::new(rank, dy, layout)?,
            y: Placed::blank(rank, x, layout)?,
            dx: Placed::blank(rank, x, layout)?,
            workspace: rank.backend.workspace(&rank.queue, case.channels, params)?,
            saved: rank.backend.saved(&rank.queue, case.channels)?,
            weight: upload(&state.weight)?,
            bias: upload(&state.bias)?,
            running,
            room: ParameterRoom::new(rank, case.channels)?,
        })
    }

    fn moments(&mut self, rank: &Rank<B>) -> Outcome {
        let args = MomentsArgs { x: self.x.view()?, workspace: &mut self.workspace };
        rank.backend.moments(&rank.queue, args)?;
        Ok(rank.backend.flush(&rank.queue)?)
    }

    fn normalize(&mut self, rank: &Rank<B>, case: &Case, group: bool) -> Outcome {
        let config = case.config();
        let running = self.running.as_mut().map(|Running { mean, var, tracked }| RunningMut {
            mean: B::mem_mut(mean),
            var: B::mem_mut(var),
            num_batches_tracked: B::mem_mut(tracked),
            momentum: config.momentum,
            non_finite: config.non_finite,
        });
        let saved = B::saved_mem_mut(&mut self.saved);
        crate::ensure!(B::mem_mut_len(&saved) == saved_len(case.channels), "saved memory of another length");
        let args = NormalizeArgs {
            x: self.x.view()?,
            y: self.y.view_mut()?,
            source: Source::Batch { workspace: &self.workspace, group, saved, running },
            weight: self.weight.as_ref().map(B::mem),
            bias: self.bias.as_ref().map(B::mem),
            eps: config.eps,
        };
        rank.backend.normalize(&rank.queue, args)?;
        Ok(rank.backend.flush(&rank.queue)?)
    }

    fn grad_sums(&mut self, rank: &Rank<B>) -> Outcome {
        let wanted = self.room.borrow();
        let args = GradSumsArgs {
            x: self.x.view()?,
            dy: self.dy.view()?,
            saved: B::saved_mem(&self.saved),
            d_weight: wanted.weight,
            d_bias: wanted.bias,
            workspace: &mut self.workspace,
        };
        rank.backend.grad_sums(&rank.queue, args)?;
        Ok(rank.backend.flush(&rank.queue)?)
    }

    fn grad_input(&mut self, rank: &Rank<B>) -> Outcome {
        let args = GradInputArgs {
            x: self.x.view()?,
            grad: Grad::OutOfPlace { dy: self.dy.view()?, dx: self.dx.view_mut()? },
            saved: B::saved_mem(&self.saved),
            source: GradSource::Batch { workspace: &self.workspace },
            weight: self.weight.as_ref().map(B::mem),
        };
        rank.backend.grad_input(&rank.queue, args)?;
        Ok(rank.backend.flush(&rank.queue)?)
    }

    fn read(&self, rank: &Rank<B>) -> Outcome<Step<T>> {
        let read =
            |buffer: Option<&B::Buffer<T::Param>>| buffer.map(|buffer| rank.download(buffer)).transpose();
        let running = self.running.as_ref();
        let tracked = running.map(|running| rank.download(&running.tracked)).transpose()?;
        let (d_weight, d_bias) = self.room.read(rank)?;
        Ok(Step {
            y: self.y.read(rank)?,
            gradients: Written { dx: self.dx.read(rank)?, d_weight, d_bias },
            state: State {
                weight: read(self.weight.as_ref())?,
                bias: read(self.bias.as_ref())?,
                running_mean: read(running.map(|running| &running.mean))?,
                running_var: read(running.map(|running| &running.var))?,
                num_batches_tracked: tracked.and_then(|tracked| tracked.first().copied()),
            },
        })
    }
}
