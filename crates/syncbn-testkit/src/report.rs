//! Runs laws as tests: skips them without the device, and reports their outcome.

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

/// Reports that the machine lacks what a whole suite needs: once, not for each test. Panics if `SYNCBN_REQUIRE` names it.
///
/// Also for tests of a backend that are not laws of the kit. `path` is the path of the test, beginning with its binary.
pub fn absent(name: &str, path: &str, why: &impl fmt::Display) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    assert!(!required(name), "SYNCBN_REQUIRE asks for {name}: {why}");
    let suite = path.split("::").take(2).collect::<Vec<_>>().join("::");
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.insert(suite.clone()) {
        skipped(&format!("{suite}::*"), &format!("no {name} here: {why}"));
    }
}

/// Reports the outcome of a test.
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

/// Prints that a test was skipped, and why.
///
/// libtest hides what passing tests print through `print!` and `eprint!`, so this writes to the standard error directly: a skip has to be
/// seen.
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
