//! How a tensor is cut into pieces of work, and how threads share them. The cuts depend on the geometry alone, never on the
//! number of threads: that, and a fixed order of merging, is why any number of threads gives the same bits.
//!
//! Deliberately not here: what is done with a piece.

use std::iter;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use syncbn_core::Geometry;

use crate::number::STRIP;
use crate::sums::COLUMNS;

/// The elements of one piece of work: enough to be worth a thread's attention, and few enough that a tensor worth
/// several threads has several.
pub(crate) const PIECE: usize = 1 << 16;

/// Rows shorter than this are joined to longer ones, so that vectors are full.
const ROW: usize = 256;

/// Whether vectors run along one channel (a plane) or across channels (a row).
pub(crate) fn by_planes(geometry: &Geometry) -> bool {
    geometry.inner() >= STRIP
}

/// A tensor, not empty, cut for sums per channel: into splits, each of which has one partial result per column.
pub(crate) enum Cut {
    /// Vectors run along planes; a column is a channel.
    Runs(Runs),
    /// Vectors run across channels; a column is an element of a row.
    Bands(Bands),
}

impl Cut {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        if by_planes(geometry) { Self::Runs(Runs::new(geometry)) } else { Self::Bands(Bands::new(geometry)) }
    }

    pub(crate) fn columns(&self) -> usize {
        match self {
            Self::Runs(runs) => runs.channels,
            Self::Bands(bands) => bands.columns,
        }
    }

    pub(crate) fn splits(&self) -> usize {
        match self {
            Self::Runs(runs) => runs.outer * runs.parts(),
            Self::Bands(bands) => bands.rows.div_ceil(bands.height),
        }
    }

    /// The elements of a column that are in a split.
    pub(crate) fn count(&self, split: usize) -> f64 {
        let elements = match self {
            Self::Runs(runs) => runs.run(split, 0),
            Self::Bands(bands) => bands.band(split),
        };
        elements.len() as f64
    }

    /// The channels of the columns, and of the elements of the rest.
    pub(crate) fn channels(&self) -> impl Iterator<Item = usize> {
        let (channels, width) = match self {
            Self::Runs(runs) => (runs.channels, 1),
            Self::Bands(bands) => (bands.channels, bands.inner),
        };
        (0..channels).cycle().flat_map(move |channel| iter::repeat_n(channel, width))
    }

    /// The elements at the tensor's end that no split has: too few for a row.
    pub(crate) fn rest(&self, geometry: &Geometry) -> Range<usize> {
        match self {
            Self::Runs(_) => 0..0,
            Self::Bands(bands) => bands.rows * bands.columns..geometry.len(),
        }
    }
}

/// A tensor cut into runs of neighbours of one channel: planes, or parts of large ones.
pub(crate) struct Runs {
    outer: usize,
    pub(crate) channels: usize,
    inner: usize,
}

impl Runs {
    fn new(geometry: &Geometry) -> Self {
        Self { outer: geometry.outer(), channels: geometry.channels(), inner: geometry.inner() }
    }

    fn parts(&self) -> usize {
        self.inner.div_ceil(PIECE)
    }

    /// The elements of the run of a split and a channel.
    pub(crate) fn run(&self, split: usize, channel: usize) -> Range<usize> {
        let plane = (split / self.parts() * self.channels + channel) * self.inner;
        let start = split % self.parts() * PIECE;
        plane + start..plane + (start + PIECE).min(self.inner)
    }

    /// The runs that make a piece of work.
    pub(crate) fn per_piece(&self) -> usize {
        (PIECE / self.inner).max(1)
    }
}

/// A tensor cut into bands of rows. A row is as many of the tensor's as make it long enough.
pub(crate) struct Bands {
    /// The length of a row.
    pub(crate) columns: usize,
    /// The columns of a piece of work.
    pub(crate) width: usize,
    /// The rows of a band.
    height: usize,
    /// The whole rows.
    rows: usize,
    channels: usize,
    inner: usize,
}

impl Bands {
    fn new(geometry: &Geometry) -> Self {
        let (channels, inner) = (geometry.channels(), geometry.inner());
        let row = channels * inner;
        let joined = (ROW / row).clamp(1, geometry.outer());
        let columns = row * joined;
        let width = columns.div_ceil(columns.div_ceil(COLUMNS));
        Self { columns, width, height: PIECE / width, rows: geometry.outer() / joined, channels, inner }
    }

    /// The channel of a column.
    pub(crate) fn channel(&self, column: usize) -> usize {
        column / self.inner % self.channels
    }

    /// The rows of a split.
    pub(crate) fn band(&self, split: usize) -> Range<usize> {
        split * self.height..((split + 1) * self.height).min(self.rows)
    }
}

/// Runs `work` for each of so many pieces, on as many threads of the caller's rayon pool. The caller is one of them: until
/// another has woken up, it works alone.
pub(crate) fn share<I>(count: usize, pieces: I, work: impl Fn(I::Item) + Sync)
where
    I: Iterator + Send,
{
    let threads = rayon::current_num_threads().min(count);
    if threads < 2 {
        return pieces.for_each(work);
    }
    let pieces = Mutex::new(pieces);
    let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_off = || {
        while let Some(piece) = next() {
            work(piece);
        }
    };
    rayon::in_place_scope(|scope| {
        (1..threads).for_each(|_| scope.spawn(|_| work_off()));
        work_off();
    });
}
