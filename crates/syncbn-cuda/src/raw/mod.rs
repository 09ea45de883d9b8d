//! All unsafe code of the crate: memory, launches, and the libraries behind them.
//!
//! Deliberately not here: decisions. What is launched, with which arguments and on which grid, is the other files' business.

pub(crate) mod capture;
pub(crate) mod driver;
mod foreign;
mod library;
pub(crate) mod memory;
pub(crate) mod nccl;
pub(crate) mod nvrtc;
pub(crate) mod owned;
pub(crate) mod params;
pub(crate) mod peers;
pub(crate) mod transfer;
