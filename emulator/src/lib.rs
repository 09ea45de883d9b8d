//! A CUDA driver and NVRTC that run kernels on a processor, so that the laws of syncbn-cuda can be tested on a machine without a GPU.
//!
//! The library takes the place of `libcuda.so.1` and `libnvrtc.so` in a process that loads them at run time. It knows the functions that
//! syncbn-cuda and its tests call, and no others. `SYNCBN_EMULATED_DEVICES` says how many devices there are (1 if absent).
//!
//! - A kernel is compiled by the C++ compiler (`CXX`, or `c++`: GCC 12 or newer), after `kernel.h`, which defines what CUDA's language has and C++ has not.
//! - What a stream was given is done in order, by a thread of the stream or by whoever waits for it. So work is asynchronous, as on a
//!   device.
//! - The blocks of a grid run one after the other, in the order of their numbers, or from the last to the first with
//!   `SYNCBN_EMULATED_ORDER=backwards`, which CUDA allows, too. The threads of a block are coroutines that give each
//!   other turns where they wait. A block whose threads wait for different things ends with an error.
//! - Memory of a device is memory that other processes can open. It starts as NaNs. If something was written behind a
//!   region, the process aborts when the region is freed, or at its end.
//!
//! What it cannot show: speed; what goes wrong only if blocks, or the threads of a block between two waits, run at the same time (a missing
//! barrier, fence or wait for the previous kernel); static shared memory that is read before it is written; operands of an instruction in
//! the wrong order, which `kernel.h` takes as they stand; what a capture forbids besides allocating, freeing and waiting.

#![cfg(target_os = "linux")]

mod capture;
mod device;
mod driver;
mod launch;
mod memory;
mod module;
mod nvrtc;
mod source;
mod stream;
