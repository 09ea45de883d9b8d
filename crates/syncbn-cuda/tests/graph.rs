//! A step in a CUDA graph, collective included; and that nothing in a step waits for the device.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use common::{Rig, devices, missing};
use syncbn_core::{Communicator, Solo};
use syncbn_cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use syncbn_cuda::cudarc::driver::{CudaGraph, result};
use syncbn_cuda::nccl::{NcclCommunicator, NcclId};
use syncbn_cuda::{Cuda, CudaError};

const REPLAYS: usize = 1000;
const TIMEOUT: Duration = Duration::from_secs(60);

/// One test at a time: one of them watches the device's free memory.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

type Group = Arc<dyn Communicator<Cuda>>;

/// Steps that ran one by one and replays of one captured step, from the same state, leave the same bits.
fn replays_equal_steps(cuda: &Cuda, group: &Group, samples: usize) {
    let mut eager = Rig::new(cuda, group.clone(), samples);
    for _ in 0..REPLAYS {
        eager.step();
    }
    let eager = eager.written();

    let mut rig = Rig::new(cuda, group.clone(), samples);
    let start = rig.layer.state(&rig.queue).unwrap();
    rig.step(); // compiles, allocates and connects what a capture must not
    rig.layer.load_state(&rig.queue, &start).unwrap();
    let graph = capture(&mut rig);
    for _ in 0..REPLAYS {
        graph.launch().unwrap();
    }
    assert_eq!(rig.written(), eager);
    drop(graph);
}

fn capture(rig: &mut Rig) -> CudaGraph {
    rig.queue.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    rig.step();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    rig.queue.end_capture(flags).unwrap().unwrap()
}

#[test]
fn a_captured_step_replayed_1000_times_equals_1000_steps() {
    let _alone = alone();
    for cuda in devices() {
        let solo: Group = Arc::new(Solo);
        replays_equal_steps(&cuda, &solo, 3);
        replays_equal_steps(&cuda, &solo, 0);
    }
}

/// One rank on every GPU, with uneven batches, the first of them empty, all of them empty.
#[test]
fn a_captured_step_with_nccl_replayed_1000_times_equals_1000_steps() {
    let _alone = alone();
    let devices = devices();
    let Some(world_size) = NonZeroUsize::new(devices.len()) else { return };
    let id = match NcclId::new() {
        Ok(id) => id,
        Err(error @ CudaError::MissingLibrary { .. }) => return drop(missing("nccl", &error)),
        Err(error) => panic!("{error}"),
    };
    thread::scope(|scope| {
        for (rank, cuda) in devices.iter().enumerate() {
            scope.spawn(move || {
                let group: Group =
                    Arc::new(NcclCommunicator::new(cuda, &id, rank, world_size, TIMEOUT).unwrap());
                replays_equal_steps(cuda, &group, 3 * (rank + 1));
                replays_equal_steps(cuda, &group, rank);
                replays_equal_steps(cuda, &group, 0);
            });
        }
    });
}

/// The queue is blocked; steps return all the same, and have not run.
#[test]
fn a_step_returns_while_the_device_has_not_begun_it() {
    let _alone = alone();
    for cuda in devices() {
        let id = match NcclId::new() {
            Ok(id) => id,
            Err(error) => return drop(missing("nccl", &error)),
        };
        let nccl = NcclCommunicator::new(&cuda, &id, 0, NonZeroUsize::MIN, TIMEOUT).unwrap();
        let groups: [Group; 2] = [Arc::new(Solo), Arc::new(nccl)];
        for group in groups {
            let mut rig = Rig::new(&cuda, group, 3);
            rig.step();
            let before = rig.written();
            let free = cuda.context().mem_get_info().unwrap().0;
            let (open, gate) = channel::<()>();
            block(&rig, gate);
            let event = rig.queue.record_event(None).unwrap();
            for _ in 0..20 {
                rig.step();
            }
            assert!(!event.try_is_complete().unwrap(), "a step waited until the queue was opened");
            assert_eq!(cuda.context().mem_get_info().unwrap().0, free, "a step allocated device memory");
            open.send(()).unwrap();
            assert_ne!(rig.written().0, before.0, "the steps did not run once the queue was open");
        }
    }
}

/// Keeps the rig's queue from going on until something is sent, or so long that a step must have returned.
fn block(rig: &Rig, gate: Receiver<()>) {
    unsafe extern "C" fn receive(gate: *mut std::ffi::c_void) {
        // SAFETY: the pointer is the box below, which is taken back here, once.
        let gate = unsafe { Box::from_raw(gate.cast::<Receiver<()>>()) };
        let _ = gate.recv_timeout(TIMEOUT / 4);
    }
    rig.cuda.context().bind_to_thread().unwrap();
    let gate = Box::into_raw(Box::new(gate));
    // SAFETY: the stream is live; CUDA calls the function once, with the box.
    unsafe { result::stream::launch_host_function(rig.queue.cu_stream(), receive, gate.cast()) }.unwrap();
}
