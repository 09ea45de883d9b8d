//! What forward writes: y, against the oracle.
//!
//! Deliberately not here: running statistics, and how often ranks talk.

use syncbn_core::{Element, Kernels};

use crate::bars::check_y;
use crate::harness::Harness;
use crate::oracle::{self, Affine};
use crate::outcome::Outcome;
use crate::property::{CASES, for_all};
use crate::rank::{Rank, ranks};
use crate::strategies::{Case, case};
use crate::tensor::{Placed, Tensor};

/// y of every rank together, in training.
fn train_y<H: Harness, T: Element>(harness: &H, case: &Case) -> Outcome<Tensor<T>>
where
    H::Backend: Kernels<T>,
{
    let parts = ranks(harness, case.world_size(), |rank: &Rank<H::Backend>| {
        let x = case.x::<T>(rank.index);
        let mut layer = rank.layer(case.config(), &case.state())?;
        let placed = Placed::new(rank, &x, case.layout)?;
        rank.forward(&mut layer, &placed, &x).map(|(_, y)| y)
    })?;
    Ok(Tensor::concat(&parts))
}

fn check_training<H: Harness, T: Element>(harness: &H, case: &Case) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let got = train_y::<H, T>(harness, case)?;
    let x = Tensor::concat(&case.all(Case::x::<T>));
    let statistics = oracle::statistics(&x, case.world_size() > 1);
    let state = case.state::<T::Param>();
    let affine = Affine::new(case.channels, state.weight.as_ref(), state.bias.as_ref());
    check_y(&got, &oracle::xhat(&x, &statistics, case.eps), &statistics, &affine, case.eps)
}

/// Any split of any batch, uneven and empty ones included, gives the y of the whole batch on one rank.
pub fn any_split_of_a_batch_gives_the_y_of_the_whole<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for_all(CASES, &case(harness.max_world_size()), |case| check_training::<H, T>(harness, case))
}
