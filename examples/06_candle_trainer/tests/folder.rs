//! Image files, a folder for each class.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use candle_core::DType;
use candle_trainer::data::{Data, folder};
use image::{Rgb, RgbImage};

/// One colour of 6 x 3 pixels.
fn write(path: &Path, colour: [u8; 3]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(6, 3, Rgb(colour)).save(path).unwrap();
}

fn load(path: &Path) -> Result<Data, String> {
    folder(path, 4, DType::F32).map_err(|error| error.to_string())
}

#[test]
fn classes_are_the_folders_and_every_fifth_file_is_a_test_sample() {
    let root = tempfile::tempdir().unwrap();
    for at in 0..5 {
        write(&root.path().join(format!("red/{at}.png")), [255, 0, 0]);
        write(&root.path().join(format!("blue/{at}.JPG")), [0, 0, 255]);
    }
    fs::write(root.path().join("red/notes.txt"), "no image").unwrap();
    let Data { training, test, classes } = load(root.path()).unwrap();
    assert_eq!(classes, 2);
    assert_eq!(training.images.dims(), [8, 3, 4, 4]);
    assert_eq!(test.images.dims(), [2, 3, 4, 4]);
    assert_eq!(training.classes.to_vec1::<u32>().unwrap(), [0, 0, 0, 0, 1, 1, 1, 1]);
    let colours = test.images.mean((2, 3)).unwrap().to_vec2::<f32>().unwrap();
    for (got, expected) in colours.concat().into_iter().zip([-1.0, -1.0, 1.0, 1.0, -1.0, -1.0]) {
        // JPEG rounds.
        assert!((got - expected).abs() < 0.05_f32, "{colours:?}");
    }
}

#[test]
fn what_cannot_be_trained_on_is_told_by_name() {
    let root = tempfile::tempdir().unwrap();
    let missing = root.path().join("missing");
    assert!(load(&missing).unwrap_err().contains("missing"));
    write(&root.path().join("one/0.png"), [0; 3]);
    assert!(load(root.path()).unwrap_err().contains("two classes"));
    write(&root.path().join("two/0.png"), [0; 3]);
    assert!(load(root.path()).unwrap_err().contains("at least 5"));
    fs::write(root.path().join("two/broken.png"), "no image").unwrap();
    assert!(load(root.path()).unwrap_err().contains("broken.png"));
}
