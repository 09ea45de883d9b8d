//! Saving and loading a layer's state, and training on.

use syncbn_core::{Checkpoint, Dtype, Element, FileDtype, Kernels, Scalar, State};

use crate::bits::{same_state, same_steps};
use crate::harness::Harness;
use crate::outcome::Outcome;
use crate::rank::{Rank, Step, alone, ranks};
use crate::strategies::{Case, within};
use crate::{broken, ensure};

/// Saving in the middle of a run, loading into a new layer and training on gives the bits of a run without interruption.
pub fn a_loaded_run_goes_on_bit_identically<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let samples = within(&[2, 1], harness.max_world_size());
    for momentum in [Some(0.1), None] {
        let case = Case { momentum, ..Case::plain(5, &[3, 2], &samples) };
        let run = |interrupted: bool| -> Outcome<Vec<Vec<Step<T>>>> {
            ranks(harness, samples.len(), |rank: &Rank<H::Backend>| {
                let mut layer = rank.layer(case.config(), &case.state())?;
                let mut steps = Vec::new();
                for seed in 0..6 {
                    if interrupted && seed == 3 {
                        let saved = Checkpoint::new(layer.state(&rank.queue)?.to_tensors("bn."))?;
                        let loaded = saved.load("bn.", &case.config())?;
                        layer = rank.layer(case.config(), &loaded.state)?;
                    }
                    let batch = Case { seed, ..case.clone() };
                    let (x, dy) = (batch.x::<T>(rank.index), batch.dy::<T>(rank.index));
                    steps.push(rank.train(&mut layer, &x, &dy, case.layout)?);
                }
                Ok(steps)
            })
        };
        for (got, expected) in run(true)?.iter().zip(&run(false)?) {
            same_steps(got, expected).map_err(|why| why.at(format!("loaded, momentum {momentum:?}")))?;
        }
    }
    Ok(())
}

/// A state comes back with the bits it was loaded with, under the names and in the types that checkpoints have: halves have
/// parameters of `f32`.
pub fn a_state_comes_back_as_it_was_loaded<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let case = Case::plain(67, &[], &[2]);
    let state = case.state::<T::Param>();
    let got = alone(harness, |rank: &Rank<H::Backend>| {
        Ok(rank.layer(case.config(), &state)?.state(&rank.queue)?)
    })?;
    same_state(&got, &state).map_err(|why| why.at("to the device and back"))?;
    let parameters = if T::DTYPE == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
    ensure!(T::Param::DTYPE == parameters, "parameters of {} are {}", T::DTYPE, T::Param::DTYPE);
    let names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"];
    let tensors = got.to_tensors("m.bn.");
    ensure!(tensors.len() == names.len(), "{} tensors", tensors.len());
    for (tensor, name) in tensors.iter().zip(names) {
        ensure!(tensor.name == format!("m.bn.{name}"), "{} in place of {name}", tensor.name);
        let counter = name == "num_batches_tracked";
        let expected =
            if counter { (FileDtype::I64, vec![]) } else { (FileDtype::from(parameters), vec![67]) };
        ensure!(
            (tensor.dtype, tensor.shape.clone()) == expected,
            "{name} is {} {:?}",
            tensor.dtype,
            tensor.shape
        );
    }
    Ok(())
}

/// A new layer has the defaults of every framework.
pub fn a_new_layer_starts_from_the_defaults<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let config = syncbn_core::Config::new(3);
    ensure!(
        (config.eps, config.momentum) == (1e-5, Some(0.1)),
        "eps {}, momentum {:?}",
        config.eps,
        config.momentum
    );
    let state = alone(harness, |rank: &Rank<H::Backend>| {
        let (backend, group) = (rank.backend.clone(), rank.communicator.clone());
        let mut layer =
            syncbn_core::SyncBatchNorm::<_, T::Param>::new("bn", config, backend, &rank.queue, group)?;
        Ok(layer.state(&rank.queue)?)
    })?;
    let all = |value: f64| Some(vec![T::Param::from_f64(value); 3]);
    let expected = State {
        weight: all(1.0),
        bias: all(0.0),
        running_mean: all(0.0),
        running_var: all(1.0),
        num_batches_tracked: Some(0),
    };
    if state == expected { Ok(()) } else { Err(broken!("a new layer's state is {state:?}")) }
}
