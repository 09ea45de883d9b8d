//! All variables of a model: the same on every rank at the start, and a check that they still are.
//!
//! Values travel as their bits, in words of 32 as numbers of `f64`, so that what arrives is what was sent, NaN and -0 included.

use std::sync::PoisonError;

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use candle_nn::VarMap;
use syncbn_core::{bf16, f16};

use crate::digest::Digest;
use crate::error::{Difference, Error};
use crate::group::Group;
use crate::sum::all_reduce;

/// The most words of one sum.
const PIECE: usize = 1 << 20;

/// The map's variables in the order of their names, which is the same on every rank.
#[must_use]
pub fn sorted_vars(vars: &VarMap) -> Vec<Var> {
    named(vars).into_iter().map(|(_, var)| var).collect()
}

/// Gives every rank rank 0's variables, running statistics and counters among them, bit for bit. Every rank calls it, before the
/// first step.
///
/// # Errors
///
/// Variables whose names, shapes or types differ between ranks; a failure of the group. No variable has changed then.
pub fn broadcast_state(vars: &VarMap, group: &Group) -> Result<()> {
    const OPERATION: &str = "broadcast_state";
    let vars = named(vars);
    let mut words = words_of(&vars, OPERATION)?;
    if group.rank() != 0 {
        words.fill(0);
    }
    let name = format!("{OPERATION} {}", form(&vars));
    if words.is_empty() {
        // Ranks that have values hear that this one has none.
        summed(&vars, group, OPERATION, &name, vec![0.0])?;
    }
    for piece in words.chunks_mut(PIECE) {
        let numbers = piece.iter().map(|&word| f64::from(word)).collect();
        let numbers = summed(&vars, group, OPERATION, &name, numbers)?;
        piece.iter_mut().zip(&numbers).for_each(|(word, &number)| *word = word_of(number));
    }
    let mut rest = &words[..];
    let mut values = Vec::with_capacity(vars.len());
    for (_, var) in &vars {
        let (own, others) = rest.split_at(var.elem_count() * words_per_value(var.dtype()));
        values.push(from_words(own, var.dtype(), var.shape(), var.device())?);
        rest = others;
    }
    vars.iter().zip(&values).try_for_each(|((_, var), value)| var.set(value))
}

/// Whether every rank has rank 0's variables, bit for bit. Every rank calls it, and every rank gets the same answer.
///
/// # Errors
///
/// [`Error::StateDiffers`] names each variable that differs and its rank; a failure of the group, which variables whose names, shapes
/// or types differ are.
pub fn check_state(vars: &VarMap, group: &Group) -> Result<()> {
    const OPERATION: &str = "check_state";
    const PER_VARIABLE: usize = 2;
    let vars = named(vars);
    let row = PER_VARIABLE * vars.len();
    let mut digests = vec![0.0; row * group.world_size().get()];
    for (at, (name, var)) in vars.iter().enumerate() {
        let mut digest = Digest::default();
        words(name, var, OPERATION)?.into_iter().for_each(|word| digest.word(word));
        let [low, high] = halves(digest.value());
        let at = row * group.rank() + PER_VARIABLE * at;
        (digests[at], digests[at + 1]) = (f64::from(low), f64::from(high));
    }
    let digests = summed(&vars, group, OPERATION, &format!("{OPERATION} {}", form(&vars)), digests)?;
    let mut differences = Vec::new();
    for rank in 1..group.world_size().get() {
        for (at, (name, _)) in vars.iter().enumerate() {
            let of = |rank: usize| &digests[row * rank + PER_VARIABLE * at..][..PER_VARIABLE];
            if of(rank) != of(0) {
                differences.push(Difference { rank, variable: name.clone() });
            }
        }
    }
    if differences.is_empty() { Ok(()) } else { Err(Error::StateDiffers(differences).into()) }
}

fn named(vars: &VarMap) -> Vec<(String, Var)> {
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    let mut named: Vec<_> = vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect();
    named.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    named
}

/// What differs where names, shapes or types do.
fn form(vars: &[(String, Var)]) -> String {
    let mut digest = Digest::default();
    for (name, var) in vars {
        digest.bytes(name.as_bytes());
        digest.form(var);
    }
    format!("of {} variables, form {digest}", vars.len())
}

/// The sums over the ranks, on the variables' device.
fn summed(
    vars: &[(String, Var)],
    group: &Group,
    operation: &'static str,
    name: &str,
    numbers: Vec<f64>,
) -> Result<Vec<f64>> {
    let device = vars.first().map_or(&Device::Cpu, |(_, var)| var.device());
    let len = numbers.len();
    let numbers = Tensor::from_vec(numbers, len, device)?;
    all_reduce::<f64>(group, operation, name, &numbers)?;
    numbers.to_vec1()
}

fn words_of(vars: &[(String, Var)], operation: &'static str) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for (name, var) in vars {
        all.append(&mut words(name, var, operation)?);
    }
    Ok(all)
}

fn words_per_value(dtype: DType) -> usize {
    dtype.size_in_bytes().div_ceil(size_of::<u32>())
}

/// The bits of the values: one word for each, or two, the lower first.
fn words(name: &str, var: &Tensor, operation: &'static str) -> Result<Vec<u32>> {
    let flat = var.flatten_all()?;
    Ok(match var.dtype() {
        DType::F32 => flat.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect(),
        DType::F16 => flat.to_vec1::<f16>()?.into_iter().map(|value| value.to_bits().into()).collect(),
        DType::BF16 => flat.to_vec1::<bf16>()?.into_iter().map(|value| value.to_bits().into()).collect(),
        DType::U32 => flat.to_vec1::<u32>()?,
        DType::U8 => flat.to_vec1::<u8>()?.into_iter().map(u32::from).collect(),
        DType::I16 => flat.to_vec1::<i16>()?.into_iter().map(|value| value.cast_unsigned().into()).collect(),
        DType::I32 => flat.to_vec1::<i32>()?.into_iter().map(i32::cast_unsigned).collect(),
        DType::F64 => flat.to_vec1::<f64>()?.into_iter().flat_map(|value| halves(value.to_bits())).collect(),
        DType::I64 => {
            flat.to_vec1::<i64>()?.into_iter().flat_map(|value| halves(value.cast_unsigned())).collect()
        }
        dtype => {
            let unsupported = candle_core::Error::UnsupportedDTypeForOp(dtype, operation);
            return Err(unsupported.context(format!("variable `{name}`")));
        }
    })
}

fn from_words(words: &[u32], dtype: DType, shape: &Shape, device: &Device) -> Result<Tensor> {
    let half = |&word: &u32| (word & 0xffff) as u16;
    let pairs = || words.as_chunks::<2>().0.iter().map(|&[low, high]| u64::from(low) | u64::from(high) << 32);
    match dtype {
        DType::F32 => tensor(words.iter().map(|&word| f32::from_bits(word)), shape, device),
        DType::F16 => tensor(words.iter().map(half).map(f16::from_bits), shape, device),
        DType::BF16 => tensor(words.iter().map(half).map(bf16::from_bits), shape, device),
        DType::U32 => tensor(words.iter().copied(), shape, device),
        DType::U8 => tensor(words.iter().map(|&word| (word & 0xff) as u8), shape, device),
        DType::I16 => tensor(words.iter().map(half).map(u16::cast_signed), shape, device),
        DType::I32 => tensor(words.iter().map(|&word| word.cast_signed()), shape, device),
        DType::F64 => tensor(pairs().map(f64::from_bits), shape, device),
        DType::I64 => tensor(pairs().map(u64::cast_signed), shape, device),
        dtype => Err(candle_core::Error::UnsupportedDTypeForOp(dtype, "broadcast_state").bt()),
    }
}

fn tensor<T: candle_core::WithDType>(
    values: impl Iterator<Item = T>,
    shape: &Shape,
    device: &Device,
) -> Result<Tensor> {
    Tensor::from_vec(values.collect::<Vec<T>>(), shape, device)
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// The word of a number that was one: rank 0's, with nothing but zeros added.
#[allow(clippy::cast_sign_loss)]
fn word_of(number: f64) -> u32 {
    number as u32
}
