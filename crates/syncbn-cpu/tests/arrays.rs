//! `ndarray` views are borrowed, never copied, and those with gaps are refused.

#![allow(clippy::unwrap_used)] // tests panic

use ndarray::{Array2, Array3, Array4, ArrayD, Axis, IxDyn, s};
use syncbn_core::{
    Config, ErrorKind, Gradients, IntoView, IntoViewMut, Layout, ShapeError, SyncBatchNorm, Tensor, View,
};
use syncbn_cpu::{Cpu, backward_array, channels_last, channels_last_mut, forward_array};

fn layer(channels: usize) -> SyncBatchNorm<Cpu, f32> {
    SyncBatchNorm::local("bn", Config::new(channels), Cpu, &()).unwrap()
}

fn counted(shape: (usize, usize, usize, usize)) -> Array4<f32> {
    let mut next = 0.0;
    Array4::from_shape_simple_fn(shape, || {
        next += 1.0;
        next
    })
}

fn near(a: &Array4<f32>, b: &Array4<f32>) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
}

fn strides_error<T: std::fmt::Debug>(result: &Result<T, ShapeError>) {
    assert!(matches!(result, Err(ShapeError::Strides { .. })), "{result:?}");
}

#[test]
fn a_view_is_the_array_s_own_memory_in_both_layouts() {
    let first = counted((2, 3, 4, 5));
    let view: View<'_, Cpu, f32> = first.view().into_view().unwrap();
    assert_eq!((view.mem().as_ptr(), view.mem().len()), (first.as_ptr(), 120));
    assert_eq!(view.geometry().layout(), Layout::ChannelsFirst);

    let last = counted((2, 4, 5, 3));
    let view = last.view().permuted_axes([0, 3, 1, 2]).into_view().unwrap();
    assert_eq!((view.mem().as_ptr(), view.mem().len()), (last.as_ptr(), 120));
    assert_eq!(view.geometry().layout(), Layout::ChannelsLast);
    assert_eq!(view.geometry().shape().sizes(), [2, 3, 4, 5]);

    let same = channels_last(&last).unwrap();
    assert_eq!(same.geometry(), view.geometry());
    assert_eq!(same.mem().as_ptr(), last.as_ptr());
}

#[test]
fn a_view_to_write_is_the_array_s_own_memory_in_both_layouts() {
    let mut first = counted((2, 3, 4, 5));
    let at = first.as_ptr();
    assert_eq!(first.view_mut().into_view_mut().unwrap().into_mem().as_ptr(), at);

    let mut last = counted((2, 4, 5, 3));
    let at = last.as_ptr();
    let permuted = last.view_mut().permuted_axes([0, 3, 1, 2]);
    assert_eq!(permuted.into_view_mut().unwrap().into_mem().as_ptr(), at);
    assert_eq!(channels_last_mut(&mut last).unwrap().into_mem().as_ptr(), at);
}

#[test]
fn a_slice_of_samples_is_borrowed_where_it_lies() {
    let x = counted((4, 3, 4, 5));
    let tail = x.slice(s![1..3, .., .., ..]);
    let view = tail.into_view().unwrap();
    assert_eq!((view.mem().as_ptr(), view.mem().len()), (tail.as_ptr(), 120));
}

#[test]
fn a_view_with_gaps_or_reversed_axes_is_refused_with_advice() {
    let mut x = counted((4, 3, 4, 5));
    strides_error(&x.slice(s![.., 1.., .., ..]).into_view());
    strides_error(&x.slice(s![..;2, .., .., ..]).into_view());
    strides_error(&x.slice(s![..;-1, .., .., ..]).into_view());
    strides_error(&x.view().permuted_axes([0, 1, 3, 2]).into_view());
    strides_error(&x.slice_mut(s![.., .., .., ..4]).into_view_mut());
    strides_error(&channels_last(&x.slice(s![.., .., .., ..4])));
    let error = layer(2).forward(&(), x.slice(s![.., 1.., .., ..]), &mut counted((4, 2, 4, 5))).unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::Shape { tensor: Tensor::X, .. }), "{error}");
    assert!(error.to_string().contains("as_standard_layout"), "{error}");
}

#[test]
fn axes_of_length_one_and_empty_arrays_may_have_any_strides() {
    let x = counted((4, 3, 4, 5));
    let one = x.slice(s![1..2;-1, .., .., ..]);
    assert_eq!(one.into_view().unwrap().mem().as_ptr(), one.as_ptr());
    let mut nothing = x.slice(s![2..2, 1.., ..;2, ..]).to_owned();
    assert!(nothing.view().into_view().unwrap().geometry().is_empty());
    assert!(x.slice(s![2..2, 1.., ..;2, ..]).into_view().unwrap().geometry().is_empty());
    assert!(nothing.view_mut().into_view_mut().is_ok());
}

#[test]
fn arrays_of_any_dimension_are_taken() {
    assert!(Array2::<f32>::zeros((4, 3)).view().into_view().is_ok());
    assert!(Array3::<f64>::zeros((4, 3, 2)).view().into_view().is_ok());
    assert!(ArrayD::<f32>::zeros(IxDyn(&[2, 3, 2, 2, 2])).view().into_view().is_ok());
    let one_axis = ArrayD::<f32>::zeros(IxDyn(&[2]));
    let error = one_axis.view().into_view().unwrap_err();
    assert!(matches!(error, ShapeError::Axes { .. }), "{error}");
    let scalar = ArrayD::<f32>::zeros(IxDyn(&[]));
    assert!(scalar.view().into_view().is_err());
    assert!(channels_last(&scalar).is_err());
}

#[test]
fn both_layouts_give_the_same_y_and_gradients() {
    let first = counted((3, 4, 5, 6)).mapv(f32::sin);
    let last = first.view().permuted_axes([0, 2, 3, 1]).as_standard_layout().to_owned();
    let last = last.permuted_axes([0, 3, 1, 2]);
    assert_eq!(first, last);

    let (mut a, mut b) = (layer(4), layer(4));
    let (y, saved) = forward_array(&mut a, &first).unwrap();
    let gradients = backward_array(&mut a, &saved, &first, &first).unwrap();
    let (y_last, saved) = forward_array(&mut b, &last).unwrap();
    let gradients_last = backward_array(&mut b, &saved, &last, &last).unwrap();

    assert_eq!((y_last.strides(), gradients_last.dx.strides()), (last.strides(), last.strides()));
    assert_eq!((y.strides(), gradients.dx.strides()), (first.strides(), first.strides()));
    assert!(near(&y, &y_last));
    assert!(near(&gradients.dx, &gradients_last.dx));
    let mean = y.mean_axis(Axis(0)).and_then(|y| y.sum_axis(Axis(2)).mean_axis(Axis(1))).unwrap();
    assert!(mean.iter().all(|mean| mean.abs() < 1e-5), "{mean}");
}

#[test]
fn the_allocating_passes_give_what_the_others_write() {
    let x = counted((3, 4, 5, 6)).mapv(f32::sin);
    let dy = x.mapv(f32::cos);
    let (mut a, mut b) = (layer(4), layer(4));
    let (y, saved) = forward_array(&mut a, &x).unwrap();
    let gradients = backward_array(&mut a, &saved, &x, &dy).unwrap();

    let (mut expected, mut dx) = (Array4::zeros(x.raw_dim()), Array4::zeros(x.raw_dim()));
    let saved = b.forward(&(), x.view(), expected.view_mut()).unwrap();
    let (mut weight, mut bias) = (vec![0.0; 4], vec![0.0; 4]);
    let parameters = syncbn_core::ParamGradients { weight: Some(&mut weight[..]), bias: Some(&mut bias[..]) };
    b.backward(&(), &saved, x.view(), Gradients::out_of_place(dy.view(), dx.view_mut()), parameters).unwrap();
    assert_eq!((y, gradients.dx), (expected, dx));
    assert_eq!(gradients.weight.unwrap().to_vec(), weight);
    assert_eq!(gradients.bias.unwrap().to_vec(), bias);
}

#[test]
fn the_allocating_passes_name_the_tensor_that_is_wrong() {
    let x = counted((4, 3, 4, 5));
    let mut layer = layer(3);
    let error = forward_array(&mut layer, &x.slice(s![.., .., .., ..4])).unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::Shape { tensor: Tensor::X, .. }), "{error}");
    let (_, saved) = forward_array(&mut layer, &x).unwrap();
    let error = backward_array(&mut layer, &saved, &x, &x.slice(s![.., .., .., ..4])).unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::Shape { tensor: Tensor::Dy, .. }), "{error}");
    let error = backward_array(&mut layer, &saved, &x.slice(s![.., .., .., ..4]), &x).unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::Shape { tensor: Tensor::X, .. }), "{error}");
}
