//! What is trained on: hand-written digits of 8 x 8 pixels, or a folder of image files, as tensors.

mod folder;

use candle_core::{DType, Device, Tensor};

use crate::Result;

pub use folder::folder;

/// Training and test samples, and how many classes there are.
#[derive(Clone, Debug)]
pub struct Data {
    /// To be trained on.
    pub training: Samples,
    /// To be judged by.
    pub test: Samples,
    /// The number of classes.
    pub classes: usize,
}

/// Images of shape (N, colours, height, width), and their classes.
#[derive(Clone, Debug)]
pub struct Samples {
    /// Pixels of mean about 0 and variance about 1.
    pub images: Tensor,
    /// `u32` of shape (N).
    pub classes: Tensor,
}

const TRAINING: usize = 1347;
const SIDE: usize = 8;

/// The digits.
pub fn digits(dtype: DType) -> Result<Data> {
    let (mut pixels, mut classes) = (Vec::new(), Vec::new());
    for line in include_str!("../../data/optdigits.csv").lines() {
        let numbers = line.split(',').map(str::parse::<u8>).collect::<std::result::Result<Vec<_>, _>>()?;
        let (&class, image) = numbers.split_last().ok_or("an empty line")?;
        pixels.extend(image.iter().map(|&pixel| (f32::from(pixel) - 4.9) / 6.0));
        classes.push(u32::from(class));
    }
    let count = classes.len();
    let images = Tensor::from_vec(pixels, (count, 1, SIDE, SIDE), &Device::Cpu)?.to_dtype(dtype)?;
    let all = Samples { images, classes: Tensor::from_vec(classes, count, &Device::Cpu)? };
    let (training, test) = (all.range(0, TRAINING)?, all.range(TRAINING, count - TRAINING)?);
    Ok(Data { training, test, classes: 10 })
}

impl Samples {
    /// How many there are.
    pub fn count(&self) -> Result<usize> {
        Ok(self.classes.dim(0)?)
    }

    /// The samples at these places.
    pub fn select(&self, places: &[u32]) -> Result<Self> {
        let places = Tensor::new(places, self.classes.device())?;
        Ok(Self {
            images: self.images.index_select(&places, 0)?,
            classes: self.classes.index_select(&places, 0)?,
        })
    }

    /// The same samples in a device's memory.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self { images: self.images.to_device(device)?, classes: self.classes.to_device(device)? })
    }

    /// `count` samples from `from` on.
    pub fn range(&self, from: usize, count: usize) -> Result<Self> {
        Ok(Self {
            images: self.images.narrow(0, from, count)?,
            classes: self.classes.narrow(0, from, count)?,
        })
    }
}
