//! How many sums of 4 C + 1 numbers a group of threads does in a second: `cargo run --release --example calls_per_second`.

use std::error::Error;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use syncbn_comm::threads;
use syncbn_core::{CollectiveId, CommError, HostCommunicator};

const CHANNELS: usize = 256;
const CALLS: u32 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    for ranks in [1, 2, 4, 8] {
        let world_size = NonZeroUsize::new(ranks).unwrap_or(NonZeroUsize::MIN);
        let start = Instant::now();
        let results = threads::run(world_size, Duration::from_secs(60), |comm| {
            let call = CollectiveId::new("bn", 4 * CHANNELS + 1);
            let mut values = vec![0.0; call.length];
            (0..CALLS).try_for_each(|_| comm.all_reduce_sum(&call, &mut values))
        })?;
        results.into_iter().collect::<Result<Vec<()>, CommError>>()?;
        let elapsed = start.elapsed();
        println!("{ranks} ranks: {:.0} calls per second", f64::from(CALLS) / elapsed.as_secs_f64());
    }
    Ok(())
}
