//! Numbers in twice the precision of `f32`, in the form of pairs.wgsl.

/// The two `f32` whose unevaluated sum is nearest to the value.
pub(crate) fn halves(value: f64) -> (f32, f32) {
    let high = value as f32;
    let low = (value - f64::from(high)) as f32;
    // Infinity minus infinity would be NaN.
    if high.is_finite() { (high, low) } else { (high, 0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_halves_hold_48_bits() {
        for value in [1.0 / 3.0, 1e4 + 1e-9, -7.0e8 / 3.0, (1_u64 << 40) as f64 + 1.0] {
            let (high, low) = halves(value);
            let sum = f64::from(high) + f64::from(low);
            assert!((sum - value).abs() <= value.abs() * 2.0_f64.powi(-48), "{value}");
        }
        assert_eq!(halves(f64::INFINITY), (f32::INFINITY, 0.0));
        assert!(halves(f64::NAN).0.is_nan());
    }
}
