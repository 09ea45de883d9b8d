//! The largest of some differences.

/// The largest of these numbers, which are not negative; NaN if any is, 0 if there are none.
pub fn largest(differences: impl IntoIterator<Item = f64>) -> f64 {
    let keep = |largest: f64, next: f64| if largest.is_nan() || next <= largest { largest } else { next };
    differences.into_iter().fold(0.0, keep)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_anywhere_is_the_largest() {
        assert!(largest([1.0, f64::NAN, 2.0]).is_nan());
        assert!(largest([f64::NAN]).is_nan());
        assert_eq!(largest([1.0, 3.0, 2.0]), 3.0);
        assert_eq!(largest([]), 0.0);
    }
}
