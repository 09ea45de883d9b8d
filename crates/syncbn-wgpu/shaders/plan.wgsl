// Which thread takes which elements. plan.rs computes the numbers in `params` and explains them.
//
// A lane is a sequence of loads that one accumulator may take: one channel (rows), or the neighbouring channels that one
// load holds (columns). Load number l of a lane lies at ((l / segment) * lanes + lane) * segment + l % segment. A workgroup
// has `slots` lanes; `members` threads share a lane, and so do `splits` workgroups.

struct Place {
    slots: u32,
    member: u32,
    slot: u32,
    split: u32,
    lane: u32,
}

// A block is a workgroup's number, in up to two dimensions; the last row may have more than there are.
fn block_of(workgroup: vec3<u32>, workgroups: vec3<u32>) -> u32 {
    return workgroup.x + workgroup.y * workgroups.x;
}

fn place_of(block: u32, thread: u32) -> Place {
    let slots = THREADS / params.members;
    var place: Place;
    place.slots = slots;
    if ROWS {
        place.member = thread % params.members;
        place.slot = thread / params.members;
    } else {
        place.member = thread / slots;
        place.slot = thread % slots;
    }
    let group = block / params.splits;
    place.split = block - group * params.splits;
    place.lane = group * slots + place.slot;
    return place;
}

// A thread's way through its lane; backwards, it meets first what an earlier kernel left in the cache.
struct Walk {
    at: u32,
    stride: u32,
    index: u32,
    within: u32,
}

fn walk_of(place: Place) -> Walk {
    var walk: Walk;
    walk.stride = params.splits * params.members;
    walk.at = place.split * params.members + place.member;
    if place.lane >= params.lanes || walk.at >= params.vectors {
        walk.at = params.vectors;
        return walk;
    }
    var number = walk.at;
    if BACKWARDS {
        number = params.vectors - 1u - walk.at;
    }
    let outer = number / params.segment;
    walk.within = number - outer * params.segment;
    walk.index = (outer * params.lanes + place.lane) * params.segment + walk.within;
    return walk;
}

// Whether there are at least so many loads left.
fn has(walk: ptr<function, Walk>, loads: u32) -> bool {
    return (*walk).at + (loads - 1u) * (*walk).stride < params.vectors;
}

// The place of the next load.
fn next(walk: ptr<function, Walk>) -> u32 {
    let index = (*walk).index;
    (*walk).at += (*walk).stride;
    if BACKWARDS {
        (*walk).index -= params.step_index;
        if (*walk).within < params.step_within {
            (*walk).within += params.segment;
            (*walk).index -= params.wrap;
        }
        (*walk).within -= params.step_within;
    } else {
        (*walk).index += params.step_index;
        (*walk).within += params.step_within;
        if (*walk).within >= params.segment {
            (*walk).within -= params.segment;
            (*walk).index += params.wrap;
        }
    }
    return index;
}
