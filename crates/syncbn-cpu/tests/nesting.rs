//! Layers inside rayon's pools, with ranks that are threads, and with locks held: every pass ends.

#![allow(clippy::unwrap_used)] // tests panic

use std::num::NonZeroUsize;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use syncbn_comm::threads;
use syncbn_core::{Config, Geometry, SyncBatchNorm, ViaHost, View, ViewMut};
use syncbn_cpu::Cpu;

/// Enough for a slow machine: a pass that does not end takes for ever.
const DEADLINE: Duration = Duration::from_secs(120);

/// Enough elements for the kernels to share the work among threads.
const SHAPE: [usize; 3] = [2, 16, 8192];

fn ends<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(work()));
    receive.recv_timeout(DEADLINE).unwrap()
}

fn forward(layer: &mut SyncBatchNorm<Cpu, f32>) {
    let geometry = Geometry::channels_first(&SHAPE).unwrap();
    let x: Vec<f32> = (0..geometry.len()).map(|i| (i % 97) as f32).collect();
    let mut y = vec![f32::NAN; x.len()];
    let target = ViewMut::new(&mut y[..], geometry).unwrap();
    layer.forward(&(), View::new(&x[..], geometry).unwrap(), target).unwrap();
    assert!(y.iter().all(|y| y.is_finite()));
}

fn two_ranks() {
    let runs = threads::run(NonZeroUsize::new(2).unwrap(), DEADLINE, |comm| {
        let comm = ViaHost(comm);
        forward(&mut SyncBatchNorm::new("bn", Config::new(SHAPE[1]), Cpu, &(), comm).unwrap());
    });
    assert_eq!(runs.unwrap().len(), 2);
}

#[test]
fn ranks_started_by_every_thread_of_a_pool_end() {
    ends(|| (0..2 * rayon::current_num_threads()).into_par_iter().for_each(|_| two_ranks()));
    let pool = ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    ends(move || pool.install(two_ranks));
}

/// A thread of a pool that waits for a kernel takes up no other task, which would wait for the lock that this one holds.
#[test]
fn tasks_of_a_pool_that_share_a_layer_under_a_lock_end() {
    let layer = SyncBatchNorm::<Cpu, f32>::local("bn", Config::new(SHAPE[1]), Cpu, &()).unwrap();
    let layer = Mutex::new(layer);
    ends(move || (0..64).into_par_iter().for_each(|_| forward(&mut layer.lock().unwrap())));
}

#[test]
fn ranks_that_are_pools_of_their_own_end() {
    let runs = ends(|| {
        threads::run(NonZeroUsize::new(3).unwrap(), DEADLINE, |_| {
            let pool = ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            pool.install(|| (0..4).into_par_iter().for_each(|_| two_ranks()));
        })
    });
    runs.unwrap();
}
