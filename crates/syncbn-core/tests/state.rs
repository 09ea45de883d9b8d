//! A state goes through named tensors, and through a safetensors file, and comes back the same.

use syncbn_core::{Dtype, NamedTensor, State, StateError};

fn full() -> State<f32> {
    State {
        weight: Some(vec![1.5, -0.0, f32::MIN_POSITIVE]),
        bias: Some(vec![0.1, 0.2, 0.3]),
        running_mean: Some(vec![1e30, -1e-30, 0.0]),
        running_var: Some(vec![1.0, 2.0, 3.0]),
        num_batches_tracked: Some(i64::MAX),
    }
}

fn among(tensors: &[NamedTensor]) -> impl FnMut(&str) -> Result<Option<NamedTensor>, StateError> + '_ {
    |name| Ok(tensors.iter().find(|tensor| tensor.name == name).cloned())
}

#[test]
fn tensors_have_the_names_types_and_shapes_of_every_frameworks_checkpoints() {
    let tensors = full().to_tensors("layer1.bn.");
    let described: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.clone())).collect();
    assert_eq!(
        described,
        [
            ("layer1.bn.weight", Dtype::F32, vec![3]),
            ("layer1.bn.bias", Dtype::F32, vec![3]),
            ("layer1.bn.running_mean", Dtype::F32, vec![3]),
            ("layer1.bn.running_var", Dtype::F32, vec![3]),
            ("layer1.bn.num_batches_tracked", Dtype::I64, vec![]),
        ]
    );
}

#[test]
fn a_state_survives_the_way_through_tensors() {
    let bare = State::<f64> { weight: Some(vec![2.0]), ..State::default() };
    assert_eq!(State::from_tensors("a.", among(&bare.to_tensors("a."))).unwrap(), bare);
    assert_eq!(State::from_tensors("", among(&full().to_tensors(""))).unwrap(), full());
}

#[test]
fn another_type_shape_or_length_is_an_error_that_names_the_tensor() {
    let mut wrong_type = full().to_tensors("bn.");
    wrong_type[0].dtype = Dtype::F16;
    let mut wrong_shape = full().to_tensors("bn.");
    wrong_shape[0].shape = vec![1, 3];
    let mut cut_short = full().to_tensors("bn.");
    cut_short[0].bytes.pop();
    let mut counter_is_a_vector = full().to_tensors("bn.");
    counter_is_a_vector[4].shape = vec![1];
    for (tensors, name) in [
        (wrong_type, "bn.weight"),
        (wrong_shape, "bn.weight"),
        (cut_short, "bn.weight"),
        (counter_is_a_vector, "bn.num_batches_tracked"),
    ] {
        let error = State::<f32>::from_tensors("bn.", among(&tensors)).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_shape_whose_product_overflows_is_an_error_and_no_panic() {
    let mut tensors = full().to_tensors("");
    tensors[0].shape = vec![usize::MAX];
    assert!(matches!(State::<f32>::from_tensors("", among(&tensors)), Err(StateError::Bytes { .. })));
}

#[cfg(feature = "safetensors")]
#[test]
fn two_layers_share_a_safetensors_file() {
    use safetensors::SafeTensors;

    let second = State::<f32> { running_mean: Some(vec![4.0]), ..State::default() };
    let tensors = full().to_tensors("bn1.").into_iter().chain(second.to_tensors("bn2."));
    let bytes = safetensors::serialize(tensors.map(|tensor| (tensor.name.clone(), tensor)), None).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(State::from_safetensors(&file, "bn1.").unwrap(), full());
    assert_eq!(State::from_safetensors(&file, "bn2.").unwrap(), second);
    assert_eq!(State::<f32>::from_safetensors(&file, "absent.").unwrap(), State::default());
    assert!(matches!(State::<f64>::from_safetensors(&file, "bn1."), Err(StateError::Dtype { .. })));
}
