//! Tensors on the host, in one logical order, and in a backend's memory, in either layout.

use syncbn_core::{Element, Layout, ShapeError, Storage, View, ViewMut};

use crate::ensure;
use crate::outcome::Outcome;
use crate::rank::Rank;

/// A tensor of shape (N, C, *spatial) on the host, its values in the order (n, c, s), the last index fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T> {
    /// N.
    pub samples: usize,
    /// C.
    pub channels: usize,
    /// The sizes of the spatial axes; may be empty.
    pub spatial: Vec<usize>,
    /// The values, in the order (n, c, s).
    pub values: Vec<T>,
}

impl<T: Copy> Tensor<T> {
    /// The tensor whose values are `value(n, c, s)`.
    pub fn from_fn(
        samples: usize,
        channels: usize,
        spatial: &[usize],
        value: impl Fn(usize, usize, usize) -> T,
    ) -> Self {
        let positions: usize = spatial.iter().product();
        let mut values = Vec::with_capacity(samples * channels * positions);
        for n in 0..samples {
            for c in 0..channels {
                for s in 0..positions {
                    values.push(value(n, c, s));
                }
            }
        }
        Self { samples, channels, spatial: spatial.to_vec(), values }
    }

    /// The number of spatial positions.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.spatial.iter().product()
    }

    /// The value at (n, c, s).
    #[must_use]
    pub fn at(&self, n: usize, c: usize, s: usize) -> T {
        self.values[(n * self.channels + c) * self.positions() + s]
    }

    /// The values of one channel.
    #[must_use]
    pub fn channel(&self, c: usize) -> Vec<T> {
        let positions = self.positions();
        let all = (0..self.samples).flat_map(|n| (0..positions).map(move |s| (n, s)));
        all.map(|(n, s)| self.at(n, c, s)).collect()
    }

    /// The same tensor with other values, computed one by one.
    pub fn map<U: Copy>(&self, value: impl Fn(T) -> U) -> Tensor<U> {
        let values = self.values.iter().map(|&v| value(v)).collect();
        Tensor { samples: self.samples, channels: self.channels, spatial: self.spatial.clone(), values }
    }

    /// The ranks' tensors as one batch.
    #[must_use]
    pub fn concat(parts: &[Self]) -> Self {
        Self {
            samples: parts.iter().map(|part| part.samples).sum(),
            channels: parts[0].channels,
            spatial: parts[0].spatial.clone(),
            values: parts.iter().flat_map(|part| part.values.iter().copied()).collect(),
        }
    }

    /// The sizes as the layout's constructor in core takes them.
    #[must_use]
    pub fn shape(&self, layout: Layout) -> Vec<usize> {
        let (n, c) = ([self.samples], [self.channels]);
        match layout {
            Layout::ChannelsFirst => [&n[..], &c, &self.spatial].concat(),
            Layout::ChannelsLast => [&n[..], &self.spatial, &c].concat(),
        }
    }

    /// The values in the order of memory.
    #[must_use]
    pub fn in_memory(&self, layout: Layout) -> Vec<T> {
        if layout == Layout::ChannelsFirst {
            return self.values.clone();
        }
        let mut memory = Vec::with_capacity(self.values.len());
        for n in 0..self.samples {
            for s in 0..self.positions() {
                for c in 0..self.channels {
                    memory.push(self.at(n, c, s));
                }
            }
        }
        memory
    }

    /// The tensor of this one's shape whose memory holds these values.
    pub(crate) fn filled_from(&self, layout: Layout, memory: &[T]) -> Self {
        let (channels, positions) = (self.channels, self.positions());
        Self::from_fn(self.samples, channels, &self.spatial, |n, c, s| match layout {
            Layout::ChannelsFirst => memory[(n * channels + c) * positions + s],
            Layout::ChannelsLast => memory[(n * positions + s) * channels + c],
        })
    }
}

/// The initial value of memory that a kernel should overwrite, or not touch. No correct result is near it.
const FILLER: f64 = -77.0;
/// Elements after a tensor, which no kernel may write.
const GUARD: usize = 5;

/// A tensor in a backend's memory, followed by guard elements, also where it has no elements itself.
pub struct Placed<B: Storage, T: Element> {
    buffer: B::Buffer<T>,
    /// Of the right shape; its values do not matter.
    like: Tensor<T>,
    /// The order in memory.
    pub layout: Layout,
}

impl<B: Storage, T: Element> Placed<B, T> {
    /// The tensor, uploaded in this layout.
    pub fn new(rank: &Rank<B>, tensor: &Tensor<T>, layout: Layout) -> Outcome<Self> {
        let mut memory = tensor.in_memory(layout);
        memory.extend([T::from_f64(FILLER); GUARD]);
        let buffer = rank.upload(&memory)?;
        Ok(Self { buffer, like: tensor.clone(), layout })
    }

    /// Room for a tensor of the same shape, filled with what no result is.
    pub fn blank(rank: &Rank<B>, like: &Tensor<T>, layout: Layout) -> Outcome<Self> {
        Self::new(rank, &like.map(|_| T::from_f64(FILLER)), layout)
    }

    /// C.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.like.channels
    }

    /// Borrowed to be read.
    pub fn view(&self) -> Result<View<'_, B, T>, ShapeError> {
        let (mem, shape) = (B::mem(&self.buffer), self.like.shape(self.layout));
        match self.layout {
            Layout::ChannelsFirst => View::channels_first(mem, &shape),
            Layout::ChannelsLast => View::channels_last(mem, &shape),
        }
    }

    /// Borrowed to be written.
    pub fn view_mut(&mut self) -> Result<ViewMut<'_, B, T>, ShapeError> {
        let (mem, shape) = (B::mem_mut(&mut self.buffer), self.like.shape(self.layout));
        match self.layout {
            Layout::ChannelsFirst => ViewMut::channels_first(mem, &shape),
            Layout::ChannelsLast => ViewMut::channels_last(mem, &shape),
        }
    }

    /// The memory itself, guard and all.
    #[must_use]
    pub fn buffer(&self) -> &B::Buffer<T> {
        &self.buffer
    }

    /// The memory itself, to be written.
    pub fn buffer_mut(&mut self) -> &mut B::Buffer<T> {
        &mut self.buffer
    }

    /// Waits, copies the values out, and checks that the guard is whole.
    pub fn read(&self, rank: &Rank<B>) -> Outcome<Tensor<T>> {
        let memory = rank.download(&self.buffer)?;
        let len = self.like.values.len();
        ensure!(memory.len() >= len, "a buffer of {len} elements came back with {}", memory.len());
        let (values, guard) = memory.split_at(len);
        let whole = guard.iter().all(|&v| v == T::from_f64(FILLER));
        ensure!(whole, "memory behind the tensor was overwritten: {guard:?}");
        Ok(self.like.filled_from(self.layout, values))
    }
}
