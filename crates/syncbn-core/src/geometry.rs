//! Shapes and memory layouts: any accepted tensor, reduced to three numbers that kernels can rely on.
//!
//! A dense tensor of shape (N, C, *spatial), channels-first or channels-last, is an array of `outer x channels x inner` elements
//! whose last index varies fastest:
//!
//! | layout | `outer` | `inner` |
//! |---|---|---|
//! | channels-first (N, C, *spatial) | N | product of the spatial axes |
//! | channels-last (N, *spatial, C) | N times that product | 1 |
//!
//! A [`Geometry`] is these numbers, checked once. A [`View`](crate::View) is a geometry with memory that is large enough.
//!
//! Deliberately not here: copies. A tensor with gaps, or with its spatial axes in another order, is refused
//! ([`ShapeError::Strides`]).

use std::fmt;

/// The most axes that a shape may have: batch, channels and up to six spatial ones.
pub const MAX_AXES: usize = 8;

/// A tensor's sizes in the order (N, C, *spatial), whatever its layout in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    axes: usize,
    sizes: [usize; MAX_AXES],
}

impl Shape {
    /// The sizes in the order (N, C, *spatial).
    #[must_use]
    pub fn sizes(&self) -> &[usize] {
        &self.sizes[..self.axes]
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.sizes())
    }
}

/// The two memory layouts that are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// (N, C, *spatial), the last spatial axis fastest.
    ChannelsFirst,
    /// (N, *spatial, C), channels fastest.
    ChannelsLast,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChannelsFirst => "channels-first",
            Self::ChannelsLast => "channels-last",
        })
    }
}

/// A checked shape and memory layout: 2 to [`MAX_AXES`] axes, at least one channel, a number of elements that fits an `isize`.
///
/// Element `(o, c, i)` is at offset `(o * channels + c) * inner + i`. Two geometries are equal exactly if shape and order in memory
/// are equal. Where both layouts have the same order (one channel, one spatial position, or no elements), their geometries are equal.
///
/// ```
/// use syncbn_core::Geometry;
///
/// let nchw = Geometry::channels_first(&[2, 3, 4, 5])?;
/// assert_eq!((nchw.outer(), nchw.channels(), nchw.inner()), (2, 3, 20));
/// let nhwc = Geometry::channels_last(&[2, 4, 5, 3])?;
/// assert_eq!((nhwc.outer(), nhwc.channels(), nhwc.inner()), (40, 3, 1));
/// assert_eq!(nchw.shape(), nhwc.shape()); // both (2, 3, 4, 5)
/// assert_ne!(nchw, nhwc); // in another order
/// # Ok::<(), syncbn_core::ShapeError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    shape: Shape,
    outer: usize,
    inner: usize,
}

impl fmt::Debug for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.layout(), self.shape)
    }
}

impl Geometry {
    /// A dense channels-first tensor.
    ///
    /// # Shapes
    ///
    /// `shape` is (N, C, *spatial), in the order of memory, slowest first. N and the spatial axes may be 0.
    ///
    /// # Errors
    ///
    /// [`ShapeError::Axes`], [`ShapeError::NoChannels`], [`ShapeError::Overflow`].
    pub fn channels_first(shape: &[usize]) -> Result<Self, ShapeError> {
        Self::dense(shape, Layout::ChannelsFirst)
    }

    /// A dense channels-last tensor.
    ///
    /// # Shapes
    ///
    /// `shape` is (N, *spatial, C), in the order of memory, slowest first. N and the spatial axes may be 0.
    ///
    /// # Errors
    ///
    /// [`ShapeError::Axes`], [`ShapeError::NoChannels`], [`ShapeError::Overflow`].
    pub fn channels_last(shape: &[usize]) -> Result<Self, ShapeError> {
        let Some((&channels, others)) = shape.split_last() else {
            return Err(ShapeError::Axes { shape: shape.to_vec() });
        };
        let mut logical = others.to_vec();
        logical.insert(1.min(others.len()), channels);
        Self::dense(&logical, Layout::ChannelsLast)
    }

    /// A tensor described by shape, strides and channel axis, as most frameworks describe theirs.
    ///
    /// # Shapes
    ///
    /// `shape` and `strides` (in elements) have one number for each axis, in the same order. Axis 0 counts samples, `channel_axis`
    /// counts channels, the others are spatial, in order. An NCHW array has channel axis 1, an NHWC array has channel axis 3, and an
    /// NHWC array permuted to NCHW has channel axis 1. Strides of axes of length 1, and all strides of a tensor without elements, are
    /// ignored.
    ///
    /// ```
    /// use syncbn_core::{Geometry, Layout};
    ///
    /// // An NHWC array of shape (2, 4, 5, 3), permuted to NCHW: PyTorch's memory_format=torch.channels_last.
    /// let geometry = Geometry::strided(&[2, 3, 4, 5], &[60, 1, 15, 3], 1)?;
    /// assert_eq!(geometry.layout(), Layout::ChannelsLast);
    /// assert!(Geometry::strided(&[2, 3, 4, 5], &[60, 20, 1, 4], 1).is_err()); // H and W are swapped in memory
    /// # Ok::<(), syncbn_core::ShapeError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`channels_first`](Self::channels_first); [`ShapeError::StrideCount`]; [`ShapeError::ChannelAxis`] if `channel_axis` is 0 or
    /// beyond the axes; [`ShapeError::Strides`] if the memory is neither channels-first nor channels-last without gaps.
    pub fn strided(shape: &[usize], strides: &[isize], channel_axis: usize) -> Result<Self, ShapeError> {
        check_axes(shape)?;
        if shape.len() != strides.len() {
            return Err(ShapeError::StrideCount { axes: shape.len(), strides: strides.len() });
        }
        if channel_axis == 0 || channel_axis >= shape.len() {
            return Err(ShapeError::ChannelAxis { channel_axis, axes: shape.len() });
        }
        let to_logical = |axis: usize| match axis {
            0 => 0,
            1 => channel_axis,
            _ if axis <= channel_axis => axis - 1,
            _ => axis,
        };
        let logical: Vec<usize> = (0..shape.len()).map(|axis| shape[to_logical(axis)]).collect();
        let logical_strides: Vec<isize> = (0..shape.len()).map(|axis| strides[to_logical(axis)]).collect();
        let first = Self::dense(&logical, Layout::ChannelsFirst)?;
        if is_dense(&logical, &logical_strides, Layout::ChannelsFirst) {
            return Ok(first);
        }
        if is_dense(&logical, &logical_strides, Layout::ChannelsLast) {
            return Self::dense(&logical, Layout::ChannelsLast);
        }
        Err(ShapeError::Strides { shape: shape.to_vec(), strides: strides.to_vec(), channel_axis })
    }

    /// `shape` is (N, C, *spatial) here, whatever the layout.
    fn dense(shape: &[usize], layout: Layout) -> Result<Self, ShapeError> {
        check_axes(shape)?;
        if shape[1] == 0 {
            return Err(ShapeError::NoChannels { shape: shape.to_vec() });
        }
        let elements =
            product_of_non_zero(shape).ok_or_else(|| ShapeError::Overflow { shape: shape.to_vec() })?;
        let mut sizes = [0; MAX_AXES];
        sizes[..shape.len()].copy_from_slice(shape);
        let shape = Shape { axes: shape.len(), sizes };

        // The products below are of some of the factors just multiplied, so they cannot overflow.
        let (samples, channels) = (sizes[0], sizes[1]);
        let spatial = shape.sizes()[2..].iter().product::<usize>();
        let (outer, inner) = if samples == 0 || spatial == 0 {
            (0, 1)
        } else if channels == 1 {
            (1, elements)
        } else {
            match layout {
                Layout::ChannelsFirst => (samples, spatial),
                Layout::ChannelsLast => (samples * spatial, 1),
            }
        };
        Ok(Self { shape, outer, inner })
    }

    /// The sizes (N, C, *spatial).
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The length of the slowest of the three axes: N, or N times the spatial positions for channels-last. 0 exactly if there are no
    /// elements.
    #[must_use]
    pub fn outer(&self) -> usize {
        self.outer
    }

    /// The number of channels, C; at least 1.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.shape.sizes[1]
    }

    /// The length of the fastest of the three axes: how many elements of one channel are neighbours in memory; at least 1.
    #[must_use]
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// The number of elements that each channel has: `outer * inner`.
    #[must_use]
    pub fn per_channel(&self) -> usize {
        self.outer * self.inner
    }

    /// The number of elements of the tensor.
    #[must_use]
    pub fn len(&self) -> usize {
        self.per_channel() * self.channels()
    }

    /// Whether the tensor has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.outer == 0
    }

    /// The layout. Where both layouts have the same order in memory, this is channels-last if `inner` is 1.
    #[must_use]
    pub fn layout(&self) -> Layout {
        if self.inner == 1 { Layout::ChannelsLast } else { Layout::ChannelsFirst }
    }
}

fn check_axes(shape: &[usize]) -> Result<(), ShapeError> {
    if (2..=MAX_AXES).contains(&shape.len()) {
        Ok(())
    } else {
        Err(ShapeError::Axes { shape: shape.to_vec() })
    }
}

/// The product of the sizes that are not zero: what must fit an `isize` even where another axis is empty, so that no
/// partial product overflows anywhere later.
fn product_of_non_zero(sizes: &[usize]) -> Option<usize> {
    let product =
        sizes.iter().filter(|&&size| size != 0).try_fold(1_usize, |p, &size| p.checked_mul(size))?;
    isize::try_from(product).is_ok().then_some(product)
}

/// Whether the strides are those of a dense array; `shape` is (N, C, *spatial) and its product is known to fit.
fn is_dense(shape: &[usize], strides: &[isize], layout: Layout) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let spatial = (2..shape.len()).rev();
    let fastest_first: Vec<usize> = match layout {
        Layout::ChannelsFirst => spatial.chain([1, 0]).collect(),
        Layout::ChannelsLast => [1].into_iter().chain(spatial).chain([0]).collect(),
    };
    let mut expected = 1_isize;
    for axis in fastest_first {
        if shape[axis] != 1 && strides[axis] != expected {
            return false;
        }
        expected *= shape[axis].cast_signed();
    }
    true
}

/// A tensor's shape, strides or memory cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// Too few or too many axes.
    #[error(
        "the number of axes of shape {shape:?} is {}, expected 2 to {MAX_AXES}: batch, channels, spatial axes",
        shape.len()
    )]
    Axes {
        /// The shape as given.
        shape: Vec<usize>,
    },
    /// The channel axis has length 0.
    #[error("shape {shape:?} has no channels, expected at least 1")]
    NoChannels {
        /// The shape in the order (N, C, *spatial).
        shape: Vec<usize>,
    },
    /// The number of elements, or of bytes, does not fit the address space.
    #[error("shape {shape:?} has more elements than memory can address ({} bytes)", isize::MAX)]
    Overflow {
        /// The shape in the order (N, C, *spatial).
        shape: Vec<usize>,
    },
    /// The channel axis is 0, the batch axis, or there is no such axis.
    #[error(
        "the channel axis is {channel_axis}, expected 1{} for {axes} axes: axis 0 counts samples",
        if *axes > 2 { format!(" to {}", axes - 1) } else { String::new() }
    )]
    ChannelAxis {
        /// The channel axis as given.
        channel_axis: usize,
        /// The number of axes.
        axes: usize,
    },
    /// The number of strides differs from the number of axes.
    #[error("the number of strides is {strides}, expected {axes}: one for each axis")]
    StrideCount {
        /// The number of axes.
        axes: usize,
        /// The number of strides.
        strides: usize,
    },
    /// The memory is neither channels-first nor channels-last, or it has gaps.
    #[error(
        "strides {strides:?} of shape {shape:?} with channel axis {channel_axis} are neither channels-first nor channels-last \
         without gaps; copy the tensor to contiguous memory first (in ndarray: `as_standard_layout()`)"
    )]
    Strides {
        /// The shape as given.
        shape: Vec<usize>,
        /// The strides as given, in elements.
        strides: Vec<isize>,
        /// The channel axis.
        channel_axis: usize,
    },
    /// The memory is too short for the shape.
    #[error("shape {shape:?} needs {needed} elements, but the memory holds {got}")]
    Memory {
        /// The shape in the order (N, C, *spatial).
        shape: Vec<usize>,
        /// The elements that the shape has.
        needed: usize,
        /// The elements that the memory holds.
        got: usize,
    },
}
