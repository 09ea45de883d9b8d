//! A layer with the memory of a step, for the tests of graphs, waits and processes.

#![allow(dead_code, clippy::unwrap_used, reason = "helpers of several tests, which fail where these do")]

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use syncbn_core::{
    Backend, Communicator, Config, Error, Geometry, Gradients, ParamGradients, SavedStatistics, Scalar,
    State, Storage, SyncBatchNorm, View, ViewMut,
};
use syncbn_cuda::cudarc::driver::{CudaContext, CudaStream, result};
use syncbn_cuda::{Buffer, Cuda, CudaError};
use syncbn_testkit::report::{absent, skipped};
use syncbn_testkit::{Ability, Gap, Opened, Unavailable};

/// The name under which skipped tests are reported: that of their file.
const TESTS: &str = concat!(env!("CARGO_CRATE_NAME"), "::", env!("CARGO_CRATE_NAME"));

/// The machine's GPUs; none, with the reason printed, where there is no CUDA. With `SYNCBN_REQUIRE=cuda` that is a failure.
pub(crate) fn devices() -> Vec<Cuda> {
    let first = match Cuda::open(0) {
        Ok(first) => first,
        Err(error) => return missing("cuda", &error).into_iter().collect(),
    };
    let count = usize::try_from(CudaContext::device_count().unwrap()).unwrap();
    std::iter::once(first).chain((1..count).map(|ordinal| Cuda::open(ordinal).unwrap())).collect()
}

/// The device of a rank, and a queue of its own.
pub(crate) fn open_rank(gpus: &[Cuda], rank: usize) -> Result<Opened<Cuda>, Unavailable> {
    let cuda = gpus[rank % gpus.len()].clone();
    let stream = cuda.context().new_stream().map_err(|error| Unavailable(error.to_string()))?;
    Ok((cuda, stream))
}

/// What the kernels openly cannot do.
pub(crate) fn device_gaps() -> Vec<Gap> {
    vec![
        Gap { ability: Ability::WideRange, reason: "chains of 64 elements are summed in f32" },
        Gap { ability: Ability::Subnormals, reason: "weight invstd, above 1e38 there, is multiplied in f32" },
    ]
}

/// Reports that something is missing; returns none.
pub(crate) fn missing(name: &str, error: &CudaError) -> Option<Cuda> {
    absent(name, TESTS, error);
    None
}

/// Reports that a test needs more than the machine has.
pub(crate) fn needs(what: &str) {
    skipped(TESTS, &format!("needs {what}"));
}

/// A buffer's values.
pub(crate) fn download<T: Scalar>(cuda: &Cuda, queue: &Arc<CudaStream>, buffer: &Buffer<T>) -> Vec<T> {
    let mut values = vec![T::default(); buffer.len()];
    cuda.read(queue, <Cuda as Storage>::mem(buffer), &mut values).unwrap();
    values
}

/// Blocks a queue until the returned sender is used or dropped, for `most` at the longest.
pub(crate) fn block(cuda: &Cuda, queue: &CudaStream, most: Duration) -> Sender<()> {
    unsafe extern "C" fn receive(gate: *mut c_void) {
        // SAFETY: the pointer is the box below, which is taken back here, once.
        let gate = unsafe { Box::from_raw(gate.cast::<(Receiver<()>, Duration)>()) };
        let _ = gate.0.recv_timeout(gate.1);
    }
    let (open, gate) = channel();
    cuda.context().bind_to_thread().unwrap();
    let gate = Box::into_raw(Box::new((gate, most)));
    // SAFETY: the stream is live; CUDA calls the function once, with the box.
    unsafe { result::stream::launch_host_function(queue.cu_stream(), receive, gate.cast()) }.unwrap();
    open
}

pub(crate) const CHANNELS: usize = 5;
const PIXELS: usize = 9 * 7;
const X: f32 = 0.37;
const DY: f32 = 0.11;

fn values(len: usize, seed: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * seed).sin() * 3.0 + seed).collect()
}

/// The numbers of one channel of a rig's x.
pub(crate) fn pixels(samples: usize, channel: usize) -> Vec<f64> {
    let x = values(samples * CHANNELS * PIXELS, X);
    let planes = x.chunks_exact(PIXELS).skip(channel).step_by(CHANNELS);
    planes.flatten().copied().map(f64::from).collect()
}

/// A layer, and the memory of its forward and backward pass.
pub(crate) struct Rig {
    pub(crate) cuda: Cuda,
    pub(crate) queue: Arc<CudaStream>,
    pub(crate) layer: SyncBatchNorm<Cuda, f32>,
    rank: usize,
    geometry: Geometry,
    x: Buffer<f32>,
    y: Buffer<f32>,
    dy: Buffer<f32>,
    dx: Buffer<f32>,
    d_weight: Buffer<f32>,
    d_bias: Buffer<f32>,
}

/// Everything that a step writes, as bits.
pub(crate) type Written = (State<f32>, [Vec<u32>; 4]);

impl Rig {
    /// A layer that averages over all batches, so that its counter matters, on so many images.
    pub(crate) fn new(cuda: &Cuda, group: impl Communicator<Cuda> + 'static, samples: usize) -> Self {
        Self::with_config(cuda, group, samples, Config::new(CHANNELS).with_momentum(None))
    }

    /// The same with these settings.
    pub(crate) fn with_config(
        cuda: &Cuda,
        group: impl Communicator<Cuda> + 'static,
        samples: usize,
        config: Config,
    ) -> Self {
        let queue = cuda.context().new_stream().unwrap();
        let rank = group.rank();
        let geometry = Geometry::channels_first(&[samples, config.channels, 9, PIXELS / 9]).unwrap();
        let layer = SyncBatchNorm::new("bn", config, cuda.clone(), &queue, group).unwrap();
        layer.prepare::<f32>(&queue, &geometry).unwrap();
        let tensor = |seed| cuda.upload(&queue, &values(geometry.len(), seed)).unwrap();
        let blank = |len| cuda.upload(&queue, &vec![0_f32; len]).unwrap();
        let (x, dy) = (tensor(X), tensor(DY));
        let (y, dx) = (blank(geometry.len()), blank(geometry.len()));
        let (d_weight, d_bias) = (blank(config.channels), blank(config.channels));
        Self { cuda: cuda.clone(), queue, layer, rank, geometry, x, y, dy, dx, d_weight, d_bias }
    }

    /// Its rank in its group.
    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    /// One training step.
    pub(crate) fn step(&mut self) {
        self.try_step().unwrap();
    }

    /// One training step, which may fail.
    pub(crate) fn try_step(&mut self) -> Result<(), Error> {
        let saved = self.try_forward()?;
        self.try_backward(&saved)
    }

    /// A forward pass.
    pub(crate) fn forward(&mut self) -> SavedStatistics<Cuda> {
        self.try_forward().unwrap()
    }

    /// A backward pass.
    pub(crate) fn backward(&mut self, saved: &SavedStatistics<Cuda>) {
        self.try_backward(saved).unwrap();
    }

    fn try_forward(&mut self) -> Result<SavedStatistics<Cuda>, Error> {
        let x = View::new(<Cuda as Storage>::mem(&self.x), self.geometry);
        let y = ViewMut::new(<Cuda as Storage>::mem_mut(&mut self.y), self.geometry);
        self.layer.forward(&self.queue, x, y)
    }

    fn try_backward(&mut self, saved: &SavedStatistics<Cuda>) -> Result<(), Error> {
        let view = |buffer| View::new(<Cuda as Storage>::mem(buffer), self.geometry);
        let dx = ViewMut::new(<Cuda as Storage>::mem_mut(&mut self.dx), self.geometry);
        let parameters = ParamGradients {
            weight: Some(<Cuda as Storage>::mem_mut(&mut self.d_weight)),
            bias: Some(<Cuda as Storage>::mem_mut(&mut self.d_bias)),
        };
        let gradients = Gradients::out_of_place(view(&self.dy), dx);
        self.layer.backward(&self.queue, saved, view(&self.x), gradients, parameters)
    }

    /// Sets x to so many times the x that it was made with.
    pub(crate) fn fill_x(&mut self, scale: f32) {
        let x: Vec<f32> = values(self.geometry.len(), X).iter().map(|value| value * scale).collect();
        self.cuda.write(&self.queue, <Cuda as Storage>::mem_mut(&mut self.x), &x).unwrap();
    }

    /// What was written so far. Waits for the device.
    pub(crate) fn written(&mut self) -> Written {
        let bits = |buffer| {
            let values: Vec<f32> = download(&self.cuda, &self.queue, buffer);
            values.into_iter().map(f32::to_bits).collect()
        };
        let tensors = [bits(&self.y), bits(&self.dx), bits(&self.d_weight), bits(&self.d_bias)];
        (self.layer.state(&self.queue).unwrap(), tensors)
    }
}
