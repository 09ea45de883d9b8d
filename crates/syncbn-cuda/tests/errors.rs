//! Tensors that are too large, or on the wrong device, are typed errors, never panics. `processes.rs` tests missing libraries.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Rig, devices, needs};
use syncbn_core::backend::MomentsArgs;
use syncbn_core::{Backend, Dtype, ErrorKind, Kernels, SingleRank, Storage, View, ViewMut};
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
        for channels in [1 << 37, 1 << 59, usize::MAX] {
            let error = cuda.workspace(&queue, channels, Dtype::F32).unwrap_err();
            assert!(matches!(error, CudaError::OutOfMemory { .. }), "{error}");
            let error = cuda.saved(&queue, channels).unwrap_err();
            assert!(matches!(error, CudaError::OutOfMemory { .. }), "{error}");
        }
        let mut rig = Rig::new(&cuda, SingleRank, 2);
        rig.step();
    }
}

#[test]
fn memory_of_another_device_is_refused_with_the_tensors_name() {
    let [first, second, ..] = &devices()[..] else { return needs("2 GPUs") };
    let mut rig = Rig::new(first, SingleRank, 2);
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

/// A kernel that is called directly does not write beyond the memory that it was given.
#[test]
fn a_workspace_of_another_layer_is_refused() {
    for cuda in devices() {
        let queue = cuda.context().new_stream().unwrap();
        let x = cuda.upload(&queue, &[0_f64; 60]).unwrap();
        for (channels, params) in [(4, Dtype::F64), (5, Dtype::F32)] {
            let mut workspace = cuda.workspace(&queue, channels, params).unwrap();
            let x = View::channels_first(<Cuda as Storage>::mem(&x), &[2, 5, 6]).unwrap();
            let error = cuda.moments(&queue, MomentsArgs { x, workspace: &mut workspace }).unwrap_err();
            assert!(matches!(error, CudaError::OtherWorkspace { .. }), "{error}");
        }
        let mut workspace = cuda.workspace(&queue, 5, Dtype::F64).unwrap();
        let x = View::channels_first(<Cuda as Storage>::mem(&x), &[2, 5, 6]).unwrap();
        Kernels::<f64>::moments(&cuda, &queue, MomentsArgs { x, workspace: &mut workspace }).unwrap();
        queue.synchronize().unwrap();
    }
}
