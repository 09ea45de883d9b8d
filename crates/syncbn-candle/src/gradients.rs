//! The gradients of all variables, summed over the ranks.
//!
//! Deliberately not here: overlap with the backward pass, which candle gives no hook for.

use std::collections::HashSet;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, WithDType};
use syncbn_core::Param;

use crate::digest::Digest;
use crate::group::Group;
use crate::sum::all_reduce;
use crate::value::Value;

/// What becomes of the ranks' gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum: for a loss that is a sum over samples, or that was divided by the whole batch's size.
    Sum,
    /// Their sum divided by the number of ranks: for a loss that is the mean over a rank's samples, where all ranks have as many.
    Mean,
}

const OPERATION: &str = "all_reduce_gradients";

/// The most numbers of one sum: as many as a network carries at its full speed, and few enough not to double memory.
const BUCKET: usize = 1 << 22;

/// Replaces the gradients of these variables by their sum or mean over the ranks. Every rank gets the same bits.
///
/// Every rank gives the same variables in the same order: `VarMap::all_vars` has another order in every map, and
/// [`sorted_vars`](crate::sorted_vars) has the names'. A variable without a gradient is left out, and has none on any rank. One that is
/// there twice, under two names, is summed once.
///
/// # Errors
///
/// Variables whose number, shapes or types differ between ranks, or that have a gradient on some ranks only: every rank is told, where
/// the communicator compares calls. A failure of the group. Some gradients may have been replaced then.
pub fn all_reduce_gradients(
    grads: &mut GradStore,
    vars: &[Var],
    group: &Group,
    reduction: Reduction,
) -> Result<()> {
    if group.world_size().get() == 1 {
        return Ok(());
    }
    let name = name(grads, vars);
    let mut seen = HashSet::new();
    // Candle's CUDA cannot cast what has no elements, and there is nothing to sum.
    let has_numbers = |var: &Var| var.elem_count() > 0 && grads.get(var).is_some();
    let to_sum = |var: &&Var| has_numbers(var) && seen.insert(Tensor::id(var));
    let (wide, narrow): (Vec<&Var>, Vec<&Var>) =
        vars.iter().filter(to_sum).partition(|var| var.dtype() == DType::F64);
    if wide.is_empty() && narrow.is_empty() {
        // Ranks that have a gradient hear that this one has none.
        let device = vars.first().map_or(&Device::Cpu, |var| var.device());
        return all_reduce::<f32>(group, OPERATION, &name, &Tensor::zeros(1, DType::F32, device)?);
    }
    let scale = match reduction {
        Reduction::Sum => None,
        Reduction::Mean => Some(1.0 / group.world_size().get() as f64),
    };
    reduce::<f32>(grads, &narrow, group, &name, scale)?;
    reduce::<f64>(grads, &wide, group, &name, scale)
}

/// A name that differs where ranks would sum different things.
fn name(grads: &GradStore, vars: &[Var]) -> String {
    let mut digest = Digest::default();
    for var in vars {
        digest.form(var);
        digest.word(u32::from(grads.get(var).is_some()));
    }
    format!("gradients of {} variables, form {digest}", vars.len())
}

fn reduce<P: Param + Value>(
    grads: &mut GradStore,
    vars: &[&Var],
    group: &Group,
    name: &str,
    scale: Option<f64>,
) -> Result<()> {
    for bucket in buckets(vars) {
        let flat = |var: &&Var| match grads.get(var) {
            Some(grad) => grad.flatten_all()?.to_dtype(<P as WithDType>::DTYPE),
            None => Tensor::zeros(var.elem_count(), <P as WithDType>::DTYPE, var.device()),
        };
        let flat: Vec<Tensor> = bucket.iter().map(flat).collect::<Result<_>>()?;
        // What candle joins is new memory; of a single one it would be the gradient's own.
        let joined = if let [one] = &flat[..] { one.copy()? } else { Tensor::cat(&flat, 0)? };
        all_reduce::<P>(group, OPERATION, name, &joined)?;
        let joined = if let Some(scale) = scale { joined.affine(scale, 0.0)? } else { joined };
        let mut at = 0;
        for var in bucket {
            let len = var.elem_count();
            let sum = joined.narrow(0, at, len)?.reshape(var.shape())?.to_dtype(var.dtype())?;
            grads.insert(var, sum);
            at += len;
        }
    }
    Ok(())
}

/// The variables in pieces of at most [`BUCKET`] numbers, or of one variable.
fn buckets<'a>(vars: &'a [&'a Var]) -> Vec<&'a [&'a Var]> {
    let (mut buckets, mut from, mut len) = (Vec::new(), 0, 0);
    for (at, var) in vars.iter().enumerate() {
        if at > from && len + var.elem_count() > BUCKET {
            buckets.push(&vars[from..at]);
            (from, len) = (at, 0);
        }
        len += var.elem_count();
    }
    if from < vars.len() {
        buckets.push(&vars[from..]);
    }
    buckets
}
