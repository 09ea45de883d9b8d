//! Every law of the testkit with NCCL between the ranks, one rank on each GPU; and tests of NCCL's groups.
//!
//! Groups are made once and used again, since making one takes a second. Run it with `--test-threads=1`, as `cargo
//! xtask test-gpu` does, so that no two tests use the same devices at once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use common::{Rig, device_gaps, devices, download, needs, open_rank};
use syncbn_core::{
    CollectiveId, CommError, CommErrorKind, Communicator, ErrorKind, Group, Numbers, SingleRank, Storage,
};
use syncbn_cuda::Cuda;
use syncbn_cuda::nccl::{NcclCommunicator, NcclId};
use syncbn_testkit::report::absent;
use syncbn_testkit::{Ability, Gap, Harness, Join, Opened, Unavailable};

const TIMEOUT: Duration = Duration::from_secs(60);

/// The machine's GPUs, if NCCL is there, too.
fn gpus() -> Result<&'static [Cuda], Unavailable> {
    static GPUS: OnceLock<Result<Vec<Cuda>, Unavailable>> = OnceLock::new();
    let open = || {
        let unavailable = |error: syncbn_cuda::CudaError| Unavailable(error.to_string());
        Cuda::open(0).map_err(unavailable)?;
        NcclId::new().map_err(unavailable)?;
        Ok(devices())
    };
    GPUS.get_or_init(open).as_deref().map_err(Clone::clone)
}

/// One group's ranks, each made by the first thread that uses it.
struct Set {
    id: NcclId,
    ranks: Vec<OnceLock<Arc<NcclCommunicator>>>,
}

/// A group of this size that is not in use.
fn free_set(world_size: usize) -> Arc<Set> {
    static SETS: Mutex<Vec<Arc<Set>>> = Mutex::new(Vec::new());
    let mut sets = SETS.lock().unwrap();
    let free = |set: &&Arc<Set>| set.ranks.len() == world_size && set.idle();
    if let Some(set) = sets.iter().find(free) {
        return set.clone();
    }
    let ranks = (0..world_size).map(|_| OnceLock::new()).collect();
    sets.push(Arc::new(Set { id: NcclId::new().unwrap(), ranks }));
    sets.last().unwrap().clone()
}

impl Set {
    /// Layers hold the communicators that they use.
    fn idle(&self) -> bool {
        self.ranks.iter().filter_map(OnceLock::get).all(|rank| Arc::strong_count(rank) == 1)
    }
}

#[derive(Clone)]
struct NcclHarness;

impl Harness for NcclHarness {
    type Backend = Cuda;

    fn name(&self) -> &'static str {
        "nccl"
    }

    fn open(&self, rank: usize) -> Result<Opened<Cuda>, Unavailable> {
        open_rank(gpus()?, rank)
    }

    fn gaps(&self) -> Vec<Gap> {
        let compares = Gap {
            ability: Ability::ComparesCalls,
            reason: "NCCL sums in the devices' memory, and no rank sees what another one sums",
        };
        [device_gaps(), vec![compares]].concat()
    }

    fn max_world_size(&self) -> usize {
        gpus().map_or(1, <[Cuda]>::len)
    }

    fn group(&self, world_size: NonZeroUsize) -> Vec<Join<Cuda>> {
        let set = free_set(world_size.get());
        let place = |rank| -> Join<Cuda> {
            let set = set.clone();
            Box::new(move |cuda, _| Ok(join(&set, cuda, rank)))
        };
        (0..world_size.get()).map(place).collect()
    }
}

fn join(set: &Set, cuda: &Cuda, rank: usize) -> Arc<dyn Communicator<Cuda>> {
    let world_size = NonZeroUsize::new(set.ranks.len()).unwrap();
    let made = set.ranks[rank]
        .get_or_init(|| Arc::new(NcclCommunicator::new(cuda, &set.id, rank, world_size, TIMEOUT).unwrap()));
    made.clone()
}

syncbn_testkit::conformance!(nccl: NcclHarness, types: [f32, f64, f16, bf16]);

/// Runs the body once for each of so many ranks of a new NCCL group; not at all on a machine with fewer GPUs.
fn on_ranks(world_size: usize, timeout: Duration, body: impl Fn(&Cuda, NcclCommunicator) + Sync) {
    let gpus = match gpus() {
        Ok(gpus) if gpus.len() >= world_size => gpus,
        Ok(_) => return needs(&format!("{world_size} GPUs")),
        Err(why) => return absent("nccl", "nccl::nccl", &why),
    };
    let (id, size) = (NcclId::new().unwrap(), NonZeroUsize::new(world_size).unwrap());
    let body = &body;
    thread::scope(|scope| {
        for (rank, cuda) in gpus[..world_size].iter().enumerate() {
            scope.spawn(move || body(cuda, NcclCommunicator::new(cuda, &id, rank, size, timeout).unwrap()));
        }
    });
}

/// The sums of a value and of 1 over the ranks.
fn sum(comm: &NcclCommunicator, cuda: &Cuda, value: f64) -> Vec<f64> {
    let queue = cuda.context().new_stream().unwrap();
    let mut buffer = cuda.upload(&queue, &[value, 1.0]).unwrap();
    let numbers = Numbers::F64(<Cuda as Storage>::mem_mut(&mut buffer));
    comm.sum_numbers(&CollectiveId::new("sum", 2), cuda, &queue, numbers).unwrap();
    comm.wait(&queue, TIMEOUT).unwrap();
    download(cuda, &queue, &buffer)
}

#[test]
fn a_world_of_one_is_its_own_sum_and_splits() {
    on_ranks(1, TIMEOUT, |cuda, comm| {
        assert_eq!(sum(&comm, cuda, 0.1), [0.1, 1.0]);
        assert!(comm.split(None, 0).unwrap().is_none());
        let half = comm.split(Some(3), -1).unwrap().unwrap();
        assert_eq!((half.rank(), half.world_size().get()), (0, 1));
        assert_eq!(sum(&half, cuda, 0.2), [0.2, 1.0]);
        drop(comm);
        assert_eq!(sum(&half, cuda, 0.3), [0.3, 1.0]);
    });
}

#[test]
fn a_group_that_nobody_joins_is_a_typed_error_in_time() {
    let gpus = match gpus() {
        Ok(gpus) => gpus,
        Err(why) => return absent("nccl", "nccl::nccl", &why),
    };
    let (id, two) = (NcclId::new().unwrap(), NonZeroUsize::new(2).unwrap());
    let began = Instant::now();
    let error = NcclCommunicator::new(&gpus[0], &id, 0, two, Duration::from_secs(2)).unwrap_err();
    assert!(matches!(error, syncbn_cuda::CudaError::NotMet { .. }), "{error}");
    assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
    let error = NcclCommunicator::new(&gpus[0], &id, 2, two, TIMEOUT).unwrap_err();
    assert!(matches!(error, syncbn_cuda::CudaError::Rank { .. }), "{error}");
}

#[test]
fn ranks_are_ordered_by_key_and_old_rank_and_keep_their_sums_apart() {
    on_ranks(2, TIMEOUT, |cuda, comm| {
        let turned = comm.split(Some(0), -i32::try_from(comm.rank()).unwrap()).unwrap().unwrap();
        assert_eq!(turned.rank(), 1 - comm.rank());
        let tied = comm.split(Some(0), 5).unwrap().unwrap();
        assert_eq!(tied.rank(), comm.rank());
        let alone = comm.split((comm.rank() == 0).then_some(1), 0).unwrap();
        assert_eq!(alone.is_some(), comm.rank() == 0);
        for round in 0..20 {
            let value = f64::from(round) + comm.rank() as f64;
            let both = 2.0 * f64::from(round) + 1.0;
            assert_eq!(sum(&turned, cuda, value), [both, 2.0]);
            if let Some(alone) = &alone {
                assert_eq!(sum(alone, cuda, value), [value, 1.0]);
            }
            assert_eq!(sum(&comm, cuda, value), [both, 2.0]);
        }
    });
}

#[test]
fn four_ranks_make_two_independent_worlds_of_two() {
    on_ranks(4, TIMEOUT, |cuda, comm| {
        let color = u16::try_from(comm.rank() % 2).unwrap();
        let half = comm.split(Some(color), 0).unwrap().unwrap();
        assert_eq!((half.rank(), half.world_size().get()), (comm.rank() / 2, 2));
        let expected = f64::from(color) * 2.0 + 2.0;
        assert_eq!(sum(&half, cuda, comm.rank() as f64), [expected, 2.0]);
    });
}

/// The rank's peers get a typed error that names layer and pass, their stream is released, and the layer needs a snapshot.
#[test]
fn a_rank_that_does_not_come_is_an_error_in_time_and_the_state_can_be_restored() {
    let timeout = Duration::from_secs(2);
    on_ranks(2, timeout, |cuda, comm| {
        let mut rig = Rig::new(cuda, Arc::new(comm), 3);
        rig.step();
        let snapshot = rig.layer.state(&rig.queue).unwrap();
        if rig.rank() == 1 {
            // Holds its communicator for as long as the other needs to give up.
            return thread::sleep(3 * timeout);
        }
        let began = Instant::now();
        let first = (0..).find_map(|_| {
            thread::sleep(Duration::from_millis(50));
            rig.try_step().err()
        });
        let first = first.unwrap();
        assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
        let ErrorKind::Communicator(cause) = &*first.kind else { panic!("{first}") };
        let mut root = cause;
        while let CommErrorKind::Poisoned(earlier) = &root.kind {
            root = earlier;
        }
        assert!(matches!(root.kind, CommErrorKind::Unfinished { .. }) && cause.late, "{first}");
        assert!(first.to_string().contains("`bn`"), "{first}");
        let refused = rig.try_step().unwrap_err();
        assert!(matches!(*refused.kind, ErrorKind::Untrusted), "{refused}");
        rig.queue.synchronize().unwrap();
        rig.layer.set_group(SingleRank);
        rig.layer.load_state(&rig.queue, &snapshot).unwrap();
        rig.step();
        assert_ne!(rig.written().0, snapshot);
    });
}

#[test]
fn groups_outlive_thousands_of_sums() {
    on_ranks(gpus().map_or(1, <[Cuda]>::len), TIMEOUT, |cuda, comm| {
        let mut rig = Rig::new(cuda, Arc::new(comm), 2);
        for _ in 0..3000 {
            rig.step();
        }
        let (state, _) = rig.written();
        assert_eq!(state.num_batches_tracked, Some(3000));
    });
}

#[test]
fn numbers_of_either_type_are_summed_and_others_are_refused() {
    on_ranks(gpus().map_or(1, <[Cuda]>::len), TIMEOUT, |cuda, comm| {
        let queue = cuda.context().new_stream().unwrap();
        let ranks = comm.world_size().get();
        let group = Group::<Cuda>::new(comm);
        let single = |rank: usize| (0..1000).map(|i| (i + rank) as f32).collect::<Vec<_>>();
        let mut buffer = cuda.upload(&queue, &single(group.rank())).unwrap();
        group.all_reduce::<f32>("f32", cuda, &queue, <Cuda as Storage>::mem_mut(&mut buffer)).unwrap();
        let expected: Vec<f32> = (0..1000).map(|i| (0..ranks).map(|rank| (i + rank) as f32).sum()).collect();
        assert_eq!(download(cuda, &queue, &buffer), expected);
        let mut empty = cuda.upload::<f64>(&queue, &[]).unwrap();
        group.all_reduce::<f64>("nothing", cuda, &queue, <Cuda as Storage>::mem_mut(&mut empty)).unwrap();
        let numbers = Numbers::F32(<Cuda as Storage>::mem_mut(&mut buffer));
        let error = group.sum_numbers(&CollectiveId::new("short", 999), cuda, &queue, numbers).unwrap_err();
        let expected = matches!(error.kind, CommErrorKind::MessageLength { expected: 999, got: 1000 });
        assert!(expected && group.status().is_ok(), "{error}");
    });
}

/// The peers of a rank that fails get an error within the time-out.
#[test]
fn a_poisoned_group_ends_on_every_rank() {
    let timeout = Duration::from_secs(2);
    on_ranks(2, timeout, |cuda, comm| {
        let mut rig = Rig::new(cuda, comm, 3);
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
        let began = Instant::now();
        while rig.try_step().is_ok() {
            thread::sleep(Duration::from_millis(50));
            assert!(began.elapsed() < TIMEOUT, "nobody has told this rank");
        }
    });
}
