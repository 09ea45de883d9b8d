//! How a grid walks a tensor: the host's half of tile.cuh.
//!
//! Rows: a block has whole channels, each a number of runs in memory, and a thread sums vectors of one channel. Columns:
//! the tensor is a matrix whose columns belong to one channel each, a thread goes down the columns under one vector,
//! and has a sum for each. Channels-last is such a matrix; so are many short planes, `inner` columns to a channel; and so is
//! channels-last with an odd number of channels, if as many rows are read as one until they fill whole vectors.
//!
//! Deliberately not here: anything that runs on the device.

use syncbn_core::Geometry;

use crate::error::CudaError;
use crate::module::Kernel;

/// The widest load, in bytes.
const WIDEST: usize = 16;
/// The most channels of a block; tile.cuh is told.
const MOST_PACK: usize = 256;
/// The same of rows: a warp has one channel, and many channels are put into blocks of 256 threads only.
const MOST_ROWS: usize = SMALL / 32;
/// The most threads of a block that has several channels to itself.
const SMALL: usize = 256;

/// The most channels of a block.
pub(crate) const fn most_pack(columns: bool) -> usize {
    if columns { MOST_PACK } else { MOST_ROWS }
}
/// The bytes of the lanes of a block of columns: a line of the cache.
const LINE: usize = 128;
/// The most lanes of a block whose channels would not end together in fewer.
const MOST_SLOTS: usize = 128;
/// Fewer rows than this are not worth reading as matrices that end between them.
const LEAST_RUNS: usize = 32;
/// The most rows and channels of a tensor that [`Kernel::few`] is for: a few loads to each of half a block's threads, and no more
/// blocks than find room at once.
const FEW_ROWS: usize = 2 * SMALL;
const FEW_CHANNELS: usize = 2048;
/// Bytes of shared memory that each block takes beside its own.
const RESERVED: usize = 1024;

/// The struct of the same name in tile.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    channels: i64,
    lanes: i64,
    segment: i64,
    runs: i64,
    step_index: i64,
    wrap: i64,
    tail: i64,
    step_within: i32,
    whole: i32,
    rest: i32,
    inner: i32,
    slots: i32,
    members: i32,
    splits: i32,
    pack: i32,
    shares: i32,
}

/// How many threads and blocks a kernel is compiled for, and how many loads each thread has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuning {
    /// The most threads of a block.
    pub(crate) threads: usize,
    /// Blocks of so many threads that have room on a multiprocessor.
    pub(crate) blocks: usize,
    /// Loads of one tensor.
    pub(crate) unroll: usize,
}

impl Tuning {
    pub(crate) const fn new(threads: usize, blocks: usize, unroll: usize) -> Self {
        Self { threads, blocks, unroll }
    }
}

/// What a thread of a kernel that may start early reads before it has to wait.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ahead {
    /// Turns of its loads, besides one that stays in registers.
    pub(crate) turns: i32,
    /// Bytes of a block's shared memory that they take.
    pub(crate) bytes: u32,
}

/// A tile, and what else a launch needs.
pub(crate) struct Plan {
    pub(crate) tile: Tile,
    /// Blocks that walk the tensor; 0 for an empty one that is only written.
    pub(crate) blocks: u32,
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Elements of one load.
    pub(crate) vec: usize,
    pub(crate) columns: bool,
}

/// What vectors a tensor consists of, before threads are put to them.
#[derive(Clone, Copy, Debug)]
struct Matrix {
    vec: usize,
    columns: bool,
    lanes: usize,
    segment: usize,
    runs: usize,
    inner: usize,
    /// Lanes and channels that a block cannot do with fewer of; rows: of one warp's block.
    slots: usize,
    pack: usize,
    tail: usize,
}

impl Plan {
    /// The plan for tensors of elements of `size` bytes that begin at `pointers`.
    pub(crate) fn new(
        geometry: &Geometry,
        size: usize,
        pointers: &[u64],
        multiprocessors: usize,
        kernel: &Kernel,
    ) -> Result<Self, CudaError> {
        let matrix = Matrix::of(geometry, size, pointers, kernel.few);
        let team = matrix.team(kernel.tuning(matrix.columns, size), multiprocessors);
        let vectors = matrix.runs * matrix.segment;
        let step = team.members * team.splits;
        let empty = kernel.writes && geometry.is_empty();
        let blocks = if empty { 0 } else { team.groups.saturating_mul(team.splits) };

        let too_large = || CudaError::TooLarge { channels: geometry.channels() };
        // Leaves room in a grid for the blocks that own the state.
        let blocks = u32::try_from(blocks).ok().filter(|&b| b < u32::MAX / 4).ok_or_else(too_large)?;
        let small = |value: usize| i32::try_from(value).map_err(|_| too_large());
        let tile = Tile {
            channels: geometry.channels() as i64,
            lanes: matrix.lanes as i64,
            segment: matrix.segment as i64,
            runs: matrix.runs as i64,
            step_index: (step / matrix.segment * matrix.lanes * matrix.segment + step % matrix.segment)
                as i64,
            wrap: ((matrix.lanes - 1) * matrix.segment) as i64,
            tail: matrix.tail as i64,
            step_within: small(step % matrix.segment)?,
            whole: small(vectors / step)?,
            rest: small(vectors % step)?,
            inner: small(matrix.inner)?,
            slots: small(team.slots)?,
            members: small(team.members)?,
            splits: small(team.splits)?,
            pack: small(team.pack)?,
            shares: small(team.shares())?,
        };
        Ok(Self { tile, blocks, threads: team.threads as u32, vec: matrix.vec, columns: matrix.columns })
    }

    /// As much as there is: all but a thread's last turn, if a multiprocessor with `room` bytes of shared memory has room for
    /// that in all the blocks that it runs, of which each takes `taken` bytes anyway.
    pub(crate) fn ahead(&self, kernel: &Kernel, size: usize, room: usize, taken: usize) -> Ahead {
        let tuning = kernel.tuning(self.columns, size);
        let threads = self.threads as usize;
        let blocks = (tuning.blocks * tuning.threads / threads).max(1);
        let turn = kernel.reads * tuning.unroll * threads * self.vec * size;
        let vectors = self.tile.whole.unsigned_abs() as usize + usize::from(self.tile.rest > 0);
        let wanted = vectors.div_ceil(tuning.unroll).saturating_sub(1);
        let turns = wanted.min((room / blocks).saturating_sub(taken + RESERVED) / turn);
        Ahead { turns: turns as i32, bytes: (turns * turn) as u32 }
    }
}

impl Matrix {
    /// The matrix of the widest vectors that are aligned and belong to whole columns or runs.
    fn of(geometry: &Geometry, size: usize, pointers: &[u64], few: usize) -> Self {
        let (outer, channels, inner) = (geometry.outer(), geometry.channels(), geometry.inner());
        if inner == 1 && outer <= FEW_ROWS && channels <= FEW_CHANNELS && geometry.len() <= few {
            return Self { slots: 1, pack: 1, ..Self::plain_columns(outer, channels, 1, size) };
        }
        let aligned = |vec: &usize| pointers.iter().all(|p| p.is_multiple_of((vec * size) as u64));
        let widths = [8, 4, 2].into_iter().filter(|vec| vec * size <= WIDEST).filter(aligned);
        for vec in widths {
            let found = if inner == 1 {
                Self::channels_last(outer, channels, vec, size)
            } else if inner.is_multiple_of(vec) {
                Some(Self::rows(outer, channels, inner, vec))
            } else {
                Self::short_planes(outer, channels, inner, vec, size)
            };
            if let Some(matrix) = found {
                return matrix;
            }
        }
        if inner == 1 {
            Self::plain_columns(outer, channels, 1, size)
        } else {
            Self::rows(outer, channels, inner, 1)
        }
    }

    fn rows(outer: usize, channels: usize, inner: usize, vec: usize) -> Self {
        let segment = (inner / vec).max(1);
        let runs = if inner == 0 { 0 } else { outer };
        Self { vec, columns: false, lanes: channels, segment, runs, inner, slots: 1, pack: 1, tail: 0 }
    }

    fn plain_columns(rows: usize, channels: usize, vec: usize, size: usize) -> Self {
        let lanes = channels / vec;
        let slots = lanes.min(LINE / (vec * size));
        let pack = slots * vec;
        Self { vec, columns: true, lanes, segment: 1, runs: rows, inner: 1, slots, pack, tail: 0 }
    }

    fn channels_last(rows: usize, channels: usize, vec: usize, size: usize) -> Option<Self> {
        let common = gcd(channels, vec);
        if common == vec {
            return Some(Self::plain_columns(rows, channels, vec, size));
        }
        // So many rows fill whole vectors, and are read as one.
        let together = vec / common;
        let lanes = channels / common;
        let runs = rows / together;
        let tail = rows % together * channels;
        let matrix = Self {
            lanes,
            runs,
            tail,
            slots: lanes,
            pack: channels,
            ..Self::plain_columns(0, vec, vec, size)
        };
        (lanes <= MOST_SLOTS && channels <= MOST_PACK && runs >= LEAST_RUNS).then_some(matrix)
    }

    fn short_planes(samples: usize, channels: usize, inner: usize, vec: usize, size: usize) -> Option<Self> {
        // So many channels fill whole vectors.
        let together = vec / gcd(inner, vec);
        let slots = together * inner / vec;
        if !(channels * inner).is_multiple_of(vec) || slots > MOST_SLOTS {
            return None;
        }
        let times = (4 * LINE / (slots * vec * size)).max(1);
        let (slots, pack) = (slots * times, together * times);
        let lanes = channels * inner / vec;
        Some(Self { lanes, runs: samples, inner, slots, pack, ..Self::plain_columns(0, vec, vec, size) })
    }

    /// Puts threads to the lanes of a device of so many multiprocessors.
    fn team(&self, tuning: Tuning, multiprocessors: usize) -> Team {
        let vectors = self.runs * self.segment;
        // No more threads than get a few loads each: as many as are in flight at once cost no more time than one.
        let wanted =
            vectors.div_ceil(if self.columns { tuning.unroll.max(4) } else { tuning.unroll.min(4) }).max(1);
        let most = tuning.threads;
        let small = most.min(SMALL);
        if self.pack == 1 && wanted <= small / 2 {
            // Whole channels to a block: none has to wait for another.
            let members = wanted.next_power_of_two().max(if self.columns { 8 } else { 32 });
            let slots = small / members;
            let groups = self.lanes.div_ceil(slots);
            return Team {
                threads: members * slots,
                slots,
                members,
                pack: slots,
                groups,
                splits: 1,
                score: 0.0,
            };
        }
        let groups = self.lanes.div_ceil(self.slots);
        let room = multiprocessors * tuning.blocks * most;
        let (partials, tickets) = most_partials(multiprocessors, groups * self.pack);
        let team = |threads: usize| {
            let members = (threads / self.slots).min(wanted.next_power_of_two());
            let useful = vectors
                .div_ceil(members * tuning.unroll.max(4))
                .clamp(1, partials / (groups * self.pack).min(partials));
            let (splits, score) =
                best_splits(groups, room / threads, if groups > tickets { 1 } else { useful });
            Team { threads, slots: self.slots, members, pack: self.pack, groups, splits, score }
        };
        let least = self.slots.max(self.pack).max(96);
        let enough = wanted.saturating_mul(self.slots).max(least);
        // The next smaller size may be enough; at most that is tried too.
        let sizes = [most, most / 2, most / 4, most / 8].into_iter().filter(|&size| size >= least);
        let sizes = sizes.filter(|&size| size < 2 * enough);
        let teams: Vec<Team> = sizes.map(team).collect();
        let best = teams.iter().map(|team| team.score).fold(f64::MIN, f64::max);
        // The largest blocks have the fewest partial sums.
        teams.into_iter().find(|team| team.score >= nearly(best)).unwrap_or_else(|| team(most))
    }
}

/// What one kernel's threads are put to.
#[derive(Debug)]
struct Team {
    threads: usize,
    slots: usize,
    members: usize,
    pack: usize,
    groups: usize,
    splits: usize,
    /// How well it fills the device.
    score: f64,
}

impl Team {
    /// The threads that add up one channel of columns: of one warp.
    fn shares(&self) -> usize {
        (1..=5)
            .map(|power| 1 << power)
            .take_while(|shares| shares * self.pack <= self.threads)
            .last()
            .unwrap_or(1)
    }
}

/// How many blocks a group is split into, and how well that fills a device with room for `room` blocks at a time: the last
/// round of blocks may leave it empty, and each round has its own beginning and end.
#[expect(clippy::cast_sign_loss, reason = "a number of splits is at least 1")]
fn best_splits(groups: usize, room: usize, most: usize) -> (usize, f64) {
    let most = most.min((4 * room / groups).max(1));
    let rounds = |splits: usize| (groups * splits).div_ceil(room);
    let full = |rounds: usize| (rounds * room) as f64;
    let cost = |rounds: usize| 0.05 * (rounds - 1) as f64;
    let score = |splits| (groups * splits) as f64 / full(rounds(splits)) - cost(rounds(splits));
    // In so many rounds, more blocks are better.
    let fullest = |rounds: usize| (rounds * room / groups).clamp(1, most);
    let all = rounds(1)..=rounds(most);
    let best = all.clone().map(|rounds| score(fullest(rounds))).fold(f64::MIN, f64::max);
    // The fewest splits that are nearly as good have the fewest partial sums.
    let enough = nearly(best);
    let fewest = |rounds| ((enough + cost(rounds)) * full(rounds) / groups as f64).ceil().max(1.0) as usize;
    let splits =
        all.map(|rounds| fewest(rounds).min(fullest(rounds))).find(|&splits| score(splits) >= enough);
    let splits = splits.unwrap_or(most);
    (splits, score(splits))
}

/// What is as good as the best score, or nearly; rounding aside.
fn nearly(best: f64) -> f64 {
    best - 0.04 * best.abs() - 1e-9
}

/// The most partial sums, of `channels` channels over all splits, and tickets that any pass needs.
pub(crate) fn most_partials(multiprocessors: usize, channels: usize) -> (usize, usize) {
    let tickets = 8 * multiprocessors;
    ((MOST_PACK * multiprocessors).min(4 * tickets * channels), tickets)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
#[expect(clippy::cast_sign_loss, reason = "every field of a plan was a usize")]
mod tests;
