//! Sums and splits with drawn values, orders of arrival and sides.

mod common;

use std::thread;
use std::time::Duration;

use common::{PATIENT, backward, size, sum};
use proptest::prelude::*;
use syncbn_comm::threads;
use syncbn_core::HostCommunicator;

/// One rank: for each call, how long it dawdles (in 50 us), and what it adds.
type Rank = Vec<(u64, [f64; 4])>;

fn worlds() -> impl Strategy<Value = Vec<Rank>> {
    let number = prop_oneof![-1e3..1e3, -1e17..1e17, Just(-0.0)];
    (1..=6_usize, 1..=8_usize).prop_flat_map(move |(ranks, calls)| {
        let call = (0..8_u64, prop::array::uniform4(number.clone()));
        prop::collection::vec(prop::collection::vec(call, calls), ranks)
    })
}

/// Colour and key of each rank, from so few that they collide.
fn sides() -> impl Strategy<Value = Vec<(Option<u32>, i64)>> {
    prop::collection::vec((prop::option::weighted(0.8, 0..3_u32), -1..=1_i64), 1..=7)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_order_of_arrival_gives_the_bits_of_the_sum_in_rank_order(world in worlds()) {
        let results = threads::run(size(world.len()), PATIENT, |comm| {
            let one_call = |&(delay, mut values): &(u64, [f64; 4])| {
                if delay > 0 {
                    thread::sleep(Duration::from_micros(50 * delay));
                }
                comm.all_reduce_sum(&backward("bn", 2), &mut values).unwrap();
                values.map(f64::to_bits)
            };
            world[comm.rank()].iter().map(one_call).collect::<Vec<_>>()
        }).unwrap();
        for (call, _) in world[0].iter().enumerate() {
            let add = |a: [f64; 4], b: [f64; 4]| std::array::from_fn(|i| a[i] + b[i]);
            let serial: [f64; 4] = world.iter().map(|rank| rank[call].1).reduce(add).unwrap();
            for rank in &results {
                prop_assert_eq!(rank[call], serial.map(f64::to_bits));
            }
        }
    }

    #[test]
    fn a_split_puts_every_rank_where_its_colour_and_key_say(sides in sides()) {
        let results = threads::run(size(sides.len()), PATIENT, |comm| {
            let (color, key) = sides[comm.rank()];
            let group = comm.split(color, key).unwrap()?;
            let [members, of_old_ranks] = sum(&group, [1.0, comm.rank() as f64]).unwrap();
            Some((group.rank(), group.world_size().get(), members, of_old_ranks))
        }).unwrap();
        for (rank, (color, key)) in sides.iter().enumerate() {
            let expected = color.map(|color| {
                let mates: Vec<_> = (0..sides.len()).filter(|&mate| sides[mate].0 == Some(color)).collect();
                let ahead = mates.iter().filter(|&&mate| (sides[mate].1, mate) < (*key, rank)).count();
                let old_ranks: usize = mates.iter().sum();
                (ahead, mates.len(), mates.len() as f64, old_ranks as f64)
            });
            prop_assert_eq!(results[rank], expected);
        }
    }
}
