//! The machine's NVIDIA GPUs: shared by any number of ranks that meet in host memory, or one to a rank with NCCL between them,
//! in one process or in one for each.

use std::num::NonZeroUsize;
use std::sync::Arc;

use syncbn_comm::{BootstrapError, LaunchEnv};
use syncbn_core::{Communicator, Group};
use syncbn_cuda::nccl::{NcclCommunicator, NcclId};
use syncbn_cuda::{Cuda, CudaError};

use crate::Result;
use crate::device::{Device, Place, Queue, TIMEOUT};

/// All GPUs, dealt to the ranks in turn.
pub struct Gpus(Vec<Cuda>);

impl Gpus {
    /// Opens them.
    pub fn new() -> Result<Self> {
        let mut gpus = vec![Cuda::open(0)?];
        loop {
            match Cuda::open(gpus.len()) {
                Ok(gpu) => gpus.push(gpu),
                Err(CudaError::NoDevice { .. }) => return Ok(Self(gpus)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Device for Gpus {
    type Backend = Cuda;

    fn open(&self, rank: usize) -> Result<(Cuda, Queue<Cuda>)> {
        open(&self.0[rank % self.0.len()])
    }
}

fn open(cuda: &Cuda) -> Result<(Cuda, Queue<Cuda>)> {
    Ok((cuda.clone(), cuda.context().new_stream()?))
}

/// One rank on each GPU, all of them threads of this process.
pub struct NcclThreads(Gpus);

impl NcclThreads {
    /// Opens the GPUs; at least two, since one has nothing to synchronise with.
    pub fn new() -> Result<Self> {
        let gpus = Gpus::new()?;
        if gpus.0.len() < 2 {
            return Err("NCCL wants a GPU for each rank, and this machine has one: start one process on each machine \
                        with a launcher, or let ranks meet in host memory with `--comm threads`"
                .into());
        }
        Ok(Self(gpus))
    }
}

impl Device for NcclThreads {
    type Backend = Cuda;

    fn open(&self, rank: usize) -> Result<(Cuda, Queue<Cuda>)> {
        self.0.open(rank)
    }

    fn world_size(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.0.0.len())
    }

    fn group(&self, world_size: NonZeroUsize) -> Result<Vec<Place<Cuda>>> {
        let id = NcclId::new()?;
        let place = |rank| Place {
            rank,
            join: Box::new(move |cuda: &Cuda| {
                Ok(Group::new(NcclCommunicator::new(cuda, &id, rank, world_size, TIMEOUT)?))
            }),
        };
        Ok((0..world_size.get()).map(place).collect())
    }
}

/// This process's rank, on its GPU; the others are processes like it.
pub struct NcclProcess {
    cuda: Cuda,
    communicator: Arc<NcclCommunicator>,
}

impl NcclProcess {
    /// Joins the other processes; `None` where no launcher has started this one.
    pub fn new() -> Result<Option<Self>> {
        match LaunchEnv::from_env() {
            Err(BootstrapError::NoLauncher) => return Ok(None),
            other => other?,
        };
        let (cuda, communicator) = NcclCommunicator::from_env(TIMEOUT)?;
        Ok(Some(Self { cuda, communicator: Arc::new(communicator) }))
    }
}

impl Device for NcclProcess {
    type Backend = Cuda;

    fn open(&self, _: usize) -> Result<(Cuda, Queue<Cuda>)> {
        open(&self.cuda)
    }

    fn world_size(&self) -> Option<NonZeroUsize> {
        Some(self.communicator.world_size())
    }

    fn speaks(&self) -> bool {
        self.communicator.rank() == 0
    }

    fn group(&self, _: NonZeroUsize) -> Result<Vec<Place<Cuda>>> {
        let communicator = self.communicator.clone();
        let join = move |_: &Cuda| Ok(Group::new(communicator));
        Ok(vec![Place { rank: self.communicator.rank(), join: Box::new(join) }])
    }
}
