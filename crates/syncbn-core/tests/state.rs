//! A file's tensors become a state: whatever their types, and with an error that helps where they cannot.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use syncbn_core::{
    Change, Checkpoint, Config, Dtype, FileDtype, NamedTensor, State, StateError, Tensor, bf16, f16,
};

fn full() -> State<f32> {
    State {
        weight: Some(vec![1.5, -0.0, f32::MIN_POSITIVE]),
        bias: Some(vec![0.1, 0.2, 0.3]),
        running_mean: Some(vec![1e30, -1e-30, 0.0]),
        running_var: Some(vec![1.0, 2.0, 0.0]),
        num_batches_tracked: Some(i64::MAX),
    }
}

fn file(tensors: Vec<NamedTensor<'_>>) -> Checkpoint<'_> {
    Checkpoint::new(tensors).unwrap()
}

/// The tensors of `full`, of which one is changed.
fn with(changed: Tensor, change: impl Fn(&mut NamedTensor<'static>)) -> Vec<NamedTensor<'static>> {
    let mut tensors = full().to_tensors("bn.");
    change(tensors.iter_mut().find(|tensor| tensor.name == format!("bn.{changed}")).unwrap());
    tensors
}

fn without(left_out: &[Tensor]) -> Vec<NamedTensor<'static>> {
    let mut tensors = full().to_tensors("bn.");
    tensors.retain(|tensor| !left_out.iter().any(|left_out| tensor.name == format!("bn.{left_out}")));
    tensors
}

fn set(dtype: FileDtype, shape: &[usize], bytes: Vec<u8>) -> impl Fn(&mut NamedTensor<'static>) {
    let shape = shape.to_vec();
    move |tensor| {
        (tensor.dtype, tensor.shape, tensor.bytes) = (dtype, shape.clone(), bytes.clone().into());
    }
}

fn f32s(values: [f32; 3]) -> Vec<u8> {
    values.map(f32::to_le_bytes).concat()
}

fn error(tensors: Vec<NamedTensor<'_>>) -> String {
    file(tensors).load::<f32>("bn.", &Config::new(3)).unwrap_err().to_string()
}

#[test]
fn tensors_have_the_names_types_and_shapes_of_pytorchs_checkpoints() {
    let tensors = full().to_tensors("layer1.bn.");
    let described: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.clone())).collect();
    assert_eq!(
        described,
        [
            ("layer1.bn.weight", FileDtype::F32, vec![3]),
            ("layer1.bn.bias", FileDtype::F32, vec![3]),
            ("layer1.bn.running_mean", FileDtype::F32, vec![3]),
            ("layer1.bn.running_var", FileDtype::F32, vec![3]),
            ("layer1.bn.num_batches_tracked", FileDtype::I64, vec![]),
        ]
    );
}

#[test]
fn a_state_survives_the_way_through_tensors_and_nothing_is_said_to_have_changed() {
    let loaded = file(full().to_tensors("")).load::<f32>("", &Config::new(3)).unwrap();
    assert_eq!((loaded.state, loaded.changes), (full(), vec![]));

    let bare = Config::new(3).with_affine(false);
    let stats = State { weight: None, bias: None, ..full() };
    assert_eq!(file(stats.to_tensors("a.")).load::<f32>("a.", &bare).unwrap().state, stats);

    let untracked = Config::new(3).with_track_running_stats(false);
    let affine = State { weight: full().weight, bias: full().bias, ..State::default() };
    assert_eq!(file(affine.to_tensors("a.")).load::<f32>("a.", &untracked).unwrap().state, affine);
}

#[test]
fn the_bits_of_a_nan_in_a_weight_stay() {
    let signalling = f32::from_bits(0x7f80_0001);
    let state = State { weight: Some(vec![signalling; 3]), ..full() };
    let mut there = file(state.to_tensors(""));
    let back = there.load::<f32>("", &Config::new(3)).unwrap();
    assert_eq!(back.state.weight.as_ref().unwrap()[0].to_bits(), 0x7f80_0001);
    there.store("", &back.state).unwrap();
    assert!(there.tensors().eq(file(state.to_tensors("")).tensors()));
}

#[test]
fn parameters_of_any_floating_point_type_are_converted_and_what_was_lost_is_counted() {
    let values = [1.0, 0.1, 1e300];
    let wide = with(Tensor::Weight, set(FileDtype::F64, &[3], values.map(f64::to_le_bytes).concat()));
    let loaded = file(wide).load::<f32>("bn.", &Config::new(3)).unwrap();
    assert_eq!(loaded.state.weight, Some(vec![1.0, 0.1_f32, f32::INFINITY]));
    let change = Change::Converted {
        name: "bn.weight".to_owned(),
        from: FileDtype::F64,
        to: FileDtype::F32,
        rounded: 1,
        overflowed: 1,
    };
    assert_eq!(loaded.changes, [change]);
    assert_eq!(loaded.changes[0].to_string(), "`bn.weight`: f64 to f32, 1 rounded, 1 overflowed");

    let halves = [f16::from_f32(0.1), f16::MAX, f16::MIN_POSITIVE_SUBNORMAL];
    let bytes = halves.map(f16::to_le_bytes).concat();
    let loaded = file(with(Tensor::RunningVar, set(FileDtype::F16, &[3], bytes)));
    let loaded = loaded.load::<f32>("bn.", &Config::new(3)).unwrap();
    assert_eq!(loaded.state.running_var, Some(halves.map(f16::to_f32).to_vec()));
    assert_eq!(loaded.changes[0].to_string(), "`bn.running_var`: f16 to f32, exactly");

    let brains = [bf16::from_f32(-3.0), bf16::MAX, bf16::MIN_POSITIVE];
    let loaded = file(with(Tensor::Bias, set(FileDtype::Bf16, &[3], brains.map(bf16::to_le_bytes).concat())));
    let loaded = loaded.load::<f64>("bn.", &Config::new(3)).unwrap();
    assert_eq!(loaded.state.bias, Some(brains.map(bf16::to_f64).to_vec()));
    assert_eq!(loaded.changes.len(), 4, "all but the counter are f64 now: {:?}", loaded.changes);
}

#[test]
fn a_counter_may_have_any_integer_type_and_either_shape() {
    let counters: [(FileDtype, Vec<u8>); 8] = [
        (FileDtype::I8, 7_i8.to_le_bytes().to_vec()),
        (FileDtype::I16, 7_i16.to_le_bytes().to_vec()),
        (FileDtype::I32, 7_i32.to_le_bytes().to_vec()),
        (FileDtype::I64, 7_i64.to_le_bytes().to_vec()),
        (FileDtype::U8, 7_u8.to_le_bytes().to_vec()),
        (FileDtype::U16, 7_u16.to_le_bytes().to_vec()),
        (FileDtype::U32, 7_u32.to_le_bytes().to_vec()),
        (FileDtype::U64, 7_u64.to_le_bytes().to_vec()),
    ];
    for (dtype, bytes) in counters {
        for shape in [&[][..], &[1]] {
            let tensors = with(Tensor::NumBatchesTracked, set(dtype, shape, bytes.clone()));
            let loaded = file(tensors).load::<f32>("bn.", &Config::new(3)).unwrap();
            assert_eq!(loaded.state.num_batches_tracked, Some(7));
            let said: Vec<_> = loaded.changes.iter().map(ToString::to_string).collect();
            let converted = format!("`bn.num_batches_tracked`: {dtype} to i64, exactly");
            assert_eq!(said, if dtype == FileDtype::I64 { vec![] } else { vec![converted] });
        }
    }
}

#[test]
fn a_missing_counter_is_0_and_it_is_said() {
    let loaded = file(without(&[Tensor::NumBatchesTracked])).load::<f32>("bn.", &Config::new(3)).unwrap();
    assert_eq!(loaded.state, State { num_batches_tracked: Some(0), ..full() });
    assert_eq!(loaded.changes, [Change::Filled { tensor: Tensor::NumBatchesTracked, value: 0 }]);
    assert_eq!(loaded.changes[0].to_string(), "num_batches_tracked: not in the file, filled with 0");
}

#[test]
fn any_other_missing_tensor_is_an_error_that_names_it() {
    for tensor in [Tensor::Weight, Tensor::Bias, Tensor::RunningMean, Tensor::RunningVar] {
        let text = error(without(&[tensor]));
        assert!(text.starts_with(&format!("the file has no tensor `bn.{tensor}`; the nearest")), "{text}");
    }
    let text = error(without(&[Tensor::Weight, Tensor::Bias]));
    assert!(text.starts_with("the file has no tensor `bn.weight`;"), "{text}");
}

#[test]
fn a_wrong_prefix_shows_by_the_names_that_are_near() {
    let other = State { weight: full().weight, ..State::default() };
    let mut tensors = full().to_tensors("module.stem.bn1.");
    tensors.extend(full().to_tensors("module.stem.bn2."));
    tensors.extend(other.to_tensors("module.stem.conv1."));
    let there = file(tensors);
    let error = there.load::<f32>("stem.bn1.", &Config::new(3)).unwrap_err();
    let nearest = ["module.stem.bn1.running_mean", "module.stem.bn2.running_mean"];
    let missing = "the file has no tensor `stem.bn1.running_mean`";
    assert_eq!(
        error.to_string(),
        format!("{missing}; the nearest names are `{}`, `{}`", nearest[0], nearest[1])
    );
    let StateError::Missing { name, nearest: found } = error else { panic!("{error}") };
    assert_eq!((name.as_str(), found.as_slice()), ("stem.bn1.running_mean", &nearest.map(str::to_owned)[..]));

    let nothing = file(vec![]).load::<f32>("bn.", &Config::new(3)).unwrap_err().to_string();
    assert_eq!(nothing, "the file has no tensor `bn.running_mean`; none of its names is like it");
}

#[test]
fn values_that_no_batch_norm_has_are_refused_by_name_and_channel() {
    let statistic = |tensor, values| error(with(tensor, set(FileDtype::F32, &[3], f32s(values))));
    let var = |values| statistic(Tensor::RunningVar, values);
    let expected = ", expected a finite number of at least 0";
    assert_eq!(var([1.0, 1.0, -0.5]), format!("tensor `bn.running_var` is -0.5 in channel 2{expected}"));
    assert_eq!(var([1.0, f32::NAN, 1.0]), format!("tensor `bn.running_var` is NaN in channel 1{expected}"));
    assert_eq!(
        var([f32::INFINITY, 1.0, 1.0]),
        format!("tensor `bn.running_var` is inf in channel 0{expected}")
    );
    let mean = |values| statistic(Tensor::RunningMean, values);
    let expected = ", expected a finite number";
    assert_eq!(mean([0.0, f32::NAN, 0.0]), format!("tensor `bn.running_mean` is NaN in channel 1{expected}"));
    assert_eq!(
        mean([0.0, 0.0, f32::NEG_INFINITY]),
        format!("tensor `bn.running_mean` is -inf in channel 2{expected}")
    );

    let tiny = [1.0, -1e-300, 1.0].map(f64::to_le_bytes).concat();
    let text = error(with(Tensor::RunningVar, set(FileDtype::F64, &[3], tiny)));
    assert!(text.starts_with("tensor `bn.running_var` is -0.000"), "it must not round to 0 first: {text}");
}

#[test]
fn statistics_that_do_not_fit_are_refused() {
    let bytes = [0.0, 1e300, 0.0].map(f64::to_le_bytes).concat();
    for tensor in [Tensor::RunningMean, Tensor::RunningVar] {
        let there = file(with(tensor, set(FileDtype::F64, &[3], bytes.clone())));
        let error = there.load::<f32>("bn.", &Config::new(3)).unwrap_err();
        assert!(matches!(
            error,
            StateError::Overflow { channel: 1, value: 1e300, dtype: FileDtype::F32, .. }
        ));
        assert!(error.to_string().contains(&format!("`bn.{tensor}`")), "{error}");
        assert!(there.load::<f64>("bn.", &Config::new(3)).is_ok());
    }
}

#[test]
fn counters_that_cannot_be_are_refused() {
    let counter =
        |dtype, bytes: &[u8]| error(with(Tensor::NumBatchesTracked, set(dtype, &[], bytes.to_vec())));
    let expected = format!("expected 0 to {}", i64::MAX);
    assert_eq!(
        counter(FileDtype::I32, &(-3_i32).to_le_bytes()),
        format!("tensor `bn.num_batches_tracked` is -3, {expected}")
    );
    assert_eq!(
        counter(FileDtype::U64, &u64::MAX.to_le_bytes()),
        format!("tensor `bn.num_batches_tracked` is {}, {expected}", u64::MAX)
    );
    assert_eq!(
        counter(FileDtype::F32, &7_f32.to_le_bytes()),
        "tensor `bn.num_batches_tracked` holds f32, expected an integer of 8 to 64 bits"
    );
}

#[test]
fn other_types_and_shapes_are_errors_that_name_the_tensor() {
    let bytes = vec![0; 24];
    for (change, text) in [
        (set(FileDtype::I64, &[3], bytes.clone()), "holds i64, expected f16, bf16, f32 or f64"),
        (set(FileDtype::Other("F8_E4M3"), &[3], vec![0; 3]), "holds F8_E4M3, expected f16, bf16, f32 or f64"),
        (set(FileDtype::F64, &[1, 3], bytes.clone()), "has shape [1, 3], expected [3]"),
        (set(FileDtype::F32, &[6], bytes), "has shape [6], expected [3]"),
        (set(FileDtype::F32, &[], vec![0; 4]), "has shape [], expected [3]"),
    ] {
        assert_eq!(error(with(Tensor::Weight, change)), format!("tensor `bn.weight` {text}"));
    }
    let two = set(FileDtype::I64, &[2], vec![0; 16]);
    assert_eq!(
        error(with(Tensor::NumBatchesTracked, two)),
        "tensor `bn.num_batches_tracked` has shape [2], expected [] or [1]"
    );
}

#[test]
fn what_the_settings_do_not_want_is_refused_and_not_left_out() {
    let there = file(full().to_tensors("bn."));
    let bare = Config::new(3).with_affine(false);
    let error = there.load::<f32>("bn.", &bare).unwrap_err().to_string();
    assert_eq!(error, "the file has `bn.weight`, but affine is off");
    let untracked = Config::new(3).with_track_running_stats(false);
    let error = there.load::<f32>("bn.", &untracked).unwrap_err().to_string();
    assert_eq!(error, "the file has `bn.running_mean`, but track_running_stats is off");
    let counter_alone = file(without(&[Tensor::RunningMean, Tensor::RunningVar]));
    let error = counter_alone.load::<f32>("bn.", &untracked).unwrap_err().to_string();
    assert_eq!(error, "the file has `bn.num_batches_tracked`, but track_running_stats is off");
}

#[test]
fn a_file_whose_shapes_and_bytes_disagree_is_refused() {
    for shape in [vec![usize::MAX], vec![usize::MAX, 2], vec![1 << 62, 4], vec![3, 2], vec![0], vec![]] {
        let tensors = with(Tensor::Weight, set(FileDtype::F32, &shape, f32s([1.0; 3])));
        assert!(matches!(Checkpoint::new(tensors), Err(StateError::Bytes { .. })), "{shape:?}");
    }
    let cut_short = with(Tensor::Weight, |tensor| {
        tensor.bytes.to_mut().pop();
    });
    let error = Checkpoint::new(cut_short).unwrap_err().to_string();
    assert_eq!(error, "tensor `bn.weight` of shape [3] and type f32 has 11 bytes");
    let twice = full().to_tensors("bn.").into_iter().chain(full().to_tensors("bn."));
    assert_eq!(Checkpoint::new(twice).unwrap_err().to_string(), "two tensors are named `bn.weight`");
}

#[test]
fn every_type_has_a_name_and_those_of_a_layer_have_the_same() {
    use FileDtype::{I8, I16, I32, U8, U16, U32, U64};
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64, Dtype::I64] {
        assert_eq!(FileDtype::from(dtype).to_string(), dtype.to_string());
    }
    let names = [I8, I16, I32, U8, U16, U32, U64].map(|dtype| format!("{dtype} {:?}", dtype.size()));
    let expected = [
        "i8 Some(1)",
        "i16 Some(2)",
        "i32 Some(4)",
        "u8 Some(1)",
        "u16 Some(2)",
        "u32 Some(4)",
        "u64 Some(8)",
    ];
    assert_eq!(names, expected);
    assert_eq!((FileDtype::Other("C64").to_string().as_str(), FileDtype::Other("C64").size()), ("C64", None));
}
