//! A geometry is a proof: what it accepts is dense, what it refuses says why, and nothing panics.

use proptest::collection::vec;
use proptest::prelude::*;
use syncbn_core::{Geometry, Layout, ShapeError};

/// Row-major strides of `shape`.
fn contiguous(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1_isize; shape.len()];
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * shape[axis + 1].max(1).cast_signed();
    }
    strides
}

/// Moves the last axis to place 1: NHWC seen as NCHW.
fn channel_axis_forward<T: Clone>(sizes: &[T]) -> Vec<T> {
    let mut moved = sizes.to_vec();
    moved[1..].rotate_right(1);
    moved
}

#[test]
fn channels_first_is_samples_by_channels_by_positions() {
    let geometry = Geometry::channels_first(&[2, 3, 4, 5]).unwrap();
    assert_eq!((geometry.outer(), geometry.channels(), geometry.inner()), (2, 3, 20));
    assert_eq!((geometry.per_channel(), geometry.len()), (40, 120));
    assert_eq!(geometry.layout(), Layout::ChannelsFirst);
}

#[test]
fn channels_last_is_positions_by_channels() {
    let geometry = Geometry::channels_last(&[2, 4, 5, 3]).unwrap();
    assert_eq!((geometry.outer(), geometry.channels(), geometry.inner()), (40, 3, 1));
    assert_eq!(geometry.shape().sizes(), [2, 3, 4, 5]);
    assert_eq!(geometry.layout(), Layout::ChannelsLast);
}

#[test]
fn where_both_layouts_have_the_same_order_there_is_one_geometry() {
    for (first, last) in [
        (vec![7, 3], vec![7, 3]),
        (vec![7, 1, 2, 4], vec![7, 2, 4, 1]),
        (vec![7, 3, 1, 1], vec![7, 1, 1, 3]),
        (vec![0, 3, 2], vec![0, 2, 3]),
        (vec![5, 3, 0, 2], vec![5, 0, 2, 3]),
    ] {
        let first = Geometry::channels_first(&first).unwrap();
        assert_eq!(first, Geometry::channels_last(&last).unwrap());
    }
}

#[test]
fn shapes_that_differ_only_in_their_spatial_axes_are_different_geometries() {
    let tall = Geometry::channels_first(&[2, 3, 4, 6]).unwrap();
    let wide = Geometry::channels_first(&[2, 3, 6, 4]).unwrap();
    assert_ne!(tall, wide);
}

#[test]
fn a_geometry_without_elements_is_empty_and_no_other() {
    for (shape, empty) in [([0, 3, 2], true), ([2, 3, 0], true), ([2, 3, 2], false), ([1, 1, 1], false)] {
        let geometry = Geometry::channels_first(&shape).unwrap();
        assert_eq!(geometry.is_empty(), empty, "{geometry:?}");
    }
}

#[test]
fn strides_of_axes_of_length_one_and_of_empty_arrays_say_nothing() {
    let one = Geometry::strided(&[1, 3, 1, 5], &[-7, 5, 999, 1], 1).unwrap();
    assert_eq!(one, Geometry::channels_first(&[1, 3, 1, 5]).unwrap());
    let empty = Geometry::strided(&[0, 3, 4], &[0, -1, 17], 1).unwrap();
    assert!(empty.is_empty());
}

#[test]
fn gaps_and_reversed_axes_are_refused_with_advice() {
    for strides in [[24, 8, 2], [12, 4, -1], [12, 3, 1]] {
        let error = Geometry::strided(&[2, 3, 4], &strides, 1).unwrap_err();
        assert!(matches!(error, ShapeError::Strides { .. }));
        assert!(error.to_string().contains("contiguous"), "{error}");
    }
}

#[test]
fn each_kind_of_bad_shape_has_its_error() {
    let first = Geometry::channels_first;
    assert!(matches!(first(&[]), Err(ShapeError::Axes { .. })));
    assert!(matches!(first(&[3]), Err(ShapeError::Axes { .. })));
    assert!(matches!(first(&[1; 9]), Err(ShapeError::Axes { .. })));
    assert!(matches!(first(&[2, 0, 3]), Err(ShapeError::NoChannels { .. })));
    assert!(matches!(first(&[usize::MAX, 2]), Err(ShapeError::Overflow { .. })));
    // An empty axis does not hide a product that nothing can address.
    assert!(matches!(first(&[0, usize::MAX, 2]), Err(ShapeError::Overflow { .. })));
    assert!(matches!(Geometry::channels_last(&[]), Err(ShapeError::Axes { .. })));
    assert!(matches!(Geometry::strided(&[2, 3], &[3, 1], 0), Err(ShapeError::ChannelAxis { .. })));
    assert!(matches!(Geometry::strided(&[2, 3], &[3, 1], 2), Err(ShapeError::ChannelAxis { .. })));
    assert!(matches!(Geometry::strided(&[2, 3], &[1], 1), Err(ShapeError::StrideCount { .. })));
}

#[test]
fn errors_read_well_for_shapes_of_few_axes() {
    let strided = |shape: &[usize], channel_axis| {
        Geometry::strided(shape, &contiguous(shape), channel_axis).unwrap_err().to_string()
    };
    let axes = "expected 2 to 8: batch, channels, spatial axes";
    assert_eq!(strided(&[3], 1), format!("the number of axes of shape [3] is 1, {axes}"));
    assert_eq!(strided(&[], 0), format!("the number of axes of shape [] is 0, {axes}"));
    assert_eq!(strided(&[1; 9], 1), format!("the number of axes of shape {:?} is 9, {axes}", [1; 9]));
    let samples = "axis 0 counts samples";
    assert_eq!(strided(&[2, 3], 2), format!("the channel axis is 2, expected 1 for 2 axes: {samples}"));
    assert_eq!(
        strided(&[2, 3, 4], 0),
        format!("the channel axis is 0, expected 1 to 2 for 3 axes: {samples}")
    );
    let error = Geometry::strided(&[2, 3], &[1], 1).unwrap_err().to_string();
    assert_eq!(error, "the number of strides is 1, expected 2: one for each axis");
}

proptest! {
    #[test]
    fn a_dense_array_is_recognised_by_its_strides(shape in vec(0_usize..5, 2..=8)) {
        prop_assume!(shape[1] > 0 && shape[shape.len() - 1] > 0);
        let strides = contiguous(&shape);
        let first = Geometry::strided(&shape, &strides, 1).unwrap();
        prop_assert_eq!(first, Geometry::channels_first(&shape).unwrap());

        let last = Geometry::channels_last(&shape).unwrap();
        prop_assert_eq!(Geometry::strided(&shape, &strides, shape.len() - 1).unwrap(), last);
        let (shape, strides) = (channel_axis_forward(&shape), channel_axis_forward(&strides));
        prop_assert_eq!(Geometry::strided(&shape, &strides, 1).unwrap(), last);
    }

    #[test]
    fn every_element_has_one_place(shape in vec(1_usize..4, 2..=5)) {
        let geometry = Geometry::channels_last(&shape).unwrap();
        let strides = contiguous(&shape);
        let mut seen = vec![false; geometry.len()];
        for outer in 0..geometry.outer() {
            for channel in 0..geometry.channels() {
                for inner in 0..geometry.inner() {
                    let offset = (outer * geometry.channels() + channel) * geometry.inner() + inner;
                    prop_assert!(!std::mem::replace(&mut seen[offset], true));
                    let channel_stride = usize::try_from(*strides.last().unwrap()).unwrap();
                    prop_assert_eq!(offset / channel_stride % shape[shape.len() - 1], channel);
                }
            }
        }
        prop_assert!(seen.into_iter().all(|seen| seen));
    }

    #[test]
    fn arbitrary_numbers_never_panic(
        shape in vec(prop_oneof![any::<usize>(), 0_usize..4], 0..10),
        strides in vec(any::<isize>(), 0..10),
        channel_axis in prop_oneof![any::<usize>(), 0_usize..10],
    ) {
        let _ = Geometry::channels_first(&shape);
        let _ = Geometry::channels_last(&shape);
        let _ = Geometry::strided(&shape, &strides, channel_axis);
    }
}
