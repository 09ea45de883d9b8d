//! The formulas of one channel, against plain arithmetic.

use proptest::prelude::*;
use syncbn_core::statistics::{Batch, Moments, Running, invstd};

fn moments(values: &[f64]) -> Moments {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count.max(1.0);
    Moments { count, mean, m2: values.iter().map(|x| (x - mean).powi(2)).sum() }
}

fn close(got: f64, expected: f64, tolerance: f64) -> bool {
    (got - expected).abs() <= tolerance * expected.abs().max(1.0)
}

proptest! {
    #[test]
    fn merging_two_sets_gives_the_moments_of_both(
        a in prop::collection::vec(-1e3_f64..1e3, 0..20),
        b in prop::collection::vec(-1e3_f64..1e3, 0..20),
    ) {
        let merged = moments(&a).merge(moments(&b));
        let both = moments(&[a, b].concat());
        prop_assert_eq!(merged.count, both.count);
        prop_assert!(close(merged.mean, both.mean, 1e-12));
        prop_assert!(close(merged.m2, both.m2, 1e-9));
    }

    #[test]
    fn summed_messages_give_the_statistics_of_all_ranks(
        ranks in prop::collection::vec(prop::collection::vec(-1e3_f64..1e3, 0..9), 1..6),
    ) {
        let all = moments(&ranks.concat()).batch();
        let (mut count, mut sum, mut sum_of_squares) = (0.0, 0.0, 0.0);
        for rank in &ranks {
            let local = moments(rank);
            let (s1, s2) = local.to_sums();
            (count, sum, sum_of_squares) = (count + local.count, sum + s1, sum_of_squares + s2);
        }
        let group = Batch::from_sums(count, sum, sum_of_squares);
        prop_assert!(close(group.mean, all.mean, 1e-12));
        prop_assert!(close(group.var, all.var, 1e-9));
        prop_assert!(group.var >= 0.0);
    }
}

#[test]
fn a_constant_channel_has_variance_zero_after_its_sums_have_travelled() {
    for value in [1.0, 0.1, 1e4 / 3.0, -7e20, 1e-30] {
        let local = Moments { count: 3.0, mean: value, m2: 0.0 };
        let (s1, s2) = local.to_sums();
        assert_eq!(Batch::from_sums(7.0 * 3.0, 7.0 * s1, 7.0 * s2).var, 0.0);
    }
}

#[test]
fn what_rounding_leaves_of_no_variance_is_zero_and_what_data_can_resolve_is_kept() {
    let square = 1.0;
    let resolvable = 2.0_f64.powi(-47);
    assert_eq!(Batch::from_sums(1.0, (square - 2.0_f64.powi(-49)).sqrt(), square).var, 0.0);
    assert!(Batch::from_sums(1.0, (square - resolvable).sqrt(), square).var > 0.0);
}

#[test]
fn the_rounding_of_the_mean_costs_the_variance_nothing() {
    // 2^20, 2^20 + 1, 2^20 + 1: both sums are exact, the mean is not, and the variance is 2/9.
    let low = f64::from(1 << 20);
    let (s1, s2) = (3.0 * low + 2.0, low * low + 2.0 * (low + 1.0).powi(2));
    assert!(close(Batch::from_sums(3.0, s1, s2).var, 2.0 / 9.0, 1e-14));
}

#[test]
fn nan_and_infinity_come_through() {
    for (s1, s2) in [(f64::NAN, f64::NAN), (f64::INFINITY, f64::INFINITY), (f64::INFINITY, f64::NAN)] {
        let batch = Batch::from_sums(4.0, s1, s2);
        assert!(batch.var.is_nan());
        assert!(batch.invstd(1e-5).is_nan());
    }
}

#[test]
fn no_elements_give_zeros() {
    assert_eq!(Moments::default().batch(), Batch::default());
    assert_eq!(Batch::from_sums(0.0, 0.0, 0.0), Batch::default());
    assert_eq!(Batch::default().invstd(1e-5), 0.0);
}

#[test]
fn running_variance_is_unbiased_by_the_global_count() {
    let batch = Batch { count: 4.0, mean: 2.0, var: 3.0 };
    let running = Running::next(batch.count, 0, Some(0.25)).unwrap();
    assert_eq!(running.mean(1.0, batch), 0.75 + 0.25 * 2.0);
    assert_eq!(running.var(1.0, batch), 0.75 + 0.25 * 3.0 * 4.0 / 3.0);
}

#[test]
fn without_momentum_the_average_is_cumulative() {
    let mut mean = 0.0;
    let mut seen = 0;
    for value in [3.0, 5.0, 10.0] {
        let batch = Batch { count: 2.0, mean: value, var: 0.0 };
        let running = Running::next(batch.count, seen, None).unwrap();
        mean = running.mean(mean, batch);
        seen = running.num_batches_tracked;
    }
    assert_eq!(seen, 3);
    assert!(close(mean, 6.0, 1e-15));
}

#[test]
fn one_element_moves_the_mean_and_not_the_variance() {
    let batch = Batch { count: 1.0, mean: 2.0, var: 0.0 };
    let running = Running::next(1.0, 7, Some(0.5)).unwrap();
    assert_eq!(
        (running.num_batches_tracked, running.mean(0.0, batch), running.var(1.0, batch)),
        (8, 1.0, 1.0)
    );
    // ... unless that element is not finite.
    assert!(running.var(1.0, Batch { var: f64::NAN, ..batch }).is_nan());
}

#[test]
fn a_batch_without_elements_is_not_counted() {
    assert_eq!(Running::next(0.0, 7, None), None);
}

#[test]
fn invstd_is_the_reciprocal_root_with_eps_inside() {
    assert_eq!(invstd(0.25 - 0.09, 0.09), 2.0);
}
