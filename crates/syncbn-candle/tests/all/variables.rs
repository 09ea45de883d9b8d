//! The layer's variables: their names, files, values and types.

use std::collections::HashMap;

use crate::common::{alone, drawn, layer, there, values};
use crate::place::{available, device};
use candle_core::{DType, Device, ModuleT, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use syncbn_candle::{Error, sync_batch_norm};

const NAMES: [&str; 5] =
    ["bn1.bias", "bn1.num_batches_tracked", "bn1.running_mean", "bn1.running_var", "bn1.weight"];

fn names(vars: &VarMap) -> Vec<String> {
    let mut names: Vec<String> = vars.data().lock().unwrap().keys().cloned().collect();
    names.sort();
    names
}

#[test]
fn a_var_map_saves_and_loads_all_five_tensors() {
    if !available() {
        return;
    }
    let (vars, norm) = layer(3, 1e-5, DType::F32, &alone()).unwrap();
    assert_eq!(names(&vars), NAMES);
    for seed in 0..4 {
        norm.forward_t(&drawn(&[4, 3, 5], DType::F32, seed), true).unwrap();
    }
    assert_eq!(norm.num_batches_tracked().unwrap().to_scalar::<i64>().unwrap(), 4);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("layer.safetensors");
    vars.save(&file).unwrap();
    let (mut loaded, other) = layer(3, 1e-5, DType::F32, &alone()).unwrap();
    loaded.load(&file).unwrap();
    for (one, other) in [
        (norm.running_mean(), other.running_mean()),
        (norm.running_var(), other.running_var()),
        (norm.weight(), other.weight()),
    ] {
        assert_eq!(values(one.unwrap()), values(other.unwrap()));
    }
    assert_eq!(other.num_batches_tracked().unwrap().to_scalar::<i64>().unwrap(), 4);
}

#[test]
fn a_file_without_counter_is_read_with_0_as_candles_own_layer_writes_it() {
    if !available() {
        return;
    }
    let tensors: HashMap<String, Tensor> = ["weight", "bias", "running_mean", "running_var"]
        .map(|name| (name.to_owned(), drawn(&[3], DType::F32, 1).abs().unwrap()))
        .into();
    let vb = VarBuilder::from_tensors(tensors.clone(), DType::F32, &device());
    let norm = sync_batch_norm(3, 1e-5, vb, &alone()).unwrap();
    assert_eq!(norm.num_batches_tracked().unwrap().to_scalar::<i64>().unwrap(), 0);
    assert_eq!(values(norm.running_var().unwrap()), values(&tensors["running_var"]));
    let mut without_mean = tensors;
    without_mean.remove("running_mean");
    let vb = VarBuilder::from_tensors(without_mean, DType::F32, &device());
    assert!(sync_batch_norm(3, 1e-5, vb, &alone()).is_err());
}

#[test]
fn values_that_no_batch_norm_can_have_are_refused_by_the_variables_name() {
    if !available() {
        return;
    }
    let tensors = |name: &str, value: Tensor| -> HashMap<String, Tensor> {
        let ones = |name: &str| (format!("bn1.{name}"), Tensor::ones(3, DType::F32, &device()).unwrap());
        let mut tensors = HashMap::from(["weight", "bias", "running_mean", "running_var"].map(ones));
        tensors.insert(format!("bn1.{name}"), value);
        tensors
    };
    let scalar = |value: f64, dtype| there(&Tensor::new(value, &Device::Cpu).unwrap(), dtype);
    let counter = "num_batches_tracked";
    for (name, value, refused) in [
        (counter, scalar(-3.0, DType::I64), true),
        (counter, scalar(-0.5, DType::F32), true),
        (counter, scalar(2.5, DType::F32), true),
        (counter, scalar(f64::NAN, DType::F64), true),
        (counter, scalar(1e300, DType::F64), true),
        (counter, scalar(f64::INFINITY, DType::F64), true),
        (counter, scalar(7.0, DType::F32), false),
        ("running_var", Tensor::new(&[1.0_f32, -1.0, 1.0], &device()).unwrap(), true),
        ("running_var", Tensor::new(&[1.0_f32, f32::NAN, 1.0], &device()).unwrap(), false),
    ] {
        let vb = VarBuilder::from_tensors(tensors(name, value.clone()), DType::F32, &device());
        match sync_batch_norm(3, 1e-5, vb.pp("bn1"), &alone()) {
            Ok(_) => assert!(!refused, "{name} of {value} was taken"),
            Err(error) => {
                let is_value = matches!(Error::find(&error), Some(Error::Value { layer, tensor, .. }) if layer == "bn1" && *tensor == name);
                assert!(refused && is_value, "{name} of {value}: {error}");
            }
        }
    }
}

#[test]
fn variables_of_a_map_that_no_batch_norm_can_have_are_refused() {
    if !available() {
        return;
    }
    let (vars, norm) = layer(3, 1e-5, DType::F32, &alone()).unwrap();
    let again = || {
        sync_batch_norm(3, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &device()).pp("bn1"), &alone())
    };
    assert_eq!(again().unwrap().running_var().unwrap().id(), norm.running_var().unwrap().id());
    let var = |name: &str| vars.data().lock().unwrap()[&format!("bn1.{name}")].clone();
    let set = |name: &str, value: i64| var(name).set(&Tensor::new(value, &device()).unwrap()).unwrap();
    set("num_batches_tracked", -1);
    let error = again().unwrap_err();
    assert!(matches!(Error::find(&error), Some(Error::Value { got: -1.0, .. })), "{error}");
    let of_f32 = Var::zeros((), DType::F32, &device()).unwrap();
    vars.data().lock().unwrap().insert("bn1.num_batches_tracked".into(), of_f32);
    let error = again().unwrap_err();
    assert!(matches!(Error::find(&error), Some(Error::Dtype { got: DType::F32, .. })), "{error}");
}

#[test]
fn variables_are_f32_where_activations_are_halves() {
    if !available() {
        return;
    }
    for (dtype, params) in [(DType::F16, DType::F32), (DType::BF16, DType::F32), (DType::F64, DType::F64)] {
        let (_vars, norm) = layer(3, 1e-5, dtype, &alone()).unwrap();
        assert_eq!(norm.weight().unwrap().dtype(), params);
        let y = norm.forward_t(&drawn(&[4, 3], dtype, 1), true).unwrap();
        assert_eq!(y.dtype(), dtype);
    }
}
