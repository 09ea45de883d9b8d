//! The same bits, every time and everywhere.

use syncbn_core::{Element, Kernels};

use crate::bits::same_steps;
use crate::expected::train;
use crate::harness::Harness;
use crate::outcome::Outcome;
use crate::property::{CASES, for_all};
use crate::strategies::{Case, Values, case};

/// Two runs of one case give the same bits.
pub fn two_runs_give_the_same_bits<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for_all(CASES / 4, &case(harness.max_world_size()), |case| {
        let (one, other) = (train::<H, T>(harness, case)?, train::<H, T>(harness, case)?);
        same_steps(&other, &one).map_err(|why| why.at("in a second run"))
    })?;
    let large = Case { values: Values::Mixed, ..Case::plain(3, &[97, 89], &[2, 1]) };
    let large = large.within(harness.max_world_size());
    let first = train::<H, T>(harness, &large)?;
    for _ in 0..3 {
        let again = train::<H, T>(harness, &large)?;
        same_steps(&again, &first).map_err(|why| why.at(format!("in a second run of {large}")))?;
    }
    Ok(())
}

/// Settings such as the number of threads, which a harness lists in [`Harness::variants`], do not change a bit.
pub fn variants_give_the_same_bits<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let variants = harness.variants();
    if variants.is_empty() {
        return Err(crate::Verdict::Skipped("the harness names no variants".into()));
    }
    for case in [
        Case { values: Values::Mixed, ..Case::plain(5, &[61, 67], &[2, 0, 1]) },
        Case { layout: syncbn_core::Layout::ChannelsLast, ..Case::plain(67, &[31, 29], &[3]) },
        Case::plain(1000, &[], &[40, 3]),
    ] {
        let case = case.within(harness.max_world_size());
        let expected = train::<H, T>(harness, &case)?;
        for (i, variant) in variants.iter().enumerate() {
            let got = train::<H, T>(variant, &case)?;
            same_steps(&got, &expected).map_err(|why| why.at(format!("variant {i} on {case}")))?;
        }
    }
    Ok(())
}
