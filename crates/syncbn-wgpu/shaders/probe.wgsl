// What the device's arithmetic is like: probe.rs says what should come.

@group(0) @binding(0) var<storage, read> inputs: array<vec2<f32>>;
// For each pair of inputs: its sum and product, each high and low; then the halves that they pack to, and the first widened.
@group(0) @binding(1) var<storage, read_write> results: array<vec4<u32>>;

@compute @workgroup_size(THREADS)
fn probe(@builtin(local_invocation_index) thread: u32) {
    if thread >= params.elements {
        return;
    }
    let a = inputs[thread].x;
    let b = inputs[thread].y;
    let sum = two_sum(a, b);
    let product = two_product(a, b);
    results[2u * thread] = bitcast<vec4<u32>>(vec4<f32>(sum.high, sum.low, product.high, product.low));
    // A half's own bits, whatever they are, come in where no arithmetic has touched them.
    let half = bitcast<u32>(a) >> 16u;
    results[2u * thread + 1u] =
        vec4<u32>(packed(vec2<f32>(a, b)), widened(half).x, bitcast<u32>(opaque(a - b) - b), bitcast<u32>(a * 2.0));
}
