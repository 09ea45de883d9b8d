//! What host and shaders share: the struct of parameters of every kernel, and constants.
//!
//! Each is written once, here. The macros make Rust's items and the shaders' text from one list.

use bytemuck::{Pod, Zeroable};

/// A struct for both sides. Every field is one word, so that both lay them out alike.
macro_rules! shared_struct {
    ($(#[$about:meta])* $name:ident { $($(#[$note:meta])* $field:ident: $type:ident,)* }) => {
        $(#[$about])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
        pub(crate) struct $name {
            $($(#[$note])* pub(crate) $field: $type,)*
        }

        /// Its text in WGSL.
        pub(crate) const STRUCT: &str = concat!(
            "struct ", stringify!($name), " {\n",
            $("    ", stringify!($field), ": ", stringify!($type), ",\n",)*
            "}\n",
        );

        /// Where its fields lie in Rust.
        #[cfg(test)]
        pub(crate) const FIELDS: &[(&str, usize)] =
            &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*];
    };
}

/// Constants for both sides.
macro_rules! shared_constants {
    ($($(#[$note:meta])* $name:ident: $type:ident = $value:literal;)*) => {
        $($(#[$note])* pub(crate) const $name: $type = $value;)*

        /// Their text in WGSL.
        pub(crate) const CONSTANTS: &str = concat!(
            $("const ", stringify!($name), ": ", stringify!($type), " = ", stringify!($value), ";\n",)*
        );
    };
}

shared_struct! {
    /// The parameters of a kernel besides its buffers.
    Params {
        // Which thread takes which elements: see plan.rs and plan.wgsl.
        channels: u32,
        lanes: u32,
        segment: u32,
        vectors: u32,
        step_index: u32,
        step_within: u32,
        wrap: u32,
        members: u32,
        splits: u32,
        blocks: u32,
        /// 0, which compilers cannot know: see pairs.wgsl.
        zero: u32,
        // For tensors whose words hold elements of two channels.
        inner: u32,
        elements: u32,
        /// Which arguments are present and what is to be done, as bits: `WEIGHT` to `SKIP_NON_FINITE`.
        wanted: u32,
        /// Which sums or statistics to start from: `MERGE` to `SAVED`.
        source: u32,
        // This rank's elements per channel, as an unevaluated sum.
        count_high: f32,
        count_low: f32,
        // eps is (high + low) 2^exponent, with high from 1 to 2.
        eps_high: f32,
        eps_low: f32,
        eps_exponent: i32,
        /// The weight of the newest batch. Below 0: the cumulative average.
        momentum: f32,
        /// The weight of all batches before it.
        kept: f32,
        padding_0: u32,
        padding_1: u32,
    }
}

shared_constants! {
    /// Threads of a workgroup.
    THREADS: u32 = 256;

    // The bits of `Params::wanted`.
    WEIGHT: u32 = 1;
    BIAS: u32 = 2;
    RUNNING: u32 = 4;
    D_WEIGHT: u32 = 8;
    D_BIAS: u32 = 16;
    /// A channel whose batch statistics are not finite keeps its running statistics.
    SKIP_NON_FINITE: u32 = 32;

    // The values of `Params::source`.
    /// The splits' sums, to be merged.
    MERGE: u32 = 0;
    /// The splits' moments, as the statistics of this rank's batch.
    LOCAL: u32 = 1;
    /// The group's sums.
    GROUP: u32 = 2;
    /// Statistics that do not depend on the batch.
    FROZEN: u32 = 3;
    /// What an earlier forward pass saved.
    SAVED: u32 = 4;

    // Numbers of a channel are multiplied by 2^-exponent: `exponent_for` in merge.wgsl and in message.rs.
    /// The exponent of numbers below 2^`LOWEST_BELOW`, and of no numbers.
    LOWEST_EXPONENT: i32 = -109;
    LOWEST_BELOW: i32 = -95;
    /// The exponent of numbers from there to 2^`LOW_BELOW`; it is 0 beyond.
    LOW_EXPONENT: i32 = -60;
    LOW_BELOW: i32 = -40;
    /// The exponent of numbers from 2^`HIGH_FROM` on.
    HIGH_EXPONENT: i32 = 80;
    HIGH_FROM: i32 = 40;
}
