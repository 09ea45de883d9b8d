//! The argument structs of the kernels: the same bytes in Rust and in CUDA, with device memory that is good for what the kernel does
//! with it.
//!
//! Deliberately not here: filling them in, which each kernel's file does.

/// A kernel's only parameter.
///
/// # Safety
/// The type is `repr(C)` and equals the struct that kernel [`Params::KERNEL`] takes.
pub(crate) unsafe trait Params {
    const KERNEL: &'static str;
}

/// How a grid walks a tensor; `Tile` of tile.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    pub(crate) channels: i64,
    pub(crate) lanes: i64,
    pub(crate) segment: i64,
    pub(crate) runs: i64,
    pub(crate) step_index: i64,
    pub(crate) wrap: i64,
    pub(crate) tail: i64,
    pub(crate) step_within: i32,
    pub(crate) whole: i32,
    pub(crate) rest: i32,
    pub(crate) inner: i32,
    pub(crate) slots: i32,
    pub(crate) members: i32,
    pub(crate) splits: i32,
    pub(crate) pack: i32,
    pub(crate) shares: i32,
}

/// `MomentsArgs` of moments.cu.
#[repr(C)]
pub(crate) struct MomentsParams {
    pub(crate) tile: Tile,
    pub(crate) x: u64,
    pub(crate) message: u64,
    pub(crate) own: u64,
    pub(crate) partials: u64,
    pub(crate) tickets: u64,
    pub(crate) count: f64,
    pub(crate) per_count: f64,
    pub(crate) with_parts: i32,
}

// SAFETY: MomentsArgs of moments.cu, field for field.
unsafe impl Params for MomentsParams {
    const KERNEL: &'static str = "moments";
}

/// `NormalizeArgs` of normalize.cu.
#[repr(C)]
pub(crate) struct NormalizeParams {
    pub(crate) tile: Tile,
    pub(crate) x: u64,
    pub(crate) y: u64,
    pub(crate) weight: u64,
    pub(crate) bias: u64,
    pub(crate) message: u64,
    pub(crate) own: u64,
    pub(crate) frozen_mean: u64,
    pub(crate) frozen_var: u64,
    pub(crate) saved: u64,
    pub(crate) running_mean: u64,
    pub(crate) running_var: u64,
    pub(crate) num_batches_tracked: u64,
    pub(crate) ticket: u64,
    pub(crate) eps: f64,
    pub(crate) momentum: f64,
    pub(crate) source: i32,
    pub(crate) skip: i32,
    pub(crate) owners: i32,
    pub(crate) ahead: i32,
}

// SAFETY: NormalizeArgs of normalize.cu, field for field.
unsafe impl Params for NormalizeParams {
    const KERNEL: &'static str = "normalize";
}

/// `GradSumsArgs` of `grad_sums.cu`.
#[repr(C)]
pub(crate) struct GradSumsParams {
    pub(crate) tile: Tile,
    pub(crate) x: u64,
    pub(crate) dy: u64,
    pub(crate) saved: u64,
    pub(crate) d_weight: u64,
    pub(crate) d_bias: u64,
    pub(crate) message: u64,
    pub(crate) partials: u64,
    pub(crate) tickets: u64,
}

// SAFETY: GradSumsArgs of grad_sums.cu, field for field.
unsafe impl Params for GradSumsParams {
    const KERNEL: &'static str = "grad_sums";
}

/// `GradInputArgs` of `grad_input.cu`.
#[repr(C)]
pub(crate) struct GradInputParams {
    pub(crate) tile: Tile,
    pub(crate) x: u64,
    pub(crate) dy: u64,
    pub(crate) dx: u64,
    pub(crate) saved: u64,
    pub(crate) message: u64,
    pub(crate) weight: u64,
    pub(crate) ahead: i32,
}

// SAFETY: GradInputArgs of grad_input.cu, field for field.
unsafe impl Params for GradInputParams {
    const KERNEL: &'static str = "grad_input";
}

/// `MeetArgs` of meet.cu.
#[repr(C)]
pub(crate) struct MeetParams {
    pub(crate) count: f64,
    pub(crate) sends: i32,
}

// SAFETY: MeetArgs of meet.cu, field for field.
unsafe impl Params for MeetParams {
    const KERNEL: &'static str = "meet";
}

/// The most ranks that meet inside kernels.
pub(crate) const MOST_RANKS: usize = 16;

/// `Peers` of peers.cuh: the second parameter of kernels that are compiled for it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeersParams {
    pub(crate) inboxes: [u64; MOST_RANKS],
    pub(crate) control: u64,
    pub(crate) report: u64,
    pub(crate) hash: u64,
    /// Identity, use, step.
    pub(crate) call: [u64; 3],
    /// Nanoseconds.
    pub(crate) timeout: u64,
    pub(crate) rank: i32,
    pub(crate) ranks: i32,
    /// Packets.
    pub(crate) slot: i32,
    pub(crate) unused: i32,
}

/// `Report` of peers.cuh, in the host's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) stop: u32,
    pub(crate) done: u32,
    /// Identity, use, step.
    pub(crate) call: [u64; 3],
    /// Of the pass.
    pub(crate) number: u64,
    /// 1 + the rank that is in another call, or 0.
    pub(crate) elsewhere: u64,
    pub(crate) other: [u64; 3],
}
