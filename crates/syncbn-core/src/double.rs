//! Sums of products in twice the precision of `f64`: a number and its rounding error, whose sum is not evaluated.
//!
//! The error-free transformations are Knuth's (`two_sum`) and Dekker's (`two_product`); see T. Ogita,
//! S. Rump, S. Oishi, "Accurate sum and dot product", 2005.

/// `high + low`, of which `high` is the rounded value.
#[derive(Clone, Copy, Default)]
pub(crate) struct Double {
    high: f64,
    low: f64,
}

impl Double {
    #[inline]
    pub(crate) fn plus(self, value: f64) -> Self {
        let high = self.high + value;
        let part = high - self.high;
        let rest = (self.high - (high - part)) + (value - part);
        Self { high, low: self.low + rest }
    }

    #[inline]
    pub(crate) fn plus_product(self, a: f64, b: f64) -> Self {
        let (product, rest) = two_product(a, b);
        let sum = self.plus(product);
        Self { low: sum.low + rest, ..sum }
    }

    #[inline]
    pub(crate) fn value(self) -> f64 {
        self.high + self.low
    }
}

/// The rounded product, and its rounding error. Not by a fused multiply, which is a function call where the processor may have none.
#[inline]
pub(crate) fn two_product(a: f64, b: f64) -> (f64, f64) {
    let (product, [a1, a2], [b1, b2]) = (a * b, halves(a), halves(b));
    (product, a2 * b2 - (((product - a1 * b1) - a2 * b1) - a1 * b2))
}

/// Two numbers of at most 26 bits each whose sum is the value (Veltkamp).
#[inline]
fn halves(value: f64) -> [f64; 2] {
    const SPLIT: f64 = 134_217_729.0; // 2^27 + 1
    let scaled = SPLIT * value;
    let high = scaled - (scaled - value);
    [high, value - high]
}
