//! For any file: what is stored is what is loaded, and nothing panics.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use syncbn_core::{
    Change, Checkpoint, Config, FileDtype, Framework, NamedTensor, Param, State, Tensor, bf16, f16,
};

const FLOATS: [FileDtype; 4] = [FileDtype::F16, FileDtype::Bf16, FileDtype::F32, FileDtype::F64];
const INTEGERS: [FileDtype; 8] = [
    FileDtype::I8,
    FileDtype::I16,
    FileDtype::I32,
    FileDtype::I64,
    FileDtype::U8,
    FileDtype::U16,
    FileDtype::U32,
    FileDtype::U64,
];
const ROLES: [Tensor; 5] =
    [Tensor::Weight, Tensor::Bias, Tensor::RunningMean, Tensor::RunningVar, Tensor::NumBatchesTracked];

fn frameworks() -> impl Strategy<Value = Framework> {
    select(vec![Framework::PYTORCH, Framework::FLAX, Framework::KERAS, Framework::BURN])
}

fn bytes(dtype: FileDtype, value: f64) -> Vec<u8> {
    match dtype {
        FileDtype::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        FileDtype::Bf16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        FileDtype::F32 => (value as f32).to_le_bytes().to_vec(),
        FileDtype::F64 => value.to_le_bytes().to_vec(),
        dtype => (value as i64).to_le_bytes()[..dtype.size().unwrap()].to_vec(),
    }
}

/// The value that the bytes are of.
fn number(dtype: FileDtype, bytes: &[u8]) -> f64 {
    match dtype {
        FileDtype::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        FileDtype::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        FileDtype::F32 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
        _ => f64::from_le_bytes(bytes.try_into().unwrap()),
    }
}

/// A layer of a sound file: its framework, channels, values that fit f16, and the type of each tensor.
#[derive(Clone, Debug)]
struct Sound {
    framework: Framework,
    values: [Vec<f64>; 4],
    dtypes: [FileDtype; 4],
    counter: (FileDtype, Vec<usize>, u8),
}

impl Sound {
    fn file(&self) -> Checkpoint<'static> {
        let mut tensors = Vec::new();
        for (role, (values, &dtype)) in ROLES.into_iter().zip(self.values.iter().zip(&self.dtypes)) {
            let bytes: Vec<u8> = values.iter().flat_map(|&value| bytes(dtype, value)).collect();
            let name = self.framework.name("a.bn.", role).unwrap();
            tensors.push(NamedTensor { name, dtype, shape: vec![values.len()], bytes: bytes.into() });
        }
        if let Some(name) = self.framework.name("a.bn.", Tensor::NumBatchesTracked) {
            let (dtype, shape, count) = self.counter.clone();
            tensors.push(NamedTensor { name, dtype, shape, bytes: bytes(dtype, f64::from(count)).into() });
        }
        let other = vec![1, 2, 3];
        let name = "conv.weight".to_owned();
        tensors.push(NamedTensor {
            name,
            dtype: FileDtype::Other("F8"),
            shape: vec![3],
            bytes: other.into(),
        });
        Checkpoint::new(tensors).unwrap().with_framework(self.framework.clone())
    }

    /// The values as the file has them.
    fn in_file(&self, role: usize) -> Vec<f64> {
        let dtype = self.dtypes[role];
        self.values[role].iter().map(|&value| number(dtype, &bytes(dtype, value))).collect()
    }
}

fn sound() -> impl Strategy<Value = Sound> {
    let values = (1_usize..5).prop_flat_map(|channels| {
        let any = || vec(-6e4..6e4_f64, channels);
        (any(), any(), any(), vec(0.0..6e4_f64, channels))
    });
    let counter = (select(&INTEGERS[..]), select(vec![vec![], vec![1]]), 0_u8..128);
    (frameworks(), values, [(); 4].map(|()| select(&FLOATS[..])), counter).prop_map(
        |(framework, (weight, bias, mean, var), dtypes, counter)| Sound {
            framework,
            values: [weight, bias, mean, var],
            dtypes,
            counter,
        },
    )
}

fn check_loads<P: Param>(sound: &Sound) -> Result<(), TestCaseError> {
    let mut file = sound.file();
    prop_assert_eq!(file.layers().len(), 1);
    let config = file.config("a.bn.").unwrap();
    prop_assert_eq!(config.channels, sound.values[0].len());
    let loaded = file.load::<P>("a.bn.", &config).unwrap();
    let State { weight, bias, running_mean, running_var, num_batches_tracked } = loaded.state.clone();
    for (role, got) in [weight, bias, running_mean, running_var].into_iter().enumerate() {
        let exact = sound.in_file(role);
        let expected: Vec<P> = exact.iter().map(|&value| P::from_f64(value)).collect();
        let lost = exact.iter().zip(&expected).filter(|&(&exact, got)| got.to_f64() != exact).count();
        prop_assert_eq!(got, Some(expected));
        let name = sound.framework.name("a.bn.", ROLES[role]).unwrap();
        let (from, to) = (sound.dtypes[role], FileDtype::from(P::DTYPE));
        let change = Change::Converted { name, from, to, rounded: lost, overflowed: 0 };
        prop_assert_eq!(loaded.changes.contains(&change), from != to, "{:?}", change);
    }
    let counted = sound.framework.num_batches_tracked.is_some();
    prop_assert_eq!(num_batches_tracked, Some(if counted { i64::from(sound.counter.2) } else { 0 }));

    // A narrower file gets back what it had; a wider one what the layer has.
    file.store("a.bn.", &loaded.state).unwrap();
    prop_assert_eq!(&file.load::<P>("a.bn.", &config).unwrap().state, &loaded.state);
    for (before, after) in sound.file().tensors().zip(file.tensors()) {
        let shape = |tensor: &NamedTensor<'_>| (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
        prop_assert_eq!(shape(before), shape(after));
        let exact = before.dtype != FileDtype::F64 || P::DTYPE == syncbn_core::Dtype::F64;
        prop_assert!(!exact || before == after, "{:?} became {:?}", before, after);
    }
    Ok(())
}

/// Any tensor at all under names that a batch norm may have.
fn any_tensor() -> impl Strategy<Value = NamedTensor<'static>> {
    let dtypes: Vec<_> = FLOATS.into_iter().chain(INTEGERS).chain([FileDtype::Other("C64")]).collect();
    let names = (select(vec!["", "a.", "b/", "ä."]), select(&ROLES[..]), frameworks());
    let axis = prop_oneof![8 => 0_usize..4, 1 => any::<usize>()];
    let fitting = prop_oneof![6 => Just(true), 1 => Just(false)];
    (names, select(dtypes), vec(axis, 0..3), vec(any::<u8>(), 128), 0_usize..128, fitting).prop_map(
        |((prefix, role, framework), dtype, shape, mut bytes, len, fitting)| {
            let name = framework.name(prefix, role).unwrap_or_else(|| format!("{prefix}{role}"));
            let product = shape.iter().try_fold(dtype.size().unwrap_or(8), |p, &axis| p.checked_mul(axis));
            bytes.truncate(if fitting { product.unwrap_or(len) } else { len });
            NamedTensor { name, dtype, shape, bytes: bytes.into() }
        },
    )
}

proptest! {
    #[test]
    fn a_sound_file_is_loaded_and_stored(sound in sound()) {
        check_loads::<f32>(&sound)?;
        check_loads::<f64>(&sound)?;
    }

    #[test]
    fn any_state_survives_the_way_through_tensors(
        weight in vec(any::<f32>(), 3),
        mean in vec(-1e30..1e30_f32, 3),
        var in vec(0.0..1e30_f32, 3),
        count in 0..=i64::MAX,
    ) {
        let state = State {
            weight: Some(weight.clone()),
            bias: Some(weight),
            running_mean: Some(mean),
            running_var: Some(var),
            num_batches_tracked: Some(count),
        };
        let file = Checkpoint::new(state.to_tensors("bn.")).unwrap();
        let loaded = file.load::<f32>("bn.", &Config::new(3)).unwrap();
        prop_assert_eq!(loaded.state.to_tensors("bn."), state.to_tensors("bn."));
        prop_assert_eq!(loaded.changes, vec![]);
    }

    #[test]
    fn no_file_makes_anything_panic(
        tensors in vec(any_tensor(), 0..12),
        framework in frameworks(),
        affine in any::<bool>(),
        track_running_stats in any::<bool>(),
        channels in prop_oneof![8 => 0_usize..4, 1 => any::<usize>()],
    ) {
        let names: std::collections::BTreeSet<_> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
        let one_each = names.iter().filter_map(|name| tensors.iter().find(|tensor| tensor.name == *name).cloned());
        prop_assume!(Checkpoint::new(one_each.clone()).is_ok());
        let mut file = Checkpoint::new(one_each).unwrap().with_framework(framework);
        let config = Config::new(channels).with_affine(affine).with_track_running_stats(track_running_stats);
        for prefix in ["", "a.", "b/", "ä.", "c."] {
            let _ = file.config(prefix);
            let _ = file.load::<f64>(prefix, &config);
            if let Ok(loaded) = file.load::<f32>(prefix, &config) {
                let lens = [loaded.state.weight, loaded.state.running_var].map(|v| v.map_or(channels, |v| v.len()));
                prop_assert_eq!(lens, [channels; 2]);
            }
            let state = State::<f32> { running_var: Some(vec![f32::MAX; 2]), ..State::default() };
            let _ = file.store(prefix, &state);
        }
        for layer in file.layers() {
            prop_assert!(layer.to_string().contains(&layer.prefix));
        }
    }
}
