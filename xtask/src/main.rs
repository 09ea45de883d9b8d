//! The project's policy, as commands that run: `cargo xtask demo`, `cargo xtask test`, `cargo xtask ci`.
//!
//! One file per command. Whatever is built goes to cargo's one target directory.
//!
//! Deliberately not here: installing anything. `.ci/run` does that, and then runs `cargo xtask ci`.

mod bench;
mod cargo;
mod ci;
mod demo;
mod test;
mod test_emulated;
mod test_gpu;
mod test_python;

use std::process::ExitCode;

use clap::Parser;

/// The project's policy, as commands.
#[derive(Parser)]
enum Command {
    /// Single, local and synchronised batch norm side by side; fails when a claim does not hold.
    #[command(disable_help_flag = true)]
    Demo(demo::Args),
    /// How exact the results over several ranks are, beside those of one.
    #[command(disable_help_flag = true)]
    Accuracy(demo::Args),
    /// All tests that this machine can run, doctests and the README's lines among them.
    Test,
    /// All tests that need a GPU, here or as a bundle for a machine without Rust; exits with 2 where there is no GPU.
    TestGpu(test_gpu::Args),
    /// The tests of the CUDA backend on this processor, without a GPU; needs a C++ compiler (`CXX`, or `c++`).
    TestEmulated(test_emulated::Args),
    /// The wheel for PyTorch, built and installed, and its tests.
    TestPython(test_python::Args),
    /// Times forward and backward of a backend, and writes results.json.
    #[command(disable_help_flag = true)]
    Bench(bench::Args),
    /// Joins directories of results, ours and the peers', into a table and charts.
    #[command(disable_help_flag = true)]
    BenchReport(bench::Args),
    /// Everything that a change has to pass.
    Ci,
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Demo(args) => demo::run_demo(&args),
        Command::Accuracy(args) => demo::run_accuracy(&args),
        Command::Test => test::run_tests(),
        Command::TestEmulated(args) => test_emulated::run_tests(&args),
        Command::TestPython(args) => test_python::run_tests(&args),
        Command::Bench(args) => bench::run_bench(&args),
        Command::BenchReport(args) => bench::run_report(&args),
        Command::Ci => ci::run_all(),
        Command::TestGpu(args) => return exit(test_gpu::run_tests(&args)),
    };
    exit(result.map(|()| ExitCode::SUCCESS))
}

fn exit(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
