//! The machine's NVIDIA GPUs: shared by any number of ranks that meet in host memory, or one to a rank with NCCL between them,
//! in one process or in one for each.
//!
//! Deliberately not here: launching processes, which torchrun, mpirun and srun do.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use syncbn_comm::{BootstrapError, LaunchEnv};
use syncbn_core::{Backend, Call, Communicator, Pass};
use syncbn_cuda::nccl::{NcclCommunicator, NcclId};
use syncbn_cuda::{Cuda, CudaError, Sums};

use crate::Result;
use crate::device::{Device, Links, Place, Queue, TIMEOUT};
use crate::gradients::{self, GradientSum};

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
        let place = |(rank, gradients)| Place {
            rank,
            join: Box::new(move |cuda: &Cuda| {
                let communicator = NcclCommunicator::new(cuda, &id, rank, world_size, TIMEOUT)?;
                Ok(Links { communicator: Arc::new(communicator), gradients })
            }),
        };
        Ok(gradients::connect(world_size).into_iter().enumerate().map(place).collect())
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
        let join = move |cuda: &Cuda| {
            let gradients = through(cuda.clone(), communicator.clone())?;
            Ok(Links { communicator, gradients })
        };
        Ok(vec![Place { rank: self.communicator.rank(), join: Box::new(join) }])
    }
}

/// Gradients travel as batch norm's sums do: a backward message holds as many numbers as are wanted.
fn through(cuda: Cuda, communicator: Arc<NcclCommunicator>) -> Result<GradientSum> {
    let (_, queue) = open(&cuda)?;
    let room: Mutex<Option<(usize, Sums)>> = Mutex::default();
    Ok(GradientSum::through(move |values| {
        let channels = values.len().div_ceil(2);
        let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, sums) = match room.take() {
            Some(kept) if kept.0 == channels => room.insert(kept),
            _ => room.insert((channels, cuda.sums(&queue, channels)?)),
        };
        let call = Call::new("(gradients)", Pass::Backward, channels);
        let mut message = values.to_vec();
        message.resize(2 * channels, 0.0);
        cuda.write_sums(&queue, call.pass, sums, &message)?;
        communicator.all_reduce_sum(&call, &cuda, &queue, sums)?;
        communicator.wait(&queue, TIMEOUT)?;
        cuda.read_sums(&queue, call.pass, sums, &mut message)?;
        values.copy_from_slice(&message[..values.len()]);
        Ok(())
    }))
}
