//! Ranks as processes over TCP: this program, started once for each rank.

use std::io;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::process::{Child, Command};
use std::sync::Arc;

use syncbn_comm::{BootstrapError, LaunchEnv, TcpCommunicator};
use syncbn_core::{Group, HostCommunicator as _, ViaHost};

use crate::Result;
use crate::device::{Device, Place, Queue, TIMEOUT};

/// This process's rank on a device; the others are processes like it.
pub struct Process<D> {
    device: D,
    communicator: Arc<TcpCommunicator>,
}

impl<D: Device> Process<D> {
    /// Joins the other processes.
    pub fn join(device: D) -> Result<Self> {
        Ok(Self { device, communicator: Arc::new(TcpCommunicator::from_env(TIMEOUT)?) })
    }
}

impl<D: Device> Device for Process<D> {
    type Backend = D::Backend;

    fn open(&self, rank: usize) -> Result<(D::Backend, Queue<D::Backend>)> {
        self.device.open(rank)
    }

    fn world_size(&self) -> Option<NonZeroUsize> {
        Some(self.communicator.world_size())
    }

    fn speaks(&self) -> bool {
        self.communicator.rank() == 0
    }

    fn group(&self, _: NonZeroUsize) -> Result<Vec<Place<D::Backend>>> {
        let communicator = ViaHost(Arc::clone(&self.communicator));
        let join = move |_: &D::Backend| Ok(Group::new(communicator));
        Ok(vec![Place { rank: self.communicator.rank(), join: Box::new(join) }])
    }
}

/// Whether this process is a rank already.
pub fn is_rank() -> Result<bool> {
    match LaunchEnv::from_env() {
        Ok(_) => Ok(true),
        Err(BootstrapError::NoLauncher) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Starts this program, with the arguments that it was given, as every rank, and waits for all.
pub fn start(processes: NonZeroUsize) -> Result<()> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let ranks = (0..processes.get()).map(|rank| start_one(rank, processes, port));
    let ranks = ranks.collect::<io::Result<Vec<Child>>>()?;
    let mut failed = Vec::new();
    for (rank, mut child) in ranks.into_iter().enumerate() {
        let status = child.wait()?;
        if !status.success() {
            failed.push(format!("rank {rank}: {status}"));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}

fn start_one(rank: usize, processes: NonZeroUsize, port: u16) -> io::Result<Child> {
    let variables = [
        ("RANK", rank.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("WORLD_SIZE", processes.to_string()),
        ("MASTER_ADDR", "localhost".into()),
        ("SYNCBN_PORT", port.to_string()),
        ("SYNCBN_SECRET", format!("the ranks of process {}", std::process::id())),
    ];
    Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).envs(variables).spawn()
}
