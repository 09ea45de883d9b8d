//! The soak and the figures of sums, for a moment.
//!
//! Deliberately not here: 20,000 steps, and figures that mean something. Whoever wants them runs the programs.

#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use std::process::Command;

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_short_soak_of_threads_and_of_processes_holds() {
    for ranks in ["--ranks=4", "--processes=4"] {
        let said = run(env!("CARGO_BIN_EXE_soak"), &[ranks, "--steps=200"]);
        assert!(said.starts_with("200 steps of 4 ranks: the same bits;"), "{said}");
    }
}

#[test]
fn every_way_of_carrying_ranks_has_its_line() {
    let table = run(env!("CARGO_BIN_EXE_sums"), &["--ranks=2,3", "--numbers=5", "--sums=20"]);
    for line in
        ["| 2 | threads | 5 |", "| 2 | processes | 5 |", "| 3 | threads | 5 |", "| 3 | processes | 5 |"]
    {
        assert_eq!(table.matches(line).count(), 1, "{table}");
    }
}
