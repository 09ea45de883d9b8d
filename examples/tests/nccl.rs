//! The example of CUDA and NCCL, started once for each GPU, as torchrun does.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use std::env;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use syncbn_cuda::nccl::NcclId;
use syncbn_cuda::{Cuda, CudaError};
use syncbn_testkit::report::absent;

const TEST: &str = "nccl::every_rank_has_the_mean_over_all_gpus";

#[test]
fn every_rank_has_the_mean_over_all_gpus() {
    let world_size = match gpus() {
        Ok(gpus) => gpus,
        Err(error) => return absent("cuda", TEST, &error),
    };
    if let Err(error) = NcclId::new() {
        return absent("nccl", TEST, &error);
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ranks: Vec<_> = (0..world_size).map(|rank| start(rank, world_size, port)).collect();
    for (rank, child) in ranks.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "rank {rank}: {complained}");
        assert!(said.starts_with(&format!("rank {rank} of {world_size}: running_mean")), "{said}");
    }
}

/// How many there are.
fn gpus() -> Result<usize, CudaError> {
    let mut count = 0;
    loop {
        match Cuda::open(count) {
            Ok(_) => count += 1,
            Err(CudaError::NoDevice { .. }) if count > 0 => return Ok(count),
            Err(error) => return Err(error),
        }
    }
}

fn start(rank: usize, world_size: usize, port: u16) -> Child {
    let variables = [
        ("RANK", rank.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("WORLD_SIZE", world_size.to_string()),
        ("MASTER_ADDR", "127.0.0.1".into()),
        ("SYNCBN_PORT", port.to_string()),
    ];
    Command::new(program()).envs(variables).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Where cargo puts examples, and where a bundle for machines without Rust has its programs.
fn program() -> PathBuf {
    let test = env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap();
    let places = ["examples", "bin"].map(|place| folder.join(place).join("02_cuda_nccl"));
    let built = places.iter().find(|place| place.exists());
    built.unwrap_or_else(|| panic!("build the example first: none of {places:?} is there")).clone()
}
