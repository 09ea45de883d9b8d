//! Whole `.safetensors` files: what is not a batch norm's passes through, and no bytes make the reader panic.

#![cfg(feature = "safetensors")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use std::collections::HashMap;

use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use syncbn_core::{Checkpoint, Config, FileDtype, NamedTensor, State, StateError};

const TYPES: [Dtype; 22] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

fn state(value: f32) -> State<f32> {
    let all = Some(vec![value; 2]);
    State {
        weight: all.clone(),
        bias: all.clone(),
        running_mean: all.clone(),
        running_var: all,
        num_batches_tracked: Some(3),
    }
}

/// A model's file: a tensor of each type that the format has, a batch norm, and metadata.
fn model() -> Vec<u8> {
    let bytes: Vec<u8> = (0..64).collect();
    let other = |dtype: Dtype| {
        let view = TensorView::new(dtype, vec![2, 4], &bytes[..dtype.bitsize()]).unwrap();
        (format!("other.{dtype}"), view)
    };
    let norm = state(1.5).to_tensors("bn.");
    let norm = norm.iter().map(|tensor| {
        let dtype = if tensor.dtype == FileDtype::I64 { Dtype::I64 } else { Dtype::F32 };
        (tensor.name.clone(), TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(TYPES.map(other).into_iter().chain(norm), Some(metadata)).unwrap()
}

#[test]
fn a_whole_model_is_written_back_and_only_its_batch_norms_have_changed() {
    let model = model();
    let mut file = Checkpoint::from_safetensors(&model).unwrap();
    assert_eq!(file.to_safetensors().unwrap(), model);

    let layers = file.layers();
    assert_eq!(layers.len(), 1);
    let config = file.config("bn.").unwrap();
    assert_eq!(file.load::<f32>("bn.", &config).unwrap().state, state(1.5));
    file.store("bn.", &state(2.5)).unwrap();
    let written = file.to_safetensors().unwrap();

    let (before, after) =
        (SafeTensors::deserialize(&model).unwrap(), SafeTensors::deserialize(&written).unwrap());
    assert_eq!(before.len(), after.len());
    for (name, tensor) in before.iter().filter(|(name, _)| !name.starts_with("bn.")) {
        assert_eq!(after.tensor(name).unwrap(), tensor, "{name}");
    }
    let header = |bytes| SafeTensors::read_metadata(bytes).unwrap().1.metadata().clone();
    assert_eq!(header(&written), header(&model));
    let again = Checkpoint::from_safetensors(&written).unwrap();
    assert_eq!(again.load::<f32>("bn.", &config).unwrap().state, state(2.5));
}

#[test]
fn a_type_keeps_its_name_in_the_format() {
    let model = model();
    let file = Checkpoint::from_safetensors(&model).unwrap();
    for dtype in TYPES {
        let found = file.tensors().find(|tensor| tensor.name == format!("other.{dtype}")).unwrap();
        let ours = dtype.to_string();
        assert_eq!(found.dtype.to_string().to_uppercase(), ours);
    }
}

#[test]
fn tensors_that_the_format_cannot_hold_are_errors() {
    let tensor = |name: &str, dtype, shape: &[usize], bytes: Vec<u8>| NamedTensor {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        bytes: bytes.into(),
    };
    let write = |tensor| Checkpoint::new([tensor]).unwrap().to_safetensors().unwrap_err();
    let error = write(tensor("q", FileDtype::Other("Q4_K"), &[2], vec![0]));
    assert_eq!(error.to_string(), "tensor `q` holds Q4_K, expected a type that safetensors has");
    let error = write(tensor("c", FileDtype::Other("C64"), &[2], vec![0]));
    assert!(matches!(error, StateError::Safetensors(_)), "{error}");
    let error = write(tensor("__metadata__", FileDtype::U8, &[1], vec![0]));
    assert!(matches!(error, StateError::Safetensors(_)), "{error}");
}

#[test]
fn what_is_not_such_a_file_is_an_error() {
    let model = model();
    for bytes in
        [&[][..], &[0; 8], &model[..model.len() - 1], b"PK\x03\x04 a zip file, as torch.save writes it"]
    {
        assert!(matches!(Checkpoint::from_safetensors(bytes), Err(StateError::Safetensors(_))));
    }
}

/// A header and no data.
fn header(json: &str) -> Vec<u8> {
    let len = json.len() as u64;
    [&len.to_le_bytes(), json.as_bytes()].concat()
}

/// `safetensors` 0.8 adds the end of the last tensor to the length of the header, which overflows here.
#[test]
fn a_header_whose_sizes_overflow_is_an_error_and_no_panic() {
    let size = (1_u64 << 61) - 1;
    let tensors = (0..8).map(|i| {
        format!(r#""{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{},{}]}}"#, i * size, (i + 1) * size)
    });
    let json = format!("{{{}}}", tensors.collect::<Vec<_>>().join(","));
    assert!(Checkpoint::from_safetensors(&header(&json)).is_err());
}

#[test]
fn long_numbers_in_names_are_not_sizes() {
    let json = r#"{"a\"12345678901234567890":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    let bytes = header(json);
    let file = Checkpoint::from_safetensors(&bytes).unwrap();
    assert_eq!(file.tensors().count(), 1);
}

proptest! {
    #[test]
    fn any_bytes_are_a_file_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Checkpoint::from_safetensors(&bytes);
        let json: String = bytes.iter().map(|&byte| char::from(byte)).collect();
        let _ = Checkpoint::from_safetensors(&header(&json));
    }

    #[test]
    fn a_damaged_file_is_a_file_or_an_error(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = model();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if cut {
            bytes.truncate(len.index(bytes.len()));
        }
        if let Ok(mut file) = Checkpoint::from_safetensors(&bytes) {
            for layer in file.layers() {
                let _ = layer.to_string();
                let _ = file.config(&layer.prefix);
                let _ = file.load::<f32>(&layer.prefix, &Config::new(2));
                let _ = file.store(&layer.prefix, &state(0.0));
            }
            let written = file.to_safetensors()?;
            prop_assert!(Checkpoint::from_safetensors(&written).is_ok());
        }
    }
}
