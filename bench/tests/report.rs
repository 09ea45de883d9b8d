//! Runs go in, tables and charts come out, with the right ratios and the machine that made them.

use std::collections::BTreeMap;
use std::fs;

use syncbn_bench::report::{join, write};
use syncbn_bench::results::{Meta, Row, Run};
use tempfile::tempdir;

fn row(implementation: &str, shape: &str, median_us: f64, copy_us: Option<f64>) -> Row {
    Row {
        implementation: implementation.into(),
        op: if copy_us.is_some() { "forward" } else { "forward_host" }.into(),
        dtype: "f32".into(),
        layout: "nchw".into(),
        shape: shape.into(),
        median_us,
        min_us: median_us,
        copy_us,
    }
}

fn run(device: &str, library: &str, rows: Vec<Row>) -> Run {
    let versions = BTreeMap::from([(library.into(), "1.2.3".into())]);
    let meta =
        Meta { device: device.into(), machine: "two threads".into(), versions, date: "2026-11-24".into() };
    Run { meta, rows }
}

/// Two tensors of more than 10 MB and a small one.
fn two_runs() -> Vec<Run> {
    let copy = Some(10.0);
    let ours = vec![
        row("syncbn", "8x64x128x128", 20.0, copy),
        row("syncbn", "16x64x128x128", 20.0, copy),
        row("syncbn", "2x3", 5.0, Some(2.0)),
        row("syncbn", "2x3", 9.0, None),
    ];
    let peers = vec![
        row("cudnn", "8x64x128x128", 10.0, copy),
        row("cudnn", "16x64x128x128", 160.0, copy),
        row("inductor", "8x64x128x128", 40.0, copy),
    ];
    vec![run("Card 1", "syncbn", ours), run("Card 1", "torch", peers)]
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn table(runs: Vec<Run>) -> String {
    write(&join(runs).unwrap(), tempdir().unwrap().path()).unwrap()
}

#[test]
fn a_run_that_is_written_is_read_back() {
    let directory = tempdir().unwrap();
    let run = two_runs().remove(0);
    run.write(directory.path()).unwrap();
    assert_eq!(Run::read(directory.path()).unwrap(), run);
    let text = fs::read_to_string(directory.path().join("results.json")).unwrap();
    assert!(text.contains("\"impl\": \"syncbn\""), "{text}");
}

#[test]
fn each_line_has_the_ratios_to_the_copy_and_to_ours() {
    let table = table(two_runs());
    let head = "| type, layout, shape | copy | syncbn | / copy | cudnn | / copy | / syncbn | inductor | / copy | / syncbn |";
    let line = "| f32 nchw 8x64x128x128 | 10.0 | 20.0 | 2.00 | 10.0 | 1.00 | 0.50 | 40.0 | 4.00 | 2.00 |";
    assert!(table.contains(head) && table.contains(line), "{table}");
}

#[test]
fn means_are_geometric_apart_by_size_and_say_over_how_many() {
    let table = table(two_runs());
    let large = "| forward f32 nchw, 10 MB and more | 2 | 2.00 | 2.00 | 2.00 (of 1) | 2.00 |";
    let small = "| forward f32 nchw, smaller | 1 | 2.50 | - | - | - |";
    assert!(table.contains(large) && table.contains(small), "{table}");
}

#[test]
fn host_times_have_a_table_without_a_copy() {
    let table = table(two_runs());
    assert!(table.contains("### forward_host") && table.contains("| f32 nchw 2x3 | 9.0 |"), "{table}");
}

#[test]
fn every_run_says_when_where_and_with_which_versions() {
    let table = table(two_runs());
    assert!(table.contains("- 2026-11-24: Card 1, two threads; syncbn 1.2.3"), "{table}");
    assert!(table.contains("- 2026-11-24: Card 1, two threads; torch 1.2.3"), "{table}");
}

#[test]
fn devices_are_never_compared_with_each_other() {
    let mut runs = two_runs();
    runs[1].meta.device = "Card 2".into();
    let directory = tempdir().unwrap();
    let table = write(&join(runs).unwrap(), directory.path()).unwrap();
    assert!(table.contains("| f32 nchw 8x64x128x128 | 10.0 | 20.0 | 2.00 |\n"), "{table}");
    assert!(directory.path().join("chart-card-1.svg").exists());
    assert!(directory.path().join("chart-card-2.svg").exists());
}

#[test]
fn the_same_measurement_twice_is_refused() {
    let twice = [two_runs(), two_runs()].concat();
    let error = join(twice).unwrap_err().to_string();
    assert_eq!(error, "measured twice: syncbn, forward of f32 nchw 8x64x128x128");
}

#[test]
fn the_chart_shows_means_over_what_all_of_a_group_measured() {
    let directory = tempdir().unwrap();
    write(&join(two_runs()).unwrap(), directory.path()).unwrap();
    let chart = fs::read_to_string(directory.path().join("chart-card-1.svg")).unwrap();
    // Only one tensor was measured by all three: 2.00, 1.00 and 4.00 times the copy.
    for figure in ["\n2.00\n", "\n1.00\n", "\n4.00\n", "\nf32 nchw\n", "\ninductor\n"] {
        assert!(chart.contains(figure), "no {figure:?} in {chart}");
    }
    assert!(!chart.contains("\n16.00\n"));
}
