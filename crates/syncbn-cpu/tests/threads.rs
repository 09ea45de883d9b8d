//! Any number of threads gives the same bits.

#![allow(clippy::unwrap_used)] // tests panic

mod common;

use common::{cases, noise, step, typed};
use rayon::ThreadPoolBuilder;
use syncbn_core::{Element, Kernels, bf16, f16};
use syncbn_cpu::Cpu;

fn holds<T: Element>()
where
    Cpu: Kernels<T>,
{
    for case in cases() {
        let (x, dy) = (typed::<T>(&noise(case.len(), 1)), typed::<T>(&noise(case.len(), 2)));
        let bits = |threads: usize| {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| step(case, &x, &dy, false).bits())
        };
        let alone = bits(1);
        for threads in [2, 3, 7] {
            assert_eq!(bits(threads), alone, "{case:?} on {threads} threads");
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits_of_f32() {
    holds::<f32>();
}

#[test]
fn any_number_of_threads_gives_the_same_bits_of_f64() {
    holds::<f64>();
}

#[test]
fn any_number_of_threads_gives_the_same_bits_of_f16() {
    holds::<f16>();
}

#[test]
fn any_number_of_threads_gives_the_same_bits_of_bf16() {
    holds::<bf16>();
}
