//! Faults of the network between ranks, each rank in a namespace of its own: root makes them, and where that is not to be had the
//! tests are skipped, or fail where `SYNCBN_REQUIRE` names `netns`.

use std::time::Duration;

use libtest_mimic::Trial;
use syncbn_testkit::report::absent;

use crate::job::{Job, STEPS};
use crate::namespaces::{Network, address, inside, ip, nft};
use crate::relay::{LATENCY, Relay, slow_address};
use crate::trial;

/// How long ranks wait for each other to join.
const PATIENCE: Duration = Duration::from_secs(60);
/// The sums of a step of training.
const SUMS: u32 = 4;

/// The first sum after the fault.
const FIRST: &str = "forward of layer `one` (number 0, 13 numbers, use 3, step 3)";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("network::a_cable_that_is_cut", || {
            in_network(3, |net| cut(net, "waits for the test", &port(net), FIRST));
        }),
        trial("network::a_cable_that_is_cut_before_a_long_message", || {
            let long = "all_reduce of `long` (2000000 numbers";
            in_network(3, |net| cut(net, "waits for the test, and sends", &port(net), long));
        }),
        trial("network::a_link_that_goes_down", || {
            in_network(3, |net| cut(net, "waits for the test", &link(net), FIRST));
        }),
        trial("network::a_network_in_two_parts", || in_network(4, partition)),
        trial("network::one_percent_of_packets_lost", || in_network(3, loss)),
        trial("network::a_latency_of_200_ms", || in_network(3, latency)),
    ]
}

fn in_network(size: usize, test: impl FnOnce(&Network) -> Result<(), String>) {
    let done = Network::new(size).and_then(|network| test(&network));
    if let Err(why) = done {
        absent("netns", "faults::network", &why);
    }
}

/// Rank 1's cable, where it ends at the switch.
fn port(network: &Network) -> String {
    format!("-n {} link set port1", network.hub())
}

/// The same, where it ends at the rank.
fn link(network: &Network) -> String {
    format!("-n {} link set cable", network.rank(1))
}

fn start(network: &Network, fault: &str, survivors: &str, more: &[(&str, &str)]) -> Job {
    let mut job = Job::new(PATIENCE);
    let master = address(0);
    let variables = [&[("MASTER_ADDR", master.as_str())], more].concat();
    for rank in network.ranks() {
        job.launcher = inside(network.rank(rank));
        job.start(fault, survivors, rank, network.ranks().count(), &variables);
    }
    job
}

/// A rank that no packet reaches is missed by the others, and misses them.
fn cut(network: &Network, fault: &str, link: &str, sum: &str) -> Result<(), String> {
    let mut job = start(network, fault, "0,2", &[]);
    network.ranks().for_each(|rank| drop(job.hear(rank, "at the fault")));
    ip(&format!("{link} down"))?;
    job.tell_all();
    for (rank, missing) in [(0, "[1]"), (1, "[0, 2]"), (2, "[1]")] {
        missed(&mut job, rank, missing, sum);
    }
    job.goes_on(&[0, 2]);
    Ok(())
}

/// The sum fails at the deadline, and its error says which ranks did not come.
fn missed(job: &mut Job, rank: usize, missing: &str, sum: &str) {
    let told = job.told(rank);
    told.check(rank, job.size());
    assert!(told.error.contains(&format!("ranks {missing} did not come within 4s")), "{told:?}");
    assert!(told.error.contains(sum), "{told:?}");
}

/// Ranks 0 and 1 on one side, 2 and 3 on the other. When the network is whole again, all of them make a new group.
fn partition(network: &Network) -> Result<(), String> {
    let mut job = start(network, "waits for the test", "0,1,2,3", &[]);
    network.ranks().for_each(|rank| drop(job.hear(rank, "at the fault")));
    let hub = network.hub();
    nft(
        &hub,
        "table bridge parts {
            chain forward {
                type filter hook forward priority 0
                iifname { port0, port1 } oifname { port2, port3 } drop
                iifname { port2, port3 } oifname { port0, port1 } drop
            }
        }",
    )?;
    job.tell_all();
    for (rank, missing) in [(0, "[2, 3]"), (1, "[2, 3]"), (2, "[0, 1]"), (3, "[0, 1]")] {
        missed(&mut job, rank, missing, FIRST);
    }
    nft(&hub, "delete table bridge parts")?;
    job.goes_on(&[0, 1, 2, 3]);
    Ok(())
}

/// TCP sends again what is lost: late, and right.
fn loss(network: &Network) -> Result<(), String> {
    for rank in network.ranks() {
        nft(
            &network.rank(rank),
            "table ip loss {
                chain input {
                    type filter hook input priority 0
                    numgen random mod 100 == 0 counter drop
                }
            }",
        )?;
    }
    let job = start(network, "none", "", &[]);
    as_without_faults(job, 99);
    let lost =
        network.ranks().map(|rank| nft(&network.rank(rank), "list table ip loss").map(|table| lost(&table)));
    assert!(lost.sum::<Result<u64, _>>()? > 0, "no packet was lost");
    Ok(())
}

/// What nft says: `counter packets 7 bytes 392 drop`.
fn lost(table: &str) -> u64 {
    let number = table.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    number.unwrap().parse().unwrap()
}

fn latency(network: &Network) -> Result<(), String> {
    const STEPS_HERE: u32 = 6;
    let _relay = Relay::new(network)?;
    let steps = STEPS_HERE.to_string();
    let job = start(network, "none", "", &[("MASTER_ADDR", &slow_address(0)), (STEPS, &steps)]);
    let took = as_without_faults(job, STEPS_HERE);
    assert!(took >= STEPS_HERE * SUMS * LATENCY, "{took:?} for {STEPS_HERE} steps: nothing was delayed");
    Ok(())
}

/// All ranks train to the bits that they reach on a sound network; the shortest time it took.
fn as_without_faults(mut job: Job, steps: u32) -> Duration {
    let mut sound = Job::new(PATIENCE);
    (0..3).for_each(|rank| sound.start("none", "", rank, 3, &[(STEPS, &steps.to_string())]));
    let took = (0..3).map(|rank| {
        let (took, state) = job.trained(rank);
        assert_eq!(state, sound.trained(rank).1);
        took
    });
    took.min().unwrap()
}
