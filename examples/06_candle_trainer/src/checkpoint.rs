//! What a run is continued from: a safetensors file of the variables, the optimiser's velocities and the epoch.
//!
//! Names of the variables are the model's own, so that the file is also a checkpoint of the model.

use std::collections::HashMap;
use std::path::Path;
use std::sync::PoisonError;

use candle_core::{Device, Tensor};
use candle_nn::VarMap;

use crate::Result;
use crate::sgd::Sgd;

const EPOCH: &str = "trainer.epoch";
const VELOCITY: &str = "trainer.velocity.";

/// Writes the state after `epoch` epochs. The file is complete or not there: it is written beside and renamed.
pub fn save(path: &Path, vars: &VarMap, sgd: &Sgd, epoch: usize) -> Result<()> {
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (name, velocity) in names(vars).into_iter().zip(&sgd.velocities) {
        tensors.insert(format!("{VELOCITY}{name}"), velocity.clone());
    }
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    tensors.extend(vars.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())));
    tensors.insert(EPOCH.into(), Tensor::new(i64::try_from(epoch)?, &Device::Cpu)?);
    let beside = path.with_extension("part");
    candle_core::safetensors::save(&tensors, &beside)?;
    std::fs::rename(&beside, path)?;
    Ok(())
}

/// Reads a state back, and says after how many epochs it was written.
pub fn load(path: &Path, vars: &mut VarMap, sgd: &mut Sgd) -> Result<usize> {
    let device = sgd.velocities.first().map_or(Device::Cpu, |velocity| velocity.device().clone());
    let mut tensors = candle_core::safetensors::load(path, &device)?;
    let mut take = |name: &str| tensors.remove(name).ok_or_else(|| format!("{}: no {name}", path.display()));
    let epoch = take(EPOCH)?.to_scalar::<i64>()?;
    for (name, velocity) in names(vars).into_iter().zip(&mut sgd.velocities) {
        *velocity = take(&format!("{VELOCITY}{name}"))?;
        vars.set_one(&name, take(&name)?)?;
    }
    Ok(usize::try_from(epoch)?)
}

/// In the order of [`syncbn_candle::sorted_vars`], which is the optimiser's.
fn names(vars: &VarMap) -> Vec<String> {
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    let mut names: Vec<String> = vars.keys().cloned().collect();
    names.sort_unstable();
    names
}
