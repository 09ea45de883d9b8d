// Columns: the 4 elements of a part belong to neighbouring channels, so a lane is as wide as a part.

alias Part = vec4<f32>;
alias PartBits = vec4<u32>;
alias PartWhole = vec4<i32>;
alias Lane = vec4<f32>;
alias LaneBits = vec4<u32>;
alias LaneWhole = vec4<i32>;

const ROWS: bool = false;
// Channels of a lane, and elements that each of them has in a load.
const WIDTH: u32 = 4u;
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
fn any_of(x: vec4<bool>) -> bool {
    return any(x);
}
fn all_of(x: vec4<bool>) -> bool {
    return all(x);
}
fn element(x: Lane, w: u32) -> f32 {
    return x[w];
}
fn whole_element(x: LaneWhole, w: u32) -> i32 {
    return x[w];
}
fn is_zero(x: vec4<i32>) -> bool {
    return all(x == vec4<i32>(0));
}
