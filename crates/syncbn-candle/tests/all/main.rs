//! The layer against candle, in one program: each would link all of candle.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod gradients;
mod layer;
mod place;
mod pytorch;
mod ranks;
mod training;
mod variables;
