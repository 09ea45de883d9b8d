//! Four ranks: statistics over each pair of them, gradients over all. A layer's group may be any part of the ranks.

use std::{error::Error, num::NonZeroUsize, time::Duration};

use ndarray::Array2;
use syncbn_comm::threads;
use syncbn_core::{Config, Group, HostCommunicator as _, SyncBatchNorm, ViaHost};
use syncbn_cpu::{Cpu, backward_array, forward_array};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let four = NonZeroUsize::new(4).ok_or("no ranks")?;
    let ranks = threads::run(four, Duration::from_secs(10), |all| -> Result<_> {
        let rank = all.rank();
        // Ranks of one colour form a group, as with MPI_Comm_split: 0 and 1, 2 and 3.
        let pair = all.split(Some(rank as u32 / 2), 0)?.ok_or("a rank without a group")?;
        let all = Group::new(ViaHost(all));

        let mut norm = SyncBatchNorm::new("norm", Config::new(1), Cpu, &(), ViaHost(pair))?;
        let x = Array2::from_shape_fn((3, 1), |(n, _)| (10 * rank + n) as f32);
        let (y, saved) = forward_array(&mut norm, &x)?;
        let mut gradients = backward_array(&mut norm, &saved, &x, &y)?; // of the loss sum(y^2) / 2
        let bias = gradients.bias.as_mut().ok_or("no gradient of bias")?;
        let bias = bias.as_slice_mut().ok_or("a gradient that is not contiguous")?;
        all.all_reduce("bias", &Cpu, &(), bias)?;

        let running_mean = norm.state(&())?.running_mean.ok_or("no running statistics")?[0];
        Ok((running_mean, bias[0]))
    })?;
    let ranks = ranks.into_iter().collect::<Result<Vec<_>>>()?;
    // A tenth of the mean of 0, 1, 2, 10, 11, 12 and of 20, 21, 22, 30, 31, 32.
    for ((running_mean, d_bias), expected) in ranks.into_iter().zip([0.6, 0.6, 2.6, 2.6]) {
        assert!((running_mean - expected).abs() < 1e-5, "{running_mean}, expected {expected}");
        assert!(d_bias.abs() < 1e-4, "over each pair, y has mean 0: {d_bias}");
    }
    Ok(())
}
