//! A model's file of another program: its batch norms are listed, trained and written back, all other tensors pass through.

use std::{error::Error, fs};

use ndarray::Array4;
use syncbn_core::{Checkpoint, FileDtype, NamedTensor, SyncBatchNorm, f16};
use syncbn_cpu::{Cpu, forward_array};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.safetensors");
    fs::write(&path, model_of_another_program()?)?;

    let bytes = fs::read(&path)?;
    let mut file = Checkpoint::from_safetensors(&bytes)?;
    for layer in file.layers() {
        println!("{layer}");
        let config = file.config(&layer.prefix)?;
        let loaded = file.load::<f32>(&layer.prefix, &config)?;
        for change in &loaded.changes {
            println!("  loaded {change}");
        }

        let mut norm = SyncBatchNorm::local(&layer.prefix, config, Cpu, &())?;
        norm.load_state(&(), &loaded.state)?;
        let x = Array4::from_shape_fn((8, config.channels, 4, 4), |(n, c, h, w)| (n * c + h + w) as f32);
        forward_array(&mut norm, &x)?; // a step of training

        for change in file.store(&layer.prefix, &norm.state(&())?)? {
            println!("  stored {change}");
        }
    }
    let trained = file.to_safetensors()?;
    fs::write(&path, &trained)?;
    check(&bytes, &trained)
}

/// Halves, a counter of i32, and a convolution between them.
fn model_of_another_program() -> Result<Vec<u8>, Box<dyn Error>> {
    let halves = |name: &str, value: f32| NamedTensor {
        name: name.to_owned(),
        dtype: FileDtype::F16,
        shape: vec![3],
        bytes: [f16::from_f32(value).to_le_bytes(); 3].concat().into(),
    };
    let norm = ["weight", "bias", "running_mean", "running_var"];
    let mut tensors: Vec<_> = norm.iter().map(|own| halves(&format!("stem.bn.{own}"), 1.0)).collect();
    tensors.push(NamedTensor {
        name: "stem.bn.num_batches_tracked".to_owned(),
        dtype: FileDtype::I32,
        shape: vec![],
        bytes: 40_i32.to_le_bytes().to_vec().into(),
    });
    tensors.push(halves("stem.conv.weight", 0.25));
    Ok(Checkpoint::new(tensors)?.to_safetensors()?)
}

fn check(before: &[u8], after: &[u8]) -> Result<(), Box<dyn Error>> {
    let (before, after) = (Checkpoint::from_safetensors(before)?, Checkpoint::from_safetensors(after)?);
    for (before, after) in before.tensors().zip(after.tensors()) {
        assert_eq!((&before.name, before.dtype, &before.shape), (&after.name, after.dtype, &after.shape));
        let trained = after.name.contains("running") || after.name.contains("batches");
        assert_eq!(before.bytes != after.bytes, trained, "{}", after.name);
    }
    let state = after.load::<f32>("stem.bn.", &after.config("stem.bn.")?)?.state;
    assert_eq!(state.num_batches_tracked, Some(41));
    Ok(())
}
