// Numbers of twice the precision: unevaluated sums of two f32, over whatever `Lane` is (f32, vec2<f32> or vec4<f32>).
//
// T. Dekker, "A floating-point technique for extending the available precision", 1971; D. Knuth's two-sum.
//
// A shading language may reassociate and contract. So each step whose rounding matters passes through `opaque`, an
// exclusive or with a zero that only the host knows to be one. The products that enter a product's error are exact, so
// that contracting them changes nothing. probe.rs tests both on the device.

struct Pair {
    high: Lane,
    low: Lane,
}

fn opaque(x: Lane) -> Lane {
    return bitcast<Lane>(bitcast<LaneBits>(x) ^ LaneBits(params.zero));
}

// a + b, exactly.
fn two_sum(a: Lane, b: Lane) -> Pair {
    let sum = opaque(a + b);
    let b_part = opaque(sum - a);
    let a_part = opaque(sum - b_part);
    return Pair(sum, opaque(a - a_part) + opaque(b - b_part));
}

// The same where |a| >= |b|.
fn quick_two_sum(a: Lane, b: Lane) -> Pair {
    let sum = opaque(a + b);
    return Pair(sum, b - opaque(sum - a));
}

// The upper 12 bits of a number's 24.
fn upper(x: Lane) -> Lane {
    return bitcast<Lane>(bitcast<LaneBits>(x) & LaneBits(0xfffff000u));
}

// a b, exactly.
fn two_product(a: Lane, b: Lane) -> Pair {
    let product = opaque(a * b);
    let a_high = upper(a);
    let a_low = a - a_high;
    let b_high = upper(b);
    let b_low = b - b_high;
    var error = opaque(a_high * b_high - product);
    error = opaque(error + a_high * b_low);
    error = opaque(error + a_low * b_high);
    return Pair(product, error + a_low * b_low);
}

fn add(a: Pair, b: Pair) -> Pair {
    let sum = two_sum(a.high, b.high);
    return quick_two_sum(sum.high, sum.low + (a.low + b.low));
}

fn subtract(a: Pair, b: Pair) -> Pair {
    return add(a, Pair(-b.high, -b.low));
}

fn add_single(a: Pair, b: Lane) -> Pair {
    let sum = two_sum(a.high, b);
    return quick_two_sum(sum.high, sum.low + a.low);
}

fn multiply(a: Pair, b: Pair) -> Pair {
    let product = two_product(a.high, b.high);
    return quick_two_sum(product.high, product.low + (a.high * b.low + a.low * b.high));
}

fn multiply_single(a: Pair, b: Lane) -> Pair {
    let product = two_product(a.high, b);
    return quick_two_sum(product.high, product.low + a.low * b);
}

// The language's own division may be off by a few units in the last place; the rest makes up for it.
fn divide(a: Pair, b: Pair) -> Pair {
    let quotient = opaque(a.high / b.high);
    let rest = subtract(a, multiply_single(b, quotient));
    return quick_two_sum(quotient, rest.high / b.high);
}

fn divide_singles(a: Lane, b: Lane) -> Pair {
    return divide(Pair(a, Lane(0.0)), Pair(b, Lane(0.0)));
}

// x 2^n. In two steps, since n may be beyond what one f32 holds.
fn times_power(x: Lane, n: LaneWhole) -> Lane {
    let half = n / LaneWhole(2);
    return x * power(half) * power(n - half);
}

// 2^n, for n from -126 to 127; clamped there.
fn power(n: LaneWhole) -> Lane {
    let exponent = clamp(n, LaneWhole(-126), LaneWhole(127)) + LaneWhole(127);
    return bitcast<Lane>(LaneBits(exponent) << LaneBits(23u));
}

fn times_power_pair(x: Pair, n: LaneWhole) -> Pair {
    return Pair(times_power(x.high, n), times_power(x.low, n));
}

// 0 in place of a negative number; NaN stays. In integers, since a comparison of floats may be turned into a maximum, which drops NaN.
fn not_negative(x: Lane) -> Lane {
    let bits = bitcast<LaneBits>(x);
    let negative = (bits >= LaneBits(0x80000000u)) & (bits <= LaneBits(0xff800000u));
    return select(x, Lane(0.0), negative);
}
