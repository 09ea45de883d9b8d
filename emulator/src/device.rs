//! The devices of this process.

use std::env;
use std::ffi::c_int;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use crate::memory::Memory;
use crate::stream::Stream;

/// What `cuDeviceGetAttribute` is asked for here, and what it answers: a small device of compute capability 9.0.
const ATTRIBUTES: [(i32, i32); 10] = [
    (1, 1024),     // threads of a block
    (8, 49152),    // bytes of shared memory of a block
    (10, 32),      // threads of a warp
    (16, 8),       // multiprocessors
    (38, 1 << 22), // bytes of L2 cache
    (39, 2048),    // threads of a multiprocessor
    (75, 9),       // compute capability
    (76, 0),
    (81, 233_472), // bytes of shared memory of a multiprocessor
    (97, 232_448), // bytes of shared memory of a block that asks for it
];

/// One device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) ordinal: usize,
    pub(crate) memory: Memory,
    default: OnceLock<Arc<Stream>>,
    streams: Mutex<Vec<Weak<Stream>>>,
    /// What went wrong first: every later call returns it.
    pub(crate) failed: OnceLock<String>,
}

/// What the environment asks for.
#[derive(Debug)]
pub(crate) struct Settings {
    devices: usize,
    /// Whether the last block of a grid starts first.
    pub(crate) backwards: bool,
}

/// The settings, or what is wrong with them.
pub(crate) fn settings() -> Result<&'static Settings, &'static str> {
    static SETTINGS: OnceLock<Result<Settings, String>> = OnceLock::new();
    let read = || {
        let variable = |name: &str, otherwise: &str| env::var(name).unwrap_or_else(|_| otherwise.to_owned());
        let devices = variable("SYNCBN_EMULATED_DEVICES", "1");
        let devices = devices.parse().map_err(|_| format!("SYNCBN_EMULATED_DEVICES is `{devices}`"))?;
        let backwards = match variable("SYNCBN_EMULATED_ORDER", "forwards").as_str() {
            "forwards" => false,
            "backwards" => true,
            other => return Err(format!("SYNCBN_EMULATED_ORDER is `{other}`")),
        };
        Ok(Settings { devices, backwards })
    };
    SETTINGS.get_or_init(read).as_ref().map_err(String::as_str)
}

static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();

/// All devices; none if the settings are wrong.
pub(crate) fn devices() -> &'static [Device] {
    DEVICES.get_or_init(|| {
        thread::spawn(wake_streams);
        // SAFETY: the function is called before this library is unloaded, if it ever is.
        unsafe { atexit(check_memory) };
        let count = settings().map_or(0, |settings| settings.devices);
        (0..count).filter_map(Device::new).collect()
    })
}

unsafe extern "C" {
    /// The C library's: calls the function when the process ends by itself.
    fn atexit(function: extern "C" fn()) -> c_int;
}

/// Looks behind the regions that nobody has freed.
extern "C" fn check_memory() {
    DEVICES.get().into_iter().flatten().for_each(|device| device.memory.check());
}

/// Wakes the streams that have work, every millisecond.
fn wake_streams() {
    loop {
        thread::sleep(Duration::from_millis(1));
        for device in devices() {
            device.streams().iter().filter_map(Weak::upgrade).for_each(|stream| stream.wake());
        }
    }
}

impl Device {
    fn new(ordinal: usize) -> Option<Self> {
        let memory = Memory::new().ok()?;
        Some(Self {
            ordinal,
            memory,
            default: OnceLock::new(),
            streams: Mutex::default(),
            failed: OnceLock::new(),
        })
    }

    /// Prints the error. All later calls fail.
    pub(crate) fn fail(&self, error: String) {
        eprintln!("emulated device {}: {error}", self.ordinal);
        self.failed.get_or_init(|| error);
    }

    /// The value of an attribute; 0 if it is not known here.
    pub(crate) fn attribute(which: i32) -> i32 {
        ATTRIBUTES.iter().find(|(known, _)| *known == which).map_or(0, |(_, value)| *value)
    }

    pub(crate) fn new_stream(&'static self) -> Arc<Stream> {
        let stream = Stream::start(self);
        let mut streams = self.streams();
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(&stream));
        stream
    }

    /// The stream whose handle is null.
    pub(crate) fn default_stream(&'static self) -> Arc<Stream> {
        self.default.get_or_init(|| self.new_stream()).clone()
    }

    /// Waits for all that is enqueued.
    pub(crate) fn synchronize(&self) {
        let streams: Vec<_> = self.streams().iter().filter_map(Weak::upgrade).collect();
        for stream in streams {
            stream.synchronize();
        }
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
