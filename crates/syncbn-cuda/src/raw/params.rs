//! What Rust and CUDA share: the structs that kernels take and write, and the constants and numbers in them. The kernels' sources
//! do not declare them: [`declarations`] is their text in CUDA.

use super::shared::{Shared, shared_constants, shared_enum, shared_structs};

/// A kernel's first parameter.
///
/// # Safety
/// Kernel [`Params::KERNEL`] takes a struct of this name, and the struct is made by `shared_structs!`.
pub(crate) unsafe trait Params {
    const KERNEL: &'static str;
}

/// The CUDA text of everything in this file; it uses the types of number.cuh.
pub(crate) fn declarations() -> String {
    [constants(), StatisticsSource::declare(), structs()].concat()
}

/// The most ranks that meet inside kernels.
pub(crate) const MOST_RANKS: usize = 16;

shared_constants! {
    /// A packet carries one number.
    const PACKET_BYTES: usize = 16;
    /// The first packets of a slot say which call the rank is in, and how many elements it has.
    const HASH: usize = 0;
    const IDENTITY: usize = 1;
    const USE: usize = 2;
    const STEP: usize = 3;
    const COUNT: usize = 4;
    /// Packets of a slot before those of the channels.
    const HEADER: usize = 8;
}

shared_enum! {
    /// Which statistics `normalize` uses.
    enum StatisticsSource {
        /// Of the batch, over all ranks.
        Group,
        /// Of this rank's batch.
        Local,
        /// The running statistics.
        Frozen,
        /// Those that an earlier pass has saved.
        Saved,
    }
}

shared_structs! {
    /// How a grid walks a tensor; kernels/walk.cuh explains the terms.
    struct WalkParams {
        channels: i64,
        lanes: i64,
        /// Neighbouring vectors of a lane; 1 for columns.
        segment: i64,
        /// Segments of a lane.
        runs: i64,
        /// From a thread's vector to its next one, in vectors, if that is in the same run.
        step_index: i64,
        /// What is added if it is not.
        run_gap: i64,
        /// Elements after the last whole row of columns.
        tail: i64,
        /// The step's part within a run.
        step_within: i32,
        /// Vectors that every thread has.
        vectors_per_thread: i32,
        /// Threads of a lane, over all its blocks, that have one more.
        threads_with_one_more: i32,
        /// Columns: neighbouring elements of one channel.
        inner: i32,
        lanes_per_block: i32,
        threads_per_lane: i32,
        blocks_per_channel: i32,
        channels_per_block: i32,
        /// Columns: threads of a block that add up one channel.
        reducers_per_channel: i32,
    }

    /// The parameters of kernels/moments.cu.
    struct MomentsParams {
        walk: WalkParams,
        x: u64 as "const void*",
        message: u64 as "f64*",
        /// Mean and M2 of this rank's elements: `[mean | M2]`.
        local_moments: u64 as "f64*",
        partials: u64 as "double2*",
        tickets: u64 as "unsigned*",
        /// Elements of a channel.
        count: f64,
        /// 1 / count.
        per_count: f64,
        /// Whether the whole message is wanted, or only its count.
        with_message: i32,
    }

    /// The parameters of kernels/normalize.cu.
    struct NormalizeParams {
        walk: WalkParams,
        x: u64 as "const void*",
        y: u64 as "void*",
        /// Null: 1.
        weight: u64 as "const Param*",
        /// Null: 0.
        bias: u64 as "const Param*",
        message: u64 as "const f64*",
        /// `[mean | M2]` of this rank.
        local_moments: u64 as "const f64*",
        frozen_mean: u64 as "const Param*",
        frozen_var: u64 as "const Param*",
        /// `[mean | var | invstd | count]`; read if they are the source, else written.
        saved: u64 as "f64*",
        /// Null: there are no running statistics to update.
        running_mean: u64 as "Param*",
        running_var: u64 as "Param*",
        num_batches_tracked: u64 as "long long*",
        state_ticket: u64 as "unsigned*",
        eps: f64,
        /// Below 0: cumulative average.
        momentum: f64,
        source: StatisticsSource,
        /// Whether a channel whose batch statistics are not finite keeps its running statistics.
        skip_non_finite: i32,
        /// Blocks that write the saved and running statistics, before those that walk the tensor.
        state_blocks: i32,
        /// Rounds of loads before the wait for the previous kernel.
        prefetch_rounds: i32,
    }

    /// The parameters of `kernels/grad_sums.cu`.
    struct GradSumsParams {
        walk: WalkParams,
        x: u64 as "const void*",
        dy: u64 as "const void*",
        saved: u64 as "const f64*",
        /// Null: not wanted.
        d_weight: u64 as "Param*",
        /// Null: not wanted.
        d_bias: u64 as "Param*",
        message: u64 as "f64*",
        partials: u64 as "double2*",
        tickets: u64 as "unsigned*",
    }

    /// The parameters of `kernels/grad_input.cu`.
    struct GradInputParams {
        walk: WalkParams,
        x: u64 as "const void*",
        dy: u64 as "const void*",
        dx: u64 as "void*",
        saved: u64 as "const f64*",
        /// Null: frozen statistics.
        message: u64 as "const f64*",
        /// Null: 1.
        weight: u64 as "const Param*",
        /// Rounds of loads before the wait for the previous kernel.
        prefetch_rounds: i32,
    }

    /// The parameters of kernels/forward.cu.
    struct ForwardParams {
        /// Without a message. Every block writes the state of its channels, and `prefetch_rounds` rounds are all that a thread reads.
        normalize: NormalizeParams,
        /// Elements of a channel.
        count: f64,
        /// 1 / count.
        per_count: f64,
    }

    /// The parameters of kernels/backward.cu.
    struct BackwardParams {
        /// Without a message; `prefetch_rounds` rounds are all that a thread reads.
        input: GradInputParams,
        /// Null: not wanted.
        d_weight: u64 as "Param*",
        /// Null: not wanted.
        d_bias: u64 as "Param*",
    }

    /// The parameters of kernels/meet.cu.
    struct MeetParams {
        count: f64,
        /// Whether this kernel also sends.
        sends: i32,
    }

    /// In the device's memory, written by this rank alone. Behind it lie two packets for each channel: what the first blocks of a
    /// forward pass have made of the ranks' numbers.
    struct Control {
        /// The last pass that is over: written by the kernel that waits, read by the kernel that sends.
        last: u32,
        /// The pass under way: written by the kernel that sends, read by the kernel that waits.
        current: u32,
        failed: u32,
        /// Blocks of a whole pass in one launch that have read the number of the pass; 0 again when all have.
        begun: u32,
        unused: [u32; 12],
    }

    /// In the host's memory: why this rank has failed. Which ranks have sent nothing the host reads from the inbox.
    struct Report {
        /// Written by the host: kernels that wait give up.
        stop: u32,
        /// The rest is written.
        done: u32,
        /// Identity, use and step of this rank's call.
        call: [u64; 3],
        /// Of the pass.
        number: u64,
        /// 1 + the rank that is in another call; 0 if a rank has not sent in time.
        other_rank: u64,
        /// The call of that rank.
        other_call: [u64; 3],
    }

    /// The second parameter of kernels that meet their peers.
    struct PeersParams {
        /// Of each rank. An inbox has the slots of all ranks for passes of even number, then those for odd ones.
        inboxes: [u64; MOST_RANKS] as "uint4*",
        control: u64 as "Control*",
        report: u64 as "Report*",
        /// Of the call.
        hash: u64,
        /// Identity, use, step.
        call: [u64; 3],
        /// Nanoseconds.
        timeout: u64,
        rank: i32,
        ranks: i32,
        packets_per_slot: i32,
        unused: i32,
    }
}

// SAFETY: the parameter of kernels/moments.cu has this name.
unsafe impl Params for MomentsParams {
    const KERNEL: &'static str = "moments";
}

// SAFETY: the parameter of kernels/normalize.cu has this name.
unsafe impl Params for NormalizeParams {
    const KERNEL: &'static str = "normalize";
}

// SAFETY: the parameter of kernels/grad_sums.cu has this name.
unsafe impl Params for GradSumsParams {
    const KERNEL: &'static str = "grad_sums";
}

// SAFETY: the parameter of kernels/grad_input.cu has this name.
unsafe impl Params for GradInputParams {
    const KERNEL: &'static str = "grad_input";
}

// SAFETY: the parameter of kernels/forward.cu has this name.
unsafe impl Params for ForwardParams {
    const KERNEL: &'static str = "forward";
}

// SAFETY: the parameter of kernels/backward.cu has this name.
unsafe impl Params for BackwardParams {
    const KERNEL: &'static str = "backward";
}

// SAFETY: the parameter of kernels/meet.cu has this name.
unsafe impl Params for MeetParams {
    const KERNEL: &'static str = "meet";
}

#[cfg(test)]
mod tests {
    use syncbn_testkit::report::absent;

    use super::*;
    use crate::error::CudaError;
    use crate::kernel::Kernel;
    use crate::raw::nvrtc::{Nvrtc, nvrtc};
    use crate::{backward, forward, grad_input, grad_sums, meet, moments, normalize};

    fn compile(nvrtc: &Nvrtc, declarations: &str) -> Result<Vec<u8>, CudaError> {
        let source = [include_str!("../../kernels/number.cuh"), declarations].concat();
        let options = ["-DELEMENT=f32", "-DVEC=4", "--gpu-architecture=sm_90", "--std=c++17"];
        nvrtc.compile("declarations", &source, &options.map(str::to_owned))
    }

    fn takes<P: Params + Shared>(kernel: &Kernel) {
        assert_eq!(kernel.name, P::KERNEL);
        let signature = format!("{}(const __grid_constant__ {} params", P::KERNEL, P::CUDA);
        assert!(kernel.source.contains(&signature), "{signature}");
    }

    #[test]
    fn a_kernel_takes_the_struct_of_its_name() {
        takes::<MomentsParams>(&moments::KERNEL);
        takes::<NormalizeParams>(&normalize::KERNEL);
        takes::<GradSumsParams>(&grad_sums::KERNEL);
        takes::<GradInputParams>(&grad_input::KERNEL);
        takes::<ForwardParams>(&forward::KERNEL);
        takes::<BackwardParams>(&backward::KERNEL);
        takes::<MeetParams>(&meet::KERNEL);
    }

    /// The same structs, with two neighbouring fields of one of them in the other order.
    fn swapped(text: &str, name: &str) -> String {
        let mut lines: Vec<&str> = text.lines().collect();
        let start = lines.iter().position(|line| *line == format!("struct {name} {{")).unwrap() + 1;
        let fields = lines[start..].iter().position(|line| *line == "};").unwrap();
        let second = start + usize::from(fields > 2);
        lines.swap(second, second + 1);
        lines.join("\n")
    }

    #[test]
    fn a_field_that_moves_in_cuda_alone_does_not_compile() {
        let nvrtc = match nvrtc() {
            Ok(nvrtc) => nvrtc,
            Err(error) => return absent("nvrtc", "raw::params", &error),
        };
        let text = declarations();
        compile(nvrtc, &text).unwrap();
        let names = text.lines().filter_map(|line| line.strip_prefix("struct ")?.strip_suffix(" {"));
        let mut tried = 0;
        for name in names {
            let error = compile(nvrtc, &swapped(&text, name)).unwrap_err().to_string();
            assert!(error.contains(&format!("{name}.")) && error.contains("is elsewhere in Rust"), "{error}");
            tried += 1;
        }
        assert_eq!(tried, 11);
    }
}
