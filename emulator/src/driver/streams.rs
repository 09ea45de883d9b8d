//! Streams and events.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{c_uint, c_void};
use std::sync::Arc;

use super::{Code, code, current};
use crate::device::Device;
use crate::stream::{Event, Stream};

/// The handles of a device's default stream, and of a thread's.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// The mode in which a thread's calls break no capture.
pub(super) const RELAXED: c_uint = 2;

thread_local! {
    static OF_THREAD: RefCell<HashMap<usize, Arc<Stream>>> = RefCell::default();
    static MODE: Cell<c_uint> = const { Cell::new(0) };
}

pub(super) fn mode() -> c_uint {
    MODE.get()
}

/// The stream of a handle. The caller holds the handle, or it is a default one.
pub(super) unsafe fn stream(device: &'static Device, handle: *const Stream) -> Arc<Stream> {
    match handle as usize {
        0 | LEGACY => device.default_stream(),
        PER_THREAD => OF_THREAD.with_borrow_mut(|streams| {
            streams.entry(device.ordinal).or_insert_with(|| device.new_stream()).clone()
        }),
        _ => {
            Arc::increment_strong_count(handle);
            Arc::from_raw(handle)
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut *const Stream, _flags: c_uint) -> Code {
    code(current().map(|device| *stream = Arc::into_raw(device.new_stream())))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamDestroy_v2(stream: *const Stream) -> Code {
    let stream = Arc::from_raw(stream);
    // What is enqueued will be done; the last of it lets go of the stream.
    let own = stream.clone();
    stream.enqueue(move || {
        let _last = &own;
        Ok(())
    });
    Code::Success
}

/// Stops at a stream that is captured, whose capture breaks.
fn not_captured(stream: &Stream) -> Result<(), Code> {
    let Some(capture) = stream.capture() else { return Ok(()) };
    capture.break_it();
    Err(Code::CaptureUnsupported)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamSynchronize(on: *const Stream) -> Code {
    code(current().and_then(|device| {
        let stream = stream(device, on);
        not_captured(&stream)?;
        stream.synchronize();
        current().map(drop)
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamQuery(on: *const Stream) -> Code {
    code(current().and_then(|device| {
        let stream = stream(device, on);
        not_captured(&stream)?;
        if stream.is_idle() { Ok(()) } else { Err(Code::NotReady) }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamWaitEvent(on: *const Stream, event: *const Event, _flags: c_uint) -> Code {
    code(current().map(|device| of(event).hold_back(&stream(device, on))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchHostFunc(
    on: *const Stream,
    function: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
) -> Code {
    let data = data as usize;
    code(current().map(|device| {
        stream(device, on).enqueue(move || {
            function(data as *mut c_void);
            Ok(())
        });
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) -> Code {
    *mode = MODE.replace(*mode);
    Code::Success
}

/// The event of a handle, which the caller holds.
unsafe fn of(event: *const Event) -> Arc<Event> {
    Arc::increment_strong_count(event);
    Arc::from_raw(event)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut *const Event, _flags: c_uint) -> Code {
    *event = Arc::into_raw(Arc::default());
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventDestroy_v2(event: *const Event) -> Code {
    drop(Arc::from_raw(event));
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventRecord(event: *const Event, on: *const Stream) -> Code {
    code(current().map(|device| of(event).record(&stream(device, on))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventQuery(event: *const Event) -> Code {
    code(current().and_then(|_| if of(event).is_reached() { Ok(()) } else { Err(Code::NotReady) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventSynchronize(event: *const Event) -> Code {
    code(current().and_then(|device| {
        of(event).synchronize(device);
        current().map(drop)
    }))
}

/// Time means nothing here.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(
    milliseconds: *mut f32,
    _start: *const Event,
    _end: *const Event,
) -> Code {
    *milliseconds = 0.0;
    Code::Success
}
