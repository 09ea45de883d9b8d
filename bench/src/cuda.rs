//! A CUDA device: events around replays of a captured graph, and an L2 cache emptied by writing a buffer that is larger. One of
//! several ranks measures in step with the others: a sum lines them up before each repetition.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use syncbn_core::{CollectiveId, Communicator, Dtype, Element, Numbers, SingleRank, Storage};
use syncbn_cuda::cudarc::driver::sys::{CUdevice_attribute, CUevent_flags, CUgraphInstantiate_flags};
use syncbn_cuda::cudarc::driver::{CudaSlice, CudaStream, sys::CUstreamCaptureMode};
use syncbn_cuda::nccl::NcclCommunicator;
use syncbn_cuda::peers::PeerCommunicator;
use syncbn_cuda::{Buffer, Cuda, allow_capture};

use crate::measure::measure;
use crate::results::{Meta, Row};
use crate::shapes::Case;
use crate::timing::{Device, Group, REPETITIONS, Times, Work};

/// Calls that are enqueued one after the other for one sample of the host's time.
const CALLS: usize = 10;

const TIMEOUT: Duration = Duration::from_secs(60);

/// One CUDA device, with a stream of its own.
pub struct CudaDevice {
    cuda: Cuda,
    stream: Arc<CudaStream>,
    /// A group of this rank alone, with nobody to wait for.
    alone: Arc<dyn Communicator<Cuda>>,
    /// All ranks, where there are several.
    ranks: Option<Ranks>,
    flushed: RefCell<CudaSlice<u8>>,
}

/// The group of all ranks, and a number that they sum to start together.
struct Ranks {
    group: Arc<NcclCommunicator>,
    /// The same ranks, which meet inside their kernels.
    peers: Arc<PeerCommunicator>,
    token: RefCell<Buffer<f32>>,
}

impl CudaDevice {
    /// The device of this ordinal, on its own.
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::of(Cuda::open(ordinal)?)
    }

    /// This process's rank and device, as its launcher says, in step with the others.
    pub fn launched() -> Result<Self> {
        let (cuda, group) = NcclCommunicator::from_env(TIMEOUT)?;
        let mut device = Self::of(cuda)?;
        let token = RefCell::new(device.cuda.upload(&device.stream, &[0_f32])?);
        let group = Arc::new(group);
        let peers = Arc::new(PeerCommunicator::new(&device.cuda, Arc::clone(&group), TIMEOUT)?);
        if let Some(reason) = peers.reason() {
            eprintln!("the ranks do not meet inside their kernels: {reason}");
        }
        device.ranks = Some(Ranks { group, peers, token });
        Ok(device)
    }

    fn of(cuda: Cuda) -> Result<Self> {
        let stream = cuda.context().new_stream()?;
        let cache = cuda.context().attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        let flushed = stream.alloc_zeros(4 * usize::try_from(cache)?.max(16 << 20))?;
        Ok(Self { cuda, stream, alone: Arc::new(SingleRank), ranks: None, flushed: RefCell::new(flushed) })
    }

    /// Whether this rank's figures are the ones to be written.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.ranks.as_ref().is_none_or(|ranks| ranks.group.rank() == 0)
    }

    /// Empties the cache, and puts a sum of all ranks in front of what comes.
    fn line_up(&self) -> Result<()> {
        self.stream.memset_zeros(&mut *self.flushed.try_borrow_mut()?)?;
        if let Some(Ranks { group, token, .. }) = &self.ranks {
            let (id, mut token) = (CollectiveId::new("line up", 1), token.try_borrow_mut()?);
            let numbers = Numbers::F32(Cuda::mem_mut(&mut *token));
            group.sum_numbers(&id, &self.cuda, &self.stream, numbers)?;
        }
        Ok(())
    }

    /// What makes the figures.
    pub fn meta(&self) -> Result<Meta> {
        let context = self.cuda.context();
        let units = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let (major, minor) = context.compute_capability()?;
        let ranks = self.ranks.as_ref().map_or(1, |ranks| ranks.group.world_size().get());
        let mut machine = format!("{units} multiprocessors, compute capability {major}.{minor}");
        if ranks > 1 {
            machine = format!("{ranks} devices of {machine}");
        }
        let mut meta = Meta::today(context.name()?, machine);
        meta.versions.extend(self.cuda.versions()?);
        Ok(meta)
    }

    /// The rows of one case.
    pub fn measure(&self, case: &Case) -> Result<Vec<Row>> {
        match case.dtype {
            Dtype::F16 => measure::<_, syncbn_core::f16>(self, case),
            Dtype::Bf16 => measure::<_, syncbn_core::bf16>(self, case),
            Dtype::F32 => measure::<_, f32>(self, case),
            Dtype::F64 => measure::<_, f64>(self, case),
            other => bail!("no kernels for {other}"),
        }
    }
}

impl Device for CudaDevice {
    type Backend = Cuda;

    fn backend(&self) -> &Cuda {
        &self.cuda
    }

    fn queue(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    fn groups(&self) -> Vec<Group<Cuda>> {
        match &self.ranks {
            None => vec![("syncbn", self.alone.clone())],
            Some(Ranks { group, peers, .. }) => vec![
                ("syncbn", peers.clone()),
                ("syncbn_nccl", group.clone()),
                ("syncbn_alone", self.alone.clone()),
            ],
        }
    }

    fn copy<T: Element>(&self, from: &Buffer<T>, to: &mut Buffer<T>) -> Result<()> {
        Ok(to.copy_from(&self.stream, from)?)
    }

    #[allow(unsafe_code)] // what a captured graph uses has to outlive it
    fn device_time(&self, work: Work<'_>) -> Result<Times> {
        work()?;
        self.stream.synchronize()?;
        self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        // SAFETY: what the work uses is the caller's, and outlives this call; the graph does not, and its last replay has been waited
        // for by then. Nothing else uses the stream, or what the work uses, meanwhile.
        let enqueued = unsafe { allow_capture(work) };
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0))?;
        enqueued?;
        let graph = graph.context("nothing was captured")?;
        graph.upload()?;
        let event = || self.cuda.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let (start, end) = (event()?, event()?);
        let sample = || -> Result<f64> {
            self.line_up()?;
            start.record(&self.stream)?;
            graph.launch()?;
            end.record(&self.stream)?;
            Ok(f64::from(start.elapsed_ms(&end)?) * 1e3)
        };
        let samples: Result<Vec<f64>> = (0..=REPETITIONS).map(|_| sample()).collect();
        Times::of(samples?.split_off(1)).context("nothing was repeated")
    }

    fn host_time(&self, work: Work<'_>) -> Result<Option<Times>> {
        let mut sample = || -> Result<f64> {
            self.stream.synchronize()?;
            let start = Instant::now();
            for _ in 0..CALLS {
                work()?;
            }
            Ok(start.elapsed().as_secs_f64() * 1e6 / CALLS as f64)
        };
        let samples: Result<Vec<f64>> = (0..=REPETITIONS).map(|_| sample()).collect();
        Ok(Times::of(samples?.split_off(1)))
    }

    fn wall_time(&self, work: Work<'_>) -> Result<Option<Times>> {
        if self.ranks.is_none() {
            return Ok(None);
        }
        let mut sample = || -> Result<f64> {
            self.line_up()?;
            self.stream.synchronize()?;
            let start = Instant::now();
            work()?;
            self.stream.synchronize()?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        };
        let samples: Result<Vec<f64>> = (0..=REPETITIONS).map(|_| sample()).collect();
        Ok(Times::of(samples?.split_off(1)))
    }
}
