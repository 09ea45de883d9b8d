//! Groups of ranks: this process alone, over TCP, or over NCCL.
//!
//! How the ranks find each other is the Python half's: through the store of torch's process group.

use std::num::NonZeroUsize;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use syncbn_comm::bootstrap::{JobToken, LaunchEnv, Rendezvous};
use syncbn_comm::tcp::TcpCommunicator;
use syncbn_core::{self as core, CommError, SingleRank, ViaHost};
use syncbn_cpu::Cpu;
use syncbn_cuda::Cuda;
use syncbn_cuda::nccl::{NcclCommunicator, NcclId};
use syncbn_cuda::peers::PeerCommunicator;

use crate::device::{self, current_stream};
use crate::error::{Failure, Place, Refused, of_bootstrap, of_device, of_group};
use crate::forked::OwnProcess;
use crate::memory::{Lent, Memory, OnDevice, on_device};
use crate::tensor::numbers;

/// One rank's membership of a group, for layers on one device.
#[pyclass(frozen, module = "syncbn._syncbn")]
pub(crate) struct Group {
    pub(crate) members: OnDevice<Members>,
    beneath: Option<String>,
}

pub(crate) enum Members {
    Cpu(core::Group<Cpu>),
    Cuda(core::Group<Cuda>, Cuda),
}

/// NCCL's unique id, which rank 0 makes and every rank of a new group needs.
#[pyfunction]
pub(crate) fn nccl_id(py: Python<'_>) -> PyResult<[u8; 128]> {
    let id = py.detach(NcclId::new).map_err(|error| of_device(py, "making an id of NCCL's", &error))?;
    Ok(*id.as_bytes())
}

#[pymethods]
impl Group {
    /// This process alone; `device` is a CUDA device's ordinal, or None for the CPU.
    #[staticmethod]
    fn local(py: Python<'_>, device: Option<usize>) -> PyResult<Self> {
        let members = if let Some(device) = device {
            Members::Cuda(core::Group::new(SingleRank), open(py, device)?)
        } else {
            Members::Cpu(core::Group::new(SingleRank))
        };
        Ok(Self { members: OnDevice::new(members), beneath: None })
    }

    /// Joins ranks over TCP, and returns once all have come. Rank 0 listens at a port of the system's choice, which `announce`
    /// is called with; the others are given `address`, a host and that port.
    #[staticmethod]
    #[pyo3(signature = (device, rank, world_size, *, secret, seconds, announce=None, address=None))]
    #[allow(clippy::too_many_arguments)] // a rendezvous has as many parts
    fn tcp(
        py: Python<'_>,
        device: Option<usize>,
        rank: usize,
        world_size: usize,
        secret: &str,
        seconds: f64,
        announce: Option<Py<PyAny>>,
        address: Option<(String, u16)>,
    ) -> PyResult<Self> {
        let (host, port) = address.unwrap_or_default();
        let (token, rendezvous) = (JobToken::of_secret(secret), Rendezvous { host, port });
        let world_size = ranks(world_size)?;
        let env = LaunchEnv { rank, world_size, local_rank: 0, rendezvous, token };
        let timeout = timeout(seconds)?;
        let mut failed = Ok(());
        let joined = py.detach(|| match announce {
            None => TcpCommunicator::new(&env, timeout),
            Some(announce) => TcpCommunicator::host(&env, timeout, |port| {
                failed = Python::attach(|py| announce.call1(py, (port,)).map(drop));
            }),
        });
        failed?;
        let joined = joined.map_err(|error| of_bootstrap(py, &error))?;
        let communicator = ViaHost(OwnProcess::new(joined));
        let members = if let Some(device) = device {
            Members::Cuda(core::Group::new(communicator), open(py, device)?)
        } else {
            Members::Cpu(core::Group::new(communicator))
        };
        Ok(Self { members: OnDevice::new(members), beneath: None })
    }

    /// Joins ranks over NCCL, one device to a rank, and returns once all have come. Where they reach each other's memory, they then
    /// meet inside their kernels.
    #[staticmethod]
    fn nccl(
        py: Python<'_>,
        device: usize,
        id: [u8; 128],
        rank: usize,
        world_size: usize,
        seconds: f64,
    ) -> PyResult<Self> {
        let cuda = open(py, device)?;
        let (world_size, timeout) = (ranks(world_size)?, timeout(seconds)?);
        let join = || NcclCommunicator::new(&cuda, &NcclId::from_bytes(id), rank, world_size, timeout);
        let joined = py.detach(|| on_device(join));
        let nccl = joined.map_err(|error| of_device(py, "joining the group", &error))?;
        let peers = py.detach(|| on_device(|| PeerCommunicator::new(&cuda, nccl, timeout)));
        let peers = peers.map_err(|error| of_group(py, "joining the group", &error))?;
        let beneath = peers.reason().map(str::to_owned);
        let members = OnDevice::new(Members::Cuda(core::Group::new(peers), cuda));
        Ok(Self { members, beneath })
    }

    /// Why the ranks of a group over NCCL do not meet inside their kernels; None where they do, and for other groups.
    #[getter]
    fn beneath(&self) -> Option<&str> {
        self.beneath.as_deref()
    }

    /// This rank, from 0.
    #[getter]
    fn rank(&self) -> usize {
        match &*self.members {
            Members::Cpu(group) => group.rank(),
            Members::Cuda(group, _) => group.rank(),
        }
    }

    /// The number of ranks.
    #[getter]
    fn world_size(&self) -> usize {
        match &*self.members {
            Members::Cpu(group) => group.world_size().get(),
            Members::Cuda(group, _) => group.world_size().get(),
        }
    }

    /// Which of the trainer's steps begins.
    fn set_step(&self, step: u64) {
        match &*self.members {
            Members::Cpu(group) => group.set_step(step),
            Members::Cuda(group, _) => group.set_step(step),
        }
    }

    /// Replaces numbers of f64 by their sum over the ranks; `name` is what ranks compare and errors show.
    fn all_reduce(&self, py: Python<'_>, name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<()> {
        let place = Place { operation: name, layer: None, rank: self.rank(), world_size: self.world_size() };
        let memory = numbers("the numbers", tensor).map_err(|failure| failure.at(py, &place))?;
        let summed = match &*self.members {
            Members::Cpu(group) => py.detach(|| sum(group, name, &Cpu, &(), memory)),
            Members::Cuda(group, cuda) => {
                let stream = current_stream(py, cuda)?;
                py.detach(|| on_device(|| sum(group, name, cuda, &stream, memory)))
            }
        };
        let summed = summed.map_err(|refused| Failure::Refused(refused).at(py, &place))?;
        summed.map_err(|error| of_group(py, name, &error))
    }
}

fn sum<B: Lent>(
    group: &core::Group<B>,
    name: &str,
    backend: &B,
    queue: &B::Queue,
    mut memory: Memory,
) -> Result<Result<(), CommError>, Refused> {
    let numbers = backend.mem_mut::<f64>("the numbers", &mut memory)?;
    Ok(group.all_reduce::<f64>(name, backend, queue, numbers))
}

fn open(py: Python<'_>, device: usize) -> PyResult<Cuda> {
    let opened = py.detach(|| device::open(device));
    opened.map_err(|error| of_device(py, "opening the device", &error))
}

fn ranks(world_size: usize) -> PyResult<NonZeroUsize> {
    NonZeroUsize::new(world_size).ok_or_else(|| PyValueError::new_err("a group has at least one rank"))
}

fn timeout(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| PyValueError::new_err(format!("a time-out of {seconds} seconds: {error}")))
}
