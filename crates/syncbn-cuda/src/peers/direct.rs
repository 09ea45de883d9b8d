//! One rank's part in a group whose ranks reach each other's memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use syncbn_core::{CollectiveId, CommError, CommErrorKind};

use crate::device::Cuda;
use crate::error::CudaError;
use crate::raw::driver::{self, DeviceMemory};
use crate::raw::params::{Control, HEADER, MOST_RANKS, PACKET_BYTES, PeersParams, Report};
use crate::raw::peers::{Inbox, Mapped, ReportPage};

/// Layers with more channels meet through the communicator beneath.
const MOST_CHANNELS: usize = 8192;
const PACKETS_PER_SLOT: usize = HEADER + 2 * MOST_CHANNELS;
/// Bytes of the control block, and of the packets behind it.
const CONTROL_BYTES: usize = size_of::<Control>() + 2 * MOST_CHANNELS * PACKET_BYTES;

/// The bytes of an inbox: two slots for each rank.
pub(super) const fn inbox_bytes(ranks: usize) -> usize {
    2 * ranks * PACKETS_PER_SLOT * PACKET_BYTES
}

/// Another rank's inbox, or this one's own.
#[derive(Debug)]
pub(super) enum Link {
    /// Of this process.
    Shared(Arc<Inbox>),
    /// Of another one.
    Mapped(Mapped),
}

impl Link {
    fn pointer(&self) -> u64 {
        match self {
            Self::Shared(inbox) => inbox.pointer(),
            Self::Mapped(mapped) => mapped.pointer,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Direct {
    pub(super) cuda: Cuda,
    rank: usize,
    timeout: Duration,
    inbox: Arc<Inbox>,
    /// One for each rank.
    links: Vec<Link>,
    control: DeviceMemory,
    report: ReportPage,
    /// Every call that this rank has made, by its digest.
    known: Mutex<HashMap<u64, CollectiveId>>,
    failure: Mutex<Option<CommError>>,
}

impl Direct {
    pub(super) fn new(
        cuda: &Cuda,
        rank: usize,
        timeout: Duration,
        inbox: Arc<Inbox>,
        links: Vec<Link>,
    ) -> Result<Self, CudaError> {
        let stream = cuda.context().default_stream();
        let mut control = DeviceMemory::new(cuda.context(), CONTROL_BYTES)?;
        driver::zero(&stream, &mut control, CONTROL_BYTES)?;
        stream.synchronize().map_err(CudaError::driver("clearing memory"))?;
        Ok(Self {
            cuda: cuda.clone(),
            rank,
            timeout,
            inbox,
            links,
            control,
            report: ReportPage::new(cuda.context())?,
            known: Mutex::default(),
            failure: Mutex::default(),
        })
    }

    /// Whether the passes of a layer fit into an inbox. Either pass sends two packets for each channel.
    pub(super) fn has_room(channels: usize) -> bool {
        channels <= MOST_CHANNELS
    }

    /// The parameters of the kernels of this pass.
    pub(super) fn params(&self, id: &CollectiveId) -> PeersParams {
        let identity = id.digest();
        lock(&self.known).entry(identity).or_insert_with(|| id.clone());
        let call = [identity, id.use_number, id.step];
        let mut inboxes = [0; MOST_RANKS];
        for (inbox, link) in inboxes.iter_mut().zip(&self.links) {
            *inbox = link.pointer();
        }
        PeersParams {
            inboxes,
            control: self.control.pointer(),
            report: self.report.pointer,
            hash: mix(call),
            call,
            // Kernels multiply it by the number of ranks.
            timeout: u64::try_from(self.timeout.as_nanos())
                .unwrap_or(u64::MAX)
                .min(u64::MAX / MOST_RANKS as u64),
            rank: self.rank as i32,
            ranks: self.links.len() as i32,
            packets_per_slot: PACKETS_PER_SLOT as i32,
            unused: 0,
        }
    }

    /// The group's first failure, if there is one. A kernel's report counts if there was none before.
    pub(super) fn failure(&self) -> Option<CommError> {
        let mut failure = lock(&self.failure);
        if failure.is_none() {
            *failure = self.report.read().map(|report| self.explain(&report));
        }
        failure.clone()
    }

    /// Ends this rank's part in the group. Returns the first failure, which may be this one.
    pub(super) fn fail(&self, error: CommError) -> CommError {
        let first = lock(&self.failure).get_or_insert(error).clone();
        self.report.stop();
        first
    }

    fn explain(&self, report: &Report) -> CommError {
        let elsewhere = usize::try_from(report.other_rank).ok().and_then(|rank| rank.checked_sub(1));
        let kind = match (elsewhere, self.call(report.other_call)) {
            (None, _) => match self.missing(report.number) {
                // All have sent everything by now: late ones, or this device has not started what reads it.
                Ok(missing) if missing.is_empty() => CommErrorKind::Unfinished { timeout: self.timeout },
                Ok(missing) => CommErrorKind::Timeout { missing, timeout: self.timeout },
                Err(error) => CommErrorKind::Transport(Arc::new(error)),
            },
            (Some(rank), Some(other)) => CommErrorKind::OutOfStep { others: vec![(rank, other)] },
            (Some(rank), None) => {
                CommErrorKind::Disagree(format!("rank {rank} is in a call that this rank has never made"))
            }
        };
        self.error(self.call(report.call), true, kind)
    }

    /// The ranks for which others wait in the pass of this number: they have sent nothing, or the numbers of the fewest channels. Others
    /// may have sent a part, too, as they wait in a kernel of many blocks. Copies the packets, on a stream of its own.
    fn missing(&self, number: u64) -> Result<Vec<usize>, CudaError> {
        let ranks = self.links.len();
        let slots = (number % 2) as usize * ranks;
        let sent = |rank: usize| {
            let packets = self.inbox.peek((slots + rank) * PACKETS_PER_SLOT, PACKETS_PER_SLOT)?;
            let (header, channels) = packets.split_at(HEADER);
            let in_order = header.iter().take(1).chain(channels);
            Ok(in_order.take_while(|[_, of_pass, ..]| u64::from(*of_pass) == number).count())
        };
        let sent = (0..ranks).map(sent).collect::<Result<Vec<_>, CudaError>>()?;
        let (least, most) = (sent.iter().copied().min(), sent.iter().copied().max());
        Ok((0..ranks).filter(|&rank| least < most && Some(sent[rank]) == least).collect())
    }

    /// The call of this identity, use and step.
    fn call(&self, [identity, use_number, step]: [u64; 3]) -> Option<CollectiveId> {
        Some(lock(&self.known).get(&identity)?.clone().with_use(use_number, step))
    }

    pub(super) fn error(&self, call: Option<CollectiveId>, late: bool, kind: CommErrorKind) -> CommError {
        CommError { rank: self.rank, world_size: self.links.len(), call, late, kind }
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        // Kernels that wait for a peer still use all of it; they end within the time-out.
        let context = self.cuda.context();
        context.record_err(context.synchronize());
    }
}

/// A hash of an identity, a use and a step.
fn mix(call: [u64; 3]) -> u64 {
    call.into_iter().fold(0, |hash, word| {
        // A step of splitmix64.
        let mixed = (hash ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
