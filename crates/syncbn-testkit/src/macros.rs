//! The macros `conformance!` and `communicator_conformance!`, and the table of laws from which they make tests.

use syncbn_core::{bf16 as half_bf16, f16 as half_f16};

/// The types that a backend may have, under the names that `conformance!` takes.
#[allow(non_camel_case_types, missing_docs)] // they are the types' own names
pub mod types {
    pub type f32 = core::primitive::f32;
    pub type f64 = core::primitive::f64;
    pub type f16 = super::half_f16;
    pub type bf16 = super::half_bf16;
}

/// Tests a backend against every law, for every type.
///
/// ```ignore
/// syncbn_testkit::conformance!(cpu: CpuHarness, types: [f32, f64, f16, bf16]);
/// syncbn_testkit::conformance!(wgpu: WgpuHarness, types: [f32], missing: [
///     f64: "WGSL has no f64",
///     f16: "not written yet",
///     bf16: "WGSL has no bf16",
/// ]);
/// ```
///
/// The name becomes a module, the harness is an expression of a type that implements [`Harness`](crate::Harness). Each of the four types has
/// to be in one of the lists. The tests are called `cpu::f32::forward::...`.
#[macro_export]
macro_rules! conformance {
    ($name:ident: $harness:expr, types: [$($type:ident),+ $(,)?]
     $(, missing: [$($gap:ident: $why:literal),* $(,)?])? $(,)?) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            const _: () = assert!(
                $crate::macros::all_types(&[$(stringify!($type),)+ $($(stringify!($gap),)*)?]),
                "each of f32, f64, f16, bf16 has to be in `types` or in `missing`",
            );
            $($crate::__laws_of_type!($harness, $type);)+
            $($(
                mod $gap {
                    #[test]
                    fn this_type_is_declared_missing() {
                        $crate::report::skipped(
                            concat!(module_path!(), "::*"),
                            concat!("no ", stringify!($gap), ": ", $why),
                        );
                    }
                }
            )*)?
        }
    };
}

/// The table of laws.
#[doc(hidden)]
#[macro_export]
macro_rules! __laws_of_type {
    ($harness:expr, $type:ident) => {
        mod $type {
            #[allow(unused_imports)]
            use super::*;

            $crate::__laws!($harness, $type, forward: [
                any_split_of_a_batch_gives_the_y_of_the_whole,
                large_images_are_as_exact_as_small_ones,
                many_channels_are_as_exact_as_few,
                large_batches_are_as_exact_as_small_ones,
                an_outlier_of_1e4_deviations_costs_no_digits,
                a_weight_of_0_gives_bias_and_no_dx,
                a_mean_of_1e4_with_a_deviation_of_1_costs_no_digits,
                a_variance_of_1e_12_drowns_in_an_eps_of_1e_5,
                one_rank_may_be_scaled_by_50,
                two_axes_and_one_sample_a_rank_are_enough,
                a_constant_channel_gives_bias,
                a_single_element_on_several_ranks_gives_bias,
                empty_batches_on_all_ranks_change_nothing,
                an_empty_rank_takes_part_like_any_other,
                what_is_not_finite_stays_in_its_channel,
                subnormal_values_are_not_flushed,
                large_values_do_not_overflow,
            ]);
            $crate::__laws!($harness, $type, backward: [
                any_split_of_a_batch_gives_the_gradients_of_the_whole,
                parameters_gradients_of_all_ranks_add_up_to_the_whole,
                in_place_gives_the_bits_of_apart,
                what_is_not_finite_in_dy_stays_in_its_channel,
                a_rank_without_dx_still_takes_part,
                gradients_of_parameters_are_optional,
                a_layer_used_twice_keeps_its_uses_apart,
                five_steps_of_descent_follow_the_whole_batch,
            ]);
            $crate::__laws!($harness, $type, evaluation: [
                evaluation_uses_the_running_statistics,
                running_statistics_that_are_not_finite_spoil_their_channel,
                a_frozen_layer_computes_what_an_evaluating_one_does,
                what_a_frozen_pass_saves_does_not_depend_on_the_batch,
                evaluation_without_running_statistics_uses_the_ranks_own_batch,
                evaluation_on_one_rank_needs_no_other,
                an_evaluation_can_be_recomputed,
                frozen_dx_does_not_look_at_x,
            ]);
            $crate::__laws!($harness, $type, running: [
                any_split_of_a_batch_moves_every_ranks_statistics_alike,
                ranks_of_very_different_size_are_weighted_by_count,
                without_momentum_statistics_are_the_average_of_all_batches,
                the_counter_counts_by_one_however_large_it_is,
                momentum_may_change_between_steps,
                training_may_leave_running_statistics_untouched,
                what_is_not_finite_may_be_kept_out_of_running_statistics,
            ]);
            $crate::__laws!($harness, $type, collectives: [
                a_training_step_sums_once_in_each_pass,
                a_group_of_one_computes_what_a_layer_alone_does,
                messages_hold_counts_sums_and_squares_of_the_rank,
                calls_number_the_uses_of_a_layer,
                nobody_is_asked_without_need,
                groups_do_not_hear_of_each_other,
            ]);
            $crate::__laws!($harness, $type, failures: [
                a_failed_forward_changes_nothing_and_poisons_the_group,
                a_failed_backward_changes_nothing,
                after_a_late_failure_a_state_has_to_be_loaded,
                ranks_that_go_back_in_another_order_all_fail,
                ranks_that_differ_all_hear_where_each_was,
                what_failed_before_its_sum_can_be_tried_again,
            ]);
            $crate::__laws!($harness, $type, kernels: [
                a_whole_pass_alone_gives_the_bits_of_its_kernels,
                whole_passes_with_a_sum_between_give_the_bits_of_their_kernels,
                a_mean_far_above_its_deviation_is_as_exact_over_64_ranks_as_on_one,
            ]);
            $crate::__laws!($harness, $type, functional: [
                borrowed_memory_gives_the_bits_of_owned,
                what_is_saved_can_be_taken_apart_and_made_again,
                running_statistics_can_be_moved_apart,
                weight_and_bias_need_not_come_together,
                parts_of_larger_buffers_are_read_and_written_alone,
            ]);
            $crate::__laws!($harness, $type, layouts: [
                every_number_of_axes_works_in_both_layouts,
                x_and_dy_in_any_pair_of_layouts_are_right_or_refused,
                y_in_another_layout_is_right_or_refused,
                strides_are_read_as_the_layout_they_mean,
            ]);
            $crate::__laws!($harness, $type, errors: [
                one_element_alone_is_refused_before_any_work,
                settings_out_of_range_are_refused,
                tensors_that_do_not_fit_are_refused,
                saved_statistics_of_another_layer_are_refused,
                what_is_saved_does_not_outlive_its_group_or_parameters,
                states_that_do_not_fit_are_refused,
                arbitrary_tensors_never_panic,
            ]);
            $crate::__laws!($harness, $type, determinism: [
                two_runs_give_the_same_bits,
                variants_give_the_same_bits,
                ranks_as_processes_compute_the_bits_of_ranks_as_threads,
            ]);
            $crate::__laws!($harness, $type, state: [
                a_loaded_run_goes_on_bit_identically,
                a_state_comes_back_as_it_was_loaded,
                a_new_layer_starts_from_the_defaults,
            ]);
            $crate::__laws!($harness, $type, golden: [pytorch_computes_the_same]);
            $crate::__laws_of_wide_types!($harness, $type);
        }
    };
}

/// The laws that not every type is wide enough for: ONNX's tests hold values of `f32`, slopes need the digits of `f64`, and some laws
/// are about the edge of a type's range.
#[doc(hidden)]
#[macro_export]
macro_rules! __laws_of_wide_types {
    ($harness:expr, f64) => {
        $crate::__law!(
            $harness,
            squares_beyond_the_type_are_not_finite,
            forward::squares_beyond_the_type_are_not_finite::<_>
        );
        $crate::__law!(
            $harness,
            the_square_of_invstd_may_overflow,
            backward::the_square_of_invstd_may_overflow::<_>
        );
        $crate::__law!($harness, onnx_node_tests_pass, golden::onnx_node_tests_pass::<_, f64>);
        $crate::__law!(
            $harness,
            gradients_are_the_slopes_of_forward,
            backward::gradients_are_the_slopes_of_forward::<_>
        );
    };
    ($harness:expr, f32) => {
        $crate::__law!(
            $harness,
            a_variance_beyond_f32_may_be_kept_out_of_running_statistics,
            running::a_variance_beyond_f32_may_be_kept_out_of_running_statistics::<_>
        );
        $crate::__law!($harness, onnx_node_tests_pass, golden::onnx_node_tests_pass::<_, f32>);
    };
    ($harness:expr, $type:ident) => {};
}

/// One subject's laws, as tests.
#[doc(hidden)]
#[macro_export]
macro_rules! __laws {
    ($harness:expr, $type:ident, $subject:ident: [$($law:ident),* $(,)?]) => {
        mod $subject {
            #[allow(unused_imports)]
            use super::*;
            $($crate::__law!($harness, $law, $subject::$law::<_, $crate::macros::types::$type>);)*
        }
    };
}

/// One law, as a test.
#[doc(hidden)]
#[macro_export]
macro_rules! __law {
    ($harness:expr, $test:ident, $($law:tt)+) => {
        #[test]
        fn $test() {
            $crate::report::check(
                &$harness,
                env!("CARGO_PKG_NAME"),
                concat!(module_path!(), "::", stringify!($test)),
                $crate::laws::$($law)+,
            );
        }
    };
}

/// Tests a communicator in host memory against every law of [`comm::laws`](crate::comm::laws).
///
/// ```ignore
/// syncbn_testkit::communicator_conformance!(threads: ThreadHarness);
/// ```
#[macro_export]
macro_rules! communicator_conformance {
    ($name:ident: $harness:expr $(,)?) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $crate::__communicator_laws!(
                $harness,
                [
                    ranks_know_their_place,
                    a_sum_has_the_bits_of_the_ranks_order_whoever_comes_first,
                    every_rank_gets_the_same_bits_whoever_comes_first,
                    thousands_of_sums_in_a_row_stay_right,
                    long_messages_are_summed_to_their_last_number,
                    what_is_not_finite_reaches_every_rank,
                    a_world_of_one_is_its_own_sum,
                    a_rank_that_leaves_is_told_to_its_peers_at_once,
                    a_rank_that_panics_is_told_to_its_peers_at_once,
                    a_rank_that_never_comes_ends_the_wait,
                    ranks_that_disagree_on_length_all_fail,
                    ranks_that_disagree_on_the_call_all_fail,
                    a_message_of_another_length_is_refused,
                    a_poisoned_group_answers_at_once_and_a_new_one_works,
                    a_poison_is_heard_beside_a_thread_that_asks_for_the_status,
                    a_rank_may_poison_its_group_with_the_failure_of_another,
                    a_split_orders_by_key_and_then_by_old_rank,
                    several_groups_work_at_once,
                ]
            );
        }
    };
}

/// The laws of a communicator, as tests.
#[doc(hidden)]
#[macro_export]
macro_rules! __communicator_laws {
    ($harness:expr, [$($law:ident),* $(,)?]) => {$(
        #[test]
        fn $law() {
            $crate::report::check_communicator(
                &$harness,
                env!("CARGO_PKG_NAME"),
                concat!(module_path!(), "::", stringify!($law)),
                $crate::comm::laws::$law,
            );
        }
    )*};
}

/// Whether these are the names of all four types, each once.
#[must_use]
pub const fn all_types(names: &[&str]) -> bool {
    let mut seen = [false; 4];
    let mut i = 0;
    while i < names.len() {
        let at = match names[i].as_bytes() {
            b"f32" => 0,
            b"f64" => 1,
            b"f16" => 2,
            b"bf16" => 3,
            _ => return false,
        };
        if seen[at] {
            return false;
        }
        seen[at] = true;
        i += 1;
    }
    names.len() == 4
}
