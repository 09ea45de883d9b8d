//! Backends and groups that are broken on purpose: the kit has to fail each, by the law that is named here.
//!
//! A law that lets its flaw pass is worth nothing; so is one that fails the same backend without the flaw, which
//! `conformance.rs` rules out.

mod plain;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use plain::{Flaw, Part, Plain, Shared};
use syncbn_comm::{ThreadComm, ThreadGroup};
use syncbn_core::{CollectiveId, CommError, HostCommunicator, Membership, Scalar, ViaHost, f16};
use syncbn_testkit::laws::{
    backward, collectives, determinism, evaluation, failures, forward, layouts, running,
};
use syncbn_testkit::{Harness, Join, Opened, Outcome, Unavailable, Verdict};

/// What may be wrong with a group.
#[derive(Clone, Copy, Debug, PartialEq)]
enum GroupFlaw {
    None,
    DropsTheLastRank,
    DoesNotSum,
    RanksGetOtherBits,
    SumsTwice,
    ForgetsTheUse,
}

#[derive(Clone)]
struct Broken {
    flaw: Flaw,
    group: GroupFlaw,
    threads: usize,
}

impl Broken {
    fn new(flaw: Flaw, group: GroupFlaw) -> Self {
        Self { flaw, group, threads: 1 }
    }
}

impl Harness for Broken {
    type Backend = Plain;

    fn name(&self) -> &'static str {
        "broken"
    }
    fn open(&self, _: usize) -> Result<Opened<Plain>, Unavailable> {
        Ok((Plain::new(self.flaw).with_threads(self.threads), ()))
    }
    fn group(&self, world_size: NonZeroUsize) -> Vec<Join<Plain>> {
        let flaw = self.group;
        let group = || ThreadGroup::new(world_size, Duration::from_secs(60)).unwrap();
        let join = |(sums, peers): (ThreadComm, ThreadComm)| -> Join<Plain> {
            Box::new(move |backend, ()| {
                backend.meet(peers);
                Ok(Arc::new(ViaHost(BrokenGroup(sums, flaw))))
            })
        };
        group().into_iter().zip(group()).map(join).collect()
    }
    fn part<T: Scalar>(buffer: &Shared<T>, range: Range<usize>) -> Option<Part<'_, T>> {
        Some(Part::new(buffer, range))
    }
    fn part_mut<T: Scalar>(buffer: &mut Shared<T>, range: Range<usize>) -> Option<Part<'_, T>> {
        Some(Part::new(buffer, range))
    }
    fn variants(&self) -> Vec<Self> {
        vec![Self { threads: 3, ..self.clone() }]
    }
}

/// Sums in host memory, wrongly.
struct BrokenGroup(ThreadComm, GroupFlaw);

impl HostCommunicator for BrokenGroup {
    fn rank(&self) -> usize {
        self.0.rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        self.0.world_size()
    }
    fn status(&self) -> Result<(), CommError> {
        self.0.status()
    }
    fn poison(&self, cause: &CommError) {
        self.0.poison(cause);
    }
    fn membership(&self) -> Option<Arc<Membership>> {
        self.0.membership()
    }
    fn all_reduce_sum(&self, id: &CollectiveId, values: &mut [f64]) -> Result<(), CommError> {
        let last = self.rank() + 1 == self.world_size().get();
        match self.1 {
            GroupFlaw::DropsTheLastRank if last => values.fill(0.0),
            GroupFlaw::DoesNotSum => return Ok(()),
            _ => {}
        }
        let use_forgotten = id.clone().with_use(0, id.step);
        let id = if self.1 == GroupFlaw::ForgetsTheUse { &use_forgotten } else { id };
        self.0.all_reduce_sum(id, values)?;
        let factor = match self.1 {
            GroupFlaw::SumsTwice => 2.0,
            GroupFlaw::RanksGetOtherBits if last => 1.0 + 1e-6,
            _ => 1.0,
        };
        values.iter_mut().for_each(|value| *value *= factor);
        Ok(())
    }
}

type Law = fn(&Broken) -> Outcome;

fn fails(backend: Flaw, group: GroupFlaw, law: Law) {
    let outcome = law(&Broken::new(backend, group));
    assert!(
        matches!(outcome, Err(Verdict::Broken(_))),
        "the law lets {backend:?} with {group:?} pass: {outcome:?}"
    );
}

macro_rules! sabotage {
    ($($test:ident: $flaw:ident, $subject:ident::$law:ident, $type:ty;)*) => {$(
        #[test]
        fn $test() {
            fails(Flaw::$flaw, GroupFlaw::None, $subject::$law::<Broken, $type>);
        }
    )*};
}

sabotage! {
    running_variance_without_bessels_correction: BiasedRunningVariance, running::any_split_of_a_batch_moves_every_ranks_statistics_alike, f32;
    bessels_correction_in_the_batch_variance: BesselInTheBatch, forward::a_mean_of_1e4_with_a_deviation_of_1_costs_no_digits, f32;
    local_count_in_place_of_the_groups: LocalCount, forward::any_split_of_a_batch_gives_the_y_of_the_whole, f32;
    eps_outside_the_root: EpsOutsideTheRoot, forward::any_split_of_a_batch_gives_the_y_of_the_whole, f32;
    squares_summed_in_f32: SquaresInF32, forward::a_mean_of_1e4_with_a_deviation_of_1_costs_no_digits, f32;
    mean_kept_in_one_f32: MeanInF32, forward::a_mean_of_1e4_with_a_deviation_of_1_costs_no_digits, f32;
    half_accumulation: AccumulatesInHalf, forward::large_images_are_as_exact_as_small_ones, f16;
    a_skipped_tail_element: SkipsTheTail, forward::any_split_of_a_batch_gives_the_y_of_the_whole, f32;
    channels_last_read_as_channels_first: ChannelsLastReadAsFirst, layouts::every_number_of_axes_works_in_both_layouts, f32;
    weight_applied_twice: WeightTwice, forward::any_split_of_a_batch_gives_the_y_of_the_whole, f32;
    bias_forgotten: BiasForgotten, forward::a_constant_channel_gives_bias, f32;
    dx_without_the_mean_term: DxWithoutMeanTerm, backward::any_split_of_a_batch_gives_the_gradients_of_the_whole, f32;
    dx_without_the_slope: DxWithoutSlope, backward::any_split_of_a_batch_gives_the_gradients_of_the_whole, f16;
    dx_with_the_local_count: DxWithLocalCount, backward::any_split_of_a_batch_gives_the_gradients_of_the_whole, f32;
    d_weight_without_invstd: DWeightWithoutInvstd, backward::parameters_gradients_of_all_ranks_add_up_to_the_whole, f32;
    gradients_added_to_what_was_there: GradientsAdded, backward::any_split_of_a_batch_gives_the_gradients_of_the_whole, f32;
    an_empty_rank_that_gives_nan: EmptyRankGivesNan, forward::an_empty_rank_takes_part_like_any_other, f32;
    an_empty_rank_that_updates_nothing: EmptyRankIsSilent, forward::an_empty_rank_takes_part_like_any_other, f32;
    an_empty_rank_that_panics: PanicsOnEmpty, forward::empty_batches_on_all_ranks_change_nothing, f32;
    momentum_inverted: MomentumInverted, running::any_split_of_a_batch_moves_every_ranks_statistics_alike, f32;
    a_counter_that_stands_still: CounterForgotten, running::the_counter_counts_by_one_however_large_it_is, f32;
    a_counter_in_f32: CounterInF32, running::the_counter_counts_by_one_however_large_it_is, f32;
    a_cumulative_average_off_by_one: CumulativeFromZero, running::without_momentum_statistics_are_the_average_of_all_batches, f32;
    frozen_statistics_that_are_differentiated: FrozenDifferentiated, evaluation::evaluation_uses_the_running_statistics, f32;
    nan_replaced_by_zero: NanSwallowed, forward::what_is_not_finite_stays_in_its_channel, f32;
    nan_in_one_channel_reaches_all: NanEverywhere, forward::what_is_not_finite_stays_in_its_channel, f32;
    a_variance_below_zero: NegativeVariance, forward::a_constant_channel_gives_bias, f32;
    writing_behind_the_tensor: WritesBehindTheTensor, forward::any_split_of_a_batch_gives_the_y_of_the_whole, f32;
    in_place_that_differs: InPlaceReadsLate, backward::in_place_gives_the_bits_of_apart, f32;
    results_that_change_from_run_to_run: Flickers, determinism::two_runs_give_the_same_bits, f32;
    parameters_read_as_halves: ParametersInHalf, forward::any_split_of_a_batch_gives_the_y_of_the_whole, f32;
    subnormals_flushed: SubnormalsFlushed, forward::subnormal_values_are_not_flushed, f32;
    a_batch_of_one_that_moves_the_variance: BatchOfOneMovesVariance, forward::a_single_element_on_several_ranks_gives_bias, f32;
    sums_that_depend_on_the_number_of_threads: SumsByThread, determinism::variants_give_the_same_bits, f64;
    running_statistics_updated_in_evaluation: UpdatesInEvaluation, evaluation::evaluation_uses_the_running_statistics, f32;
    running_statistics_updated_again_on_recomputation: UpdatesOnRecomputation, backward::a_layer_used_twice_keeps_its_uses_apart, f32;
    running_statistics_updated_before_a_collective_that_fails: UpdatesBeforeTheSum, failures::a_failed_forward_changes_nothing_and_poisons_the_group, f32;
    running_statistics_updated_in_a_backward_that_fails: UpdatesInBackward, failures::a_failed_backward_changes_nothing, f32;
    d_weight_summed_over_ranks: SumsDWeightOverRanks, backward::parameters_gradients_of_all_ranks_add_up_to_the_whole, f32;
    half_accumulation_of_long_sums: AccumulatesInHalf, forward::a_mean_of_1e4_with_a_deviation_of_1_costs_no_digits, f16;
}

macro_rules! group_sabotage {
    ($($test:ident: $flaw:ident, $subject:ident::$law:ident;)*) => {$(
        #[test]
        fn $test() {
            fails(Flaw::None, GroupFlaw::$flaw, $subject::$law::<Broken, f32>);
        }
    )*};
}

group_sabotage! {
    a_sum_that_drops_the_last_rank: DropsTheLastRank, forward::any_split_of_a_batch_gives_the_y_of_the_whole;
    a_sum_that_is_the_ranks_own: DoesNotSum, forward::one_rank_may_be_scaled_by_50;
    a_sum_that_differs_between_ranks: RanksGetOtherBits, running::any_split_of_a_batch_moves_every_ranks_statistics_alike;
    a_group_that_cannot_tell_two_uses_apart: ForgetsTheUse, failures::ranks_that_go_back_in_another_order_all_fail;
    a_sum_that_counts_all_ranks_twice: SumsTwice, running::any_split_of_a_batch_moves_every_ranks_statistics_alike;
}

#[test]
fn without_a_flaw_the_named_laws_hold() {
    let sound = Broken::new(Flaw::None, GroupFlaw::None);
    forward::any_split_of_a_batch_gives_the_y_of_the_whole::<_, f32>(&sound).unwrap();
    collectives::groups_do_not_hear_of_each_other::<_, f32>(&sound).unwrap();
}
