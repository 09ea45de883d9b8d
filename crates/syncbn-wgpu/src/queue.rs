//! A queue records kernels, and submits them to wgpu's queue in one piece at the end of a pass.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::WgpuError;
use crate::gpu::{Dispatch, Gpu};
use crate::lost;
use crate::memory::Slice;
use crate::scope::caught;

/// A queue of work: wgpu's device and queue, and the commands that are recorded and not submitted yet.
///
/// Each thread uses a queue of its own; queues may share a device. Work that the application submits to the same wgpu queue runs
/// before or after a pass, in the order of the calls.
#[derive(Debug)]
pub struct Queue {
    gpu: Gpu,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    encoder: Option<wgpu::CommandEncoder>,
    /// The application has the encoder.
    recording: bool,
    holds: usize,
    submissions: u64,
    last: Option<wgpu::SubmissionIndex>,
}

impl Queue {
    pub(crate) fn new(gpu: Gpu) -> Self {
        Self { gpu, pending: Mutex::default() }
    }

    /// The recorded commands. No code of the application runs while this is locked.
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error if the queue cannot take work for this device now.
    pub(crate) fn check(&self, gpu: &Gpu) -> Result<(), WgpuError> {
        if self.gpu.is(gpu) { self.idle().map(drop) } else { Err(WgpuError::ForeignQueue) }
    }

    fn idle(&self) -> Result<MutexGuard<'_, Pending>, WgpuError> {
        let pending = self.pending();
        if pending.recording { Err(WgpuError::Recording) } else { Ok(pending) }
    }

    /// How often work was submitted. A pass of a layer alone submits once; one in a group with a host communicator twice.
    pub fn submissions(&self) -> u64 {
        self.pending().submissions
    }

    /// Records commands of the caller's, in order with those of the passes before and after. A command that wgpu refuses is an
    /// error of this call, or of the enclosing [`Queue::hold`]. While the commands are recorded, other use of this queue is the
    /// error [`WgpuError::Recording`].
    ///
    /// # Errors
    ///
    /// [`WgpuError::Recording`] inside another `record`; what wgpu says of the commands.
    pub fn record<R>(&self, commands: impl FnOnce(&mut wgpu::CommandEncoder) -> R) -> Result<R, WgpuError> {
        let mut recording = Recording { queue: self, encoder: Some(self.take_encoder()?) };
        let result = recording.encoder.as_mut().map(commands);
        drop(recording);
        self.flush()?;
        result.ok_or(WgpuError::Recording)
    }

    fn take_encoder(&self) -> Result<wgpu::CommandEncoder, WgpuError> {
        let mut pending = self.idle()?;
        let encoder = match pending.encoder.take() {
            Some(encoder) => encoder,
            None => self.new_encoder()?,
        };
        pending.recording = true;
        Ok(encoder)
    }

    fn new_encoder(&self) -> Result<wgpu::CommandEncoder, WgpuError> {
        caught(self.gpu.device(), "recording commands", || {
            self.gpu
                .device()
                .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("syncbn") })
        })
    }

    /// Runs `work` and submits what it has recorded in one piece, where each pass would have submitted its own. A
    /// communicator that needs the sums on the host still submits what lies before it.
    ///
    /// # Errors
    ///
    /// What wgpu says of the work, when it is submitted.
    pub fn hold<R>(&self, work: impl FnOnce() -> R) -> Result<R, WgpuError> {
        self.pending().holds += 1;
        let hold = Hold(self);
        let result = work();
        drop(hold);
        self.flush()?;
        Ok(result)
    }

    /// Records commands of ours without submitting.
    fn encode(&self, commands: impl FnOnce(&mut wgpu::CommandEncoder)) -> Result<(), WgpuError> {
        let mut pending = self.idle()?;
        let mut encoder = match pending.encoder.take() {
            Some(encoder) => encoder,
            None => self.new_encoder()?,
        };
        let result = caught(self.gpu.device(), "recording commands", || commands(&mut encoder));
        pending.encoder = Some(encoder);
        result
    }

    pub(crate) fn dispatch(&self, kernels: &[Dispatch]) -> Result<(), WgpuError> {
        self.encode(|encoder| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for kernel in kernels {
                pass.set_pipeline(&kernel.pipeline);
                pass.set_bind_group(0, &kernel.buffers, &[]);
                pass.set_bind_group(1, &kernel.constants, &[]);
                pass.dispatch_workgroups(kernel.grid.0, kernel.grid.1, 1);
            }
        })
    }

    /// Submits what is recorded, unless the caller wants more in the same submission.
    pub(crate) fn flush(&self) -> Result<(), WgpuError> {
        if self.idle()?.holds > 0 { Ok(()) } else { self.submit() }
    }

    /// Submits what is recorded.
    pub(crate) fn submit(&self) -> Result<(), WgpuError> {
        const DURING: &str = "submitting commands";
        let Some(encoder) = self.idle()?.encoder.take() else {
            return Ok(());
        };
        let index = caught(self.gpu.device(), DURING, || self.gpu.queue().submit([encoder.finish()]))?;
        let mut pending = self.pending();
        pending.submissions += 1;
        pending.last = Some(index);
        drop(pending);
        // A lost device drops submissions silently.
        lost::check(self.gpu.device(), DURING)
    }

    /// Overwrites whole words, after all commands that were recorded before.
    pub(crate) fn write(&self, to: Slice<'_>, bytes: &[u8]) -> Result<(), WgpuError> {
        self.submit()?;
        caught(self.gpu.device(), "copying to the device", || {
            self.gpu.queue().write_buffer(to.buffer, to.offset, bytes);
        })
    }

    /// Submits, waits, and copies whole words out, by way of a buffer that can be mapped.
    pub(crate) fn read<R>(
        &self,
        from: Slice<'_>,
        staging: &wgpu::Buffer,
        take: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, WgpuError> {
        const DURING: &str = "copying from the device";
        let lost = || WgpuError::DeviceLost { during: DURING };
        let Slice { buffer, offset, size } = from;
        self.encode(|encoder| encoder.copy_buffer_to_buffer(buffer, offset, staging, 0, size))?;
        self.submit()?;
        let (sender, mapped) = channel();
        let slice = staging.slice(..size);
        caught(self.gpu.device(), DURING, || {
            slice.map_async(wgpu::MapMode::Read, move |result| {
                // The receiver is gone only if the wait below has failed.
                sender.send(result).unwrap_or_default();
            });
        })?;
        let last = self.pending().last.clone();
        loop {
            if wait(self.gpu.device(), last.clone()).is_none() {
                return Err(lost());
            }
            // Another thread's poll may have taken our callback, and be about to call it.
            match mapped.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(())) => break,
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => return Err(lost()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let view = slice.get_mapped_range().map_err(|_| lost())?;
        let result = take(&view);
        drop(view);
        caught(self.gpu.device(), DURING, || staging.unmap())?;
        Ok(result)
    }
}

/// Gives the encoder back, also where the commands panic.
struct Recording<'a> {
    queue: &'a Queue,
    encoder: Option<wgpu::CommandEncoder>,
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let mut pending = self.queue.pending();
        pending.encoder = self.encoder.take();
        pending.recording = false;
    }
}

/// Ends a hold, also where the work panics.
struct Hold<'a>(&'a Queue);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.pending().holds -= 1;
    }
}

/// Waits for a submission. wgpu's poll panics where the driver says that the device is lost; that comes back as any other failure.
fn wait(device: &wgpu::Device, submission_index: Option<wgpu::SubmissionIndex>) -> Option<wgpu::PollStatus> {
    let poll = || device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
    catch_unwind(AssertUnwindSafe(poll)).ok()?.ok()
}
