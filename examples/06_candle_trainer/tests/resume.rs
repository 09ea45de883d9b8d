//! A run that was interrupted and continued has the bits of one that was not; settings that make no batch are refused.
#![allow(clippy::unwrap_used)]

use std::num::NonZeroUsize;

use candle_core::DType;
use candle_trainer::data::digits;
use candle_trainer::resnet::Size;
use candle_trainer::trainer::{Outcome, Settings, Way, train};
use candle_trainer::world::World;
use syncbn_candle::sorted_vars;

fn bits(outcome: &Outcome) -> Vec<Vec<u64>> {
    let bits = |var: &candle_core::Var| {
        let values = var.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        values.into_iter().map(f64::to_bits).collect()
    };
    sorted_vars(&outcome.vars).iter().map(bits).collect()
}

fn settings() -> Settings {
    Settings {
        way: Way::Sync,
        world: World::Threads { ranks: NonZeroUsize::new(2).unwrap(), gpus: 0 },
        samples: 32,
        epochs: 2,
        size: Size { width: 4, blocks: 1 },
        rate: 0.05,
        seed: 1,
        dtype: DType::F32,
        checkpoint: None,
        resume: None,
        stop_after: None,
    }
}

#[test]
fn a_batch_without_samples_or_with_too_many_is_an_error() {
    let data = digits(DType::F32).unwrap();
    for samples in [0, 10_000, usize::MAX] {
        assert!(train(&Settings { samples, ..settings() }, &data, |_| ()).is_err(), "{samples}");
    }
}

#[test]
fn a_run_that_was_interrupted_and_continued_has_the_bits_of_one_that_was_not() {
    let data = digits(DType::F32).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.safetensors");
    let whole = settings();
    let run = |settings: &Settings| train(settings, &data, |_| ()).unwrap();
    let uninterrupted = run(&whole);
    let first = run(&Settings { checkpoint: Some(file.clone()), stop_after: Some(1), ..whole.clone() });
    let second = run(&Settings { resume: Some(file), ..whole });
    assert_ne!(bits(&first), bits(&uninterrupted));
    assert_eq!(bits(&second), bits(&uninterrupted));
    assert_eq!([first.losses, second.losses].concat(), uninterrupted.losses);
    assert_eq!(second.accuracies[..], uninterrupted.accuracies[1..]);
}
