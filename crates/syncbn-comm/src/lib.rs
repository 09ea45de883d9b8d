#![doc = include_str!("../README.md")]
//! # Map
//!
//! One file per way of reaching the other ranks: [`threads`] of one process, and processes over [`tcp`]. `failure` is what a rank
//! is told when the ranks cannot meet. [`bootstrap`] is how processes become ranks.
//!
//! Deliberately not here: communicators that work in a device's own memory, which live with their backend, and
//! [`ViaHost`](syncbn_core::ViaHost), which puts those of this crate in every backend's service.

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

pub mod bootstrap;
mod deadline;
mod failure;
pub mod tcp;
pub mod threads;

pub use bootstrap::{BootstrapError, JobToken, LaunchEnv, Rendezvous};
pub use tcp::TcpCommunicator;
pub use threads::{ThreadComm, ThreadGroup, TooManyRanks};
