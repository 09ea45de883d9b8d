//! A GPU through wgpu: timestamps around a submission, and caches emptied by one before it that fills a buffer larger than any.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pollster::block_on;
use syncbn_comm::ThreadGroup;
use syncbn_core::{Dtype, Element, SingleRank, ViaHost, bf16, f16};
use syncbn_wgpu::wgpu::{self, Features, PollType, QuerySet};
use syncbn_wgpu::{Buffer, Queue, Wgpu};

use crate::measure::measure;
use crate::results::{Meta, Row};
use crate::shapes::Case;
use crate::timing::{Device, Group, REPETITIONS, Times, Work};

/// The bytes that are written to empty the caches.
const FLUSH: u64 = 512 << 20;
/// Timestamps: two for each repetition, the untimed one included.
const STAMPS: u32 = 2 * (REPETITIONS as u32 + 1);

/// The fastest adapter, if it has timestamps.
pub struct WgpuDevice {
    wgpu: Wgpu,
    queue: Queue,
    info: wgpu::AdapterInfo,
    stamps: QuerySet,
    /// Microseconds of a tick.
    period: f64,
    resolved: wgpu::Buffer,
    flushed: wgpu::Buffer,
}

impl WgpuDevice {
    /// Opens it.
    pub fn new() -> Result<Self> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = block_on(instance.request_adapter(&options)).context("no adapter for wgpu")?;
        let info = adapter.get_info();
        let limits = adapter.limits();
        let flush = FLUSH.min(limits.max_buffer_size);
        let (device, queue) = block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            required_features: Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS,
            required_limits: limits,
            ..Default::default()
        }))
        .with_context(|| format!("{} has no timestamps", info.name))?;
        let stamps = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: STAMPS,
        });
        let buffer = |size, usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let resolved =
            buffer(u64::from(STAMPS) * 8, wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let flushed = buffer(flush, wgpu::BufferUsages::COPY_DST);
        let period = f64::from(queue.get_timestamp_period()) / 1e3;
        let wgpu = Wgpu::new(device, queue)?;
        let queue = wgpu.queue();
        Ok(Self { wgpu, queue, info, stamps, period, resolved, flushed })
    }

    /// What makes the figures.
    #[must_use]
    pub fn meta(&self) -> Meta {
        let machine = format!("{} {}", self.info.driver, self.info.driver_info);
        Meta::today(self.info.name.clone(), format!("{:?}, {}", self.info.backend, machine.trim()))
    }

    /// The rows of one case.
    pub fn measure(&self, case: &Case) -> Result<Vec<Row>> {
        match case.dtype {
            Dtype::F16 => measure::<_, f16>(self, case),
            Dtype::Bf16 => measure::<_, bf16>(self, case),
            Dtype::F32 => measure::<_, f32>(self, case),
            other => bail!("no kernels for {other}"),
        }
    }

    fn stamp(&self, index: u32) -> Result<()> {
        Ok(self.queue.record(|encoder| encoder.write_timestamp(&self.stamps, index))?)
    }

    fn wait(&self) -> Result<()> {
        self.wgpu.device().poll(PollType::wait_indefinitely())?;
        Ok(())
    }

    /// The timestamps, in ticks.
    fn ticks(&self) -> Result<Vec<u64>> {
        let size = self.resolved.size();
        let device = self.wgpu.device();
        let readable = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.queue.record(|encoder| {
            encoder.resolve_query_set(&self.stamps, 0..STAMPS, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &readable, 0, size);
        })?;
        let (sender, receiver) = std::sync::mpsc::channel();
        readable.map_async(wgpu::MapMode::Read, .., move |result| sender.send(result).unwrap_or_default());
        self.wait()?;
        receiver.recv()??;
        let bytes = readable.get_mapped_range(..).context("the timestamps cannot be mapped")?;
        Ok(bytes.chunks_exact(8).map(|b| b.try_into().map_or(0, u64::from_le_bytes)).collect())
    }
}

impl Device for WgpuDevice {
    type Backend = Wgpu;

    fn backend(&self) -> &Wgpu {
        &self.wgpu
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn groups(&self) -> Vec<Group<Wgpu>> {
        let alone = ThreadGroup::new(std::num::NonZeroUsize::MIN, Duration::MAX).unwrap_or_default();
        let staged = alone.into_iter().map(|comm| -> Group<Wgpu> { ("syncbn", Arc::new(ViaHost(comm))) });
        staged.chain([("solo", Arc::new(SingleRank) as _)]).collect()
    }

    fn copy<T: Element>(&self, from: &Buffer<T>, to: &mut Buffer<T>) -> Result<()> {
        let (from, to) = (from.inner(), to.inner());
        self.queue.record(|encoder| encoder.copy_buffer_to_buffer(from, 0, to, 0, from.size()))?;
        Ok(())
    }

    fn device_time(&self, work: Work<'_>) -> Result<Times> {
        for index in (0..STAMPS).step_by(2) {
            // A submission of its own: the next begins when it has ended.
            self.queue.record(|encoder| encoder.clear_buffer(&self.flushed, 0, None))?;
            self.queue.hold(|| {
                self.stamp(index)?;
                work()?;
                self.stamp(index + 1)
            })??;
        }
        let ticks = self.ticks()?;
        let microseconds = |pair: &[u64]| pair[1].saturating_sub(pair[0]) as f64 * self.period;
        Times::of(ticks.chunks_exact(2).skip(1).map(microseconds).collect()).context("nothing was repeated")
    }

    fn host_time(&self, work: Work<'_>) -> Result<Option<Times>> {
        let mut samples = Vec::new();
        for _ in 0..=REPETITIONS {
            self.wait()?;
            let start = Instant::now();
            work()?;
            samples.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(Times::of(samples.split_off(1)))
    }
}
