//! Tests a backend or a communicator of syncbn against all laws, in one line.
//!
//! `tests/conformance.rs` of a backend implements [`Harness`], which says how to open the device, and calls [`conformance!`]. That makes
//! a test of every law in [`laws`] for every type. For a communicator it is [`CommHarness`] and [`communicator_conformance!`].
//!
//! The laws compare a backend with a naive two-pass oracle in `f64` ([`oracle`]), on drawn cases ([`strategies`]), with ranks that are
//! threads ([`rank`]). The kit depends on `syncbn-core`'s traits and on no backend.
//!
//! This crate is for tests, and tests panic: that is what its `allow`s below are for.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]
// Loops over channels and samples are written as in the formulas. No result of the oracle is dropped by mistake.
#![allow(clippy::needless_range_loop, clippy::must_use_candidate)]

pub mod bars;
pub mod bits;
pub mod comm;
pub mod expected;
pub mod harness;
pub mod in_turn;
pub mod laws;
pub mod lent;
pub mod macros;
pub mod oracle;
pub mod outcome;
pub mod property;
pub mod rank;
pub mod report;
pub mod spies;
pub mod strategies;
pub mod tensor;
mod threads;

pub use comm::CommHarness;
pub use harness::{Ability, Gap, Harness, Join, Opened, Unavailable, need, need_ranks};
pub use outcome::{Outcome, Verdict};
