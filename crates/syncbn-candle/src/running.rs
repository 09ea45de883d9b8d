//! A layer's running statistics, in variables that a `VarMap` saves and loads.

use candle_core::{Result, Tensor, Var};
use syncbn_core::functional::UpdateRunning;
use syncbn_core::{FunctionalBatchNorm, Kernels, Param, RunningMut, SavedRef, SavedStatistics};

use crate::device::OnDevice;
use crate::error::of_layer;
use crate::memory::with_mem_mut;
use crate::op::Passes;
use crate::value::Value;

/// The running mean and unbiased variance, and how many batches were seen.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) mean: Var,
    pub(crate) var: Var,
    pub(crate) num_batches_tracked: Var,
}

impl Running {
    /// Moves all three by what a forward pass has saved, or none.
    ///
    /// It comes after the ranks have met, so that no lock of a variable is held while they wait for each other.
    pub(crate) fn update<B: OnDevice>(&self, passes: &Passes<B>, saved: &SavedStatistics<B>) -> Result<()> {
        match passes {
            Passes::F32(layer) => self.update_as(layer, saved),
            Passes::F64(layer) => self.update_as(layer, saved),
        }
    }

    fn update_as<B: OnDevice + Kernels<P>, P: Param + Value>(
        &self,
        layer: &FunctionalBatchNorm<B, P>,
        saved: &SavedStatistics<B>,
    ) -> Result<()> {
        let config = layer.config();
        let (momentum, non_finite) = (config.momentum, config.non_finite);
        let Self { mean, var, num_batches_tracked } = self;
        with_mem_mut::<B, P, _>(mean, |queue, mut mean| {
            with_mem_mut::<B, P, _>(var, |_, mut var| {
                with_mem_mut::<B, i64, _>(num_batches_tracked, |_, mut num_batches_tracked| {
                    let mem = saved.mem();
                    let saved = SavedRef { token: *saved.token(), mem: B::reborrow(&mem) };
                    let running = RunningMut {
                        mean: B::reborrow_mut(&mut mean),
                        var: B::reborrow_mut(&mut var),
                        num_batches_tracked: B::reborrow_mut(&mut num_batches_tracked),
                        momentum,
                        non_finite,
                    };
                    layer.update_running(queue, UpdateRunning::new(saved, running)).map_err(of_layer)
                })
            })
        })
    }

    /// Whether mean and variance are two variables.
    pub(crate) fn are_distinct(&self) -> bool {
        let id = |var: &Var| Tensor::id(var);
        id(&self.mean) != id(&self.var)
    }
}
