//! Any number of threads gives the same bits. A process has one number of threads, so that each is a process of its own.

#![allow(clippy::unwrap_used)] // tests panic

mod common;

use std::env;
use std::fmt::Write;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;

use common::{cases, noise, step, typed};
use syncbn_core::{Element, Kernels, bf16, f16};
use syncbn_cpu::Cpu;

const TEST: &str = "any_number_of_threads_gives_the_same_bits";

/// Where a child process writes what it got.
const RESULTS: &str = "SYNCBN_TEST_RESULTS";

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    if let Some(path) = env::var_os(RESULTS) {
        let results = [results::<f32>(), results::<f64>(), results::<f16>(), results::<bf16>()];
        return fs::write(path, results.concat()).unwrap();
    }
    let alone = results_on(1);
    assert_eq!(alone.lines().count(), 4 * 2 * cases().len());
    for threads in [2, 3, 7] {
        for (results, alone) in results_on(threads).lines().zip(alone.lines()) {
            assert_eq!(results, alone, "on {threads} threads");
        }
    }
}

/// What a process with so many threads gets.
fn results_on(threads: usize) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{threads}", std::process::id()));
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", TEST]).env(RESULTS, &path).env("RAYON_NUM_THREADS", threads.to_string());
    let output = child.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let results = fs::read_to_string(&path).unwrap();
    fs::remove_file(path).unwrap();
    results
}

/// A line for each case: a hash of all bits.
fn results<T: Element>() -> String
where
    Cpu: Kernels<T>,
{
    let mut lines = String::new();
    for (case, in_place) in cases().into_iter().flat_map(|case| [(case, false), (case, true)]) {
        let (x, dy) = (typed::<T>(&noise(case.len(), 1)), typed::<T>(&noise(case.len(), 2)));
        let mut hash = DefaultHasher::new();
        step(case, &x, &dy, in_place).bits().hash(&mut hash);
        writeln!(lines, "{} {case:?} {in_place} {:x}", T::DTYPE, hash.finish()).unwrap();
    }
    lines
}
