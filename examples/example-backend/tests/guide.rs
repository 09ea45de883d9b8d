//! The guides' code is compiled code: every block of Rust in them is a piece of a file that is built and tested.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::fs;
use std::path::Path;

const GUIDES: [&str; 3] =
    ["docs/adding-a-backend.md", "docs/adding-a-communicator.md", "docs/adding-an-adapter.md"];
const COMPILED: [&str; 7] = [
    "examples/examples/03_adapter.rs",
    "crates/syncbn-core/examples/noop_backend.rs",
    "examples/example-backend/src/lib.rs",
    "examples/example-backend/tests/conformance.rs",
    "examples/example-backend/tests/kernel.rs",
    "crates/syncbn-comm/tests/conformance.rs",
    "crates/syncbn-cuda/tests/conformance.rs",
];

/// The lines without what they are indented by.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}

#[test]
fn every_block_of_the_guides_is_a_piece_of_a_compiled_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let compiled = COMPILED.map(read);
    let mut blocks = 0;
    for guide in GUIDES {
        let text = read(guide);
        for block in text.split("```rust\n").skip(1) {
            let block = lines(block.split("```").next().unwrap());
            let of = |file: &String| lines(file).windows(block.len()).any(|piece| piece == block);
            assert!(compiled.iter().any(of), "{guide}: this is compiled nowhere:\n{}", block.join("\n"));
            blocks += 1;
        }
    }
    assert!(blocks >= 11, "only {blocks} blocks were found");
}
