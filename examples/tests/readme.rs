//! The README shows what the tests run.
//!
//! Deliberately not here: running it, which `cargo test` does with the example itself.

use std::fs;

#[test]
fn the_readme_shows_the_example_of_two_ranks() {
    let example = include_str!("../examples/01_two_ranks.rs");
    let (_, lines) = example.split_once("\n\n").unwrap();
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    assert!(
        readme.contains(&format!("```rust\n{lines}```\n")),
        "the README's block is to be the example:\n{lines}"
    );
}
