//! The README shows what is compiled and run: its blocks of Rust are the examples, its dependencies those of the workspace.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use std::fs;
use std::path::Path;

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)).unwrap()
}

/// The blocks of this language.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|block| block.split("```").next().unwrap()).collect()
}

#[test]
fn the_readme_shows_the_examples_of_two_ranks_and_of_nccl() {
    let examples = ["01_two_ranks", "02_cuda_nccl"].map(|name| {
        let example = read(&format!("examples/examples/{name}.rs"));
        example.split_once("\n\n").unwrap().1.to_owned()
    });
    let readme = read("README.md");
    assert_eq!(blocks(&readme, "rust"), examples, "the README's blocks are to be the examples");
}

#[test]
fn the_readme_names_the_crates_and_versions_of_the_workspace() {
    let (readme, workspace) = (read("README.md"), read("Cargo.toml"));
    let repository =
        workspace.lines().find_map(|line| line.strip_prefix("repository = ")).unwrap().trim_matches('"');
    let lines: Vec<_> = blocks(&readme, "toml").into_iter().flat_map(str::lines).collect();
    for line in lines.iter().filter(|line| line.contains(" = ")) {
        let (name, value) = line.split_once(" = ").unwrap();
        let stated = workspace.lines().any(|of| of == *line);
        let ours = value == format!("{{ git = \"{repository}\" }}")
            && read(&format!("crates/{name}/Cargo.toml")).contains(&format!("name = \"{name}\""));
        assert!(stated || ours, "neither a crate of ours nor a line of the workspace's table: {line}");
    }
    assert!(lines.len() >= 5, "the dependencies are to be there to copy");
    let rust = workspace.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    let minimum = format!("Rust {}", rust.trim_matches('"'));
    assert!(readme.contains(&minimum), "the README is to name {minimum}");
}

/// Until the crates are on a registry.
#[test]
fn guides_take_the_crates_from_the_repository() {
    let docs = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")).unwrap();
    let guides =
        docs.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md"));
    let mut seen = 0;
    for guide in guides {
        let text = fs::read_to_string(&guide).unwrap();
        for line in
            blocks(&text, "toml").into_iter().flat_map(str::lines).filter(|line| line.starts_with("syncbn-"))
        {
            let is_there = ["{ git = ", "{ path = "].iter().any(|source| line.contains(source));
            assert!(is_there, "{}: {line}", guide.display());
            seen += 1;
        }
    }
    assert!(seen > 0, "no guide names a crate");
}
