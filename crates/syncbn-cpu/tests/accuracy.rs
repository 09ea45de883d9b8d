//! The four kernels against the kit's oracle, on shapes that reach every loop and its tail.
//! Ranks, modes and corner cases are tested by the kit's laws (`conformance.rs`).

mod common;

use common::{Case, cases, close, close_parameters, noise, oracle, step, typed};
use syncbn_core::{Config, Element, Kernels, SyncBatchNorm, View, ViewMut, bf16, f16};
use syncbn_cpu::Cpu;

fn holds<T: Element>(cases: &[Case], mean: f64, bar: f64, parameter_bar: f64)
where
    Cpu: Kernels<T>,
{
    for (seed, &case) in cases.iter().enumerate() {
        let x: Vec<f64> = noise(case.len(), seed as u64).iter().map(|v| v + mean).collect();
        let (x, dy) = (typed::<T>(&x), typed::<T>(&noise(case.len(), 1000 + seed as u64)));
        let (written, expected) = (step(case, &x, &dy, false), oracle(case, &x, &dy));
        close("y", case, bar, &written.y, &expected.y, &expected.y_size);
        close("dx", case, bar, &written.dx, &expected.dx, &expected.dx_size);
        let d_weight = (&expected.d_weight, &expected.d_weight_size);
        close_parameters("d_weight", parameter_bar, &written.d_weight, d_weight.0, d_weight.1);
        close_parameters("d_bias", parameter_bar, &written.d_bias, &expected.d_bias, &expected.d_bias_size);
        let (mean, var) = (&expected.running_mean, &expected.running_var);
        close_parameters(
            "running_mean",
            parameter_bar,
            &written.running_mean,
            mean,
            &vec![1.0; case.channels],
        );
        close_parameters("running_var", parameter_bar, &written.running_var, var, var);
    }
}

#[test]
fn f32_is_as_exact_as_its_rounding() {
    holds::<f32>(&cases(), 0.25, 1e-7, 1e-7);
}

#[test]
fn f64_is_exact_to_1e_minus_12() {
    holds::<f64>(&cases(), 0.25, 1e-12, 1e-12);
}

#[test]
fn f16_is_as_exact_as_its_rounding() {
    holds::<f16>(&cases(), 0.25, 5e-4, 1e-6);
}

#[test]
fn bf16_is_as_exact_as_its_rounding() {
    holds::<bf16>(&cases(), 0.25, 4e-3, 1e-6);
}

#[test]
fn a_mean_ten_thousand_deviations_from_zero_costs_no_digit() {
    let large: Vec<Case> = cases().into_iter().filter(|case| case.samples * case.spatial > 30).collect();
    assert!(large.len() > 10);
    holds::<f32>(&large, 1e4, 1e-7, 1e-3);
    // The mean is one `f64`: half a unit in its last place is 1.6e-12 of this deviation.
    holds::<f64>(&large, 1e4, 4e-12, 1e-10);
}

#[test]
fn a_first_element_far_from_all_others_costs_no_digit() {
    for case in cases().into_iter().filter(|case| case.samples * case.spatial > 30) {
        let mut x = noise(case.len(), 7);
        (0..case.len()).filter(|&i| i < case.channels || i % 1000 == 0).for_each(|i| x[i] += 1e3);
        let (x, dy) = (typed::<f32>(&x), typed::<f32>(&noise(case.len(), 8)));
        let (written, expected) = (step(case, &x, &dy, false), oracle(case, &x, &dy));
        close("y", case, 1e-7, &written.y, &expected.y, &expected.y_size);
    }
}

#[test]
fn dx_over_dy_has_the_bits_of_dx_beside_dy() {
    for case in cases() {
        let (x, dy) = (typed::<f16>(&noise(case.len(), 3)), typed::<f16>(&noise(case.len(), 4)));
        assert_eq!(step(case, &x, &dy, true).bits(), step(case, &x, &dy, false).bits(), "{case:?}");
        let (x, dy) = (typed::<f32>(&noise(case.len(), 5)), typed::<f32>(&noise(case.len(), 6)));
        assert_eq!(step(case, &x, &dy, true).bits(), step(case, &x, &dy, false).bits(), "{case:?}");
    }
}

#[test]
fn what_is_not_finite_stays_in_its_channel() {
    for case in cases().into_iter().filter(|case| case.channels > 2) {
        // Channel 0 holds the elements that a wrong index reads first.
        let last = case.channels - 1;
        for (bad, channel) in [(f32::NAN, 0), (f32::INFINITY, last / 2), (f32::NEG_INFINITY, last)] {
            let (mut x, dy) = (typed::<f32>(&noise(case.len(), 3)), typed::<f32>(&noise(case.len(), 4)));
            let clean = step(case, &x, &dy, false);
            // The channel's first element, which shifts the sums of its tile, and its last.
            let of_channel: Vec<usize> = (0..case.len()).filter(|&i| case.channel(i) == channel).collect();
            for at in [of_channel[0], of_channel[of_channel.len() - 1]] {
                let kept = std::mem::replace(&mut x[at], bad);
                let written = step(case, &x, &dy, false);
                x[at] = kept;
                for i in 0..case.len() {
                    if case.channel(i) == channel {
                        assert!(
                            !written.y[i].is_finite() && !written.dx[i].is_finite(),
                            "{case:?} {bad} {i}"
                        );
                    } else {
                        assert_eq!(
                            (written.y[i], written.dx[i]),
                            (clean.y[i], clean.dx[i]),
                            "{case:?} {bad} {i}"
                        );
                    }
                }
                assert!(
                    !written.running_mean[channel].is_finite() && !written.running_var[channel].is_finite()
                );
            }
        }
    }
}

#[test]
fn a_constant_channel_gives_its_bias() {
    for case in cases() {
        let x = vec![16_777.217_f32; case.len()];
        let written = step(case, &x, &x, false);
        for (i, &y) in written.y.iter().enumerate() {
            assert_eq!(f64::from(y), common::bias_of(case.channel(i)), "{case:?}");
        }
    }
}

#[test]
fn what_is_saved_is_the_mean_variance_invstd_and_count_of_the_batch() {
    let mut layer = SyncBatchNorm::<Cpu, f32>::local("test", Config::new(2), Cpu, &()).unwrap();
    let (x, mut y) = ([1.0_f32, 3.0, 2.0, 10.0], [0.0_f32; 4]);
    let (x, y) = (View::channels_first(&x[..], &[1, 2, 2]), ViewMut::channels_first(&mut y[..], &[1, 2, 2]));
    let saved = layer.forward(&(), x, y).unwrap();
    let invstd = [1.0, 16.0].map(|var: f64| (var + 1e-5).sqrt().recip());
    assert_eq!(saved.mem(), [2.0, 6.0, 1.0, 16.0, invstd[0], invstd[1], 2.0]);
}

#[test]
fn a_variance_that_fits_an_f64_is_not_lost_for_a_square_that_does_not() {
    let mut layer = SyncBatchNorm::<Cpu, f64>::local("test", Config::new(1), Cpu, &()).unwrap();
    let (mut x, mut y) = ([1e152; 1000], [0.0; 1000]);
    x[0] = 0.0;
    let (x, target) =
        (View::channels_first(&x[..], &[1000, 1]), ViewMut::channels_first(&mut y[..], &[1000, 1]));
    layer.forward(&(), x, target).unwrap();
    let expected = -999_f64.sqrt();
    assert!((y[0] / expected - 1.0).abs() < 1e-12, "{} instead of {expected}", y[0]);
}
