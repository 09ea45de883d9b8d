//! The parts of what needs a GPU, and what belongs to each. The script of a part's name, beside this file, has its steps.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Args, tools};
use crate::test_python;

pub(super) struct Part {
    pub(super) name: &'static str,
    /// What cargo is to build: its tests with `test`, its other programs with `build`.
    pub(super) cargo: &'static [&'static [&'static str]],
    /// Fails where a tool is missing that building it needs beside Rust, and says how to get it.
    pub(super) tool: fn(&Args) -> Result<()>,
    /// Puts its other files into the bundle.
    pub(super) files: fn(&Path) -> Result<()>,
    pub(super) steps: &'static str,
}

/// A part that needs no more than cargo.
const PLAIN: Part = Part { name: "", cargo: &[], tool: |_| Ok(()), files: |_| Ok(()), steps: "" };

/// In the order in which they are tested.
pub(super) const PARTS: [Part; 6] = [
    // One GPU.
    Part {
        name: "cuda",
        cargo: &[&[
            "test",
            "--package=syncbn-cuda",
            "--test=conformance",
            "--test=errors",
            "--test=graph",
            "--test=kernels",
            "--test=memory",
        ]],
        steps: include_str!("cuda.sh"),
        ..PLAIN
    },
    // A rank on each GPU, which meet over NCCL or inside their kernels.
    Part {
        name: "peers",
        cargo: &[
            &["test", "--package=syncbn-cuda", "--test=peers", "--test=nccl", "--test=processes"],
            &["test", "--package=syncbn-examples", "--test=nccl"],
            &["build", "--package=syncbn-examples", "--example=02_cuda_nccl"],
        ],
        steps: include_str!("peers.sh"),
        ..PLAIN
    },
    // The other tests of wgpu do not depend on what the GPU computes and run in CI on a software one; each would add 6 MB.
    Part {
        name: "wgpu",
        cargo: &[&["test", "--package=syncbn-wgpu", "--test=conformance", "--test=numbers"]],
        steps: include_str!("wgpu.sh"),
        ..PLAIN
    },
    Part {
        name: "candle",
        cargo: &[
            &["test", "--package=syncbn-candle", "--features=cuda", "--test=cuda"],
            &["build", "--package=candle-trainer", "--features=cuda", "--bin=candle-trainer"],
        ],
        tool: |_| tools::nvcc(),
        steps: include_str!("candle.sh"),
        ..PLAIN
    },
    Part {
        name: "python",
        tool: |args| tools::python(args).map(drop),
        files: python,
        steps: include_str!("python.sh"),
        ..PLAIN
    },
    Part {
        name: "bench",
        cargo: &[
            &[
                "build",
                "--package=syncbn-bench",
                "--features=cuda,wgpu",
                "--bin=syncbn-bench",
                "--bin=bench-report",
            ],
            &["build", "--package=syncbn-examples", "--features=cuda,wgpu", "--bin=demo", "--bin=accuracy"],
        ],
        files: peers_scripts,
        steps: include_str!("bench.sh"),
        ..PLAIN
    },
];

/// The wheel, unpacked, and its tests; and the scripts that time it.
fn python(bundle: &Path) -> Result<()> {
    let python = test_python::with_modules(&["maturin"])?;
    let folder = bundle.join("python");
    test_python::install(&python, &test_python::build(&python)?, &folder.join("site"))?;
    copy("python/tests", &folder.join("tests"), &["py"])?;
    copy("python/tests/scenarios", &folder.join("tests/scenarios"), &["py"])?;
    fs::copy("pyproject.toml", folder.join("pyproject.toml"))?;
    peers_scripts(bundle)
}

/// The peers' scripts and the lists of tensors, side by side as in the sources.
fn peers_scripts(bundle: &Path) -> Result<()> {
    copy("bench", &bundle.join("peers"), &["txt"])?;
    copy("bench/peers", &bundle.join("peers/peers"), &["py"])
}

/// The files of a folder that have these extensions.
fn copy(from: &str, to: &Path, extensions: &[&str]) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.to_owned())? {
        let path = entry?.path();
        let wanted =
            path.extension().is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted));
        if let Some(name) = path.file_name().filter(|_| wanted) {
            fs::copy(&path, to.join(name)).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::PARTS;
    use crate::cargo::tests_of;

    /// The tests of the CUDA backend that are in no part, and why.
    const LEFT_OUT: [(&str, &str); 1] =
        [("block_order", "devices start blocks in the order of their numbers")];

    #[test]
    fn every_test_of_the_cuda_backend_is_in_one_part_or_left_out_for_a_reason() -> anyhow::Result<()> {
        let commands = || {
            PARTS.iter().flat_map(|part| part.cargo).filter(|line| line.contains(&"--package=syncbn-cuda"))
        };
        for name in tests_of("syncbn-cuda")? {
            let option = format!("--test={name}");
            let parts = commands().filter(|line| line.contains(&option.as_str())).count();
            let is_left_out = LEFT_OUT.iter().any(|(left_out, _)| *left_out == name);
            assert_eq!(parts, usize::from(!is_left_out), "{name}");
        }
        Ok(())
    }
}
