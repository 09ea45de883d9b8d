//! Two ranks, each with half of a batch, normalise it with the statistics of the whole.

use std::{error::Error, num::NonZeroUsize, time::Duration};

use ndarray::{Array4, s};
use syncbn_comm::threads;
use syncbn_core::{Config, HostCommunicator, SyncBatchNorm, ViaHost};
use syncbn_cpu::{Cpu, backward_array, forward_array};

fn main() -> Result<(), Box<dyn Error>> {
    let batch = Array4::from_shape_fn((8, 3, 16, 16), |(n, c, h, w)| (n + c * h + w) as f32);
    let two = NonZeroUsize::new(2).ok_or("no ranks")?;
    let ranks = threads::run(two, Duration::from_secs(10), |comm| {
        let x = batch.slice(s![4 * comm.rank()..4 * comm.rank() + 4, .., .., ..]);
        let mut norm = SyncBatchNorm::new("norm", Config::new(3), Cpu, &(), ViaHost(comm))?;
        let (y, saved) = forward_array(&mut norm, &x)?;
        let gradients = backward_array(&mut norm, &saved, &x, &y)?; // of the loss sum(y^2) / 2
        Ok::<_, syncbn_core::Error>((y.sum(), gradients.dx.sum()))
    })?;
    let sums = ranks.into_iter().collect::<Result<Vec<_>, _>>()?;
    assert!(sums[0].0 < -1.0, "the smaller numbers of the batch are below its mean");
    assert!((sums[0].0 + sums[1].0).abs() < 1e-2, "over both ranks, y has mean 0");
    Ok(())
}
