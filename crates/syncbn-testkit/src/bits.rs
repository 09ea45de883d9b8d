//! Comparing results to the bit, and describing differences.

use syncbn_core::{Element, Scalar, State};

use crate::ensure;
use crate::outcome::Outcome;
use crate::rank::{Step, Written};

/// Whether two numbers are the same bits.
pub fn same<T: Scalar>(a: T, b: T) -> bool {
    a.to_le_bytes().as_ref() == b.to_le_bytes().as_ref()
}

/// Are these the same numbers to the bit? If not: the first that differs, its place, and both values.
pub fn same_bits<T: Scalar>(what: &str, got: &[T], expected: &[T]) -> Outcome {
    ensure!(got.len() == expected.len(), "{what} has {} numbers, expected {}", got.len(), expected.len());
    let differ = |(got, expected): (&T, &T)| !same(*got, *expected);
    let count = got.iter().zip(expected).filter(|&pair| differ(pair)).count();
    let Some(i) = got.iter().zip(expected).position(differ) else { return Ok(()) };
    Err(crate::broken!(
        "{what} differs in {count} of {} numbers, the first at index {i}: {}, expected {}",
        got.len(),
        told(got[i]),
        told(expected[i])
    ))
}

/// The same numbers, with one NaN for all: what NaN carries is nobody's promise.
pub fn without_payload<T: Element>(values: &[T]) -> Vec<T> {
    let plain = |&v: &T| if v.to_f64().is_nan() { T::from_f64(f64::NAN) } else { v };
    values.iter().map(plain).collect()
}

/// A number and its bits.
fn told<T: Scalar>(value: T) -> String {
    let bytes = value.to_le_bytes();
    let bits = bytes.as_ref().iter().rev().fold(0_u64, |bits, &byte| bits << 8 | u64::from(byte));
    format!("{value:?} (0x{bits:0width$x})", width = 2 * size_of::<T>())
}

impl<T: Element> Written<T> {
    /// Are these the same gradients?
    pub fn same_bits(&self, expected: &Self) -> Outcome {
        same_bits("dx", &self.dx.values, &expected.dx.values)?;
        same_bits("d_weight", &self.d_weight, &expected.d_weight)?;
        same_bits("d_bias", &self.d_bias, &expected.d_bias)
    }
}

impl<T: Element> Step<T> {
    /// Has this step written the same?
    pub fn same_bits(&self, expected: &Self) -> Outcome {
        same_bits("y", &self.y.values, &expected.y.values)?;
        self.gradients.same_bits(&expected.gradients)?;
        same_state(&self.state, &expected.state)
    }
}

/// Are these the steps of the same ranks, to the bit?
pub fn same_steps<T: Element>(got: &[Step<T>], expected: &[Step<T>]) -> Outcome {
    ensure!(got.len() == expected.len(), "{} ranks, expected {}", got.len(), expected.len());
    for (rank, (got, expected)) in got.iter().zip(expected).enumerate() {
        got.same_bits(expected).map_err(|why| why.at(format!("rank {rank}")))?;
    }
    Ok(())
}

/// Is this the same state?
pub fn same_state<P: syncbn_core::Param>(got: &State<P>, expected: &State<P>) -> Outcome {
    let State { weight, bias, running_mean, running_var, num_batches_tracked } = got;
    let vectors = [
        ("weight", weight, &expected.weight),
        ("bias", bias, &expected.bias),
        ("running_mean", running_mean, &expected.running_mean),
        ("running_var", running_var, &expected.running_var),
    ];
    for (what, got, expected) in vectors {
        ensure!(got.is_some() == expected.is_some(), "{what} is there: {}", got.is_some());
        same_bits(what, got.as_deref().unwrap_or_default(), expected.as_deref().unwrap_or_default())?;
    }
    let (got, expected) = (num_batches_tracked.as_slice(), expected.num_batches_tracked.as_slice());
    same_bits("num_batches_tracked", got, expected)
}
