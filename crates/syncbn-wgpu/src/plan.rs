//! Which thread reads which elements: the parameters of plan.wgsl.
//!
//! A lane is a sequence of loads that go to the same accumulators. For channels-first (rows) it is one channel; for channels-last
//! (columns) it is the neighbouring channels of one load. `members` threads of a workgroup share a lane, and `splits` workgroups may
//! share it, too. The plan follows from shape and device alone, so the order of every sum is fixed. There are no atomics.

use syncbn_core::Geometry;

use crate::error::WgpuError;
use crate::params::{self, Params};

/// Threads of a workgroup.
pub(crate) const THREADS: usize = params::THREADS as usize;
/// How many loads a thread issues before it uses the first.
const UNROLL: usize = 4;

/// How a kernel reads memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    /// Elements of one load.
    pub(crate) width: usize,
    /// Channels-first: a lane is one channel.
    pub(crate) rows: bool,
    /// Words of two halves that may belong to different channels.
    pub(crate) flat: bool,
}

/// Whether a kernel sums, or writes a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Sum,
    Write,
}

/// How a kernel walks a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) form: Form,
    pub(crate) splits: usize,
    pub(crate) params: Params,
}

impl Plan {
    /// The plan for tensors of elements of `size` bytes, on a device that `parallelism` workgroups fill.
    pub(crate) fn new(
        geometry: &Geometry,
        size: usize,
        parallelism: usize,
        work: Work,
    ) -> Result<Self, WgpuError> {
        let form = form(geometry, size, work);
        let mut params =
            Params { inner: int(geometry.inner())?, elements: int(geometry.len())?, ..Params::default() };
        params.channels = int(geometry.channels())?;
        if form.flat {
            let blocks = geometry
                .len()
                .div_ceil(2 * THREADS * UNROLL)
                .clamp(1, target_blocks(parallelism, true, work));
            // A thread computes the index one step beyond the last word.
            int(geometry.len() + 2 * THREADS * blocks)?;
            params.members = 1;
            params.splits = 1;
            params.blocks = int(blocks)?;
            return Ok(Self { form, splits: 1, params });
        }
        let (lanes, segment) = if form.rows {
            (geometry.channels(), geometry.inner() / form.width)
        } else {
            (geometry.channels() / form.width, 1)
        };
        let loads = geometry.outer() * segment;
        let members = members(form.rows, lanes, loads);
        let groups = lanes.div_ceil(THREADS / members);
        let splits = (target_blocks(parallelism, form.rows, work) / groups)
            .min(loads.div_ceil(members * UNROLL))
            .max(1);
        let stride = members * splits;
        // A thread computes indices up to UNROLL steps beyond the last load.
        int(loads + UNROLL * stride)?;
        params.lanes = int(lanes)?;
        params.segment = int(segment)?;
        params.vectors = int(loads)?;
        params.step_index = int(stride / segment * lanes * segment + stride % segment)?;
        params.step_within = int(stride % segment)?;
        params.wrap = int((lanes - 1) * segment)?;
        params.members = int(members)?;
        params.splits = int(splits)?;
        params.blocks = int(groups * splits)?;
        Ok(Self { form, splits, params })
    }
}

/// A plan for the kernels on a few numbers per channel: `splits` numbers for each channel, merged by the members of a slot.
pub(crate) fn per_channel(channels: usize, splits: usize) -> Result<Params, WgpuError> {
    let members = splits.next_power_of_two().min(THREADS);
    Ok(Params {
        channels: int(channels)?,
        members: int(members)?,
        splits: int(splits)?,
        blocks: int(channels.div_ceil(THREADS / members))?,
        ..Params::default()
    })
}

/// The most partial sums, over channels and splits, of any tensor of so many channels.
pub(crate) fn most_partials(parallelism: usize, channels: usize) -> usize {
    // A workgroup has at most 8 lanes of one channel (rows), or 32 of at most 4 (columns).
    let rows = target_blocks(parallelism, true, Work::Sum) * channels.min(8);
    let columns = target_blocks(parallelism, false, Work::Sum) * channels.min(32 * 4);
    channels.max(rows).max(columns)
}

/// How many workgroups a kernel is split into at most, to occupy the device. Kernels that sum need many registers, for columns most of all,
/// so fewer of their workgroups run at a time.
fn target_blocks(parallelism: usize, rows: bool, work: Work) -> usize {
    parallelism
        * match (work, rows) {
            (Work::Sum, false) => 1,
            (Work::Sum, true) => 2,
            (Work::Write, _) => 8,
        }
}

/// Rows have at least 32 members to a lane; columns at most 32 lanes to a workgroup.
fn members(rows: bool, lanes: usize, loads: usize) -> usize {
    if rows {
        return loads.div_ceil(UNROLL).next_power_of_two().clamp(32, THREADS);
    }
    THREADS / lanes.next_power_of_two().min(32)
}

/// The widest load that holds whole lanes only.
fn form(geometry: &Geometry, size: usize, work: Work) -> Form {
    let rows = geometry.inner() > 1;
    let period = if rows { geometry.inner() } else { geometry.channels() };
    let fits = |width: usize| period.is_multiple_of(width);
    let width = match size {
        4 if fits(4) => 4,
        4 => 1,
        // Wider columns would need twice as many accumulators in a thread.
        _ if rows && fits(8) => 8,
        _ if fits(4) => 4,
        _ if fits(2) => 2,
        _ => 1,
    };
    let flat = size == 2 && width == 1 && work == Work::Write;
    Form { width: if flat { 2 } else { width }, rows: rows || flat, flat }
}

/// An index as shaders have it. A tensor that fits a binding has fewer than 2^32 elements.
fn int(value: usize) -> Result<u32, WgpuError> {
    u32::try_from(value).map_err(|_| WgpuError::Limit {
        limit: "an index of 32 bits",
        needed: value as u64,
        got: u64::from(u32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every load of the tensor, as the threads of the device would visit them.
    fn visits(plan: &Plan) -> Vec<u32> {
        let p = &plan.params;
        let (members, threads) = (p.members, THREADS as u32);
        let slots = threads / members;
        let mut seen = vec![0; (p.lanes * p.vectors) as usize];
        for block in 0..p.blocks {
            let (group, split) = (block / p.splits, block % p.splits);
            for thread in 0..threads {
                let (member, slot) = if plan.form.rows {
                    (thread % members, thread / members)
                } else {
                    (thread / slots, thread % slots)
                };
                let lane = group * slots + slot;
                let mut at = split * members + member;
                if lane >= p.lanes || at >= p.vectors {
                    continue;
                }
                let mut within = at % p.segment;
                let mut index = (at / p.segment * p.lanes + lane) * p.segment + within;
                while at < p.vectors {
                    seen[index as usize] += 1;
                    at += members * p.splits;
                    index += p.step_index;
                    within += p.step_within;
                    if within >= p.segment {
                        within -= p.segment;
                        index += p.wrap;
                    }
                }
            }
        }
        seen
    }

    #[test]
    fn every_load_is_visited_once() {
        for shape in
            [&[2, 3, 7][..], &[1, 1, 5], &[64, 5, 7, 7], &[3, 67, 13, 13], &[2, 600, 3], &[9, 2, 4096]]
        {
            for first in [true, false] {
                let geometry =
                    if first { Geometry::channels_first(shape) } else { Geometry::channels_last(shape) };
                for (work, size) in [(Work::Sum, 4), (Work::Write, 4), (Work::Sum, 2)] {
                    let plan = Plan::new(&geometry.clone().unwrap(), size, 256, work).unwrap();
                    let seen = visits(&plan);
                    assert_eq!(seen.len() * plan.form.width, geometry.clone().unwrap().len());
                    assert!(seen.iter().all(|&n| n == 1), "{shape:?} {first} {work:?}");
                }
            }
        }
    }

    #[test]
    fn partial_sums_of_every_plan_fit_the_scratch() {
        for channels in [1, 3, 8, 19, 64, 100, 128, 256, 1000, 4096, 100_000] {
            for shape in
                [[64, channels, 196], [1, channels, 1], [50_000.min((1 << 29) / channels), channels, 1]]
            {
                let geometry = Geometry::channels_first(&shape).unwrap();
                for (size, parallelism) in [(2, 256), (4, 256), (4, 2)] {
                    let plan = Plan::new(&geometry, size, parallelism, Work::Sum).unwrap();
                    assert!(plan.splits * channels <= most_partials(parallelism, channels), "{shape:?}");
                }
            }
        }
    }

    #[test]
    fn a_word_of_two_channels_is_written_flat_and_read_by_the_element() {
        let geometry = |shape: &[usize]| Geometry::channels_first(shape).unwrap();
        let form_of = |shape: &[usize], size, work| form(&geometry(shape), size, work);
        assert_eq!(form_of(&[2, 3, 7, 7], 2, Work::Write), Form { width: 2, rows: true, flat: true });
        assert_eq!(form_of(&[2, 3, 7, 7], 2, Work::Sum), Form { width: 1, rows: true, flat: false });
        assert_eq!(form_of(&[9, 4], 2, Work::Write), Form { width: 4, rows: false, flat: false });
        assert_eq!(form_of(&[2, 3, 8], 2, Work::Write), Form { width: 8, rows: true, flat: false });
        assert_eq!(form_of(&[2, 3, 7, 7], 4, Work::Write), Form { width: 1, rows: true, flat: false });
    }

    #[test]
    fn a_tensor_whose_last_indices_would_wrap_around_is_refused() {
        let plan = |inner| {
            let geometry = Geometry::channels_first(&[1, 1, inner]).unwrap();
            [Work::Sum, Work::Write].map(|work| Plan::new(&geometry, 2, 256, work).is_ok())
        };
        assert_eq!(plan((1 << 32) - 1), [false, false]);
        assert_eq!(plan((1 << 31) + 1), [true, true]);
    }
}
