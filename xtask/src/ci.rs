//! `cargo xtask ci`: everything that a change has to pass, each step timed, all of them run whichever fail.

mod core_tree;
mod deny;
mod features;
mod nvcc;
mod package;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::cargo::{cargo, run};
use crate::{test, test_emulated};

type Step = (&'static str, fn() -> Result<()>);

const STEPS: [Step; 9] = [
    ("formatting", format),
    ("lints", lint),
    ("core's dependencies", core_tree::check),
    ("licences and sources", deny::check),
    ("tests", test::run_tests),
    ("CUDA's kernels on the processor", || test_emulated::run_tests(&test_emulated::Args::default())),
    ("documentation", document),
    ("each feature alone", features::check),
    ("packages", package::check),
];

pub(crate) fn run_all() -> Result<()> {
    let results: Vec<_> = STEPS.into_iter().map(timed).collect();
    eprintln!();
    for (name, time, passed) in &results {
        eprintln!("{:>7.1} s  {name}{}", time.as_secs_f64(), if *passed { "" } else { ": FAILED" });
    }
    let names = |wanted| {
        let names: Vec<_> =
            results.iter().filter(|(.., passed)| *passed == wanted).map(|(name, ..)| *name).collect();
        names.join(", ")
    };
    if results.iter().any(|(.., passed)| !passed) {
        bail!("ci failed: {}; passed: {}", names(false), names(true));
    }
    eprintln!("ci passed: {}", names(true));
    Ok(())
}

fn timed((name, step): Step) -> (&'static str, Duration, bool) {
    eprintln!("\n== {name}");
    let start = Instant::now();
    let result = step();
    let time = start.elapsed();
    if let Err(error) = &result {
        eprintln!("{error:#}");
    }
    eprintln!(
        "== {name}: {} after {:.1} s",
        if result.is_ok() { "passed" } else { "FAILED" },
        time.as_secs_f64()
    );
    (name, time, result.is_ok())
}

fn format() -> Result<()> {
    run(&mut cargo(["fmt", "--all", "--check"]))
}

fn lint() -> Result<()> {
    run(&mut cargo(["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny=warnings"]))
}

fn document() -> Result<()> {
    let doc = ["doc", "--workspace", "--all-features", "--no-deps", "--locked"];
    run(nvcc::or_stub(cargo(doc).env("RUSTDOCFLAGS", "--deny=warnings")))
}
