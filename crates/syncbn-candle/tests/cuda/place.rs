//! The tests' device: the first GPU, with one stream for all threads, since tensors go from one to another.

use std::sync::OnceLock;

use candle_core::Device;
use syncbn_testkit::report::absent;

/// Whether there is a GPU; where there is none, says so. With `SYNCBN_REQUIRE=cuda` that is a failure.
pub(crate) fn available() -> bool {
    found().as_ref().map_err(|why| absent("cuda", module_path!(), why)).is_ok()
}

pub(crate) fn device() -> Device {
    found().as_ref().unwrap().clone()
}

fn found() -> &'static Result<Device, String> {
    static FOUND: OnceLock<Result<Device, String>> = OnceLock::new();
    FOUND.get_or_init(|| Device::new_cuda_with_stream(0).map_err(|error| error.to_string()))
}
