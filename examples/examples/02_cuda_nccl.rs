//! One process to a GPU, as torchrun, mpirun or srun starts them, with NCCL between the ranks:
//! `torchrun --nproc-per-node 2 --no-python target/release/examples/02_cuda_nccl`.

use std::{error::Error, time::Duration};

use syncbn_core::{Communicator, Config, Gradients, ParamGradients, SyncBatchNorm, View, ViewMut};
use syncbn_cuda::nccl::NcclCommunicator;
use syncbn_cuda::{Mem, MemMut};

fn main() -> Result<(), Box<dyn Error>> {
    // The GPU of this process's local rank, and NCCL between all processes of the launcher.
    let (cuda, nccl) = NcclCommunicator::from_env(Duration::from_secs(60))?;
    let (rank, world_size) = (nccl.rank(), nccl.world_size());
    let stream = cuda.context().new_stream()?;
    let shape = [2, 64, 32, 32];
    let len = shape.iter().product();
    let x = stream.clone_htod(&vec![rank as f32; len])?;
    let dy = stream.clone_htod(&vec![1.0_f32; len])?;
    let (mut y, mut dx) = (stream.alloc_zeros::<f32>(len)?, stream.alloc_zeros::<f32>(len)?);

    let mut norm = SyncBatchNorm::new("norm", Config::new(64), cuda, &stream, nccl)?;
    let view_x = || View::channels_first(Mem::new(x.as_view(), &stream), &shape);
    let to_y = ViewMut::channels_first(MemMut::new(y.as_view_mut(), &stream), &shape);
    let saved = norm.forward::<f32>(&stream, view_x(), to_y)?; // enqueued: nothing has waited for the GPU

    let from_dy = View::channels_first(Mem::new(dy.as_view(), &stream), &shape);
    let to_dx = ViewMut::channels_first(MemMut::new(dx.as_view_mut(), &stream), &shape);
    let gradients = Gradients::out_of_place(from_dy, to_dx);
    norm.backward(&stream, &saved, view_x(), gradients, ParamGradients::default())?;

    let running_mean = norm.state(&stream)?.running_mean.ok_or("no running statistics")?[0]; // waits
    let expected = 0.1 * (world_size.get() - 1) as f32 / 2.0; // a tenth of the mean of 0, 1, 2, ...
    assert!((running_mean - expected).abs() < 1e-6, "{running_mean}, expected {expected}");
    println!("rank {rank} of {world_size}: running_mean {running_mean}");
    Ok(())
}
