//! What is measured: lines such as `bf16 nhwc 2x64x256x512`.

use std::fmt;
use std::str::FromStr;

use syncbn_core::{Dtype, Geometry, Layout, ShapeError};

/// The list that is measured when no other is given; the peers' scripts read the same file.
pub const DEFAULT: &str = include_str!("../shapes.txt");

/// A tensor to be measured: its type, and its proven shape and layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The type of the activations.
    pub dtype: Dtype,
    /// The layout as written: where both are the same in memory, the [`Geometry`] does not remember it.
    pub layout: Layout,
    /// The shape (N, C, *spatial) and the order in memory.
    pub geometry: Geometry,
}

impl Case {
    /// `nchw` or `nhwc`.
    #[must_use]
    pub fn layout_name(&self) -> &'static str {
        match self.layout {
            Layout::ChannelsFirst => "nchw",
            Layout::ChannelsLast => "nhwc",
        }
    }

    /// The shape (N, C, *spatial), as `2x64x256x512`.
    #[must_use]
    pub fn shape_name(&self) -> String {
        let sizes: Vec<_> = self.geometry.shape().sizes().iter().map(usize::to_string).collect();
        sizes.join("x")
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.dtype, self.layout_name(), self.shape_name())
    }
}

impl FromStr for Case {
    type Err = CaseError;

    fn from_str(line: &str) -> Result<Self, CaseError> {
        let words: Vec<_> = line.split_whitespace().collect();
        let [dtype, layout, shape] = words[..] else {
            return Err(CaseError::Words(words.len()));
        };
        let dtype = match dtype {
            "f16" => Dtype::F16,
            "bf16" => Dtype::Bf16,
            "f32" => Dtype::F32,
            "f64" => Dtype::F64,
            _ => return Err(CaseError::Dtype(dtype.to_owned())),
        };
        let sizes = shape
            .split('x')
            .map(|size| size.parse().ok().filter(|&size| size != 0))
            .collect::<Option<Vec<usize>>>()
            .ok_or_else(|| CaseError::Shape(shape.to_owned()))?;
        let (layout, geometry) = match layout {
            "nchw" => (Layout::ChannelsFirst, Geometry::channels_first(&sizes)?),
            "nhwc" => (Layout::ChannelsLast, Geometry::channels_last(&channels_moved_last(&sizes))?),
            _ => return Err(CaseError::Layout(layout.to_owned())),
        };
        Ok(Self { dtype, layout, geometry })
    }
}

/// (N, C, *spatial) as (N, *spatial, C). A shape without a channel axis stays as it is, for the geometry to refuse.
fn channels_moved_last(sizes: &[usize]) -> Vec<usize> {
    let mut moved = sizes.to_vec();
    if let Some(from_channels) = moved.get_mut(1..) {
        from_channels.rotate_left(usize::from(!from_channels.is_empty()));
    }
    moved
}

/// Reads a list: one case a line; empty lines, and what follows a `#`, are skipped.
pub fn parse(text: &str) -> Result<Vec<Case>, ListError> {
    let lines = text.lines().enumerate();
    let meant = lines.map(|(at, line)| (at + 1, line.split('#').next().unwrap_or("").trim()));
    let written = meant.filter(|(_, line)| !line.is_empty());
    written
        .map(|(line, text)| text.parse().map_err(|source| ListError { line, text: text.to_owned(), source }))
        .collect()
}

/// A line of a list cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("line {line}, `{text}`: {source}")]
pub struct ListError {
    /// The line's number, from 1.
    pub line: usize,
    /// What it says.
    pub text: String,
    /// What is wrong with it.
    pub source: CaseError,
}

/// Words that are no case.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum CaseError {
    /// The number of words.
    #[error("{0} words, expected 3: a type, a layout and a shape, such as `bf16 nhwc 2x64x256x512`")]
    Words(usize),
    /// The first word.
    #[error("type `{0}`, expected f16, bf16, f32 or f64")]
    Dtype(String),
    /// The second word.
    #[error("layout `{0}`, expected nchw or nhwc")]
    Layout(String),
    /// The third word.
    #[error("shape `{0}`, expected sizes above 0 with an `x` between them, such as 2x64x256x512")]
    Shape(String),
    /// The sizes are no tensor of a batch norm.
    #[error(transparent)]
    Geometry(#[from] ShapeError),
}
