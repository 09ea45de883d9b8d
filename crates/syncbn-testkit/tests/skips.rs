//! A skipped test prints its reason, once, though it passes. And all laws pass on a machine that can run one rank only.
#![allow(clippy::unwrap_used)] // a test that cannot be set up fails

mod plain;

use std::env;
use std::process::Command;

use plain::{Flaw, Plain};
use syncbn_testkit::{Ability, Gap, Harness, Opened, Unavailable};

/// A device that flushes subnormals, on a machine for one rank.
#[derive(Clone)]
struct Small;

impl Harness for Small {
    type Backend = Plain;

    fn name(&self) -> &'static str {
        "small"
    }
    fn open(&self, _: usize) -> Result<Opened<Plain>, Unavailable> {
        Ok((Plain::new(Flaw::None), ()))
    }
    fn gaps(&self) -> Vec<Gap> {
        vec![Gap { ability: Ability::Subnormals, reason: "it flushes them" }]
    }
    fn max_world_size(&self) -> usize {
        1
    }
}

syncbn_testkit::conformance!(small: Small, types: [f32], missing: [
    f64: "one type is enough here",
    f16: "one type is enough here",
    bf16: "one type is enough here",
]);

/// No device.
#[derive(Clone)]
struct Absent;

impl Harness for Absent {
    type Backend = Plain;

    fn name(&self) -> &'static str {
        "absent"
    }
    fn open(&self, _: usize) -> Result<Opened<Plain>, Unavailable> {
        Err(Unavailable("buy one".into()))
    }
}

syncbn_testkit::conformance!(absent: Absent, types: [f32, f64, f16, bf16]);

/// What this test binary writes to the standard error when it runs the tests of this name.
fn errors_of(tests: &str) -> String {
    let mut binary = Command::new(env::current_exe().unwrap());
    let output = binary.arg(tests).env_remove("SYNCBN_REQUIRE").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_declared_gap_is_told_with_its_reason() {
    let law = "small::f32::forward::subnormal_values_are_not_flushed";
    assert_eq!(errors_of(law), format!("skipped: {law}: no Subnormals: it flushes them\n"));
}

#[test]
fn a_law_for_which_the_machine_is_too_small_is_told() {
    let law = "small::f32::collectives::groups_do_not_hear_of_each_other";
    assert_eq!(errors_of(law), format!("skipped: {law}: needs 5 ranks, this machine holds 1\n"));
}

#[test]
fn a_type_that_is_declared_missing_is_told() {
    assert_eq!(errors_of("small::bf16"), "skipped: small::bf16::*: no bf16: one type is enough here\n");
}

#[test]
fn a_device_that_is_not_there_is_told_once_for_all_its_laws() {
    assert_eq!(errors_of("absent::"), "skipped: absent::*: no absent here: buy one\n");
}

#[test]
fn what_holds_is_not_told() {
    assert_eq!(errors_of("small::f32::state"), "");
}
