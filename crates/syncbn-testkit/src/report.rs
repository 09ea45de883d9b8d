//! How a law becomes a test: it is run where there is what it needs, and its outcome is told.
//!
//! Deliberately not here: which laws there are.

use std::collections::BTreeSet;
use std::env;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use crate::comm::{CommHarness, begin};
use crate::harness::Harness;
use crate::outcome::{Outcome, Verdict};

/// Runs a backend's law as a test: says why it is skipped, panics with what is wrong and the command that replays it.
pub fn check<H: Harness>(harness: &H, package: &str, path: &str, law: impl Fn(&H) -> Outcome) {
    match harness.open(0) {
        Ok(opened) => {
            drop(opened);
            begin(test_name(path));
            report(package, path, law(harness));
        }
        Err(why) => absent(harness.name(), path, &why),
    }
}

/// Runs a communicator's law as a test, in the same way.
pub fn check_communicator<H: CommHarness>(
    harness: &H,
    package: &str,
    path: &str,
    law: impl Fn(&H) -> Outcome,
) {
    match harness.available() {
        Ok(()) => {
            begin(test_name(path));
            report(package, path, law(harness));
        }
        Err(why) => absent(harness.name(), path, &why),
    }
}

/// What a whole suite needs is not there: said once, not for each of its tests, and a failure where `SYNCBN_REQUIRE` names it.
///
/// For tests of a backend that are no laws of the kit, too; `path` is the test's, from its binary on.
pub fn absent(name: &str, path: &str, why: &impl fmt::Display) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    assert!(!required(name), "SYNCBN_REQUIRE asks for {name}: {why}");
    let suite = path.split("::").take(2).collect::<Vec<_>>().join("::");
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.insert(suite.clone()) {
        skipped(&format!("{suite}::*"), &format!("no {name} here: {why}"));
    }
}

/// Tells a test's outcome.
fn report(package: &str, path: &str, outcome: Outcome) {
    let (binary, test) = path.split_once("::").unwrap_or(("conformance", path));
    match outcome {
        Ok(()) => {}
        Err(Verdict::Skipped(why)) => skipped(path, &why),
        Err(Verdict::Broken(why)) => panic!(
            "{test} does not hold\n  {why}\nreplay (with the SYNCBN_ variables above, if any): \
             cargo test -p {package} --test {binary} -- --exact {test}"
        ),
    }
}

/// Says that a test has not tried anything, and why.
///
/// libtest shows what a passing test prints to nobody, and a skip that nobody sees is a law left out in silence. It captures what
/// goes through `print!` and `eprint!`, so this goes around them.
pub fn skipped(path: &str, why: &str) {
    let line = format!("skipped: {}: {why}\n", test_name(path));
    // Whoever has closed the standard error does not want to know.
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// A test's name within its binary, from its whole path.
fn test_name(path: &str) -> &str {
    path.split_once("::").map_or(path, |(_, test)| test)
}

/// Whether `SYNCBN_REQUIRE`, a list with commas, names this backend or communicator.
#[must_use]
pub fn required(name: &str) -> bool {
    env::var("SYNCBN_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item.trim() == name))
}
