// A part has elements of one channel.

fn gather(channel: u32, which: u32) -> Gathered {
    let r = record(channel, which);
    return Gathered(Part(r.x), Part(r.y), Part(r.z), Part(r.w));
}
