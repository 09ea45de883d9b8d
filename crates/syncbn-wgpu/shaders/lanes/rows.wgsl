// Rows: all elements of a part belong to one channel, so a lane is one number.

alias Lane = f32;
alias LaneBits = u32;
alias LaneWhole = i32;

const ROWS: bool = true;
// Channels of a lane, and elements that each of them has in a load.
const WIDTH: u32 = 1u;
const DEPTH: u32 = PARTS * N;
const CHAIN: u32 = max(8u, 128u / DEPTH);

fn across(x: Part) -> Lane {
    return sum_of(x);
}
fn highest(x: PartBits) -> LaneBits {
    return greatest_of(x);
}
fn first(x: Part) -> Part {
    return Part(first_of(x));
}
fn lane_of(x: Part) -> Lane {
    return first_of(x);
}
fn spread(x: LaneWhole) -> PartWhole {
    return PartWhole(x);
}
fn element(x: Lane, w: u32) -> f32 {
    return x;
}
fn whole_element(x: LaneWhole, w: u32) -> i32 {
    return x;
}
