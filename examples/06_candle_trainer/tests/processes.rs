//! Ranks as processes are ranks as threads, to the bit.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};

/// The state after an epoch of two ranks.
fn train(ranks: &[&str], file: &Path) -> BTreeMap<String, Vec<u64>> {
    let settings = ["train", "--epochs", "1", "--samples", "64", "--width", "4", "--blocks", "1"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_candle-trainer"));
    let output = command.args(settings).args(ranks).arg("--checkpoint").arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches("accuracy").count(), 1, "one rank speaks: {text}");
    let bits = |tensor: Tensor| {
        let values = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        values.into_iter().map(f64::to_bits).collect()
    };
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    tensors.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect()
}

#[test]
fn processes_over_tcp_train_to_the_bits_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let threads = train(&["--ranks", "2"], &folder.path().join("threads.safetensors"));
    let processes = train(&["--processes", "2"], &folder.path().join("processes.safetensors"));
    assert!(threads.len() > 20);
    assert_eq!(processes, threads);
}
