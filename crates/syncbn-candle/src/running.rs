//! A layer's running statistics, in variables that a `VarMap` saves and loads.

use candle_core::{Result, Tensor, Var};
use syncbn_core::functional::UpdateRunning;
use syncbn_core::{FunctionalBatchNorm, Kernels, Param, RunningMut, SavedRef, SavedStatistics};
use syncbn_cpu::Cpu;

use crate::error::of_layer;
use crate::memory::{WithStorageMut, with_slice_mut};
use crate::op::Passes;

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
    pub(crate) fn update(&self, passes: &Passes<Cpu>, saved: &SavedStatistics<Cpu>) -> Result<()> {
        match passes {
            Passes::F32(layer) => self.update_as(layer, saved),
            Passes::F64(layer) => self.update_as(layer, saved),
        }
    }

    fn update_as<P: Param + WithStorageMut>(
        &self,
        layer: &FunctionalBatchNorm<Cpu, P>,
        saved: &SavedStatistics<Cpu>,
    ) -> Result<()>
    where
        Cpu: Kernels<P>,
    {
        let config = layer.config();
        let (momentum, non_finite) = (config.momentum, config.non_finite);
        self.with_slices(|mean: &mut [P], var, num_batches_tracked| {
            let saved = SavedRef { token: *saved.token(), mem: saved.mem() };
            let running = RunningMut { mean, var, num_batches_tracked, momentum, non_finite };
            layer.update_running(&(), UpdateRunning::new(saved, running)).map_err(of_layer)
        })
    }

    fn with_slices<P: WithStorageMut>(
        &self,
        job: impl FnOnce(&mut [P], &mut [P], &mut [i64]) -> Result<()>,
    ) -> Result<()> {
        let Self { mean, var, num_batches_tracked } = self;
        with_slice_mut(mean, |mean| {
            with_slice_mut(var, |var| with_slice_mut(num_batches_tracked, |count| job(mean, var, count)))
        })
    }

    /// Whether they are three variables, each with memory of its own.
    pub(crate) fn are_distinct(&self) -> bool {
        let id = |var: &Var| Tensor::id(var);
        id(&self.mean) != id(&self.var)
    }
}
