//! Sums of products in twice the precision of `f64`: a number and its rounding error, whose sum is not evaluated.
//!
//! The error-free transformations are Knuth's (`two_sum`) and Dekker's with a fused multiply (`two_product`); see T. Ogita,
//! S. Rump, S. Oishi, "Accurate sum and dot product", 2005.

/// `high + low`, of which `high` is the rounded value.
#[derive(Clone, Copy, Default)]
pub(crate) struct Double {
    high: f64,
    low: f64,
}

impl Double {
    pub(crate) fn plus(self, value: f64) -> Self {
        let high = self.high + value;
        let part = high - self.high;
        let rest = (self.high - (high - part)) + (value - part);
        Self { high, low: self.low + rest }
    }

    pub(crate) fn plus_product(self, a: f64, b: f64) -> Self {
        let (product, rest) = two_product(a, b);
        let sum = self.plus(product);
        Self { low: sum.low + rest, ..sum }
    }

    pub(crate) fn value(self) -> f64 {
        self.high + self.low
    }
}

/// The rounded product, and its rounding error.
pub(crate) fn two_product(a: f64, b: f64) -> (f64, f64) {
    let product = a * b;
    (product, a.mul_add(b, -product))
}
