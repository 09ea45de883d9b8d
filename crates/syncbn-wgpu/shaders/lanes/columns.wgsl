// Columns: the elements of a part belong to neighbouring channels, so a lane is as wide as a part.

alias Lane = Part;
alias LaneBits = PartBits;
alias LaneWhole = PartWhole;

const ROWS: bool = false;
// Channels of a lane, and elements that each of them has in a load.
const WIDTH: u32 = N;
const DEPTH: u32 = 1u;
const CHAIN: u32 = 64u;

fn across(x: Part) -> Lane {
    return x;
}
fn highest(x: PartBits) -> LaneBits {
    return x;
}
fn first(x: Part) -> Part {
    return x;
}
fn lane_of(x: Part) -> Lane {
    return x;
}
fn spread(x: LaneWhole) -> PartWhole {
    return x;
}
fn element(x: Lane, w: u32) -> f32 {
    return element_of(x, w);
}
fn whole_element(x: LaneWhole, w: u32) -> i32 {
    return whole_element_of(x, w);
}
