//! Ranks as threads, each with a device, a queue and a group, and the steps that laws take with them. They are threads of the operating
//! system, since ranks that wait for each other would block a thread pool.

use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::Arc;

use syncbn_core::{
    Backend, Communicator, Config, Element, Error, Gradients, Kernels, Layout, Param, ParamGradients,
    SavedStatistics, Scalar, State, Storage, SyncBatchNorm,
};

use crate::bits::same_bits;
use crate::broken;
use crate::harness::{Harness, Join, need_ranks};
use crate::outcome::{Outcome, Verdict};
use crate::tensor::{Placed, Tensor};

/// One rank, in its thread.
pub struct Rank<B: Backend> {
    /// Which thread this is, from 0; in the only group there is, also the communicator's rank.
    pub index: usize,
    /// The device.
    pub backend: B,
    /// Its queue.
    pub queue: B::Queue,
    /// The group.
    pub communicator: Arc<dyn Communicator<B>>,
}

/// Runs `body` once for each rank of a new group, and returns the results in the order of the ranks.
pub fn ranks<H: Harness, R: Send>(
    harness: &H,
    world_size: usize,
    body: impl Fn(&Rank<H::Backend>) -> Outcome<R> + Sync,
) -> Outcome<Vec<R>> {
    let world_size = NonZeroUsize::new(world_size).ok_or_else(|| broken!("a group of no ranks"))?;
    ranks_of(harness, harness.group(world_size), body)
}

/// Runs `body` on one rank, alone.
pub fn alone<H: Harness, R: Send>(
    harness: &H,
    body: impl Fn(&Rank<H::Backend>) -> Outcome<R> + Sync,
) -> Outcome<R> {
    ranks(harness, 1, body).map(|mut answers| answers.remove(0))
}

/// Runs `body` once for each rank of one group or several. If the machine cannot run as many ranks, the law is skipped.
pub fn ranks_of<H: Harness, R: Send>(
    harness: &H,
    places: Vec<Join<H::Backend>>,
    body: impl Fn(&Rank<H::Backend>) -> Outcome<R> + Sync,
) -> Outcome<Vec<R>> {
    need_ranks(harness, places.len())?;
    let body = &body;
    let answers: Vec<Outcome<R>> = std::thread::scope(|scope| {
        let start = |(index, join): (usize, Join<H::Backend>)| {
            scope.spawn(move || {
                harness.surround(move || {
                    let opened = harness.open(index);
                    let (backend, queue) = opened.map_err(|why| broken!("the device went away: {why}"))?;
                    let communicator = join(&backend, &queue)?;
                    body(&Rank { index, backend, queue, communicator })
                })
            })
        };
        let threads: Vec<_> = places.into_iter().enumerate().map(start).collect();
        let answer = |thread: std::thread::ScopedJoinHandle<'_, Outcome<R>>| {
            thread.join().unwrap_or_else(|panic| Err(broken!("panicked: {}", panic_text(&*panic))))
        };
        threads.into_iter().map(answer).collect()
    });
    together(answers)
}

/// All results, or all errors: when one rank fails, the others fail, too, and any of the errors may be the cause.
pub(crate) fn together<R>(answers: Vec<Outcome<R>>) -> Outcome<Vec<R>> {
    let mut good = Vec::new();
    let mut wrong = Vec::new();
    for (rank, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(answer) => good.push(answer),
            Err(skipped @ Verdict::Skipped(_)) => return Err(skipped),
            Err(Verdict::Broken(why)) => wrong.push(format!("rank {rank}: {why}")),
        }
    }
    if wrong.is_empty() { Ok(good) } else { Err(Verdict::Broken(wrong.join("\n  "))) }
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("(no text)")
}

/// What one rank's backward pass wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Written<T: Element> {
    /// The gradient of x.
    pub dx: Tensor<T>,
    /// This rank's gradient of the weight.
    pub d_weight: Vec<T::Param>,
    /// This rank's gradient of the bias.
    pub d_bias: Vec<T::Param>,
}

/// What one rank's training step wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Step<T: Element> {
    /// The activations.
    pub y: Tensor<T>,
    /// The gradients.
    pub gradients: Written<T>,
    /// Parameters and running statistics afterwards.
    pub state: State<T::Param>,
}

impl<B: Storage> Rank<B> {
    /// Memory with these values.
    pub fn upload<T: Scalar>(&self, values: &[T]) -> Outcome<B::Buffer<T>> {
        Ok(self.backend.upload(&self.queue, values)?)
    }

    /// Waits, and copies the values out.
    pub fn download<T: Scalar>(&self, buffer: &B::Buffer<T>) -> Outcome<Vec<T>> {
        let mut values = vec![T::default(); B::mem_len(&B::mem(buffer))];
        self.backend.read(&self.queue, B::mem(buffer), &mut values)?;
        Ok(values)
    }

    /// Waits, and copies what a forward pass saved: words in the backend's own form.
    pub fn saved_words(&self, saved: &SavedStatistics<B>) -> Outcome<Vec<f64>> {
        let mut words = vec![0.0; B::mem_len(&saved.mem())];
        self.backend.read(&self.queue, saved.mem(), &mut words)?;
        Ok(words)
    }

    /// A layer in this rank's group.
    pub fn layer<P: Param>(&self, config: Config, state: &State<P>) -> Result<SyncBatchNorm<B, P>, Error> {
        self.layer_in(self.communicator.clone(), config, state)
    }

    /// A layer in another group.
    pub fn layer_in<P: Param>(
        &self,
        communicator: impl Communicator<B> + 'static,
        config: Config,
        state: &State<P>,
    ) -> Result<SyncBatchNorm<B, P>, Error> {
        let mut layer = SyncBatchNorm::new("bn", config, self.backend.clone(), &self.queue, communicator)?;
        layer.load_state(&self.queue, state)?;
        Ok(layer)
    }

    /// One forward pass.
    pub fn forward<T: Element>(
        &self,
        layer: &mut SyncBatchNorm<B, T::Param>,
        x: &Placed<B, T>,
        like: &Tensor<T>,
    ) -> Outcome<(SavedStatistics<B>, Tensor<T>)>
    where
        B: Kernels<T>,
    {
        let mut y = Placed::blank(self, like, x.layout)?;
        let saved = layer.forward(&self.queue, x.view(), y.view_mut())?;
        Ok((saved, y.read(self)?))
    }

    /// One backward pass, with all gradients.
    pub fn backward<T: Element>(
        &self,
        layer: &mut SyncBatchNorm<B, T::Param>,
        saved: &SavedStatistics<B>,
        x: &Placed<B, T>,
        dy: &Tensor<T>,
    ) -> Outcome<Written<T>>
    where
        B: Kernels<T>,
    {
        let placed = Placed::new(self, dy, x.layout)?;
        let mut dx = Placed::blank(self, dy, x.layout)?;
        let mut parameters = ParameterRoom::<B, T::Param>::new(self, dy.channels)?;
        let wanted = Gradients::out_of_place(placed.view(), dx.view_mut());
        layer.backward(&self.queue, saved, x.view(), wanted, parameters.borrow())?;
        let (d_weight, d_bias) = parameters.read(self)?;
        Ok(Written { dx: dx.read(self)?, d_weight, d_bias })
    }

    /// One training step of a layer, forward and backward.
    pub fn train<T: Element>(
        &self,
        layer: &mut SyncBatchNorm<B, T::Param>,
        x: &Tensor<T>,
        dy: &Tensor<T>,
        layout: Layout,
    ) -> Outcome<Step<T>>
    where
        B: Kernels<T>,
    {
        let placed = Placed::new(self, x, layout)?;
        let (saved, y) = self.forward(layer, &placed, x)?;
        let gradients = self.backward(layer, &saved, &placed, dy)?;
        same_bits("x, which is only read,", &placed.read(self)?.values, &x.values)?;
        Ok(Step { y, gradients, state: layer.state(&self.queue)? })
    }
}

/// Memory for the parameters' gradients.
pub struct ParameterRoom<B: Storage, P: Param> {
    weight: B::Buffer<P>,
    bias: B::Buffer<P>,
}

impl<B: Storage, P: Param> ParameterRoom<B, P> {
    /// Room for one gradient per channel, filled with what no gradient is.
    pub fn new(rank: &Rank<B>, channels: usize) -> Outcome<Self> {
        let filler = vec![P::from_f64(-77.0); channels];
        let room = || rank.backend.upload(&rank.queue, &filler);
        Ok(Self { weight: room()?, bias: room()? })
    }

    /// Borrowed to be written.
    pub fn borrow(&mut self) -> ParamGradients<'_, B, P> {
        ParamGradients { weight: Some(B::mem_mut(&mut self.weight)), bias: Some(B::mem_mut(&mut self.bias)) }
    }

    /// The gradients of weight and bias.
    pub fn read(&self, rank: &Rank<B>) -> Outcome<(Vec<P>, Vec<P>)> {
        Ok((rank.download(&self.weight)?, rank.download(&self.bias)?))
    }
}
