//! A folder of image files, with one folder in it for each class.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use image::imageops::FilterType;

use super::{Data, Samples};
use crate::Result;

/// Of the files of a class, in the order of their names, every so manieth is a test sample.
const TEST_EVERY: usize = 5;
const COLOURS: usize = 3;

/// PNG and JPEG files, resized to `side` x `side` pixels. Classes are numbered in the order of their folders' names.
pub fn folder(path: &Path, side: usize, dtype: DType) -> Result<Data> {
    let classes = entries(path, Path::is_dir)?;
    if classes.len() < 2 {
        return Err(
            format!("{}: a folder for each of at least two classes is expected", path.display()).into()
        );
    }
    let (mut training, mut test) = (Images::default(), Images::default());
    for (class, folder) in (0..).zip(&classes) {
        for (at, file) in entries(folder, is_image)?.iter().enumerate() {
            let into = if at % TEST_EVERY == TEST_EVERY - 1 { &mut test } else { &mut training };
            into.add(class, file, side)?;
        }
    }
    let (training, test) = (training.samples(side, dtype)?, test.samples(side, dtype)?);
    if training.count()? == 0 || test.count()? == 0 {
        let expected = format!("at least {TEST_EVERY} PNG or JPEG files of a class are expected");
        return Err(format!("{}: {expected}", path.display()).into());
    }
    Ok(Data { training, test, classes: classes.len() })
}

/// What lies in a folder and is wanted, in the order of the names.
fn entries(path: &Path, wanted: fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let read = || fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut entries = read().map_err(|error| format!("{}: {error}", path.display()))?;
    entries.retain(|entry| wanted(entry));
    entries.sort();
    Ok(entries)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["png", "jpg", "jpeg"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

#[derive(Default)]
struct Images {
    pixels: Vec<f32>,
    classes: Vec<u32>,
}

impl Images {
    fn add(&mut self, class: u32, file: &Path, side: usize) -> Result<()> {
        let decoded = image::open(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let pixels = u32::try_from(side)?;
        let image = decoded.resize_exact(pixels, pixels, FilterType::Triangle).to_rgb8();
        for colour in 0..COLOURS {
            // From -1 to 1.
            let value = |pixel: &image::Rgb<u8>| f32::from(pixel.0[colour]) / 127.5 - 1.0;
            self.pixels.extend(image.pixels().map(value));
        }
        self.classes.push(class);
        Ok(())
    }

    fn samples(self, side: usize, dtype: DType) -> Result<Samples> {
        let count = self.classes.len();
        let images = Tensor::from_vec(self.pixels, (count, COLOURS, side, side), &Device::Cpu)?;
        let classes = Tensor::from_vec(self.classes, count, &Device::Cpu)?;
        Ok(Samples { images: images.to_dtype(dtype)?, classes })
    }
}
