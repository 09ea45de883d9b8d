//! The demo, run as a user runs it.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn demo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_demo")).args(args).output().unwrap()
}

fn number(json: &serde_json::Value, pointer: &str) -> f64 {
    json.pointer(pointer)
        .and_then(serde_json::Value::as_f64)
        .unwrap_or_else(|| panic!("no number at {pointer}"))
}

#[test]
fn the_demo_holds_its_claims_and_writes_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let (json, svg) = (folder.path().join("out/demo.json"), folder.path().join("pictures/loss.svg"));
    let output = demo(&["--ranks", "3", "--json", json.to_str().unwrap(), "--svg", svg.to_str().unwrap()]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(printed.matches("holds:").count(), 4, "{printed}");
    assert!(!printed.contains(['\r', '\x1b']), "a progress bar, though this is no terminal");

    let report = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert!(number(&report, "/parity/sync_vs_single") <= 1e-6);
    assert!(number(&report, "/parity/local_vs_single") >= 1e-3);
    assert!(number(&report, "/digits/curve_gap") <= 1e-3);
    let accuracy = |way| number(&report, &format!("/digits/accuracy/{way}"));
    assert!(accuracy("sync") - accuracy("local") >= 0.02);
    assert!(accuracy("single") > 0.85);
    let picture = fs::read_to_string(Path::new(report["svg"].as_str().unwrap())).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("8 ranks, synchronised"));
}

#[test]
fn one_rank_is_refused() {
    let output = demo(&["--ranks", "1"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing to synchronise with"));
}

#[test]
fn ranks_that_are_processes_find_what_ranks_that_are_threads_find() {
    let folder = tempfile::tempdir().unwrap();
    let report = |ranks: &[&str]| {
        let (json, svg) = (folder.path().join("demo.json"), folder.path().join("loss.svg"));
        let files = ["--json", json.to_str().unwrap(), "--svg", svg.to_str().unwrap()];
        let output = demo(&[ranks, &files].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).matches("holds:").count(), 4);
        fs::read_to_string(json).unwrap()
    };
    // As many as learn digits as threads: every number is the same.
    assert_eq!(report(&["--processes", "8"]), report(&["--ranks", "8"]));
}
