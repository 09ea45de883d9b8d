//! Backends and groups with a deliberate flaw. For each, the law that is named here has to fail; `conformance.rs` shows that the law
//! passes without the flaw.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

mod plain;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use plain::{Flaw, Part, Plain, Shared};
use syncbn_comm::{ThreadComm, ThreadGroup};
use syncbn_core::{CollectiveId, CommError, HostCommunicator, Membership, Scalar, ViaHost, f16};
use syncbn_testkit::laws::{
    backward, collectives, determinism, evaluation, failures, forward, functional, kernels, layouts, running,
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
    /// Nothing: its ranks meet inside their kernels.
    MeetsInside,
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
        if flaw == GroupFlaw::MeetsInside {
            return plain::inside_group(world_size);
        }
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
        for value in values.iter_mut() {
            *value *= factor;
        }
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
    a_small_variance_taken_for_0: EpsHidesSmallVariances, forward::a_variance_of_1e_12_drowns_in_an_eps_of_1e_5, f32;
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
    a_cumulative_average_that_ends_after_10_batches: AverageOf10Batches, running::without_momentum_statistics_are_the_average_of_all_batches, f32;
    frozen_statistics_that_are_differentiated: FrozenDifferentiated, evaluation::evaluation_uses_the_running_statistics, f32;
    nan_replaced_by_zero: NanSwallowed, forward::what_is_not_finite_stays_in_its_channel, f32;
    nan_in_dy_left_out_of_the_sums: SumsLeaveOutWhatIsNotFinite, backward::what_is_not_finite_in_dy_stays_in_its_channel, f32;
    a_running_mean_of_nan_taken_for_0: NanMeanSwallowedIfFrozen, evaluation::running_statistics_that_are_not_finite_spoil_their_channel, f32;
    a_running_variance_of_nan_taken_for_0: NanVarianceSwallowedIfFrozen, evaluation::running_statistics_that_are_not_finite_spoil_their_channel, f32;
    a_sum_of_nan_sent_as_0: SumOfNanIsSentAs0, collectives::messages_hold_counts_sums_and_squares_of_the_rank, f32;
    nan_in_one_channel_reaches_all: NanEverywhere, forward::what_is_not_finite_stays_in_its_channel, f32;
    a_variance_below_zero: NegativeVariance, forward::a_constant_channel_gives_bias, f32;
    writing_behind_the_tensor: WritesBehindTheTensor, forward::any_split_of_a_batch_gives_the_y_of_the_whole, f32;
    writing_behind_an_empty_y: WritesBehindAnEmptyY, forward::empty_batches_on_all_ranks_change_nothing, f32;
    writing_behind_an_empty_dx: WritesBehindAnEmptyDx, forward::empty_batches_on_all_ranks_change_nothing, f32;
    in_place_that_differs: InPlaceReadsLate, backward::in_place_gives_the_bits_of_apart, f32;
    in_place_without_the_weight_if_frozen: FrozenInPlaceWithoutWeight, backward::in_place_gives_the_bits_of_apart, f32;
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
    samples_beyond_8_skipped: SkipsSamplesBeyond8, forward::large_batches_are_as_exact_as_small_ones, f32;
    samples_beyond_32_skipped: SkipsSamplesBeyond32, forward::large_batches_are_as_exact_as_small_ones, f32;
    channels_beyond_1024_skipped: SkipsChannelsBeyond1024, forward::many_channels_are_as_exact_as_few, f32;
    channels_beyond_65536_skipped: SkipsChannelsBeyond65536, forward::many_channels_are_as_exact_as_few, f32;
    a_weight_of_0_taken_for_none: WeightOf0IsNone, forward::a_weight_of_0_gives_bias_and_no_dx, f32;
    a_weight_that_needs_a_bias: NoWeightWithoutBias, functional::weight_and_bias_need_not_come_together, f32;
    a_bias_gradient_that_needs_the_weights: NoDBiasWithoutDWeight, functional::weight_and_bias_need_not_come_together, f32;
    a_bias_alone_forgotten_on_recomputation: RecomputesWithoutBiasAlone, functional::weight_and_bias_need_not_come_together, f32;
    a_weight_alone_forgotten_on_recomputation: RecomputesWithoutWeightAlone, functional::weight_and_bias_need_not_come_together, f32;
    offsets_into_a_buffer_ignored: IgnoresOffsets, functional::parts_of_larger_buffers_are_read_and_written_alone, f32;
    a_shift_by_the_first_element_in_f32: ShiftsByTheFirstInF32, forward::an_outlier_of_1e4_deviations_costs_no_digits, f32;
    sums_that_travel_as_one_number_each: MessageOfTwoParts, kernels::a_mean_far_above_its_deviation_is_as_exact_over_64_ranks_as_on_one, f32;
    sums_of_f64_that_travel_as_one_number_each: MessageOfTwoParts, collectives::messages_hold_counts_sums_and_squares_of_the_rank, f64;
    sums_of_f64_in_two_numbers_each: MessageOfFourParts, kernels::a_mean_far_above_its_deviation_is_as_exact_over_64_ranks_as_on_one, f64;
    frozen_gradients_that_look_at_x: FrozenLooksAtX, evaluation::frozen_dx_does_not_look_at_x, f32;
    a_forward_pass_without_its_sum: ForwardLeavesOutTheSum, forward::any_split_of_a_batch_gives_the_y_of_the_whole, f32;
    a_backward_pass_without_its_sum: BackwardLeavesOutTheSum, backward::a_rank_without_dx_still_takes_part, f32;
    a_pass_that_sums_twice: SumsItselfTwice, collectives::a_training_step_sums_once_in_each_pass, f32;
    a_pass_that_ignores_the_sums_error: IgnoresTheSumsError, failures::a_failed_forward_changes_nothing_and_poisons_the_group, f32;
    a_group_taken_for_a_rank_alone: IgnoresGroup, forward::any_split_of_a_batch_gives_the_y_of_the_whole, f32;
    an_update_apart_ignored: IgnoresUpdateApart, functional::running_statistics_can_be_moved_apart, f32;
    an_update_apart_that_ignores_the_option_for_what_is_not_finite: ApartIgnoresNonFinite, functional::running_statistics_can_be_moved_apart, f32;
    an_update_apart_that_knows_no_average: ApartIgnoresTheAverage, functional::running_statistics_can_be_moved_apart, f32;
    an_update_apart_that_moves_the_variance_by_one_element: ApartMovesVarianceByOne, functional::running_statistics_can_be_moved_apart, f32;
    an_update_apart_that_counts_in_32_bits: ApartCountsIn32Bits, functional::running_statistics_can_be_moved_apart, f32;
    the_option_for_what_is_not_finite_ignored: IgnoresNonFinite, running::what_is_not_finite_may_be_kept_out_of_running_statistics, f32;
    a_new_momentum_ignored: IgnoresMomentum, running::momentum_may_change_between_steps, f32;
    eps_ignored: IgnoresEps, forward::any_split_of_a_batch_gives_the_y_of_the_whole, f32;
    a_count_that_is_not_saved: KeepsNoCount, running::training_may_leave_running_statistics_untouched, f32;
    a_count_saved_with_frozen_statistics: FrozenKeepsACount, evaluation::what_a_frozen_pass_saves_does_not_depend_on_the_batch, f32;
    frozen_statistics_not_saved_of_an_empty_batch: FrozenSavesNothingOfEmpty, evaluation::what_a_frozen_pass_saves_does_not_depend_on_the_batch, f32;
    a_deviation_saved_of_no_elements: EmptyBatchHasADeviation, forward::empty_batches_on_all_ranks_change_nothing, f32;
    a_whole_pass_that_rounds_otherwise: WholePassRoundsOtherwise, kernels::a_whole_pass_alone_gives_the_bits_of_its_kernels, f64;
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
fn a_backend_that_claims_to_meet_its_peers_and_does_not() {
    fails(
        Flaw::ClaimsToMeetItsPeers,
        GroupFlaw::MeetsInside,
        forward::any_split_of_a_batch_gives_the_y_of_the_whole::<Broken, f32>,
    );
}

#[test]
fn a_square_of_invstd_that_overflows() {
    fails(Flaw::SquaresInvstd, GroupFlaw::None, backward::the_square_of_invstd_may_overflow::<Broken>);
}

/// What a law says of a flaw.
fn text(flaw: Flaw, law: Law) -> String {
    match law(&Broken::new(flaw, GroupFlaw::None)) {
        Err(Verdict::Broken(why)) => why,
        other => panic!("the law lets {flaw:?} pass: {other:?}"),
    }
}

/// The number behind these words.
fn number(text: &str, words: &str) -> f64 {
    let at = text.find(words).unwrap_or_else(|| panic!("no {words:?} in: {text}")) + words.len();
    let digits =
        text[at..].trim_start().split(|c: char| c != 'e' && c != '-' && c != '.' && !c.is_ascii_digit());
    digits.into_iter().next().unwrap().parse().unwrap()
}

#[test]
fn a_wrong_y_tells_its_case_and_whether_the_mean_or_the_variance_is_off() {
    let law = forward::a_mean_of_1e4_with_a_deviation_of_1_costs_no_digits::<Broken, f32>;
    let (mean, var) = ("the mean were off by", "the variance by");
    let of_mean = text(Flaw::MeanInF32, law);
    assert!(of_mean.contains("channels-first [8, 5, 33, 31] with samples split [8]"), "{of_mean}");
    assert!(number(&of_mean, mean).abs() > 100.0 * number(&of_mean, var).abs(), "{of_mean}");
    let of_var = text(Flaw::BesselInTheBatch, law);
    assert!(number(&of_var, var).abs() > 100.0 * number(&of_var, mean).abs(), "{of_var}");
}

#[test]
fn other_bits_are_told_by_index_and_both_values() {
    let law = running::training_may_leave_running_statistics_untouched::<Broken, f32>;
    let why = text(Flaw::KeepsNoCount, law);
    assert!(why.contains("dx differs in ") && why.contains("the first at index "), "{why}");
    assert!(why.contains("(0x") && why.contains(", expected "), "{why}");
}

#[test]
fn without_a_flaw_the_named_laws_hold() {
    let sound = Broken::new(Flaw::None, GroupFlaw::None);
    forward::any_split_of_a_batch_gives_the_y_of_the_whole::<_, f32>(&sound).unwrap();
    collectives::groups_do_not_hear_of_each_other::<_, f32>(&sound).unwrap();
}
