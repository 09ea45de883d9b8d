//! The laws: what every backend has to hold, each a function, grouped by subject. Their names say what holds.
//!
//! A law takes a harness and answers an [`Outcome`](crate::Outcome). `conformance!` makes a test of each for each type; the table
//! that it reads is in `macros.rs`, and a test sees to it that no law is left out of it.

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
