//! The formulas of one channel, against plain arithmetic; and those over ranks against a two-pass truth in twice the precision.

use proptest::prelude::*;
use syncbn_core::statistics::{Batch, GradTerms, Moments, NonFinite, Running, invstd};

fn moments(values: &[f64]) -> Moments {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count.max(1.0);
    Moments { count, mean, m2: values.iter().map(|x| (x - mean).powi(2)).sum() }
}

/// A batch of whole numbers, and its mean and variance without any rounding but the last.
struct Truth {
    /// The mean's whole part, and the rest.
    mean: (i128, f64),
    var: f64,
}

impl Truth {
    fn of(values: &[i64]) -> Self {
        let wide = values.iter().map(|&x| i128::from(x));
        let (n, sum, squares) =
            (values.len() as i128, wide.clone().sum::<i128>(), wide.map(|x| x * x).sum::<i128>());
        let mean = (sum.div_euclid(n), sum.rem_euclid(n) as f64 / n as f64);
        Self { mean, var: (n * squares - sum * sum) as f64 / (n * n) as f64 }
    }

    /// As a rank has them whose arithmetic is without fault: the mean rounded once.
    fn moments(values: &[i64]) -> Moments {
        if values.is_empty() {
            return Moments::default();
        }
        let (truth, count) = (Self::of(values), values.len() as f64);
        Moments { count, mean: truth.mean.0 as f64 + truth.mean.1, m2: truth.var * count }
    }

    /// How far a mean is off.
    fn mean_error(&self, mean: f64) -> f64 {
        ((mean - self.mean.0 as f64) - self.mean.1).abs()
    }
}

fn over_ranks<const K: usize>(ranks: &[Vec<i64>]) -> Batch {
    let (mut count, mut sums) = (0.0, [0.0; K]);
    for rank in ranks {
        let local = Truth::moments(rank);
        count += local.count;
        sums.iter_mut().zip(local.to_sums::<K>()).for_each(|(sum, part)| *sum += part);
    }
    Batch::from_sums(count, sums)
}

fn close(got: f64, expected: f64, tolerance: f64) -> bool {
    (got - expected).abs() <= tolerance * expected.abs().max(1.0)
}

/// Half of the distance between 1 and the next number.
const UNIT: f64 = f64::EPSILON / 2.0;

/// Uneven ranks, some of them empty, one to 64, with deviations of about `scale` around a mean of up to 10^`most` times as much.
fn ranks(most: u32, scale: i64) -> impl Strategy<Value = Vec<Vec<i64>>> {
    let value = -2 * scale..=2 * scale;
    let rank = prop_oneof![1 => Just(0..=0_usize), 4 => Just(1..=9)]
        .prop_flat_map(move |size| prop::collection::vec(value.clone(), size));
    let split = prop::collection::vec(rank, 1..=64);
    (0..=most, any::<bool>(), split).prop_filter_map(
        "constants are another law's",
        move |(power, below, ranks)| {
            let mean = scale * 10_i64.pow(power) * if below { -1 } else { 1 };
            let ranks: Vec<Vec<i64>> =
                ranks.iter().map(|rank| rank.iter().map(|x| mean + x).collect()).collect();
            let all = ranks.concat();
            (!all.is_empty() && Truth::of(&all).var > 0.0).then_some(ranks)
        },
    )
}

/// Of a batch over ranks: the mean is off by a few roundings, its own and those of the ranks' means, and the variance by what that
/// explains, and by so much of the mean's square.
fn check<const K: usize>(ranks: &[Vec<i64>], lost: f64) -> Result<(), TestCaseError> {
    let (got, all) = (over_ranks::<K>(ranks), ranks.concat());
    let truth = Truth::of(&all);
    let largest = all.iter().map(|x| x.unsigned_abs() as f64).fold(0.0, f64::max);
    prop_assert_eq!(got.count, all.len() as f64);
    let off = truth.mean_error(got.mean);
    prop_assert!(
        off <= 2.0 * UNIT * largest,
        "the mean is off by {off:e}, which is {:.2} units",
        off / largest / UNIT
    );
    let off = (got.var - truth.var).abs();
    let allowed = 1e-14 * truth.var + 4.0 * UNIT * largest * truth.var.sqrt() + lost * largest * largest;
    prop_assert!(off <= allowed, "the variance {:e} is off by {off:e}, allowed {allowed:e}", truth.var);
    Ok(())
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
    fn six_parts_are_as_exact_over_any_ranks_as_one_at_any_mean(ranks in ranks(12, 4096)) {
        check::<6>(&ranks, 0.0)?;
    }

    #[test]
    fn four_parts_are_so_for_data_of_24_bits(ranks in ranks(6, 8)) {
        check::<4>(&ranks, 0.0)?;
    }

    #[test]
    fn four_parts_lose_no_more_than_a_few_times_2_to_the_minus_77_of_the_mean_square(ranks in ranks(9, 4096)) {
        check::<4>(&ranks, 2.0_f64.powi(-74))?;
    }

    #[test]
    fn a_constant_over_ranks_has_next_to_no_variance_and_never_less(
        (digits, power) in (-10.0_f64..10.0, -30..=30_i32),
        sizes in prop::collection::vec(0_usize..1000, 1..=64),
    ) {
        let count: usize = sizes.iter().sum();
        prop_assume!(count > 0 && digits.abs() > 0.1);
        let constant = digits * 10_f64.powi(power);
        let sum = |constant: f64, of: fn(Moments) -> Vec<f64>| -> Vec<f64> {
            let ranks = sizes.iter().map(|&m| of(Moments { count: m as f64, mean: constant, m2: 0.0 }));
            ranks.reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect()).unwrap_or_default()
        };
        let wide: [f64; 6] = sum(constant, |m| m.to_sums::<6>().to_vec()).try_into().unwrap_or_default();
        let wide = Batch::from_sums(count as f64, wide);
        prop_assert!(close(wide.mean / constant, 1.0, UNIT));
        prop_assert!((0.0..=constant * constant * 2.0_f64.powi(-90)).contains(&wide.var), "{:e}", wide.var);
        // What f32 can hold comes without any.
        let constant = f64::from(constant as f32);
        let narrow: [f64; 4] = sum(constant, |m| m.to_sums::<4>().to_vec()).try_into().unwrap_or_default();
        prop_assert_eq!(Batch::from_sums(count as f64, narrow), Batch { count: count as f64, mean: constant, var: 0.0 });
    }

    #[test]
    fn sums_of_heads_are_exact(
        values in prop::collection::vec((-1e3_f64..1e3, 1_u32..1 << 20), 1..=64),
    ) {
        // Of about one exponent, as means of a channel that lies far from 0 are.
        let parts = |(x, m): &(f64, u32)| Moments { count: f64::from(*m), mean: 4096.0 + x, m2: 0.5 }.to_sums::<6>();
        for head in [0, 1, 3, 4] {
            let terms: Vec<f64> = values.iter().map(|value| parts(value)[head]).collect();
            let forwards: f64 = terms.iter().sum();
            let backwards: f64 = terms.iter().rev().sum();
            prop_assert_eq!(forwards, backwards);
        }
    }
}

#[test]
fn the_edge_of_f32_is_no_edge() {
    // 16777214 and 16777215 alternating: a variance of a quarter.
    let rank = |size: i64| (0..size).map(|i| 16_777_214 + i % 2).collect::<Vec<_>>();
    for ranks in [vec![rank(8)], vec![rank(8), rank(8)], vec![rank(2), rank(30), vec![]]] {
        let batch = over_ranks::<4>(&ranks);
        assert_eq!((batch.mean, batch.var), (16_777_214.5, 0.25));
    }
}

#[test]
fn nan_and_infinity_come_through() {
    for (mean, m2) in
        [(f64::NAN, f64::NAN), (f64::INFINITY, f64::NAN), (f64::NEG_INFINITY, f64::NAN), (1.0, f64::NAN)]
    {
        let (hurt, sound) = (Moments { count: 2.0, mean, m2 }, Moments { count: 3.0, mean: 1.0, m2: 2.0 });
        let (mut four, mut six) = (hurt.to_sums::<4>(), hurt.to_sums::<6>());
        four.iter_mut().zip(sound.to_sums::<4>()).for_each(|(sum, part)| *sum += part);
        six.iter_mut().zip(sound.to_sums::<6>()).for_each(|(sum, part)| *sum += part);
        for batch in [Batch::from_sums(5.0, four), Batch::from_sums(5.0, six)] {
            assert!(batch.var.is_nan() && batch.invstd(1e-5).is_nan(), "{mean} gives {batch:?}");
            assert!(mean.is_finite() || !batch.mean.is_finite(), "{mean} gives {batch:?}");
        }
    }
}

#[test]
fn a_variance_beyond_f64_is_nan_on_one_rank_as_over_several() {
    let huge = Moments { count: 2.0, mean: 0.0, m2: f64::INFINITY };
    let sums = huge.to_sums::<6>();
    for batch in [huge.batch(), Batch::from_sums(2.0, sums)] {
        assert!(batch.var.is_nan() && batch.invstd(1e-5).is_nan(), "{batch:?}");
    }
}

#[test]
fn a_slope_is_finite_where_the_square_of_invstd_is_not() {
    let (invstd, sum_dy_xmu) = (1e160, 3e-160);
    let terms = GradTerms::new(1.0, invstd, 3.0, Some((0.0, sum_dy_xmu)));
    assert!((terms.slope / 1e160 - 1.0).abs() < 1e-12, "{terms:?}");
    assert_eq!(GradTerms::new(1.0, invstd, 3.0, Some((0.0, 0.0))).slope, 0.0);
}

#[test]
fn no_elements_give_zeros() {
    assert_eq!(Moments::default().batch(), Batch::default());
    assert_eq!((Moments::default().to_sums(), Moments::default().to_sums()), ([0.0; 4], [0.0; 6]));
    assert_eq!(Batch::from_sums(0.0, [0.0; 4]), Batch::default());
    assert_eq!(Batch::from_sums(0.0, [0.0; 6]), Batch::default());
    assert_eq!(Batch::default().invstd(1e-5), 0.0);
}

#[test]
fn running_variance_is_unbiased_by_the_global_count() {
    let batch = Batch { count: 4.0, mean: 2.0, var: 3.0 };
    let running = Running::next(batch.count, 0, Some(0.25), NonFinite::Propagate).unwrap();
    assert_eq!(running.mean(1.0, batch), 0.75 + 0.25 * 2.0);
    assert_eq!(running.var(1.0, batch), 0.75 + 0.25 * 3.0 * 4.0 / 3.0);
}

#[test]
fn without_momentum_the_average_is_cumulative() {
    let mut mean = 0.0;
    let mut seen = 0;
    for value in [3.0, 5.0, 10.0] {
        let batch = Batch { count: 2.0, mean: value, var: 0.0 };
        let running = Running::next(batch.count, seen, None, NonFinite::Propagate).unwrap();
        mean = running.mean(mean, batch);
        seen = running.num_batches_tracked;
    }
    assert_eq!(seen, 3);
    assert!(close(mean, 6.0, 1e-15));
}

#[test]
fn one_element_moves_the_mean_and_not_the_variance() {
    let batch = Batch { count: 1.0, mean: 2.0, var: 0.0 };
    let running = Running::next(1.0, 7, Some(0.5), NonFinite::Propagate).unwrap();
    assert_eq!(
        (running.num_batches_tracked, running.mean(0.0, batch), running.var(1.0, batch)),
        (8, 1.0, 1.0)
    );
    // ... unless that element is not finite.
    assert!(running.var(1.0, Batch { var: f64::NAN, ..batch }).is_nan());
}

#[test]
fn what_is_not_finite_can_be_kept_out_and_is_counted() {
    let sound = Batch { count: 4.0, mean: 2.0, var: 3.0 };
    let hurt = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
        .into_iter()
        .flat_map(|bad| [Batch { mean: bad, ..sound }, Batch { var: bad, ..sound }]);
    let skip = Running::next(4.0, 7, Some(0.5), NonFinite::Skip).unwrap();
    assert_eq!((skip.num_batches_tracked, skip.mean(1.0, sound), skip.var(1.0, sound)), (8, 1.5, 2.5));
    let propagate = Running::next(4.0, 7, Some(0.5), NonFinite::Propagate).unwrap();
    for batch in hurt {
        assert_eq!((skip.mean(1.0, batch), skip.var(1.0, batch)), (1.0, 1.0), "{batch:?}");
        let lost = [propagate.mean(1.0, batch), propagate.var(1.0, batch)];
        assert!(lost.iter().any(|v| !v.is_finite()), "{batch:?}");
    }
    assert_eq!(NonFinite::default(), NonFinite::Propagate);
}

#[test]
fn a_batch_without_elements_is_not_counted() {
    assert_eq!(Running::next(0.0, 7, None, NonFinite::Propagate), None);
    assert_eq!(Running::next(0.0, 7, None, NonFinite::Skip), None);
}

#[test]
fn invstd_is_the_reciprocal_root_with_eps_inside() {
    assert_eq!(invstd(0.25 - 0.09, 0.09), 2.0);
}

#[test]
fn the_terms_of_a_gradient_are_means_of_the_groups_sums_and_none_for_frozen_statistics() {
    let terms = GradTerms::new(3.0, 0.5, 4.0, Some((8.0, 2.0)));
    assert_eq!((terms.scale, terms.mean_dy, terms.slope), (1.5, 2.0, 0.125));
    for (count, sums) in [(4.0, None), (0.0, Some((8.0, 2.0)))] {
        let terms = GradTerms::new(3.0, 0.5, count, sums);
        assert_eq!((terms.scale, terms.mean_dy, terms.slope), (1.5, 0.0, 0.0));
    }
}
