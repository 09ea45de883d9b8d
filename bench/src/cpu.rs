//! The processor: wall clock, and caches emptied by writing a buffer that is larger than any of them.

use std::cell::RefCell;
use std::fs;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use syncbn_comm::ThreadGroup;
use syncbn_core::{Communicator, Dtype, Element, ViaHost, bf16, f16};
use syncbn_cpu::Cpu;

use crate::measure::measure;
use crate::results::{Meta, Row};
use crate::shapes::Case;
use crate::timing::{Device, Group, REPETITIONS, Times, Work};

/// The bytes that are written to empty the caches: more than the largest last-level cache we met (480 MB).
const FLUSH: usize = 512 << 20;

/// The processor that this program runs on, with all its threads.
pub struct CpuDevice {
    group: Arc<dyn Communicator<Cpu>>,
    flushed: RefCell<Vec<u8>>,
}

impl CpuDevice {
    /// With a group of one rank, a thread's: the path with its collective.
    pub fn new() -> Result<Self> {
        Self::with_flush(FLUSH)
    }

    /// The same, for a machine whose caches hold fewer than `bytes`.
    pub fn with_flush(bytes: usize) -> Result<Self> {
        let alone =
            ThreadGroup::new(NonZeroUsize::MIN, Duration::MAX)?.pop().context("a group of no rank")?;
        Ok(Self { group: Arc::new(ViaHost(alone)), flushed: RefCell::new(vec![0; bytes]) })
    }

    /// What makes the figures.
    #[must_use]
    pub fn meta(&self) -> Meta {
        let device = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| model_name(&text));
        let device = device.unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH));
        Meta::today(device, format!("{} threads", rayon::current_num_threads()))
    }

    /// The rows of one case.
    pub fn measure(&self, case: &Case) -> Result<Vec<Row>> {
        match case.dtype {
            Dtype::F16 => measure::<_, f16>(self, case),
            Dtype::Bf16 => measure::<_, bf16>(self, case),
            Dtype::F32 => measure::<_, f32>(self, case),
            Dtype::F64 => measure::<_, f64>(self, case),
            other => bail!("no kernels for {other}"),
        }
    }
}

impl Device for CpuDevice {
    type Backend = Cpu;

    fn backend(&self) -> &Cpu {
        &Cpu
    }

    fn queue(&self) -> &() {
        &()
    }

    fn groups(&self) -> Vec<Group<Cpu>> {
        vec![("syncbn", self.group.clone())]
    }

    fn copy<T: Element>(&self, from: &Vec<T>, to: &mut Vec<T>) -> Result<()> {
        let each = from.len().div_ceil(rayon::current_num_threads()).max(1);
        to.par_chunks_mut(each).zip(from.par_chunks(each)).for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    }

    fn device_time(&self, work: Work<'_>) -> Result<Times> {
        let mut flushed = self.flushed.try_borrow_mut()?;
        let sample = |round: usize| {
            flushed.par_chunks_mut(1 << 20).for_each(|chunk| chunk.fill(round as u8));
            let start = Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        };
        let samples: Result<Vec<f64>> = (0..=REPETITIONS).map(sample).collect();
        Times::of(samples?.split_off(1)).context("nothing was repeated")
    }

    fn host_time(&self, _: Work<'_>) -> Result<Option<Times>> {
        Ok(None)
    }
}

fn model_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
