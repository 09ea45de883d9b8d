//! The same bits, every time and everywhere.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use syncbn_comm::TcpCommunicator;
use syncbn_core::{Element, HostCommunicator as _, Kernels, Layout, ViaHost};

use crate::bits::same_steps;
use crate::broken;
use crate::comm::on_processes;
use crate::expected::{train, train_in};
use crate::harness::{Harness, need_ranks};
use crate::outcome::Outcome;
use crate::property::{CASES, for_all};
use crate::rank::{Rank, Step};
use crate::strategies::{Case, Values, case};
use crate::threads;

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
        Case { layout: Layout::ChannelsLast, ..Case::plain(67, &[31, 29], &[3]) },
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

/// The same batch on ranks that are processes, connected by TCP, and on ranks that are threads. Each process computes what the threads
/// do as well, and finds its own part in it.
pub fn ranks_as_processes_compute_the_bits_of_ranks_as_threads<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    const RANKS: NonZeroUsize = NonZeroUsize::new(3).unwrap();
    need_ranks(harness, RANKS.get())?;
    let mixed = Values::Mixed;
    let last = Layout::ChannelsLast;
    let cases = [
        Case { values: mixed, ..Case::plain(6, &[7, 5], &[2, 0, 3]) },
        Case { values: mixed, layout: last, ..Case::plain(67, &[9], &[1, 4, 2]) },
        Case { values: mixed, track: false, affine: false, ..Case::plain(3, &[61, 67], &[1, 1, 1]) },
        Case { layout: last, ..Case::plain(1000, &[], &[5, 1, 0]) },
        Case::plain(4, &[3], &[0, 0, 0]),
    ];
    on_processes(RANKS, Duration::from_secs(60), &|communicator| {
        let communicator = Arc::new(communicator);
        for case in &cases {
            let of_threads = train_in(harness, threads::group(RANKS), case, &case.all(Case::x::<T>))?;
            let expected = &of_threads[communicator.rank()];
            let got = train_one::<H, T>(harness, &communicator, case)?;
            got.same_bits(expected).map_err(|why| why.at(format!("in processes, on {case}")))?;
        }
        Ok(())
    })
}

/// One rank's training step; the other ranks are processes.
fn train_one<H: Harness, T: Element>(
    harness: &H,
    communicator: &Arc<TcpCommunicator>,
    case: &Case,
) -> Outcome<Step<T>>
where
    H::Backend: Kernels<T>,
{
    let index = communicator.rank();
    harness.surround(|| {
        let (backend, queue) = harness.open(index).map_err(|why| broken!("the device went away: {why}"))?;
        let communicator = Arc::new(ViaHost(Arc::clone(communicator)));
        let rank = Rank { index, backend, queue, communicator };
        let mut layer = rank.layer(case.config(), &case.state())?;
        rank.train(&mut layer, &case.x::<T>(index), &case.dy::<T>(index), case.layout)
    })
}
