//! A network on one rank, and one step of its training.

use ndarray::Array2;
use syncbn_core::{State, Storage};

use crate::Result;
use crate::layers::Layer;
use crate::world::Seat;

/// Layers, one after the other.
pub struct Network<'a> {
    layers: Vec<Box<dyn Layer + 'a>>,
}

/// A rank's part of the loss, and its gradient by the network's output.
pub struct Loss {
    /// The part; the whole batch's loss is the sum over the ranks.
    pub value: f64,
    /// The gradient, of the output's shape.
    pub gradient: Array2<f32>,
}

impl<'a> Network<'a> {
    /// The layers in their order.
    #[must_use]
    pub fn new(layers: Vec<Box<dyn Layer + 'a>>) -> Self {
        Self { layers }
    }

    /// The output for `x`.
    pub fn forward(&mut self, x: Array2<f32>) -> Result<Array2<f32>> {
        self.layers.iter_mut().try_fold(x, |x, layer| layer.forward(x))
    }

    /// A step of plain gradient descent on the loss of the whole batch, of which `x` is this rank's part. Returns that loss.
    pub fn train<B: Storage>(
        &mut self,
        x: Array2<f32>,
        loss: impl FnOnce(&Array2<f32>) -> Loss,
        rate: f64,
        seat: &Seat<B>,
    ) -> Result<f64> {
        let Loss { value, gradient } = loss(&self.forward(x)?);
        self.layers.iter_mut().rev().try_fold(gradient, |dy, layer| layer.backward(dy))?;

        let gradients: Vec<_> = self.layers.iter().map(|layer| layer.gradient()).collect();
        let mut message = gradients.concat();
        message.push(value);
        seat.all_reduce("gradients", &mut message)?;

        let mut rest = &message[..];
        for (layer, gradient) in self.layers.iter_mut().zip(&gradients) {
            let (total, later) = rest.split_at(gradient.len());
            let step: Vec<f64> = total.iter().map(|gradient| rate * gradient).collect();
            layer.descend(&step)?;
            rest = later;
        }
        Ok(rest.iter().sum())
    }

    /// Batch statistics, or running ones.
    pub fn set_training(&mut self, training: bool) {
        self.layers.iter_mut().for_each(|layer| layer.set_training(training));
    }

    /// The states of the batch norms, in their order.
    pub fn states(&mut self) -> Result<Vec<State<f32>>> {
        self.layers.iter_mut().filter_map(|layer| layer.state().transpose()).collect()
    }
}
