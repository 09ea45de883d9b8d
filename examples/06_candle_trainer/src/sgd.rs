//! Stochastic gradient descent with momentum and weight decay, and the learning rate's schedule.

use std::f64::consts::PI;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

const MOMENTUM: f64 = 0.9;
const DECAY: f64 = 1e-4;

/// The optimiser: `v <- 0.9 v + (g + decay w)`, `w <- w - rate v`.
pub struct Sgd {
    vars: Vec<Var>,
    /// As many; zero where there was no gradient yet.
    pub(crate) velocities: Vec<Tensor>,
}

impl Sgd {
    /// Of all variables; those without a gradient, such as running statistics, are left alone.
    pub fn new(vars: Vec<Var>) -> Result<Self> {
        let velocities = vars.iter().map(|var| var.zeros_like()).collect::<Result<_>>()?;
        Ok(Self { vars, velocities })
    }

    /// One step.
    pub fn step(&mut self, grads: &GradStore, rate: f64) -> Result<()> {
        for (var, velocity) in self.vars.iter().zip(&mut self.velocities) {
            let Some(grad) = grads.get(var) else { continue };
            let value = var.as_detached_tensor();
            *velocity = ((&*velocity * MOMENTUM)? + (grad + (&value * DECAY)?)?)?.detach();
            var.set(&(value - (&*velocity * rate)?)?)?;
        }
        Ok(())
    }
}

/// The learning rate of a step: it rises over the first twentieth of all, and falls to 0 as a cosine does.
#[must_use]
pub fn rate(highest: f64, step: usize, steps: usize) -> f64 {
    let rising = (steps / 20).max(1);
    if step < rising {
        return highest * (step + 1) as f64 / rising as f64;
    }
    let part = (step - rising) as f64 / (steps - rising).max(1) as f64;
    highest * (1.0 + (PI * part).cos()) / 2.0
}
