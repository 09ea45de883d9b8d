//! All unsafe code of the crate: memory, launches, and the libraries behind them.
//! What is launched, with which arguments and on which grid, the other files decide.

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
pub(crate) mod queue;
mod shared;
pub(crate) mod transfer;
