// Columns: the 1 elements of a part belong to neighbouring channels, so a lane is as wide as a part.

alias Part = f32;
alias PartBits = u32;
alias PartWhole = i32;
alias Lane = f32;
alias LaneBits = u32;
alias LaneWhole = i32;

const ROWS: bool = false;
// Channels of a lane, and elements that each of them has in a load.
const WIDTH: u32 = 1u;
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
fn any_of(x: bool) -> bool {
    return x;
}
fn all_of(x: bool) -> bool {
    return x;
}
fn element(x: Lane, w: u32) -> f32 {
    return x;
}
fn whole_element(x: LaneWhole, w: u32) -> i32 {
    return x;
}
fn is_zero(x: i32) -> bool {
    return x == 0;
}
