//! Proves a new backend or communicator in one line.
//!
//! A backend's `tests/conformance.rs` says how to open the device ([`Harness`]) and calls [`conformance!`]; every
//! law of [`laws`] becomes a test for every type; a communicator's calls [`communicator_conformance!`]. The laws hold a backend against a naive two-pass oracle in `f64`
//! ([`oracle`]), on drawn cases ([`strategies`]), over ranks that are threads of the operating system ([`rank`]).
//!
//! This crate is for tests, and tests panic: that is what its `allow`s below are for.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]
// Channels and samples are counted as the formulas count them; and what the oracle returns is nobody's to drop by mistake.
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
