//! Runs a law on drawn cases: how many, from which seed, and how a failure is told.
//!
//! `SYNCBN_CASES` multiplies the number of cases, `SYNCBN_SEED` draws others; without them every run draws the same, so that a
//! red test is red for everyone.
//!
//! Deliberately not here: files of past failures. A failure prints the seed that brings it back.

use std::env;
use std::fmt::Debug;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::broken;
use crate::outcome::{Outcome, Verdict};

/// Cases of a law that runs ranks, without `SYNCBN_CASES`.
pub const CASES: u32 = 100;

/// Tries the law on so many drawn cases, times `SYNCBN_CASES`.
pub fn for_all<C: Debug>(
    cases: u32,
    strategy: &impl Strategy<Value = C>,
    law: impl Fn(&C) -> Outcome,
) -> Outcome {
    let seed = number_from("SYNCBN_SEED", 0)?;
    let factor = number_from("SYNCBN_CASES", 1)?;
    let config = Config {
        cases: u32::try_from(u64::from(cases) * factor).unwrap_or(u32::MAX),
        failure_persistence: None,
        max_shrink_iters: 200,
        max_shrink_time: 30_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let outcome = TestRunner::new_with_rng(config, rng).run(strategy, |case| match law(&case) {
        Ok(()) | Err(Verdict::Skipped(_)) => Ok(()),
        Err(Verdict::Broken(why)) => Err(TestCaseError::fail(why)),
    });
    outcome.map_err(|error| match error {
        TestError::Fail(why, case) => {
            broken!("{why}\nsmallest case: {case:#?}\nseed: SYNCBN_SEED={seed} SYNCBN_CASES={factor}")
        }
        TestError::Abort(why) => broken!("too few cases could be drawn: {why}"),
    })
}

fn number_from(variable: &str, default: u64) -> Outcome<u64> {
    match env::var(variable) {
        Ok(text) => text.parse().map_err(|_| broken!("{variable} is `{text}`, expected a whole number")),
        Err(_) => Ok(default),
    }
}
