// What every kernel is told. params.rs writes the struct, and the constants that it is told by.

@group(1) @binding(0) var<uniform> params: Params;

fn wants(bit: u32) -> bool {
    return (params.wanted & bit) != 0u;
}
