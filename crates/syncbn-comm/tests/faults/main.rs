//! The table of faults, over TCP between processes: this program starts itself once for each rank.
//!
//! Every fault has its error, in time, on every rank that lives; the layers' state is untouched by the call that failed; and the
//! ranks that are left make a new group and train on.
//!
//! `rank` is what a started process does, `job` how the tests start and watch them. `network` has the faults of networks, in
//! namespaces of Linux, `limits` those of a system that is short of something.
//!
//! Deliberately not here: faults that need no layer, which `tcp_failures.rs` and `bootstrap.rs` show.

#![cfg_attr(not(unix), allow(unused))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod job;
mod launches;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod namespaces;
#[cfg(target_os = "linux")]
mod network;
mod rank;
#[cfg(target_os = "linux")]
mod relay;
mod running;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

#[cfg(unix)]
fn main() -> ExitCode {
    if let Ok(fault) = std::env::var(job::FAULT) {
        rank::train(&fault);
        return ExitCode::SUCCESS;
    }
    #[cfg(target_os = "linux")]
    if let Ok(ranks) = std::env::var(relay::RANKS) {
        relay::run(&ranks);
        return ExitCode::SUCCESS;
    }
    let trials = [running::trials(), launches::trials()];
    #[cfg(target_os = "linux")]
    let trials = trials.into_iter().chain([network::trials(), limits::trials()]);
    let trials = trials.into_iter().flatten().collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Processes are stopped and killed with signals.
#[cfg(not(unix))]
fn main() -> ExitCode {
    eprintln!("skipped: the table of faults needs signals");
    if std::env::var("SYNCBN_REQUIRE").is_ok_and(|all| all.split(',').any(|one| one == "signals")) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}
