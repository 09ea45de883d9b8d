#![doc = include_str!("../README.md")]
//! # Map
//!
//! One file per way of reaching the other ranks; today that is [`threads`]. [`bootstrap`] is how processes become ranks.
//!
//! Deliberately not here: communicators that work in a device's own memory, which live with their backend, and
//! [`ViaHost`](syncbn_core::ViaHost), which puts those of this crate in every backend's service.

#![forbid(unsafe_code)]

pub mod bootstrap;
mod deadline;
pub mod threads;

pub use bootstrap::{BootstrapError, JobToken, LaunchEnv, Rendezvous};
pub use threads::{ThreadComm, ThreadGroup, TooManyRanks};
