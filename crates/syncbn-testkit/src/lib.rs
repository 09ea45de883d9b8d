//! Proves a new backend or communicator in one line.
//!
//! A backend's `tests/conformance.rs` says how to open the device ([`Harness`]) and calls [`conformance!`]; every
//! law of [`laws`] becomes a test for every type. The laws hold a backend against a naive two-pass oracle in `f64`
//! ([`oracle`]), on drawn cases ([`strategies`]), over ranks that are threads of the operating system ([`rank`]).
//!
//! This crate is for tests, and tests panic: that is what its `allow`s below are for.
//!
//! Deliberately not here: any backend. The kit knows `syncbn-core`'s traits and nothing of who implements them.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod bars;
pub mod expected;
pub mod harness;
pub mod laws;
pub mod macros;
pub mod oracle;
pub mod outcome;
pub mod property;
pub mod rank;
pub mod spies;
pub mod strategies;
pub mod tensor;
mod threads;

pub use harness::{Ability, Gap, Harness, Join, Opened, Unavailable, need, need_ranks};
pub use outcome::{Outcome, Verdict};
