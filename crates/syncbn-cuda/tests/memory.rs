//! The caller's memory: cudarc's slices and views, and raw pointers, of any alignment and size.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use std::time::Duration;

use common::{Rig, block, devices, download, needs};
use syncbn_core::{
    Config, Element, Gradients, Kernels, ParamGradients, SingleRank, Storage, SyncBatchNorm, View, ViewMut,
    bf16, f16,
};
use syncbn_cuda::cudarc::driver::result::memcpy_dtod_async;
use syncbn_cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr};
use syncbn_cuda::{Cuda, Mem, MemMut};

/// Forward and backward on views that begin `offset` elements into their slices: y and dx.
fn step<T>(
    cuda: &Cuda,
    queue: &Arc<CudaStream>,
    x: &[T],
    shape: &[usize],
    last: bool,
    offset: usize,
) -> [Vec<T>; 2]
where
    T: Element<Param = f32> + DeviceRepr,
    Cuda: Kernels<T>,
{
    let len = x.len();
    let channels = if last { shape[shape.len() - 1] } else { shape[1] };
    let mut layer = SyncBatchNorm::local("bn", Config::new(channels), cuda.clone(), queue).unwrap();
    let moved = |values: &[T]| {
        let padded: Vec<T> =
            std::iter::repeat_n(T::default(), offset).chain(values.iter().copied()).collect();
        queue.clone_htod(&padded).unwrap()
    };
    let dy: Vec<T> = x.iter().rev().copied().collect();
    let (x, dy) = (moved(x), moved(&dy));
    let (mut y, mut dx) = (moved(&vec![T::default(); len]), moved(&vec![T::default(); len]));
    let read = |slice: &CudaSlice<T>| queue.clone_dtoh(&slice.slice(offset..)).unwrap();
    let view =
        |slice| if last { View::channels_last(slice, shape) } else { View::channels_first(slice, shape) };
    let view_mut = |slice| {
        if last { ViewMut::channels_last(slice, shape) } else { ViewMut::channels_first(slice, shape) }
    };
    let saved = layer
        .forward(
            queue,
            view(Mem::new(x.slice(offset..), queue)),
            view_mut(MemMut::new(y.slice_mut(offset..), queue)),
        )
        .unwrap();
    let dx_view = view_mut(MemMut::new(dx.slice_mut(offset..), queue));
    let (x, dy) = (view(Mem::new(x.slice(offset..), queue)), view(Mem::new(dy.slice(offset..), queue)));
    let gradients = Gradients::out_of_place(dy, dx_view);
    layer.backward(queue, &saved, x, gradients, ParamGradients::default()).unwrap();
    [read(&y), read(&dx)]
}

fn alignment_changes_nothing<T>(cuda: &Cuda, tolerance: f64)
where
    T: Element<Param = f32> + DeviceRepr,
    Cuda: Kernels<T>,
{
    let queue = cuda.context().new_stream().unwrap();
    for (shape, last) in
        [(&[3, 8, 4, 4][..], false), (&[3, 5, 7][..], false), (&[3, 4, 4, 8], true), (&[40, 24], true)]
    {
        let len: usize = shape.iter().product();
        let x: Vec<T> = (0..len).map(|i| T::from_f64((i as f64 * 0.7).sin() + 0.2)).collect();
        let aligned = step(cuda, &queue, &x, shape, last, 0);
        for offset in [1, 2, 3, 4, 7] {
            let shifted = step(cuda, &queue, &x, shape, last, offset);
            for (a, b) in aligned.iter().flatten().zip(shifted.iter().flatten()) {
                assert!((a.to_f64() - b.to_f64()).abs() <= tolerance, "{shape:?} {offset}: {a:?} {b:?}");
            }
        }
    }
}

#[test]
fn pointers_of_any_alignment_give_the_same_numbers() {
    for cuda in devices() {
        alignment_changes_nothing::<f32>(&cuda, 1e-6);
        alignment_changes_nothing::<f16>(&cuda, 2e-3);
        alignment_changes_nothing::<bf16>(&cuda, 2e-2);
    }
}

#[test]
fn a_raw_pointer_is_read_and_written_where_it_points() {
    for cuda in devices() {
        let queue = cuda.context().new_stream().unwrap();
        let mut layer = SyncBatchNorm::local("bn", Config::new(2), cuda.clone(), &queue).unwrap();
        let x = queue.clone_htod(&[1_f32, 3.0, 10.0, 30.0]).unwrap();
        let y = queue.alloc_zeros::<f32>(4).unwrap();
        let ((from, _x), (to, _y)) = (x.device_ptr(&queue), y.device_ptr(&queue));
        // SAFETY: the slice lives until the queue has been waited for below, and nothing writes it.
        let from = unsafe { Mem::<f32>::from_raw(&cuda, from, 4) };
        // SAFETY: as above, and nothing else reads or writes it meanwhile.
        let to = unsafe { MemMut::<f32>::from_raw(&cuda, to, 4) };
        let (x, y_view) = (View::channels_first(from, &[1, 2, 2]), ViewMut::channels_first(to, &[1, 2, 2]));
        layer.forward(&queue, x, y_view).unwrap();
        let got = queue.clone_dtoh(&y).unwrap();
        let expected = [-1.0, 1.0, -1.0, 1.0];
        assert!(
            got.iter().zip(expected).all(|(y, expected): (&f32, f32)| (y - expected).abs() < 1e-4),
            "{got:?}"
        );
    }
}

/// Two channels-first channels in one sample: numbers beyond the 2^31st belong to the second.
#[test]
fn more_than_2_to_the_31_elements_are_counted_and_found() {
    const LEN: usize = (1 << 31) + (1 << 21);
    let Some(cuda) = devices().into_iter().next() else { return };
    if cuda.context().mem_get_info().unwrap().0 < 5 * LEN {
        return needs(&format!("{} GB of device memory", (5 * LEN) >> 30));
    }
    let queue = cuda.context().new_stream().unwrap();
    // Each channel alternates between two values, so its mean and deviation are known exactly.
    let half = LEN / 2;
    let value = |i: usize| if i < half { [1.0, 5.0][i % 2] } else { [-2.0, 0.0][i % 2] };
    let host: Vec<bf16> = (0..LEN).map(|i| bf16::from_f64(value(i))).collect();
    let x = cuda.upload(&queue, &host).unwrap();
    drop(host);
    // y overwrites nothing that is read: it is memory of its own.
    let mut y = cuda.upload(&queue, &vec![bf16::default(); LEN]).unwrap();
    let mut layer = SyncBatchNorm::<Cuda, f32>::local("bn", Config::new(2), cuda.clone(), &queue).unwrap();
    let view = View::<Cuda, bf16>::channels_first(<Cuda as Storage>::mem(&x), &[1, 2, half]);
    let to = ViewMut::channels_first(<Cuda as Storage>::mem_mut(&mut y), &[1, 2, half]);
    layer.forward(&queue, view, to).unwrap();
    drop(x);
    let y = download(&cuda, &queue, &y);
    let one = bf16::from_f64(1.0);
    let wrong = (0..LEN).find(|&i| y[i] != if i % 2 == 0 { -one } else { one });
    assert_eq!(wrong, None);
    let mean = layer.state(&queue).unwrap().running_mean.unwrap();
    assert!((mean[0] - 0.3).abs() < 1e-6 && (mean[1] + 0.1).abs() < 1e-6, "{mean:?}");
}

const PATIENCE: Duration = Duration::from_secs(10);

/// x belongs to one stream, and a layer borrows it on another one, which is blocked. The borrow is forgotten and x is freed. The first
/// stream then gets the same memory, and must not write to it before the layer has read it.
#[test]
fn a_forgotten_borrow_does_not_let_memory_go_before_it_was_read() {
    const SHAPE: [usize; 3] = [1 << 16, 2, 8];
    let len = SHAPE.iter().product();
    for cuda in devices() {
        let [owner, user] = [(); 2].map(|()| cuda.context().new_stream().unwrap());
        let mut layer = SyncBatchNorm::local("bn", Config::new(2), cuda.clone(), &user).unwrap();
        let values: Vec<f32> = (0..len).map(|i| (i % 5) as f32).collect();
        let mut step = |blocked: bool| {
            let mut y = cuda.upload(&user, &vec![0_f32; len]).unwrap();
            let x = owner.clone_htod(&values).unwrap();
            let view = View::<Cuda, f32>::channels_first(Mem::new(x.as_view(), &user), &SHAPE).unwrap();
            let view = std::mem::ManuallyDrop::new(view);
            let open = blocked.then(|| block(&cuda, &user, PATIENCE));
            let to = ViewMut::channels_first(<Cuda as Storage>::mem_mut(&mut y), &SHAPE);
            layer.forward(&user, view.reborrow(), to).unwrap();
            drop(x);
            let again: Vec<_> = (0..4).map(|_| owner.alloc_zeros::<f32>(len).unwrap()).collect();
            drop(open);
            let y = download(&cuda, &user, &y);
            drop(again);
            y
        };
        assert!(step(false) == step(true), "what was freed was read");
    }
}

/// A snapshot on another stream waits for the steps that were enqueued.
#[test]
fn a_snapshot_on_another_stream_comes_after_what_was_enqueued() {
    for cuda in devices() {
        let mut rig = Rig::new(&cuda, SingleRank, 3);
        rig.step();
        let other = cuda.context().new_stream().unwrap();
        let open = block(&cuda, &rig.queue, Duration::from_millis(300));
        for _ in 0..200 {
            rig.step();
        }
        let state = rig.layer.state(&other).unwrap();
        drop(open);
        assert_eq!(state.num_batches_tracked, Some(201));
        let elsewhere = rig.layer.state(&rig.queue).unwrap();
        assert_eq!(state, elsewhere);
    }
}

/// Forward on one stream, backward on another, and weights changed on a third give what one stream gives.
#[test]
fn streams_wait_for_each_other_where_they_share_a_layer() {
    for cuda in devices() {
        let mut alone = Rig::new(&cuda, SingleRank, 3);
        let mut shared = Rig::new(&cuda, SingleRank, 3);
        for round in 0..20 {
            let changed = vec![1.0 + round as f32; 5];
            for (rig, streams) in [(&mut alone, 1), (&mut shared, 3)] {
                let mut queues = vec![rig.queue.clone()];
                queues.extend((1..streams).map(|_| cuda.context().new_stream().unwrap()));
                let source = cuda.upload(&queues[0], &changed).unwrap();
                let weight = rig.layer.weight_mut().unwrap();
                weight.copy_from(&queues[streams - 1], &source).unwrap();
                let saved = rig.forward();
                rig.queue = queues[1 % streams].clone();
                rig.backward(&saved);
                rig.queue = queues[0].clone();
            }
        }
        assert_eq!(shared.written(), alone.written());
    }
}

/// An optimiser on the device writes through the pointer.
#[test]
fn a_weight_is_changed_through_its_pointer() {
    for cuda in devices() {
        let queue = cuda.context().new_stream().unwrap();
        let mut layer = SyncBatchNorm::<_, f32>::local("bn", Config::new(3), cuda.clone(), &queue).unwrap();
        let fresh = queue.clone_htod(&[2.0_f32, 3.0, 4.0]).unwrap();
        let weight = layer.weight_mut().unwrap();
        assert_eq!(weight.len(), 3);
        let pointer = weight.device_ptr_mut(&queue).unwrap();
        let (from, _from) = fresh.device_ptr(&queue);
        // SAFETY: both have three elements, and live until the queue has been waited for below.
        unsafe { memcpy_dtod_async(pointer, from, 12, queue.cu_stream()) }.unwrap();
        let other = cuda.context().new_stream().unwrap();
        let weight = layer.weight().unwrap();
        assert_eq!(download(&cuda, &other, weight), [2.0, 3.0, 4.0]);
        assert_eq!(weight.device_ptr(&queue).unwrap(), pointer);
    }
}
