//! Drawn cases: shapes with odd sizes, uneven and empty splits over ranks, layouts, and difficult values.
//!
//! A case contains a seed instead of values, so that it prints in a few lines, and shrinks by its shape.

use std::fmt;

use proptest::prelude::*;
use proptest::sample::select;
use syncbn_core::{Config, Dtype, Element, Layout, Param, State};

use crate::tensor::Tensor;

/// The most elements of a drawn batch, all ranks together.
const MOST_ELEMENTS: usize = 6000;

/// One drawn situation: a layer, a batch, and its split over ranks.
#[derive(Clone, Debug)]
pub struct Case {
    /// C.
    pub channels: usize,
    /// The spatial axes' sizes.
    pub spatial: Vec<usize>,
    /// The samples of each rank.
    pub samples: Vec<usize>,
    /// The order in memory.
    pub layout: Layout,
    /// How x is distributed.
    pub values: Values,
    /// The layer's eps.
    pub eps: f64,
    /// The layer's momentum.
    pub momentum: Option<f64>,
    /// Whether the layer has weight and bias.
    pub affine: bool,
    /// Whether the layer tracks running statistics.
    pub track: bool,
    /// The seed of all values.
    pub seed: u64,
}

/// How the values of x are distributed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Around `mean`, with a standard deviation of `std`.
    Normal {
        /// The mean.
        mean: f64,
        /// The standard deviation; 0 for a constant.
        std: f64,
    },
    /// The channels take turns: standard, a mean of 1e4, a constant, a variance of 1e-12, half's limits.
    Mixed,
}

impl Values {
    const MIXED: [(f64, f64); 6] =
        [(0.0, 1.0), (1e4, 1.0), (3.3, 0.0), (0.0, 1e-6), (0.0, 1.6e4), (-50.0, 7.0)];

    fn of_channel(self, c: usize) -> (f64, f64) {
        match self {
            Self::Normal { mean, std } => (mean, std),
            Self::Mixed => Self::MIXED[c % Self::MIXED.len()],
        }
    }
}

/// Any case, with up to `most_ranks` ranks.
pub fn case(most_ranks: usize) -> impl Strategy<Value = Case> {
    let sizes = (channels(), spatial(), layout()).prop_filter("too many elements", |(c, spatial, _)| {
        c * spatial.iter().product::<usize>() <= MOST_ELEMENTS / 4
    });
    let splits = (1..=most_ranks).prop_flat_map(|ranks| prop::collection::vec(0..=4_usize, ranks));
    let layer = (
        select(vec![1e-5, 1e-3, 0.1]),
        select(vec![Some(0.1), None, Some(1.0), Some(0.0), Some(0.99)]),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.8),
    );
    let drawn = (sizes, splits, values(), layer, any::<u64>());
    drawn.prop_map(|((channels, spatial, layout), samples, values, layer, seed)| {
        let (eps, momentum, affine, track) = layer;
        Case { channels, spatial, samples, layout, values, eps, momentum, affine, track, seed }.made_legal()
    })
}

/// Either layout.
pub fn layout() -> impl Strategy<Value = Layout> {
    select(vec![Layout::ChannelsFirst, Layout::ChannelsLast])
}

fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![2 => 1..=9_usize, 1 => select(vec![1, 3, 67, 1000])]
}

fn spatial() -> impl Strategy<Value = Vec<usize>> {
    let awkward: [&[usize]; 8] = [&[], &[1], &[7, 7], &[13, 5], &[2, 3, 5], &[1, 1], &[300], &[1, 4, 1]];
    let awkward = awkward.map(<[usize]>::to_vec).to_vec();
    prop_oneof![2 => select(awkward), 1 => prop::collection::vec(1..=6_usize, 0..=3)]
}

fn values() -> impl Strategy<Value = Values> {
    let normal = |mean, std| Values::Normal { mean, std };
    prop_oneof![
        2 => Just(normal(0.0, 1.0)),
        1 => Just(normal(1e4, 1.0)),
        1 => Just(normal(-3.0, 100.0)),
        1 => Just(normal(0.0, 1e-6)),
        1 => Just(normal(7.1, 0.0)),
        3 => Just(Values::Mixed),
    ]
}

/// What a law that fails prints of its case: the shape of the whole batch, and its split over ranks.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { channels, spatial, samples, layout, values, eps, momentum, affine, track, seed: _ } = self;
        let shape = [&[samples.iter().sum(), *channels][..], spatial].concat();
        write!(f, "{layout} {shape:?} with samples split {samples:?}, {values:?}, eps {eps:e}, ")?;
        write!(f, "momentum {momentum:?}, affine {affine}, tracking {track}")
    }
}

impl Case {
    /// A plain case to start a fixed law from: standard values, channels-first, the defaults of a layer.
    #[must_use]
    pub fn plain(channels: usize, spatial: &[usize], samples: &[usize]) -> Self {
        Self {
            channels,
            spatial: spatial.to_vec(),
            samples: samples.to_vec(),
            layout: Layout::ChannelsFirst,
            values: Values::Normal { mean: 0.5, std: 2.0 },
            eps: 1e-5,
            momentum: Some(0.1),
            affine: true,
            track: true,
            seed: 1,
        }
    }

    /// Gives a rank alone at least two elements per channel. That it gets an error otherwise is another law.
    fn made_legal(mut self) -> Self {
        let per_channel = self.samples.iter().sum::<usize>() * self.spatial.iter().product::<usize>();
        if self.samples.len() == 1 && per_channel == 1 {
            self.samples = vec![2];
        }
        self
    }

    /// The same batch on at most as many ranks as the machine can run: the samples of the others go to the last.
    #[must_use]
    pub fn within(mut self, most_ranks: usize) -> Self {
        self.samples = within(&self.samples, most_ranks);
        self
    }

    /// The number of ranks.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.samples.len()
    }

    /// The layer's settings.
    #[must_use]
    pub fn config(&self) -> Config {
        Config::new(self.channels)
            .with_eps(self.eps)
            .with_momentum(self.momentum)
            .with_affine(self.affine)
            .with_track_running_stats(self.track)
    }

    /// Parameters and running statistics that differ from all defaults.
    #[must_use]
    pub fn state<P: Param>(&self) -> State<P> {
        let vector = |stream: u64, f: fn(f64) -> f64| {
            let draw = |c| P::from_f64(f(normal(hash([self.seed, stream, c as u64, 0, 0]))));
            (0..self.channels).map(draw).collect::<Vec<P>>()
        };
        State {
            weight: self.affine.then(|| vector(1, |z| 1.0 + z / 2.0)),
            bias: self.affine.then(|| vector(2, |z| z)),
            running_mean: self.track.then(|| vector(3, |z| z)),
            running_var: self.track.then(|| vector(4, |z| 0.5 + z.abs())),
            num_batches_tracked: self.track.then_some(3),
        }
    }

    /// A rank's x. The whole batch is the same however it is split.
    #[must_use]
    pub fn x<T: Element>(&self, rank: usize) -> Tensor<T> {
        self.tensor(rank, 10, |c, z| {
            let (mean, std) = self.values.of_channel(c);
            // f16 below 6e-5 is subnormal, which is a law of its own.
            let resolved = T::DTYPE == Dtype::F16 && std > 0.0;
            mean + if resolved { std.max(1e-3) } else { std } * z
        })
    }

    /// A rank's dy; in every third channel its mean is far from 0.
    #[must_use]
    pub fn dy<T: Element>(&self, rank: usize) -> Tensor<T> {
        self.tensor(rank, 11, |c, z| if c % 3 == 2 { 3.0 + z } else { z })
    }

    /// All ranks' tensors, in order.
    #[must_use]
    pub fn all<T: Element>(&self, of_rank: impl Fn(&Self, usize) -> Tensor<T>) -> Vec<Tensor<T>> {
        (0..self.world_size()).map(|rank| of_rank(self, rank)).collect()
    }

    fn tensor<T: Element>(&self, rank: usize, stream: u64, value: impl Fn(usize, f64) -> f64) -> Tensor<T> {
        let before: usize = self.samples[..rank].iter().sum();
        Tensor::from_fn(self.samples[rank], self.channels, &self.spatial, |n, c, s| {
            let at = [self.seed, stream, (before + n) as u64, c as u64, s as u64];
            T::from_f64(value(c, normal(hash(at))))
        })
    }
}

/// A split over at most as many ranks as the machine can run: the samples of the others go to the last.
#[must_use]
pub fn within(samples: &[usize], most_ranks: usize) -> Vec<usize> {
    let (kept, joined) = samples.split_at(samples.len().min(most_ranks.max(1)));
    let mut kept = kept.to_vec();
    if let Some(last) = kept.last_mut() {
        *last += joined.iter().sum::<usize>();
    }
    kept
}

/// Sebastiano Vigna's `SplitMix64`, over a few words.
fn hash(words: [u64; 5]) -> u64 {
    words.into_iter().fold(0, |state: u64, word| {
        let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// A standard normal number, by Box and Muller, cut off at 4 so that values which must fit a half do.
fn normal(hash: u64) -> f64 {
    let unit = |bits: u64| (f64::from(bits as u32) + 0.5) / 4_294_967_296.0;
    let (u, v) = (unit(hash >> 32), unit(hash));
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()).clamp(-4.0, 4.0)
}
