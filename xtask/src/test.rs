//! `cargo xtask test`: all tests that this machine can run.
//!
//! Tests that need hardware say so when they are skipped, and fail instead where `SYNCBN_REQUIRE` names it.

use anyhow::Result;

use crate::cargo::{cargo, run};

/// Features that are off by default and build anywhere.
const FEATURES: &str = "--features=syncbn-core/safetensors";

pub(crate) fn run_tests() -> Result<()> {
    run(&mut cargo(["test", "--workspace", "--locked", FEATURES]))
}
