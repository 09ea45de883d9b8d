//! The layer in candle's habits: modes, conversions, recomputation and errors.

use crate::common::{alone, difference, drawn, layer, ranks, values};
use crate::place::{available, device};
use candle_core::{DType, Module, ModuleT, Tensor, Var};
use candle_nn::{BatchNorm, BatchNormConfig, VarBuilder, VarMap, batch_norm};
use syncbn_candle::{Error, SyncBatchNorm, SyncBatchNormConfig, sync_batch_norm};
use syncbn_core::{CommErrorKind, ErrorKind};

fn refused(channels: usize, config: impl Into<SyncBatchNormConfig>, dtype: DType) -> candle_core::Error {
    layer(channels, config, dtype, &alone()).map(|(_, layer)| layer).unwrap_err()
}

fn candles(channels: usize, config: impl Into<BatchNormConfig>) -> BatchNorm {
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &device());
    batch_norm(channels, config, vb).unwrap()
}

#[test]
fn evaluation_and_training_are_candles_on_one_rank() {
    if !available() {
        return;
    }
    let config = BatchNormConfig { momentum: 0.3, ..1e-3.into() };
    let theirs = candles(3, config);
    let (_vars, ours) = layer(3, config, DType::F32, &alone()).unwrap();
    for seed in 0..5 {
        let x = drawn(&[4, 3, 5, 2], DType::F32, seed);
        for train in [true, false] {
            let (got, expected) = (ours.forward_t(&x, train).unwrap(), theirs.forward_t(&x, train).unwrap());
            assert!(difference(&got, &expected) < 1e-6);
        }
        assert!(difference(ours.running_mean().unwrap(), theirs.running_mean()) < 1e-6);
        assert!(difference(ours.running_var().unwrap(), theirs.running_var()) < 1e-6);
    }
    let x = drawn(&[4, 3, 5, 2], DType::F32, 9);
    assert_eq!(values(&ours.eval().forward(&x).unwrap()), values(&ours.forward_t(&x, false).unwrap()));
}

#[test]
fn gradients_of_evaluation_leave_the_statistics_constant() {
    if !available() {
        return;
    }
    let (_vars, norm) = layer(2, 1e-5, DType::F64, &alone()).unwrap();
    norm.forward_t(&drawn(&[6, 2], DType::F64, 1), true).unwrap();
    let (mean, var) = (norm.running_mean().unwrap().detach(), norm.running_var().unwrap().detach());
    let x = Var::from_tensor(&drawn(&[6, 2], DType::F64, 2)).unwrap();
    let loss = |y: &Tensor| y.exp().unwrap().sum_all().unwrap().backward().unwrap();
    let got = loss(&norm.forward_t(&x, false).unwrap());
    let y = x.broadcast_sub(&mean).unwrap().broadcast_div(&(var + 1e-5).unwrap().sqrt().unwrap()).unwrap();
    let (weight, bias) = (norm.weight().unwrap(), norm.bias().unwrap());
    let expected = loss(&y.broadcast_mul(weight).unwrap().broadcast_add(bias).unwrap());
    for of in [&*x, weight, bias] {
        assert!(difference(got.get(of).unwrap(), expected.get(of).unwrap()) < 1e-12);
    }
    assert!(got.get(norm.running_mean().unwrap()).is_none());
}

#[test]
fn without_running_statistics_evaluation_takes_the_batchs() {
    if !available() {
        return;
    }
    let config =
        SyncBatchNormConfig { track_running_stats: false, affine: false, ..SyncBatchNormConfig::default() };
    let (vars, norm) = layer(2, config, DType::F64, &alone()).unwrap();
    assert!(vars.all_vars().is_empty());
    let x = drawn(&[6, 2], DType::F64, 1);
    let (train, eval) = (norm.forward_t(&x, true).unwrap(), norm.forward_t(&x, false).unwrap());
    assert_eq!(values(&train), values(&eval));
}

#[test]
fn candles_layer_and_back_share_their_variables() {
    if !available() {
        return;
    }
    let theirs = candles(3, BatchNormConfig { momentum: 0.2, ..1e-3.into() });
    let ours = SyncBatchNorm::from_candle(&theirs, "bn1", &alone()).unwrap();
    let x = drawn(&[4, 3, 5], DType::F32, 1);
    ours.forward_t(&x, true).unwrap();
    assert_eq!(values(ours.running_var().unwrap()), values(theirs.running_var()));
    assert_ne!(values(theirs.running_mean()), [0.0; 3]);
    let back = ours.to_candle().unwrap();
    assert_eq!((back.eps(), back.momentum()), (1e-3, 0.2));
    assert_eq!(back.running_mean().id(), theirs.running_mean().id());
    assert!(difference(&back.forward_t(&x, false).unwrap(), &ours.forward_t(&x, false).unwrap()) < 1e-6);

    let cumulative = SyncBatchNormConfig { momentum: None, ..SyncBatchNormConfig::default() };
    let (_vars, cumulative) = layer(3, cumulative, DType::F32, &alone()).unwrap();
    assert!(matches!(Error::find(&cumulative.to_candle().unwrap_err()), Some(Error::Unsupported { .. })));
}

#[test]
fn a_layer_that_does_not_remove_the_mean_is_refused() {
    if !available() {
        return;
    }
    let config = BatchNormConfig { remove_mean: false, ..BatchNormConfig::default() };
    let error = refused(3, config, DType::F32);
    assert!(matches!(Error::find(&error), Some(Error::Unsupported { .. })), "{error}");
    let error = SyncBatchNorm::from_candle(&candles(3, config), "bn1", &alone()).unwrap_err();
    assert!(
        matches!(Error::find(&error), Some(Error::Unsupported { layer, .. }) if layer == "bn1"),
        "{error}"
    );
}

#[test]
fn one_variable_as_mean_and_variance_is_refused() {
    if !available() {
        return;
    }
    let both = Var::ones(3, DType::F32, &device()).unwrap();
    let theirs = BatchNorm::new_no_bias(3, both.as_tensor().clone(), both.as_tensor().clone(), 1e-5).unwrap();
    assert!(SyncBatchNorm::from_candle(&theirs, "bn1", &alone()).is_err());

    let renamed = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &device())
        .rename_f(|name: &str| name.replace("running_var", "running_mean"));
    let error = sync_batch_norm(3, 1e-5, renamed, &alone()).unwrap_err();
    assert!(matches!(Error::find(&error), Some(Error::Unsupported { .. })), "{error}");
}

#[test]
fn recomputation_asks_no_rank_updates_nothing_and_has_the_same_bits_and_gradients() {
    if !available() {
        return;
    }
    let outcomes = ranks(2, |group| {
        let (_vars, norm) = layer(3, 1e-5, DType::F32, group)?;
        let x = Var::from_tensor(&drawn(&[2 + group.rank(), 3, 4], DType::F32, 1))?;
        let (y, saved) = norm.forward_train(&x)?;
        // Rank 1 alone recomputes, which would wait for ever if rank 0 were asked.
        let again = if group.rank() == 1 { norm.recompute(&x, &saved)? } else { y.clone() };
        let grads = [y.exp()?.sum_all()?.backward()?, again.exp()?.sum_all()?.backward()?];
        let grads = grads.map(|grads| values(grads.get(&x).unwrap()));
        Ok((values(&y), values(&again), grads, norm.num_batches_tracked().unwrap().to_scalar::<i64>()?))
    });
    for (y, again, [first, second], count) in outcomes {
        assert_eq!(y, again);
        assert_eq!(first, second);
        assert_eq!(count, 1);
    }
}

#[test]
fn a_recomputation_needs_what_its_own_layer_saved() {
    if !available() {
        return;
    }
    let (_vars, norm) = layer(3, 1e-5, DType::F32, &alone()).unwrap();
    let (_others, other) = layer(3, 1e-5, DType::F32, &alone()).unwrap();
    let x = drawn(&[4, 3], DType::F32, 1);
    let (_, saved) = other.forward_train(&x).unwrap();
    let error = norm.recompute(&x, &saved).unwrap_err();
    assert!(matches!(kind(&error), ErrorKind::ForeignSaved), "{error}");
    let error = norm.recompute(&x, &syncbn_candle::Saved::default()).unwrap_err();
    assert!(matches!(Error::find(&error), Some(Error::NothingSaved { .. })), "{error}");
}

fn kind(error: &candle_core::Error) -> &ErrorKind {
    match Error::find(error) {
        Some(Error::Layer(error)) => &error.kind,
        other => panic!("{other:?} is no layer's error"),
    }
}

#[test]
fn errors_are_typed_and_change_nothing() {
    if !available() {
        return;
    }
    let (_vars, norm) = layer(3, 1e-5, DType::F32, &alone()).unwrap();
    let forward = |shape: &[usize], dtype| norm.forward_t(&drawn(shape, dtype, 1), true).unwrap_err();
    assert!(matches!(kind(&forward(&[4, 2], DType::F32)), ErrorKind::Channels { got: 2, .. }));
    assert!(matches!(kind(&forward(&[1, 3], DType::F32)), ErrorKind::OneElement { .. }));
    assert!(matches!(kind(&forward(&[3], DType::F32)), ErrorKind::Shape { .. }));
    assert!(matches!(kind(&forward(&[], DType::F32)), ErrorKind::Shape { .. }));
    let error = forward(&[4, 3], DType::F64);
    assert!(matches!(Error::find(&error), Some(Error::Dtype { got: DType::F64, .. })), "{error}");
    assert!(error.to_string().contains("forward of layer `bn1`"), "{error}");
    assert_eq!(norm.num_batches_tracked().unwrap().to_scalar::<i64>().unwrap(), 0);
    for eps in [0.0, -1.0, f64::NAN] {
        assert!(matches!(kind(&refused(3, eps, DType::F32)), ErrorKind::Config(_)));
    }
    assert!(matches!(kind(&refused(0, 1e-5, DType::F32)), ErrorKind::Config(_)));
    let error = refused(3, 1e-5, DType::U32);
    assert!(matches!(Error::find(&error), Some(Error::Dtype { got: DType::U32, .. })), "{error}");
}

#[test]
fn a_failed_sum_changes_neither_statistics_nor_counter() {
    if !available() {
        return;
    }
    let outcomes = ranks(2, |group| {
        let (_vars, norm) = layer(3, 1e-5, DType::F32, group)?;
        if group.rank() == 1 {
            return Ok(None);
        }
        let error = norm.forward_t(&drawn(&[4, 3], DType::F32, 1), true).unwrap_err();
        let left = matches!(kind(&error), ErrorKind::Communicator(error) if matches!(error.kind, CommErrorKind::Left { rank: 1, .. }));
        let (mean, var) = (values(norm.running_mean().unwrap()), values(norm.running_var().unwrap()));
        Ok(Some((left, mean, var, norm.num_batches_tracked().unwrap().to_scalar::<i64>()?)))
    });
    assert_eq!(outcomes[0], Some((true, vec![0.0; 3], vec![1.0; 3], 0)));
}

#[test]
fn every_rank_may_be_empty() {
    if !available() {
        return;
    }
    let outcomes = ranks(2, |group| {
        let (_vars, norm) = layer(3, 1e-5, DType::F32, group)?;
        let x = Var::zeros((0, 3, 4), DType::F32, &device())?;
        let y = norm.forward_t(&x, true)?;
        let grads = y.sum_all()?.backward()?;
        let weight = values(grads.get(norm.weight().unwrap()).unwrap());
        let dims = grads.get(&x).unwrap().dims().to_vec();
        Ok((dims, weight, norm.num_batches_tracked().unwrap().to_scalar::<i64>()?))
    });
    for (dims, weight, count) in outcomes {
        assert_eq!((dims, weight, count), (vec![0, 3, 4], vec![0.0; 3], 0));
    }
}

#[test]
fn an_empty_x_may_have_any_strides() {
    if !available() {
        return;
    }
    let (_vars, norm) = layer(3, 1e-5, DType::F32, &alone()).unwrap();
    let views: [(&[usize], &[usize]); 4] = [
        (&[0, 4, 5, 3], &[0, 3, 1, 2]), // NHWC
        (&[0, 4, 5, 3], &[0, 3, 2, 1]),
        (&[5, 4, 3, 0], &[3, 2, 1, 0]),
        (&[2, 4, 0, 3], &[0, 3, 2, 1]),
    ];
    for (shape, axes) in views {
        let stored = Var::zeros(shape, DType::F32, &device()).unwrap();
        let x = stored.permute(axes).unwrap();
        for train in [true, false] {
            let y = norm.forward_t(&x, train).unwrap();
            assert_eq!(y.dims(), x.dims());
            let grads = y.sum_all().unwrap().backward().unwrap();
            assert_eq!(grads.get(&stored).unwrap().dims(), shape);
        }
    }
    assert_eq!(norm.num_batches_tracked().unwrap().to_scalar::<i64>().unwrap(), 0);
}

#[test]
fn a_clone_is_the_same_layer() {
    if !available() {
        return;
    }
    let (_vars, norm) = layer(3, 1e-5, DType::F32, &alone()).unwrap();
    norm.clone().forward_t(&drawn(&[4, 3], DType::F32, 1), true).unwrap();
    assert_eq!(norm.num_batches_tracked().unwrap().to_scalar::<i64>().unwrap(), 1);
}

const VARIABLE: &str = "CANDLE_GRAD_DO_NOT_DETACH";

/// Candle makes graphs of gradients where this variable is set when a thread first asks: a process of its own.
#[test]
fn a_second_derivative_is_an_error_and_not_a_graph_cut_in_silence() {
    if !available() {
        return;
    }
    if std::env::var_os(VARIABLE).is_none() {
        let name = "layer::a_second_derivative_is_an_error_and_not_a_graph_cut_in_silence";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let output = again.args(["--exact", name]).env(VARIABLE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let (_vars, norm) = layer(2, 1e-5, DType::F64, &alone()).unwrap();
    let x = Var::from_tensor(&drawn(&[4, 2], DType::F64, 1)).unwrap();
    let error = norm.forward_t(&x, true).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap_err();
    assert!(matches!(Error::find(&error), Some(Error::Unsupported { .. })), "{error}");
}

#[test]
fn memory_that_both_layouts_describe_stays_contiguous() {
    if !available() {
        return;
    }
    let (_vars, norm) = layer(1, 1e-5, DType::F32, &alone()).unwrap();
    let x = drawn(&[4, 5, 1], DType::F32, 1).permute((0, 2, 1)).unwrap();
    let y = norm.forward_t(&x, true).unwrap();
    assert_eq!((y.dims(), y.is_contiguous()), (&[4, 1, 5][..], true));
}
