//! A training step of one layer on one tensor: what is timed.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use syncbn_core::{
    Communicator, Config, Element, Geometry, Gradients, Kernels, ParamGradients, SavedStatistics, Storage,
    SyncBatchNorm, View, ViewMut,
};

/// A layer with the tensors of its forward and backward pass, on the device.
pub struct Step<'q, B: Storage, T: Element> {
    queue: &'q B::Queue,
    backend: B,
    layer: SyncBatchNorm<B, T::Param>,
    geometry: Geometry,
    pub(crate) x: B::Buffer<T>,
    pub(crate) y: B::Buffer<T>,
    dy: B::Buffer<T>,
    dx: B::Buffer<T>,
    d_weight: B::Buffer<T::Param>,
    d_bias: B::Buffer<T::Param>,
    saved: Option<SavedStatistics<B>>,
}

impl<'q, B: Kernels<T> + Storage, T: Element> Step<'q, B, T> {
    /// A layer as it is by default: affine, with running statistics; x and dy random.
    pub fn new(
        backend: &B,
        queue: &'q B::Queue,
        group: Arc<dyn Communicator<B>>,
        geometry: Geometry,
    ) -> Result<Self> {
        let channels = geometry.channels();
        let layer = SyncBatchNorm::new("bench", Config::new(channels), backend.clone(), queue, group)?;
        layer.prepare(queue, &geometry)?;
        let tensor = |seed| backend.upload(queue, &random::<T>(geometry.len(), seed));
        let empty = || backend.upload(queue, &vec![T::default(); geometry.len()]);
        let vector = || backend.upload(queue, &vec![T::Param::default(); channels]);
        Ok(Self {
            queue,
            backend: backend.clone(),
            layer,
            geometry,
            x: tensor(1)?,
            y: empty()?,
            dy: tensor(2)?,
            dx: empty()?,
            d_weight: vector()?,
            d_bias: vector()?,
            saved: None,
        })
    }

    /// The forward pass. What an earlier one saved is dropped first, so that a backend which pools it uses it again.
    pub fn forward(&mut self) -> Result<()> {
        self.saved = None;
        let x = View::new(B::mem(&self.x), self.geometry)?;
        let y = ViewMut::new(B::mem_mut(&mut self.y), self.geometry)?;
        self.saved = Some(self.layer.forward(self.queue, x, y)?);
        Ok(())
    }

    /// The backward pass of the last forward pass, with the gradients of x, weight and bias.
    pub fn backward(&mut self) -> Result<()> {
        let saved = self.saved.as_ref().context("a backward pass needs a forward pass before it")?;
        let x = View::new(B::mem(&self.x), self.geometry)?;
        let dy = View::new(B::mem(&self.dy), self.geometry)?;
        let dx = ViewMut::new(B::mem_mut(&mut self.dx), self.geometry)?;
        let parameters = ParamGradients {
            weight: Some(B::mem_mut(&mut self.d_weight)),
            bias: Some(B::mem_mut(&mut self.d_bias)),
        };
        self.layer.backward(self.queue, saved, x, Gradients::out_of_place(dy, dx), parameters)?;
        Ok(())
    }

    /// Whether what was timed did its work: y has mean 0 and variance 1, as weight 1 and bias 0 make it, and dx, whose sum
    /// is 0 then, is not all zeros.
    pub fn check(&self) -> Result<()> {
        let y = mean_and_square(&self.values(&self.y)?);
        let dx = mean_and_square(&self.values(&self.dx)?);
        let normal = y.0.abs() < 1e-2 && (y.1 - 1.0).abs() < 1e-2;
        let centred = dx.0.abs() < 1e-2 && dx.1 > 1e-2 && dx.1 < 1e2;
        ensure!(normal && centred, "not a batch norm: mean and mean square of y are {y:?}, of dx {dx:?}");
        Ok(())
    }

    fn values(&self, buffer: &B::Buffer<T>) -> Result<Vec<T>> {
        let mut values = vec![T::default(); self.geometry.len()];
        self.backend.read(self.queue, B::mem(buffer), &mut values)?;
        Ok(values)
    }
}

fn mean_and_square<T: Element>(values: &[T]) -> (f64, f64) {
    let (sum, square) = values.iter().fold((0.0, 0.0), |(sum, square), value| {
        let value = value.to_f64();
        (sum + value, value.mul_add(value, square))
    });
    let len = values.len() as f64;
    (sum / len, square / len)
}

/// Values between -1.5 and 2.5, the same for the same seed. Large tensors repeat them, after a number of elements that
/// is a multiple of no size.
fn random<T: Element>(len: usize, seed: u64) -> Vec<T> {
    const PRIME: usize = 1_000_003;
    let mut rng = Rng::with_seed(seed);
    let few: Vec<T> =
        std::iter::repeat_with(|| T::from_f64(rng.f64() * 4.0 - 1.5)).take(len.min(PRIME)).collect();
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        all.extend_from_slice(&few[..few.len().min(len - all.len())]);
    }
    all
}
