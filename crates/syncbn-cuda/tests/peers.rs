//! Every law of the testkit with ranks that meet inside their kernels, one rank on each GPU; and tests of such groups.
//!
//! Ranks are threads here, and processes in `processes.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::num::NonZeroUsize;
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use common::{CHANNELS, Rig, Written, device_gaps, devices, needs, open_rank};
use syncbn_comm::{ThreadComm, ThreadGroup};
use syncbn_core::{
    CollectiveId, CommError, CommErrorKind, Communicator, Config, ErrorKind, HostCommunicator, Numbers,
    SingleRank, Storage, ViaHost,
};
use syncbn_cuda::Cuda;
use syncbn_cuda::nccl::{NcclCommunicator, NcclId};
use syncbn_cuda::peers::PeerCommunicator;
use syncbn_testkit::spies::Spy;
use syncbn_testkit::{Ability, Gap, Harness, Join, Opened, Unavailable};

const TIMEOUT: Duration = Duration::from_secs(60);
/// How long anything may take that does not wait.
const PATIENCE: Duration = Duration::from_secs(20);

fn gpus() -> Result<&'static [Cuda], Unavailable> {
    static GPUS: OnceLock<Result<Vec<Cuda>, Unavailable>> = OnceLock::new();
    let open = || {
        Cuda::open(0).map_err(|error| Unavailable(error.to_string()))?;
        Ok(devices())
    };
    GPUS.get_or_init(open).as_deref().map_err(Clone::clone)
}

#[derive(Clone)]
struct PeerHarness;

impl Harness for PeerHarness {
    type Backend = Cuda;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn open(&self, rank: usize) -> Result<Opened<Cuda>, Unavailable> {
        open_rank(gpus()?, rank)
    }

    fn gaps(&self) -> Vec<Gap> {
        let compares = Gap {
            ability: Ability::ComparesCalls,
            reason: "kernels compare them, so that a difference shows late; this file's tests look for it",
        };
        [device_gaps(), vec![compares]].concat()
    }

    fn max_world_size(&self) -> usize {
        gpus().map_or(1, <[Cuda]>::len)
    }

    fn group(&self, world_size: NonZeroUsize) -> Vec<Join<Cuda>> {
        let direct = world_size.get() > 1;
        let over_peers = |host: ThreadComm| -> Join<Cuda> {
            Box::new(move |cuda, _| {
                let peers = PeerCommunicator::new(cuda, ViaHost(host), TIMEOUT).unwrap();
                assert_eq!(peers.reason().is_none(), direct, "{peers:?}");
                Ok(Arc::new(peers) as Arc<dyn Communicator<Cuda>>)
            })
        };
        ranks_of(world_size.get(), TIMEOUT).into_iter().map(over_peers).collect()
    }
}

syncbn_testkit::conformance!(peers: PeerHarness, types: [f32, f64, f16, bf16]);

/// The communicator beneath: threads.
fn ranks_of(world_size: usize, timeout: Duration) -> Vec<ThreadComm> {
    ThreadGroup::new(NonZeroUsize::new(world_size).unwrap(), timeout).unwrap()
}

/// Runs the body once for each of so many ranks of a new group; not at all on a machine with fewer GPUs.
fn on_ranks(world_size: usize, timeout: Duration, body: impl Fn(&Cuda, PeerCommunicator) + Sync) {
    on_ranks_over(world_size, timeout, |cuda, host| {
        body(cuda, PeerCommunicator::new(cuda, ViaHost(host), timeout).unwrap());
    });
}

/// The same with the communicator beneath.
fn on_ranks_over(world_size: usize, timeout: Duration, body: impl Fn(&Cuda, ThreadComm) + Sync) {
    let gpus = devices();
    if gpus.len() < world_size {
        return needs(&format!("{world_size} GPUs"));
    }
    let ranks = ranks_of(world_size, timeout);
    let body = &body;
    thread::scope(|scope| {
        for (cuda, host) in gpus.iter().zip(ranks) {
            scope.spawn(move || body(cuda, host));
        }
    });
}

/// The failure that a rank's steps end with, and how long it took.
fn first_failure(rig: &mut Rig) -> (syncbn_core::Error, Duration) {
    let began = Instant::now();
    loop {
        thread::sleep(Duration::from_millis(20));
        match rig.try_step() {
            Err(error) => return (error, began.elapsed()),
            Ok(()) => assert!(began.elapsed() < TIMEOUT, "nobody has told this rank"),
        }
    }
}

fn root(error: &syncbn_core::Error) -> CommError {
    let ErrorKind::Communicator(cause) = &*error.kind else { panic!("{error}") };
    let mut root = cause.clone();
    while let CommErrorKind::Poisoned(earlier) = &root.kind {
        root = (**earlier).clone();
    }
    root
}

/// The state is not trusted until a snapshot is loaded, in a new group.
fn trains_on(rig: &mut Rig, snapshot: &syncbn_core::State<f32>) {
    let refused = rig.try_step().unwrap_err();
    assert!(matches!(*refused.kind, ErrorKind::Untrusted), "{refused}");
    rig.queue.synchronize().unwrap();
    rig.layer.set_group(SingleRank);
    rig.layer.load_state(&rig.queue, snapshot).unwrap();
    rig.step();
    assert_ne!(rig.written().0, *snapshot);
}

#[test]
fn one_rank_and_two_ranks_of_one_device_go_through_the_communicator_beneath() {
    on_ranks(1, TIMEOUT, |cuda, alone| {
        assert_eq!(alone.reason(), Some("there is one rank"));
        Rig::new(cuda, alone, 3).step();
    });
    let Some(cuda) = devices().into_iter().next() else { return };
    let ranks = ranks_of(2, TIMEOUT);
    thread::scope(|scope| {
        for (rank, host) in ranks.into_iter().enumerate() {
            let cuda = &cuda;
            scope.spawn(move || {
                let both = PeerCommunicator::new(cuda, ViaHost(host), TIMEOUT).unwrap();
                let reason = format!("rank {} is on the same device", 1 - rank);
                assert_eq!(both.reason(), Some(reason.as_str()));
                Rig::new(cuda, both, 3).step();
            });
        }
    });
}

#[test]
fn a_rank_that_does_not_come_is_named_in_time_and_the_state_can_be_restored() {
    let timeout = Duration::from_secs(1);
    on_ranks(2, timeout, |cuda, peers| {
        let mut rig = Rig::new(cuda, peers, 3);
        rig.step();
        let snapshot = rig.layer.state(&rig.queue).unwrap();
        if rig.rank() == 1 {
            return thread::sleep(3 * timeout);
        }
        let (error, elapsed) = first_failure(&mut rig);
        assert!(elapsed < timeout + Duration::from_secs(1), "{elapsed:?}");
        let cause = root(&error);
        assert!(matches!(&cause.kind, CommErrorKind::Timeout { missing, .. } if *missing == [1]), "{error}");
        assert!(cause.late && error.to_string().contains("forward of layer `bn`"), "{error}");
        trains_on(&mut rig, &snapshot);
    });
}

/// A rank with another eps, and a rank in the forward pass while the other is in the backward one: both errors name the other's call.
#[test]
fn ranks_in_different_calls_are_told_where_the_others_are() {
    let timeout = Duration::from_secs(5);
    on_ranks(2, timeout, |cuda, peers| {
        let mut rig = Rig::new(cuda, peers, 3);
        rig.step();
        let snapshot = rig.layer.state(&rig.queue).unwrap();
        let saved = rig.forward();
        if rig.rank() == 1 {
            drop(rig.forward());
        } else {
            rig.backward(&saved);
        }
        let (error, elapsed) = first_failure(&mut rig);
        assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
        let other = 1 - rig.rank();
        let cause = root(&error);
        let CommErrorKind::OutOfStep { others } = &cause.kind else { panic!("{error}") };
        assert_eq!(others[0].0, other, "{error}");
        assert!(others[0].1.to_string().contains(if other == 1 { "forward" } else { "backward" }), "{error}");
        trains_on(&mut rig, &snapshot);
    });
    on_ranks(2, timeout, |cuda, peers| {
        let eps = if Communicator::rank(&peers) == 1 { 1e-3 } else { 1e-5 };
        let mut rig = Rig::with_config(cuda, peers, 3, Config::new(CHANNELS).with_eps(eps));
        let before = rig.layer.state(&rig.queue).unwrap();
        let (error, elapsed) = first_failure(&mut rig);
        assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
        assert!(matches!(root(&error).kind, CommErrorKind::Disagree(_)), "{error}");
        trains_on(&mut rig, &before);
    });
}

#[test]
fn a_poisoned_group_ends_on_every_rank() {
    let timeout = Duration::from_secs(2);
    on_ranks(2, timeout, |cuda, peers| {
        let mut rig = Rig::new(cuda, peers, 3);
        rig.step();
        rig.queue.synchronize().unwrap();
        if rig.rank() == 1 {
            let kind = CommErrorKind::Disagree("this rank is out of memory".into());
            let cause = CommError { rank: 1, world_size: 2, call: None, late: false, kind };
            Communicator::poison(rig.layer.group(), &cause);
            let error = rig.try_step().unwrap_err();
            assert!(error.to_string().contains("out of memory"), "{error}");
            return;
        }
        let (_, elapsed) = first_failure(&mut rig);
        assert!(elapsed < timeout + Duration::from_secs(1), "{elapsed:?}");
    });
}

/// A rank with few channels ends its pass while the other waits for more: it is in another call, and not late.
#[test]
fn ranks_in_calls_of_different_channels_are_told_where_the_others_are() {
    let timeout = Duration::from_secs(5);
    for samples in [1, 3, 300] {
        on_ranks(2, timeout, |cuda, peers| {
            let peers = Arc::new(peers);
            let layer = |channels| Rig::with_config(cuda, peers.clone(), samples, Config::new(channels));
            let (mut few, mut many) = (layer(1), layer(70));
            few.step();
            many.step();
            let (of_few, of_many) = (few.forward(), many.forward());
            let (rig, saved) = if few.rank() == 0 { (&mut many, of_many) } else { (&mut few, of_few) };
            rig.backward(&saved);
            let began = Instant::now();
            rig.queue.synchronize().unwrap();
            assert!(began.elapsed() < timeout / 2, "the kernels waited for {:?}", began.elapsed());
            let cause = root(&rig.try_step().unwrap_err());
            let CommErrorKind::OutOfStep { others } = &cause.kind else { panic!("{cause}") };
            assert_eq!(others[0].0, 1 - cause.rank, "{cause}");
        });
    }
}

/// What a step of every rank writes, with batches of 3 images, 6, 9 and so on.
fn written_by(
    gpus: &[Cuda],
    channels: usize,
    group: impl Fn(&Cuda, ThreadComm) -> Arc<dyn Communicator<Cuda>> + Sync,
) -> Vec<Written> {
    let group = &group;
    thread::scope(|scope| {
        let ranks: Vec<_> = gpus
            .iter()
            .zip(ranks_of(gpus.len(), TIMEOUT))
            .enumerate()
            .map(|(rank, (cuda, host))| {
                scope.spawn(move || {
                    let (group, config) = (group(cuda, host), Config::new(channels));
                    let mut rig = Rig::with_config(cuda, group, 3 * (rank + 1), config);
                    rig.step();
                    rig.written()
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn sums_inside_kernels_have_the_bits_of_sums_in_host_memory() {
    let gpus = devices();
    if gpus.len() < 2 {
        return needs("2 GPUs");
    }
    for channels in [5, 5000] {
        let inside = written_by(&gpus, channels, |cuda, host| {
            let peers = PeerCommunicator::new(cuda, ViaHost(host), TIMEOUT).unwrap();
            assert_eq!(peers.reason(), None);
            Arc::new(peers)
        });
        let host = written_by(&gpus, channels, |_, host| Arc::new(ViaHost(host)));
        assert_eq!(inside, host);
    }
}

/// Where forward passes meet, backward passes do, too: a layer prepares for both at once.
#[test]
fn both_passes_of_a_layer_meet_in_the_same_place() {
    for (channels, sums_beneath) in [(4097, 0), (8192, 0), (8193, 2)] {
        on_ranks_over(2, TIMEOUT, |cuda, host| {
            let beneath = Spy::new(Arc::new(ViaHost(host)));
            let peers = PeerCommunicator::new(cuda, beneath.clone(), TIMEOUT).unwrap();
            let mut rig = Rig::with_config(cuda, peers, 1, Config::new(channels));
            drop(beneath.take_calls()); // those of the constructors
            rig.step();
            rig.queue.synchronize().unwrap();
            assert_eq!(beneath.take_calls().len(), sums_beneath, "{channels} channels");
        });
    }
}

/// Two groups of two among four GPUs, used in turn with the group of all.
#[test]
fn sub_groups_keep_their_statistics_apart() {
    const RANKS: usize = 4;
    let gpus = devices();
    if gpus.len() < RANKS {
        return needs("4 GPUs");
    }
    let halves: Vec<ThreadComm> = (0..2).flat_map(|_| ranks_of(2, TIMEOUT)).collect();
    let all = ranks_of(RANKS, TIMEOUT);
    thread::scope(|scope| {
        for (rank, ((cuda, half), all)) in gpus.iter().zip(halves).zip(all).enumerate() {
            scope.spawn(move || {
                let peers = |host| PeerCommunicator::new(cuda, ViaHost(host), TIMEOUT).unwrap();
                let (mut half, mut all) = (Rig::new(cuda, peers(half), 3), Rig::new(cuda, peers(all), 3));
                half.fill_x(if rank < 2 { 1.0 } else { 5.0 });
                for _ in 0..50 {
                    half.step();
                    all.step();
                }
                let mean = |rig: &mut Rig| rig.written().0.running_mean.unwrap()[0];
                let (half, all) = (mean(&mut half), mean(&mut all));
                let expected = if rank < 2 { all } else { 5.0 * all };
                assert!((half - expected).abs() <= 1e-5 * expected.abs(), "{half}, expected {expected}");
            });
        }
    });
}

/// A sum of NCCL's that waits for its peer, on a stream of its own, as an optimiser's may: passes go on beside it.
#[test]
fn a_kernel_that_waits_on_another_stream_starves_no_pass() {
    let id = match NcclId::new() {
        Ok(id) => id,
        Err(error) => return drop(common::missing("nccl", &error)),
    };
    let barrier = Barrier::new(2);
    on_ranks(2, TIMEOUT, |cuda, peers| {
        let rank = Communicator::rank(&peers);
        let nccl = NcclCommunicator::new(cuda, &id, rank, NonZeroUsize::new(2).unwrap(), TIMEOUT).unwrap();
        let side = cuda.context().new_stream().unwrap();
        let mut numbers = cuda.upload(&side, &vec![1.0_f32; 1 << 20]).unwrap();
        let mut sum = || {
            let numbers = Numbers::F32(<Cuda as Storage>::mem_mut(&mut numbers));
            nccl.sum_numbers(&CollectiveId::new("gradients", 1 << 20), cuda, &side, numbers).unwrap();
        };
        let mut rig = Rig::new(cuda, peers, 3);
        rig.step();
        rig.queue.synchronize().unwrap();
        barrier.wait();
        if rank == 0 {
            sum(); // waits on the device for rank 1, which comes when the steps are done
        }
        for _ in 0..100 {
            rig.step();
        }
        rig.queue.synchronize().unwrap();
        if rank == 1 {
            sum();
        }
        nccl.wait(&side, TIMEOUT).unwrap();
        assert_eq!(rig.written().0.num_batches_tracked, Some(101));
    });
}

/// What a device needs is loaded by then: CUDA may load a kernel only when the device is idle, and here it is not.
#[test]
fn a_prepared_pass_without_samples_waits_for_nothing() {
    let barrier = Barrier::new(2);
    on_ranks(2, TIMEOUT, |cuda, peers| {
        let rank = Communicator::rank(&peers);
        let mut rig = Rig::new(cuda, peers, if rank == 0 { 0 } else { 3 });
        rig.queue.synchronize().unwrap();
        barrier.wait();
        let side = cuda.context().new_stream().unwrap();
        let gate = (rank == 0).then(|| common::block(cuda, &side, PATIENCE));
        let began = Instant::now();
        rig.step();
        rig.queue.synchronize().unwrap();
        assert!(began.elapsed() < PATIENCE / 2, "a step took {:?}", began.elapsed());
        barrier.wait();
        drop(gate);
        side.synchronize().unwrap();
    });
}

/// Ranks with batches of every size from 0 on, parameters only, two groups of one device on streams of their own: 20,000 steps.
#[test]
fn groups_outlive_thousands_of_steps_of_changing_shapes() {
    let world_size = devices().len();
    if world_size == 0 {
        return;
    }
    let (first, second) = (ranks_of(world_size, TIMEOUT), ranks_of(world_size, TIMEOUT));
    thread::scope(|scope| {
        for ((cuda, one), two) in devices().into_iter().zip(first).zip(second) {
            scope.spawn(move || {
                let rank = HostCommunicator::rank(&one);
                let group = |host| Arc::new(PeerCommunicator::new(&cuda, ViaHost(host), TIMEOUT).unwrap());
                let (one, two) = (group(one), group(two));
                let rigs = |group: &Arc<PeerCommunicator>| {
                    (0..5)
                        .map(|samples| Rig::new(&cuda, group.clone(), (samples + rank) % 5))
                        .collect::<Vec<_>>()
                };
                let (mut one, mut two) = (rigs(&one), rigs(&two));
                for step in 0..20_000_usize {
                    one[step % 5].step();
                    two[step / 5 % 5].step();
                    if step % 1000 == 0 {
                        one[0].queue.synchronize().unwrap();
                    }
                }
                for rig in one.iter_mut().chain(&mut two) {
                    assert_eq!(rig.written().0.num_batches_tracked, Some(4000));
                }
            });
        }
    });
}
