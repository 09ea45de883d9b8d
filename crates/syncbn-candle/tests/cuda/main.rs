//! The tests of the CPU on CUDA, and what there is on CUDA alone.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../all/common.rs"]
mod common;
mod gpus;
#[path = "../all/gradients.rs"]
mod gradients;
#[path = "../all/layer.rs"]
mod layer;
mod place;
#[path = "../all/pytorch.rs"]
mod pytorch;
#[path = "../all/ranks.rs"]
mod ranks;
#[path = "../all/training.rs"]
mod training;
