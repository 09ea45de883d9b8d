//! Training steps of [`FunctionalBatchNorm`], over borrowed memory that is a whole buffer or a part of
//! one.

use syncbn_core::functional::{Backward, Forward, Recompute, Statistics, UpdateRunning};
use syncbn_core::{
    Backend, Element, FunctionalBatchNorm, Geometry, Gradients, Kernels, Layout, NonFinite, RunningMut,
    SavedRef, SavedToken, Scalar, ShapeError, State, Storage, View, ViewMut, saved_len,
};

use crate::bits::{same_bits, without_payload};
use crate::harness::Harness;
use crate::outcome::{Outcome, Verdict};
use crate::rank::{Rank, Step, Written};
use crate::strategies::Case;
use crate::tensor::Tensor;

/// Elements after a part, which no kernel may write.
const BEHIND: usize = 5;

/// Memory of a few values: a whole buffer, or so many elements behind the start of one, with others behind it.
pub struct Lent<H: Harness, T: Scalar> {
    buffer: <H::Backend as Storage>::Buffer<T>,
    before: usize,
    len: usize,
}

/// The value around a part, which is no result.
fn filler<T: Scalar>() -> T {
    T::from_le_bytes(&vec![0xc2; size_of::<T>()]).unwrap()
}

impl<H: Harness, T: Scalar> Lent<H, T> {
    /// These values, `before` elements behind the start of a larger buffer, or in one of their own if that is 0.
    pub fn new(rank: &Rank<H::Backend>, values: &[T], before: usize) -> Outcome<Self> {
        let behind = if before == 0 { 0 } else { BEHIND };
        let memory = [&vec![filler(); before], values, &vec![filler(); behind]].concat();
        Ok(Self { buffer: rank.upload(&memory)?, before, len: values.len() })
    }

    /// Room for so many values.
    pub fn blank(rank: &Rank<H::Backend>, len: usize, before: usize) -> Outcome<Self> {
        Self::new(rank, &vec![filler(); len], before)
    }

    /// Borrowed to be read.
    pub fn mem(&self) -> Outcome<<H::Backend as Backend>::Mem<'_, T>> {
        if self.before == 0 {
            return Ok(<H::Backend as Storage>::mem(&self.buffer));
        }
        H::part(&self.buffer, self.before..self.before + self.len).ok_or_else(no_parts)
    }

    /// Borrowed to be written.
    pub fn mem_mut(&mut self) -> Outcome<<H::Backend as Backend>::MemMut<'_, T>> {
        if self.before == 0 {
            return Ok(<H::Backend as Storage>::mem_mut(&mut self.buffer));
        }
        H::part_mut(&mut self.buffer, self.before..self.before + self.len).ok_or_else(no_parts)
    }

    /// Waits, copies the values out, and checks that what lies around them is whole.
    pub fn read(&self, rank: &Rank<H::Backend>) -> Outcome<Vec<T>> {
        let memory = rank.download(&self.buffer)?;
        let (before, rest) = memory.split_at(self.before);
        let (values, behind) = rest.split_at(self.len);
        same_bits("memory before a part", before, &vec![filler(); before.len()])?;
        same_bits("memory behind a part", behind, &vec![filler(); behind.len()])?;
        Ok(values.to_vec())
    }
}

fn no_parts() -> Verdict {
    Verdict::Skipped("the harness shows no part of a buffer".into())
}

/// How a step of the layer over borrowed memory is taken.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is a yes or no of its own
pub struct How {
    /// How far behind the start of its buffer everything lies.
    pub before: usize,
    /// Whether there is a weight, and whether its gradient is wanted.
    pub weight: bool,
    /// Whether there is a bias, and whether its gradient is wanted.
    pub bias: bool,
    /// Whether running statistics are moved apart from the pass.
    pub update_apart: bool,
    /// Whether what the forward pass saved leaves the device, is dropped, and is made again.
    pub saved_apart: bool,
    /// What happens to running statistics if those of the batch are not finite.
    pub non_finite: NonFinite,
    /// How many batches there were before.
    pub tracked: i64,
    /// What the first number of each rank's x is instead.
    pub bad: Option<f64>,
}

impl How {
    /// As the layer that owns its parameters does it.
    pub const USUAL: Self = Self {
        before: 0,
        weight: true,
        bias: true,
        update_apart: false,
        saved_apart: false,
        non_finite: NonFinite::Propagate,
        tracked: 3,
        bad: None,
    };

    /// A rank's x.
    fn x<T: Element>(&self, case: &Case, rank: usize) -> Tensor<T> {
        let mut x = case.x::<T>(rank);
        if let (Some(bad), Some(first)) = (self.bad, x.values.first_mut()) {
            *first = T::from_f64(bad);
        }
        x
    }

    /// What a layer has of a state.
    #[must_use]
    pub fn state<T: Element>(&self, case: &Case) -> State<T::Param> {
        let mut state = case.state();
        state.weight = state.weight.filter(|_| self.weight);
        state.bias = state.bias.filter(|_| self.bias);
        state
    }
}

/// A case's running statistics, lent.
struct Running<H: Harness, T: Element> {
    mean: Lent<H, T::Param>,
    var: Lent<H, T::Param>,
    tracked: Lent<H, i64>,
    momentum: Option<f64>,
    non_finite: NonFinite,
}

impl<H: Harness, T: Element> Running<H, T> {
    fn new(rank: &Rank<H::Backend>, case: &Case, how: How) -> Outcome<Option<Self>> {
        let before = how.before;
        let state = case.state::<T::Param>();
        let (Some(mean), Some(var)) = (&state.running_mean, &state.running_var) else { return Ok(None) };
        Ok(Some(Self {
            mean: Lent::new(rank, mean, before)?,
            var: Lent::new(rank, var, before)?,
            tracked: Lent::new(rank, &[how.tracked], before)?,
            momentum: case.momentum,
            non_finite: how.non_finite,
        }))
    }

    fn lend(&mut self) -> Outcome<RunningMut<'_, H::Backend, T::Param>> {
        Ok(RunningMut {
            mean: self.mean.mem_mut()?,
            var: self.var.mem_mut()?,
            num_batches_tracked: self.tracked.mem_mut()?,
            momentum: self.momentum,
            non_finite: self.non_finite,
        })
    }
}

fn geometry<T: Copy>(tensor: &Tensor<T>, layout: Layout) -> Result<Geometry, ShapeError> {
    match layout {
        Layout::ChannelsFirst => Geometry::channels_first(&tensor.shape(layout)),
        Layout::ChannelsLast => Geometry::channels_last(&tensor.shape(layout)),
    }
}

/// One training step of a case on this rank, through the layer over borrowed memory. y is computed twice: it is recomputed, too.
pub fn step<H: Harness, T: Element>(rank: &Rank<H::Backend>, case: &Case, how: How) -> Outcome<Step<T>>
where
    H::Backend: Kernels<T> + Kernels<T::Param>,
{
    let (queue, before, layout, channels) = (&rank.queue, how.before, case.layout, case.channels);
    let (backend, group) = (rank.backend.clone(), rank.communicator.clone());
    let config = case.config().with_non_finite(how.non_finite);
    let layer = FunctionalBatchNorm::<H::Backend, T::Param>::new("bn", config, backend, queue, group)?;
    let (x, dy) = (how.x::<T>(case, rank.index), case.dy::<T>(rank.index));
    let (geometry, len) = (geometry(&x, layout)?, x.values.len());

    let state = how.state::<T>(case);
    let lend = |values: &Option<Vec<T::Param>>| -> Outcome<_> {
        values.as_ref().map(|values| Lent::<H, _>::new(rank, values, before)).transpose()
    };
    let (weight, bias) = (lend(&state.weight)?, lend(&state.bias)?);
    let mut running = Running::<H, T>::new(rank, case, how)?;
    let x_lent = Lent::<H, T>::new(rank, &x.in_memory(layout), before)?;
    let mut y = Lent::<H, T>::blank(rank, len, before)?;
    let mut saved = Lent::<H, f64>::blank(rank, saved_len(channels), before)?;

    let within = running.as_mut().filter(|_| !how.update_apart);
    let statistics = Statistics::Group { running: within.map(Running::lend).transpose()? };
    let (view, out) = (View::new(x_lent.mem()?, geometry)?, ViewMut::new(y.mem_mut()?, geometry)?);
    let args = Forward::new(view, out, statistics, saved.mem_mut()?)
        .affine(weight.as_ref().map(Lent::mem).transpose()?, bias.as_ref().map(Lent::mem).transpose()?);
    let mut token = layer.forward(queue, args)?;

    if let Some(running) = running.as_mut().filter(|_| how.update_apart) {
        let mem = saved.mem()?;
        layer.update_running(queue, UpdateRunning::new(SavedRef { token, mem }, running.lend()?))?;
    }
    if how.saved_apart {
        let (words, values) = (token.to_words(), saved.read(rank)?);
        drop(saved);
        saved = Lent::new(rank, &values, before)?;
        token = SavedToken::from_words(words).ok_or_else(|| crate::broken!("a token is not its words"))?;
    }

    let mut again = Lent::<H, T>::blank(rank, len, before)?;
    let (view, out) = (View::new(x_lent.mem()?, geometry)?, ViewMut::new(again.mem_mut()?, geometry)?);
    let args = Recompute::new(SavedRef { token, mem: saved.mem()? }, view, out)
        .affine(weight.as_ref().map(Lent::mem).transpose()?, bias.as_ref().map(Lent::mem).transpose()?);
    layer.recompute(queue, args)?;
    let y = y.read(rank)?;
    same_bits("the recomputed y", &without_payload(&again.read(rank)?), &without_payload(&y))?;

    let dy = Lent::<H, T>::new(rank, &dy.in_memory(layout), before)?;
    let mut dx = Lent::<H, T>::blank(rank, len, before)?;
    let room = |wanted: bool| wanted.then(|| Lent::<H, T::Param>::blank(rank, channels, before)).transpose();
    let (mut d_weight, mut d_bias) = (room(how.weight)?, room(how.bias)?);
    let (dy, out) = (View::new(dy.mem()?, geometry)?, ViewMut::new(dx.mem_mut()?, geometry)?);
    let view = View::new(x_lent.mem()?, geometry)?;
    let args =
        Backward::new(SavedRef { token, mem: saved.mem()? }, view, Gradients::OutOfPlace { dy, dx: out })
            .weight(weight.as_ref().map(Lent::mem).transpose()?)
            .parameters(
                d_weight.as_mut().map(Lent::mem_mut).transpose()?,
                d_bias.as_mut().map(Lent::mem_mut).transpose()?,
            );
    layer.backward(queue, args)?;

    same_bits("x, which is only read,", &x_lent.read(rank)?, &x.in_memory(layout))?;
    let read = |lent: &Option<Lent<H, T::Param>>| lent.as_ref().map(|lent| lent.read(rank)).transpose();
    let mut state = State { weight: read(&weight)?, bias: read(&bias)?, ..State::default() };
    if let Some(running) = &running {
        state.running_mean = Some(running.mean.read(rank)?);
        state.running_var = Some(running.var.read(rank)?);
        state.num_batches_tracked = running.tracked.read(rank)?.first().copied();
    }
    let gradients = Written {
        dx: x.filled_from(layout, &dx.read(rank)?),
        d_weight: read(&d_weight)?.unwrap_or_default(),
        d_bias: read(&d_bias)?.unwrap_or_default(),
    };
    Ok(Step { y: x.filled_from(layout, &y), gradients, state })
}
