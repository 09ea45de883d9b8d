// What a forward pass saves, in words of two numbers: of each channel the mean, high and low, then (invstd, exponent); then of each
// the biased variance, high and low; then the count, high and low. All are of the channel's numbers times 2^-exponent.

fn saved_statistics(channel: u32) -> vec4<f32> {
    return vec4<f32>(saved[2u * channel], saved[2u * channel + 1u]);
}

fn saved_variance(channel: u32) -> vec2<f32> {
    return saved[2u * params.channels + channel];
}

fn saved_count() -> vec2<f32> {
    return saved[3u * params.channels];
}
