//! The table of laws in `macros.rs` is complete: every law that is written is run.

use std::fs;
use std::path::Path;

#[test]
fn every_law_is_in_the_table() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let table = fs::read_to_string(src.join("macros.rs")).unwrap();
    let words: Vec<&str> = table.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let mut files: Vec<_> =
        fs::read_dir(src.join("laws")).unwrap().map(|file| file.unwrap().path()).collect();
    files.extend(["comm/laws.rs", "comm/laws/failures.rs"].map(|file| src.join(file)));
    let mut laws = 0;
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("pub fn ")) {
            let name = line.split(['<', '(']).next().unwrap();
            laws += 1;
            assert!(words.contains(&name), "`{name}` of {} is not run", file.display());
        }
    }
    assert!(laws > 60, "only {laws} laws were found");
}
