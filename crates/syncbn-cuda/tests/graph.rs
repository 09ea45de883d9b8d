//! A step in a CUDA graph, collective included; and that nothing in a step waits for the device.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use common::{Rig, block, devices, missing};
use syncbn_comm::ThreadGroup;
use syncbn_core::{Communicator, ErrorKind, SingleRank, ViaHost};
use syncbn_cuda::cudarc::driver::CudaGraph;
use syncbn_cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use syncbn_cuda::nccl::{NcclCommunicator, NcclId};
use syncbn_cuda::peers::PeerCommunicator;
use syncbn_cuda::{Cuda, CudaError, allow_capture};

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
    begin_capture(rig);
    // SAFETY: each test waits for the last replay while the rig still lives, uses nothing else of it meanwhile, and drops the graph
    // before it.
    unsafe { allow_capture(|| rig.step()) };
    end_capture(rig).unwrap()
}

fn begin_capture(rig: &Rig) {
    rig.queue.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
}

fn end_capture(rig: &Rig) -> Option<CudaGraph> {
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    rig.queue.end_capture(flags).unwrap()
}

/// No safe code makes a graph of a pass, whose replays would use what the pass was lent; and none breaks a capture by trying.
#[test]
fn a_pass_is_captured_only_where_that_was_allowed() {
    let _alone = alone();
    for cuda in devices() {
        let mut rig = Rig::new(&cuda, SingleRank, 3);
        rig.step();
        begin_capture(&rig);
        let error = rig.try_step().unwrap_err();
        assert!(error.to_string().contains("allow_capture"), "{error}");
        assert!(matches!(*error.kind, ErrorKind::Backend { .. }), "{error}");
        let queue = rig.queue.clone();
        let error = rig.layer.state(&queue).unwrap_err();
        assert!(error.to_string().contains("cannot be part of a captured graph"), "{error}");
        drop(end_capture(&rig));
        let before = rig.written();
        rig.step();
        assert_ne!(rig.written().0, before.0);
    }
}

/// What was saved before a capture and used in a captured backward pass belongs to the graph: no later forward pass gets it.
#[test]
fn what_a_graph_reads_is_not_lent_again() {
    let _alone = alone();
    for cuda in devices() {
        let mut rig = Rig::new(&cuda, SingleRank, 3);
        rig.step();
        let saved = rig.forward();
        begin_capture(&rig);
        // SAFETY: as in `capture`.
        unsafe { allow_capture(|| rig.backward(&saved)) };
        let graph = end_capture(&rig).unwrap();
        graph.launch().unwrap();
        let first = rig.written();
        drop(saved);
        rig.fill_x(7.0);
        for _ in 0..3 {
            drop(rig.forward());
        }
        rig.fill_x(1.0);
        graph.launch().unwrap();
        assert_eq!(rig.written().1[1], first.1[1], "dx of a replay, after other forward passes");
        drop(graph);
    }
}

#[test]
fn a_captured_step_replayed_1000_times_equals_1000_steps() {
    let _alone = alone();
    for cuda in devices() {
        let solo: Group = Arc::new(SingleRank);
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

/// The same with ranks that meet inside their kernels: what counts their passes is on the device.
#[test]
fn a_captured_step_with_peers_replayed_1000_times_equals_1000_steps() {
    let _alone = alone();
    let devices = devices();
    let Some(world_size) = NonZeroUsize::new(devices.len()) else { return };
    let ranks = ThreadGroup::new(world_size, TIMEOUT).unwrap();
    thread::scope(|scope| {
        for (rank, (cuda, host)) in devices.iter().zip(ranks).enumerate() {
            scope.spawn(move || {
                let group: Group = Arc::new(PeerCommunicator::new(cuda, ViaHost(host), TIMEOUT).unwrap());
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
        let groups: [Group; 2] = [Arc::new(SingleRank), Arc::new(nccl)];
        for group in groups {
            let mut rig = Rig::new(&cuda, group, 3);
            rig.step();
            let before = rig.written();
            let free = cuda.context().mem_get_info().unwrap().0;
            let open = block(&cuda, &rig.queue, TIMEOUT / 4);
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
