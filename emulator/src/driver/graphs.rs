//! Captures and graphs.

use std::ffi::{c_uint, c_ulonglong};
use std::ptr::null;
use std::sync::Arc;

use super::streams::stream;
use super::{Code, code, current};
use crate::capture::Capture;
use crate::stream::{Stream, Work};

type Graph = Vec<Work>;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamBeginCapture_v2(on: *const Stream, mode: c_uint) -> Code {
    code(current().and_then(|device| {
        let stream = stream(device, on);
        if stream.capture().is_some() {
            return Err(Code::InvalidValue);
        }
        Capture::begin(&stream, mode);
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(on: *const Stream, graph: *mut *const Graph) -> Code {
    *graph = null();
    code(current().and_then(|device| {
        let capture = stream(device, on).capture().ok_or(Code::InvalidValue)?;
        let work = capture.end().ok_or(Code::CaptureInvalidated)?;
        *graph = Arc::into_raw(Arc::new(work));
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamIsCapturing(on: *const Stream, status: *mut c_uint) -> Code {
    code(current().map(|device| {
        let capture = stream(device, on).capture();
        *status = capture.map_or(0, |capture| if capture.is_broken() { 2 } else { 1 });
    }))
}

/// A graph that can be launched is the graph itself.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphInstantiateWithFlags(
    executable: *mut *const Graph,
    graph: *const Graph,
    _flags: c_ulonglong,
) -> Code {
    Arc::increment_strong_count(graph);
    *executable = graph;
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphLaunch(executable: *const Graph, on: *const Stream) -> Code {
    code(current().map(|device| {
        Arc::increment_strong_count(executable);
        let graph = Arc::from_raw(executable);
        stream(device, on).enqueue(move || graph.iter().try_for_each(|work| work()));
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphUpload(_executable: *const Graph, _on: *const Stream) -> Code {
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphExecDestroy(executable: *const Graph) -> Code {
    drop(Arc::from_raw(executable));
    Code::Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphDestroy(graph: *const Graph) -> Code {
    drop(Arc::from_raw(graph));
    Code::Success
}
