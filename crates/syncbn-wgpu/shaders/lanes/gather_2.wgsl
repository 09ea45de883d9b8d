// A part has elements of two neighbouring channels.

fn gather(channel: u32, which: u32) -> Gathered {
    let r = record(channel, which);
    let s = record(channel + 1u, which);
    return Gathered(vec2<f32>(r.x, s.x), vec2<f32>(r.y, s.y), vec2<f32>(r.z, s.z), vec2<f32>(r.w, s.w));
}
