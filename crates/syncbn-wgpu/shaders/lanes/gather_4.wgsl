// A part has elements of four neighbouring channels.

fn gather(channel: u32, which: u32) -> Gathered {
    let r = record(channel, which);
    let s = record(channel + 1u, which);
    let t = record(channel + 2u, which);
    let u = record(channel + 3u, which);
    let columns = transpose(mat4x4<f32>(r, s, t, u));
    return Gathered(columns[0], columns[1], columns[2], columns[3]);
}
