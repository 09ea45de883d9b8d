//! Streams and events. What a stream was given is done in order, by the stream's thread or by a caller that waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::capture::Capture;
use crate::device::Device;

/// Something to do, once or, in a graph, often. The error breaks the device.
pub(crate) type Work = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A queue of work of one device.
pub(crate) struct Stream {
    pub(crate) device: &'static Device,
    queue: Mutex<VecDeque<Work>>,
    /// Held by whoever takes work from the queue and does it.
    busy: Mutex<()>,
    there_is_work: Condvar,
    capture: Mutex<Option<Arc<Capture>>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream of device {}", self.device.ordinal)
    }
}

impl Stream {
    pub(crate) fn start(device: &'static Device) -> Arc<Self> {
        let stream = Arc::new(Self {
            device,
            queue: Mutex::default(),
            busy: Mutex::default(),
            there_is_work: Condvar::new(),
            capture: Mutex::default(),
        });
        let own = Arc::downgrade(&stream);
        thread::spawn(move || {
            while let Some(stream) = own.upgrade() {
                stream.do_work();
                stream.wait_for_work();
            }
        });
        stream
    }

    /// Enqueues work, or adds it to the capture that is going on. The stream's thread is woken within a millisecond (`wake_streams`):
    /// nobody is woken for work that the caller will soon wait for, and do itself.
    pub(crate) fn enqueue(&self, work: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        let work: Work = Arc::new(work);
        match self.capture() {
            Some(capture) => capture.add(work),
            None => lock(&self.queue).push_back(work),
        }
    }

    /// Waits for all that is enqueued, and does what nobody has begun: to wake the stream's thread for it would take longer.
    pub(crate) fn synchronize(&self) {
        self.do_work();
    }

    /// Whether nothing is enqueued or being done.
    pub(crate) fn is_idle(&self) -> bool {
        let idle = self.busy.try_lock().is_ok() && lock(&self.queue).is_empty();
        if !idle {
            self.there_is_work.notify_one();
        }
        idle
    }

    fn do_work(&self) {
        let _busy = lock(&self.busy);
        // The queue is not locked while its work is done.
        let next = || lock(&self.queue).pop_front();
        while let Some(work) = next() {
            if self.device.failed.get().is_some() {
                continue; // A device that has failed does no work.
            }
            if let Err(error) = work() {
                self.device.fail(error);
            }
        }
    }

    fn wait_for_work(&self) {
        let queue = lock(&self.queue);
        if queue.is_empty() {
            drop(self.there_is_work.wait_timeout(queue, Duration::from_millis(100)));
        }
    }

    /// Wakes the stream's thread if there is work.
    pub(crate) fn wake(&self) {
        if !lock(&self.queue).is_empty() {
            self.there_is_work.notify_one();
        }
    }

    pub(crate) fn capture(&self) -> Option<Arc<Capture>> {
        lock(&self.capture).clone()
    }

    pub(crate) fn set_capture(&self, capture: Option<Arc<Capture>>) {
        *lock(&self.capture) = capture;
    }
}

/// A point of a stream that others can wait for.
#[derive(Debug, Default)]
pub(crate) struct Event {
    state: Mutex<State>,
    reached: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How often it was recorded, and which record has been reached.
    recorded: u64,
    reached: u64,
    /// The capture in which it was recorded last.
    capture: Option<Arc<Capture>>,
}

impl Event {
    /// The number of the next record.
    fn next(&self) -> u64 {
        let mut state = self.lock();
        state.recorded += 1;
        state.capture = None;
        state.recorded
    }

    fn reach(&self, number: u64) {
        let mut state = self.lock();
        state.reached = state.reached.max(number);
        self.reached.notify_all();
    }

    /// Waits for the record, but not for ever; whether it was reached.
    fn wait_a_while(&self, number: u64) -> bool {
        let state = self.lock();
        let a_while = Duration::from_millis(100);
        let waited = self.reached.wait_timeout_while(state, a_while, |state| state.reached < number);
        waited.map_or(true, |(state, _)| state.reached >= number)
    }

    pub(crate) fn record(self: &Arc<Self>, stream: &Stream) {
        if let Some(capture) = stream.capture() {
            self.lock().capture = Some(capture);
            return;
        }
        let (number, event) = (self.next(), self.clone());
        stream.enqueue(move || {
            event.reach(number);
            Ok(())
        });
    }

    /// Lets the stream wait for what was recorded last. In a capture, the stream becomes a part of it.
    pub(crate) fn hold_back(self: &Arc<Self>, stream: &Arc<Stream>) {
        let (number, capture) = {
            let state = self.lock();
            (state.recorded, state.capture.clone())
        };
        if let Some(capture) = capture.filter(|capture| !capture.has_ended()) {
            if stream.capture().is_none() {
                capture.join(stream);
            }
            return;
        }
        let event = self.clone();
        let device = stream.device;
        stream.enqueue(move || {
            while !event.wait_a_while(number) && device.failed.get().is_none() {}
            Ok(())
        });
    }

    pub(crate) fn is_reached(&self) -> bool {
        let state = self.lock();
        state.reached >= state.recorded
    }

    pub(crate) fn synchronize(&self, device: &Device) {
        let number = self.lock().recorded;
        while !self.wait_a_while(number) && device.failed.get().is_none() {}
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
