//! The laws of backends, each a function, grouped by subject. Their names say what holds. Laws of host communicators are in
//! [`comm::laws`](crate::comm::laws).
//!
//! A law takes a harness and returns an [`Outcome`](crate::Outcome). `conformance!` makes a test of each law for each type, from the table
//! in `macros.rs`; a test checks that the table is complete.

pub mod backward;
pub mod collectives;
pub mod determinism;
pub mod errors;
pub mod evaluation;
pub mod failures;
pub mod forward;
pub mod functional;
pub mod golden;
pub mod kernels;
pub mod layouts;
pub mod running;
pub mod state;
