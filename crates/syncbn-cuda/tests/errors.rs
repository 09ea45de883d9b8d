//! What is too large or on the wrong device is a typed error that says so, and never a panic.
//!
//! Deliberately not here: missing libraries, which `processes.rs` hides from a process of their own.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Rig, devices, needs};
use std::sync::Arc;
use syncbn_core::{Backend, ErrorKind, Solo, Storage, View, ViewMut};
use syncbn_cuda::{Cuda, CudaError};

#[test]
fn a_device_that_is_not_there_is_named_with_how_many_are() {
    let count = devices().len();
    if count > 0 {
        let error = Cuda::open(99).unwrap_err();
        assert!(matches!(error, CudaError::NoDevice { ordinal: 99, found } if found == count), "{error}");
    }
}

#[test]
fn memory_that_the_device_does_not_have_is_an_error_and_leaves_it_usable() {
    for cuda in devices() {
        let queue = cuda.context().new_stream().unwrap();
        let error = cuda.sums(&queue, 1 << 37).unwrap_err();
        assert!(matches!(error, CudaError::OutOfMemory { .. }), "{error}");
        let mut rig = Rig::new(&cuda, Arc::new(Solo), 2);
        rig.step();
    }
}

#[test]
fn memory_of_another_device_is_refused_with_the_tensors_name() {
    let [first, second, ..] = &devices()[..] else { return needs("2 GPUs") };
    let mut rig = Rig::new(first, Arc::new(Solo), 2);
    let before = rig.written();
    let queue = second.context().new_stream().unwrap();
    let far = second.upload(&queue, &vec![0_f32; 60]).unwrap();
    let mut near = first.upload(&rig.queue, &vec![0_f32; 60]).unwrap();
    let x = View::channels_first(<Cuda as Storage>::mem(&far), &[2, 5, 6]);
    let y = ViewMut::channels_first(<Cuda as Storage>::mem_mut(&mut near), &[2, 5, 6]);
    let error = rig.layer.forward(&rig.queue, x, y).unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::Backend { .. }), "{error}");
    assert!(error.to_string().contains("memory of x belongs to another device"), "{error}");
    assert_eq!(rig.written(), before);
}
