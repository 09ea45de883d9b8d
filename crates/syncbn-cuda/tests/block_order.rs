//! Ranks that meet inside their kernels, on devices that start the blocks of a grid last to first.
//!
//! Devices do not do that, though CUDA allows it. The emulator does, for `cargo xtask test-emulated`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::env;
use std::num::NonZeroUsize;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::{Rig, devices, needs};
use syncbn_comm::ThreadGroup;
use syncbn_core::{CommErrorKind, Communicator, ViaHost};
use syncbn_cuda::peers::PeerCommunicator;

const RANKS: usize = 2;
/// So many images take more than one block for each channel, and so two kernels: the later blocks of the second wait for its first ones.
const SAMPLES: usize = 400;
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The blocks that wait for the first ones give up by themselves: nobody else stops them within `PATIENCE`.
#[test]
fn blocks_that_wait_for_a_block_that_has_not_started_end_as_an_error() {
    if env::var("SYNCBN_EMULATED_ORDER").as_deref() != Ok("backwards") {
        return needs("blocks that start last to first: cargo xtask test-emulated");
    }
    let gpus = devices();
    if gpus.len() < RANKS {
        return needs("2 GPUs");
    }
    let ranks = ThreadGroup::new(NonZeroUsize::new(RANKS).unwrap(), PATIENCE).unwrap();
    let ready = Barrier::new(RANKS);
    thread::scope(|scope| {
        for (cuda, host) in gpus.iter().zip(ranks) {
            let ready = &ready;
            scope.spawn(move || {
                let peers = Arc::new(PeerCommunicator::new(cuda, ViaHost(host), TIMEOUT).unwrap());
                assert_eq!(peers.reason(), None);
                let mut rig = Rig::new(cuda, peers.clone(), SAMPLES);
                ready.wait();
                let began = Instant::now();
                let _saved = rig.forward(); // to free it would wait for the device
                let error = peers.wait(&rig.queue, PATIENCE).unwrap_err();
                let elapsed = began.elapsed();
                peers.poison(&error); // so that no kernel goes on if this test fails
                let CommErrorKind::Poisoned(cause) = &error.kind else { panic!("{error}") };
                assert!(
                    matches!(cause.kind, CommErrorKind::Unfinished { timeout } if timeout == TIMEOUT),
                    "{error}"
                );
                assert!(cause.late && error.to_string().contains("forward of layer `bn`"), "{error}");
                assert!((RANKS as u32 * TIMEOUT..PATIENCE).contains(&elapsed), "{elapsed:?}");
            });
        }
    });
}
