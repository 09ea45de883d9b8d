//! What the demo found, as the JSON that it writes, and whether that is what it claims.

use std::path::PathBuf;

use serde::Serialize;

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The toy model after a hundred steps.
    pub parity: Parity,
    /// The digits.
    pub digits: Digits,
    /// The picture of the loss curves.
    pub svg: PathBuf,
}

/// Largest absolute differences of any number of the toy model's batch norms.
#[derive(Clone, Debug, Serialize)]
pub struct Parity {
    /// Between the whole batch on one process and synchronised ranks.
    pub sync_vs_single: f64,
    /// Between the whole batch on one process and local ranks.
    pub local_vs_single: f64,
}

/// The network that learns digits.
#[derive(Clone, Debug, Serialize)]
pub struct Digits {
    /// The part of the test images that is classified rightly.
    pub accuracy: Accuracy,
    /// The largest difference of the loss at any step between one process and synchronised ranks.
    pub curve_gap: f64,
}

/// The same for each way of training, 0 to 1.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)] // each is its own name
pub struct Accuracy {
    pub single: f64,
    pub local: f64,
    pub sync: f64,
}

/// A sentence, and whether it is true.
pub struct Claim {
    /// What is claimed, with the number that was found.
    pub sentence: String,
    /// Whether it holds.
    pub holds: bool,
}

impl Report {
    /// What the demo sets out to show. A comparison with a NaN is false, so that a NaN holds no claim.
    #[must_use]
    pub fn claims(&self) -> Vec<Claim> {
        let Self { parity, digits: Digits { accuracy, curve_gap }, .. } = self;
        let claim = |sentence, holds| Claim { sentence, holds };
        vec![
            claim(
                format!(
                    "synchronised ranks end where one process does, to 1e-6: {:.1e}",
                    parity.sync_vs_single
                ),
                parity.sync_vs_single <= 1e-6,
            ),
            claim(
                format!("local ranks do not, by 1e-3 or more: {:.1e}", parity.local_vs_single),
                parity.local_vs_single >= 1e-3,
            ),
            claim(
                format!(
                    "synchronised ranks follow one process's loss at every step, to 1e-3: {curve_gap:.1e}"
                ),
                *curve_gap <= 1e-3,
            ),
            claim(
                format!(
                    "synchronised ranks classify two points more than local ones: {:.1} % and {:.1} %",
                    100.0 * accuracy.sync,
                    100.0 * accuracy.local
                ),
                accuracy.sync - accuracy.local >= 0.02,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(sync_vs_single: f64, local_vs_single: f64, curve_gap: f64, local: f64) -> Report {
        Report {
            parity: Parity { sync_vs_single, local_vs_single },
            digits: Digits { accuracy: Accuracy { single: 0.9, local, sync: 0.9 }, curve_gap },
            svg: PathBuf::new(),
        }
    }

    fn verdicts(report: &Report) -> Vec<bool> {
        report.claims().iter().map(|claim| claim.holds).collect()
    }

    #[test]
    fn each_claim_fails_on_its_own_number() {
        assert_eq!(verdicts(&report(1e-7, 1e-2, 1e-4, 0.8)), [true; 4]);
        assert_eq!(verdicts(&report(2e-6, 1e-2, 1e-4, 0.8)), [false, true, true, true]);
        assert_eq!(verdicts(&report(1e-7, 1e-4, 1e-4, 0.8)), [true, false, true, true]);
        assert_eq!(verdicts(&report(1e-7, 1e-2, 1e-2, 0.8)), [true, true, false, true]);
        assert_eq!(verdicts(&report(1e-7, 1e-2, 1e-4, 0.89)), [true, true, true, false]);
    }

    #[test]
    fn a_nan_holds_no_claim() {
        assert_eq!(verdicts(&report(f64::NAN, f64::NAN, f64::NAN, f64::NAN)), [false; 4]);
    }
}
