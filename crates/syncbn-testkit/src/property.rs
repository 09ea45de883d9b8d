//! Runs a law on drawn cases.
//!
//! `SYNCBN_CASES` multiplies the number of cases, by 20 or 0.1 for instance (at least one is drawn); `SYNCBN_SEED` draws others. Without
//! them every run draws the same cases, so that a test that fails does so for everyone.
//!
//! Deliberately not here: files of past failures. A failure prints the seed with which it can be repeated.

use std::cell::RefCell;
use std::env;
use std::fmt::Debug;
use std::str::FromStr;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::outcome::{Outcome, Verdict};
use crate::{broken, ensure};

/// Cases of a law that runs ranks, without `SYNCBN_CASES`.
pub const CASES: u32 = 100;

/// Runs the law on this number of drawn cases, times `SYNCBN_CASES`.
pub fn for_all<C: Debug>(
    cases: u32,
    strategy: &impl Strategy<Value = C>,
    law: impl Fn(&C) -> Outcome,
) -> Outcome {
    let seed: u64 = number_from("SYNCBN_SEED", 0)?;
    let factor: f64 = number_from("SYNCBN_CASES", 1.0)?;
    let config = Config {
        cases: times(cases, factor)?,
        failure_persistence: None,
        max_shrink_iters: 200,
        max_shrink_time: 30_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let skipped = RefCell::new(None);
    let outcome = TestRunner::new_with_rng(config, rng).run(strategy, |case| match law(&case) {
        Ok(()) => Ok(()),
        Err(Verdict::Skipped(why)) => {
            skipped.borrow_mut().get_or_insert(why);
            Ok(())
        }
        Err(Verdict::Broken(why)) => Err(TestCaseError::fail(why)),
    });
    if let (Ok(()), Some(why)) = (&outcome, skipped.into_inner()) {
        return Err(Verdict::Skipped(why));
    }
    outcome.map_err(|error| match error {
        TestError::Fail(why, case) => {
            broken!("{why}\nsmallest case: {case:#?}\nseed: SYNCBN_SEED={seed} SYNCBN_CASES={factor}")
        }
        TestError::Abort(why) => broken!("too few cases could be drawn: {why}"),
    })
}

/// The number of cases times the factor; at least one.
#[allow(clippy::cast_sign_loss)] // it is above 0, and what does not fit saturates
fn times(cases: u32, factor: f64) -> Outcome<u32> {
    ensure!(factor.is_finite() && factor > 0.0, "SYNCBN_CASES is {factor}, expected a finite number above 0");
    Ok(((f64::from(cases) * factor) as u32).max(1))
}

fn number_from<N: FromStr>(variable: &str, default: N) -> Outcome<N> {
    match env::var(variable) {
        Ok(text) => text.parse().map_err(|_| broken!("{variable} is `{text}`, expected a number")),
        Err(_) => Ok(default),
    }
}

#[cfg(test)]
mod tests {
    use super::times;

    #[test]
    fn a_factor_makes_more_cases_or_fewer_but_never_none() {
        assert_eq!(times(100, 20.0), Ok(2000));
        assert_eq!(times(100, 0.1), Ok(10));
        assert_eq!(times(100, 1e-9), Ok(1));
        assert_eq!(times(100, 1e12), Ok(u32::MAX));
        for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(times(100, factor).is_err());
        }
    }
}
