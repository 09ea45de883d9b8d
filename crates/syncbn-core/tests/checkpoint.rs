//! A file's batch norms are listed, loaded under any framework's names, and stored in their places.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use syncbn_core::{
    Change, Checkpoint, Config, FileDtype, Framework, LayerEntry, NamedTensor, State, StateError, Tensor,
    bf16, f16,
};

fn tensor(name: &str, dtype: FileDtype, shape: &[usize], bytes: Vec<u8>) -> NamedTensor<'static> {
    NamedTensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes: bytes.into() }
}

fn f32s(name: &str, values: &[f32]) -> NamedTensor<'static> {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(name, FileDtype::F32, &[values.len()], bytes)
}

fn halves(name: &str, values: &[f32]) -> NamedTensor<'static> {
    let bytes = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
    tensor(name, FileDtype::F16, &[values.len()], bytes)
}

fn state(channels: usize) -> State<f32> {
    let all = |value| Some(vec![value; channels]);
    State {
        weight: all(2.0),
        bias: all(-1.0),
        running_mean: all(0.5),
        running_var: all(4.0),
        num_batches_tracked: Some(9),
    }
}

fn prefixes(file: &Checkpoint<'_>) -> Vec<String> {
    file.layers().into_iter().map(|layer| layer.prefix).collect()
}

fn text(layer: &LayerEntry) -> String {
    layer.to_string()
}

#[test]
fn the_batch_norms_of_a_file_are_listed_with_what_they_have() {
    let mut tensors = state(3).to_tensors("layer1.0.bn1.");
    tensors.extend(State { weight: None, bias: None, ..state(5) }.to_tensors("bn."));
    tensors.extend([f32s("fc.weight", &[1.0]), f32s("fc.bias", &[1.0]), f32s("layernorm.weight", &[1.0; 4])]);
    tensors.extend([f32s("odd.running_var", &[1.0]), f32s("odd.weight", &[1.0; 2])]);
    let file = Checkpoint::new(tensors).unwrap();
    assert_eq!(prefixes(&file), ["bn.", "layer1.0.bn1.", "odd."]);

    let layers = file.layers();
    let bare = "`bn.`: 5 channels, running_mean f32, running_var f32, num_batches_tracked i64";
    assert_eq!(text(&layers[0]), bare);
    assert_eq!(layers[1].channels(), Some(3));
    let counter = layers[1].get(Tensor::NumBatchesTracked).unwrap();
    assert_eq!((counter.name.as_str(), counter.dtype), ("layer1.0.bn1.num_batches_tracked", FileDtype::I64));
    assert!(counter.shape.is_empty() && layers[0].get(Tensor::Weight).is_none());
    assert_eq!(text(&layers[2]), "`odd.`: no one number of channels, weight f32, running_var f32");
}

#[test]
fn a_layer_without_a_prefix_and_a_counter_alone_are_listed_too() {
    let file = Checkpoint::new(state(2).to_tensors("")).unwrap();
    assert_eq!(prefixes(&file), [""]);
    let alone = State::<f32> { num_batches_tracked: Some(1), ..State::default() };
    let file = Checkpoint::new(alone.to_tensors("bn.")).unwrap();
    assert_eq!(text(&file.layers()[0]), "`bn.`: no one number of channels, num_batches_tracked i64");
    let error = file.config("bn.").unwrap_err().to_string();
    assert!(error.starts_with("the file has no tensor `bn.running_mean`; the nearest"), "{error}");
}

#[test]
fn settings_are_told_from_the_file_and_from_the_frameworks_defaults() {
    let mut tensors = state(3).to_tensors("a.");
    tensors.extend(State { weight: None, bias: None, ..state(5) }.to_tensors("b."));
    let file = Checkpoint::new(tensors).unwrap();
    assert_eq!(file.config("a.").unwrap(), Config::new(3));
    assert_eq!(file.config("b.").unwrap(), Config::new(5).with_affine(false));
    let error = file.config("c.").unwrap_err();
    assert!(matches!(&error, StateError::Missing { name, .. } if name == "c.running_mean"), "{error}");
}

#[test]
fn channels_that_disagree_are_refused_by_name() {
    let mut tensors = state(3).to_tensors("bn.");
    tensors[1] = f32s("bn.bias", &[0.0; 2]);
    let file = Checkpoint::new(tensors).unwrap();
    let error = file.config("bn.").unwrap_err().to_string();
    assert_eq!(error, "tensor `bn.bias` has 2 channels, but `bn.weight` has 3");
    let error = file.load::<f32>("bn.", &Config::new(3)).unwrap_err().to_string();
    assert_eq!(error, "tensor `bn.bias` has shape [2], expected [3]");

    for shape in [&[][..], &[0], &[3, 1]] {
        let mut tensors = state(3).to_tensors("bn.");
        tensors[2] =
            tensor("bn.running_mean", FileDtype::F32, shape, vec![0; 4 * shape.iter().product::<usize>()]);
        let error = Checkpoint::new(tensors).unwrap().config("bn.").unwrap_err().to_string();
        let expected = "expected [C] with at least one channel";
        assert_eq!(error, format!("tensor `bn.running_mean` has shape {shape:?}, {expected}"));
    }
}

/// A layer of another framework: its names, and what differs from a layer of this crate.
fn foreign(framework: &Framework, names: [&str; 4]) -> Checkpoint<'static> {
    let values = [&[2.0; 3], &[-1.0; 3], &[0.5; 3], &[4.0; 3]];
    let tensors = names.into_iter().zip(values).map(|(name, values)| f32s(name, values));
    Checkpoint::new(tensors).unwrap().with_framework(framework.clone())
}

#[test]
fn layers_of_other_frameworks_are_found_by_their_names() {
    let flax =
        ["params.net.bn.scale", "params.net.bn.bias", "batch_stats.net.bn.mean", "batch_stats.net.bn.var"];
    let keras = ["net.bn.gamma", "net.bn.beta", "net.bn.moving_mean", "net.bn.moving_variance"];
    let burn = ["net.bn.gamma", "net.bn.beta", "net.bn.running_mean", "net.bn.running_var"];
    for (framework, names, eps, momentum) in [
        (Framework::FLAX, flax, 1e-5, 0.01),
        (Framework::KERAS, keras, 1e-3, 0.01),
        (Framework::BURN, burn, 1e-5, 0.1),
    ] {
        let mut file = foreign(&framework, names);
        assert_eq!(prefixes(&file), ["net.bn."]);
        let config = file.config("net.bn.").unwrap();
        assert_eq!(config, Config::new(3).with_eps(eps).with_momentum(Some(momentum)));
        let loaded = file.load::<f32>("net.bn.", &config).unwrap();
        assert_eq!(loaded.state, State { num_batches_tracked: Some(0), ..state(3) });
        assert_eq!(loaded.changes, [Change::Filled { tensor: Tensor::NumBatchesTracked, value: 0 }]);

        let trained = State { running_mean: Some(vec![7.0; 3]), ..state(3) };
        let changes = file.store("net.bn.", &trained).unwrap();
        assert_eq!(changes, [Change::LeftOut { tensor: Tensor::NumBatchesTracked }], "of 9 batches");
        let said = "num_batches_tracked: left out, the framework has no name for it";
        assert_eq!(changes[0].to_string(), said);
        let mut stored: Vec<_> = file.tensors().map(|tensor| tensor.name.as_str()).collect();
        stored.sort_by_key(|name| names.iter().position(|other| other == name));
        assert_eq!(stored, names);
        assert_eq!(file.load::<f32>("net.bn.", &config).unwrap().state.running_mean, trained.running_mean);
    }
}

#[test]
fn names_can_be_given_one_by_one() {
    let nnx = Framework { parameters: "".into(), statistics: "".into(), ..Framework::FLAX };
    let file = foreign(&nnx, ["bn/scale", "bn/bias", "bn/mean", "bn/var"]);
    assert_eq!(prefixes(&file), ["bn/"]);
    let file = foreign(&nnx, ["gamma", "beta", "moving_mean", "moving_var"]);
    assert!(file.layers().is_empty(), "`moving_mean` is not the `mean` of a layer `moving_`");
    let file = foreign(&Framework::PYTORCH, ["a.weight", "a.bias", "a.moving_mean", "a.moving_variance"]);
    let error = file.load::<f32>("a.", &Config::new(3)).unwrap_err().to_string();
    assert!(
        error.starts_with("the file has no tensor `a.running_mean`; the nearest names are `a.moving_mean`")
    );
}

#[test]
fn a_weight_or_bias_alone_is_completed_where_the_framework_has_such_layers() {
    let names = ["bn.beta", "bn.moving_mean", "bn.moving_variance"];
    let tensors = || names.map(|name| f32s(name, &[3.0; 2]));
    let mut file = Checkpoint::new(tensors()).unwrap().with_framework(Framework::KERAS);
    let config = file.config("bn.").unwrap();
    let mut loaded = file.load::<f32>("bn.", &config).unwrap();
    assert_eq!(loaded.state.weight, Some(vec![1.0; 2]));
    assert!(loaded.changes.contains(&Change::Filled { tensor: Tensor::Weight, value: 1 }));

    assert_eq!(file.store("bn.", &loaded.state).unwrap(), [], "what was filled in stays out");
    assert_eq!(file.tensors().count(), 3);
    loaded.state.weight = Some(vec![1.0, 1.5]);
    let changes = file.store("bn.", &loaded.state).unwrap();
    assert_eq!(changes, [Change::Added { name: "bn.gamma".to_owned() }]);
    assert_eq!(changes[0].to_string(), "`bn.gamma`: added");
    assert_eq!(file.load::<f32>("bn.", &config).unwrap().state, loaded.state);

    let no_bias = ["params.scale", "batch_stats.mean", "batch_stats.var"].map(|name| f32s(name, &[3.0; 2]));
    let file = Checkpoint::new(no_bias).unwrap().with_framework(Framework::FLAX);
    let mut state = file.load::<f64>("", &file.config("").unwrap()).unwrap().state;
    assert_eq!(state.bias, Some(vec![0.0; 2]));
    for other in [vec![1.0; 3], vec![0.0; 3], vec![]] {
        let mut file = file.clone();
        state.bias = Some(other);
        assert!(matches!(file.store("", &state), Err(StateError::Shape { .. })), "of another length");
        assert_eq!(file.tensors().count(), 3, "nothing is changed");
    }

    let file = Checkpoint::new(tensors()).unwrap();
    let torch = Framework { num_batches_tracked: None, parameters_apart: false, ..Framework::KERAS };
    let error = file.with_framework(torch).load::<f32>("bn.", &config).unwrap_err().to_string();
    assert!(error.starts_with("the file has no tensor `bn.gamma`;"), "{error}");
}

fn old_half_file() -> Checkpoint<'static> {
    let mut tensors =
        vec![halves("conv.weight", &[0.1; 4]), tensor("mask", FileDtype::Other("BOOL"), &[2], vec![1, 0])];
    for own in ["weight", "bias", "running_mean", "running_var"] {
        tensors.push(halves(&format!("bn.{own}"), &[0.75; 3]));
    }
    tensors.push(tensor("bn.num_batches_tracked", FileDtype::I8, &[1], vec![3]));
    Checkpoint::new(tensors).unwrap()
}

#[test]
fn a_stored_layer_keeps_the_names_types_and_shapes_of_its_file() {
    let mut file = old_half_file();
    let before: Vec<_> = file.tensors().cloned().collect();
    let trained = State { weight: Some(vec![0.1, 0.25, 0.5]), ..state(3) };
    let changes = file.store("bn.", &trained).unwrap();
    let said: Vec<_> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(said[0], "`bn.weight`: f32 to f16, 1 rounded, 0 overflowed");
    assert_eq!(said[1], "`bn.bias`: f32 to f16, exactly");
    assert_eq!(said.len(), 4);
    for (before, after) in before.iter().zip(file.tensors()) {
        assert_eq!((&before.name, before.dtype, &before.shape), (&after.name, after.dtype, &after.shape));
        assert_eq!(before.bytes == after.bytes, !before.name.starts_with("bn."), "{}", before.name);
    }
    let loaded = file.load::<f32>("bn.", &Config::new(3)).unwrap().state;
    assert_eq!(loaded.weight, Some(vec![f16::from_f32(0.1).to_f32(), 0.25, 0.5]));
    assert_eq!(loaded.num_batches_tracked, Some(9));
}

#[test]
fn what_does_not_fit_the_file_is_refused_and_nothing_is_changed() {
    let mut file = old_half_file();
    let before: Vec<_> = file.tensors().cloned().collect();
    let refused = |file: &mut Checkpoint<'_>, state: &State<f32>, expected: &str| {
        assert_eq!(file.store("bn.", state).unwrap_err().to_string(), expected);
        assert!(before.iter().eq(file.tensors()), "after {expected}");
    };
    let wide = State { running_var: Some(vec![1.0, 1e5, 1.0]), ..state(3) };
    refused(&mut file, &wide, "tensor `bn.running_var`: 100000 of channel 1 does not fit f16");
    let late = State { num_batches_tracked: Some(200), ..state(3) };
    refused(&mut file, &late, "tensor `bn.num_batches_tracked`: 200 does not fit i8");
    let untracked = State { running_mean: None, running_var: None, num_batches_tracked: None, ..state(3) };
    refused(&mut file, &untracked, "the file has `bn.running_mean`, but the state has no running_mean");
    refused(&mut file, &state(4), "tensor `bn.weight` has shape [3], expected [4]");
    let counted = State { num_batches_tracked: None, ..state(3) };
    let text = "the file has `bn.num_batches_tracked`, but the state has no num_batches_tracked";
    refused(&mut file, &counted, text);
    let error = file.store("bn1.", &state(3)).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "the file has no tensor `bn1.running_mean`; the nearest names are `bn.running_mean`"
        )
    );
    assert!(before.iter().eq(file.tensors()));
}

#[test]
fn a_file_gets_the_counter_that_it_lacked_once_there_is_something_to_count() {
    let old = State { num_batches_tracked: None, ..state(2) };
    let mut file = Checkpoint::new(old.to_tensors("bn.")).unwrap();
    let loaded = file.load::<f32>("bn.", &Config::new(2)).unwrap().state;
    assert_eq!(file.store("bn.", &loaded).unwrap(), []);
    let changes = file.store("bn.", &State { num_batches_tracked: Some(5), ..loaded }).unwrap();
    assert_eq!(changes, [Change::Added { name: "bn.num_batches_tracked".to_owned() }]);
    let counter = file.tensors().find(|tensor| tensor.name == "bn.num_batches_tracked").unwrap();
    assert_eq!((counter.dtype, counter.shape.len()), (FileDtype::I64, 0));
}

#[test]
fn a_state_with_more_than_the_file_has_is_refused() {
    let bare = State { weight: None, bias: None, ..state(2) };
    let mut file = Checkpoint::new(bare.to_tensors("bn.")).unwrap();
    let error = file.store("bn.", &state(2)).unwrap_err().to_string();
    assert!(error.starts_with("the file has no tensor `bn.weight`;"), "{error}");
}

#[test]
fn a_layer_of_f64_goes_into_files_of_any_type() {
    let wide = State::<f64> {
        weight: Some(vec![1.0 / 3.0; 2]),
        bias: Some(vec![0.0; 2]),
        running_mean: Some(vec![1e-3; 2]),
        running_var: Some(vec![1.0; 2]),
        num_batches_tracked: Some(1),
    };
    let mut tensors = state(2).to_tensors("bn.");
    tensors[0] = tensor("bn.weight", FileDtype::Bf16, &[2], vec![0; 4]);
    let mut file = Checkpoint::new(tensors).unwrap();
    file.store("bn.", &wide).unwrap();
    let back = file.load::<f64>("bn.", &Config::new(2)).unwrap().state;
    assert_eq!(back.weight, Some(vec![bf16::from_f64(1.0 / 3.0).to_f64(); 2]));
    assert_eq!(back.running_mean, Some(vec![f64::from(1e-3_f32); 2]));
    let error = file.store("bn.", &State { bias: Some(vec![1e39; 2]), ..wide }).unwrap_err().to_string();
    assert!(error.ends_with("does not fit f32"), "{error}");
}
