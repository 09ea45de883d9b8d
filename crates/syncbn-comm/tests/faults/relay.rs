//! A network on which everything takes 200 ms: each rank's packets go through a tunnel (VXLAN) to a relay, which keeps each for so long.
//!
//! Deliberately not here: switching. Every packet goes to every other rank, and those it is not for drop it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::namespaces::{HUB, Network, address, inside, ip};

/// How long a packet is on its way.
pub(crate) const LATENCY: Duration = Duration::from_millis(200);
/// Tells a process that it is the relay, and between how many ranks.
pub(crate) const RANKS: &str = "SYNCBN_TEST_RELAY";
const PORT: u16 = 4789;

/// The running relay.
pub(crate) struct Relay(Child);

impl Relay {
    /// Lays the tunnels, and starts the relay at the switch; or which command failed.
    pub(crate) fn new(network: &Network) -> Result<Self, String> {
        for rank in network.ranks() {
            let place = network.rank(rank);
            let tunnel = format!("type vxlan id 1 local {} remote {HUB} dstport {PORT}", address(rank));
            ip(&format!("-n {place} link add tunnel {tunnel}"))?;
            ip(&format!("-n {place} addr add {}/24 dev tunnel", slow_address(rank)))?;
            // Checksums are left to the cable otherwise, and what is in the tunnel never gets one.
            ip(&format!("netns exec {place} ethtool -K tunnel tx off"))?;
            ip(&format!("-n {place} link set tunnel up"))?;
        }
        let words = inside(network.hub());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(std::env::current_exe().unwrap()).stdout(Stdio::null());
        command.env(RANKS, network.ranks().count().to_string());
        command.spawn().map(Self).map_err(|error| error.to_string())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A rank's address in its tunnel.
pub(crate) fn slow_address(rank: usize) -> String {
    format!("10.78.0.{}", rank + 1)
}

/// The relay's process.
pub(crate) fn run(ranks: &str) {
    let ranks: Vec<IpAddr> = (0..ranks.parse().unwrap()).map(|rank| address(rank).parse().unwrap()).collect();
    let socket = UdpSocket::bind((HUB, PORT)).unwrap();
    let mut kept: VecDeque<(Instant, IpAddr, Vec<u8>)> = VecDeque::new();
    let mut packet = vec![0; 1 << 16];
    loop {
        let wait = kept.front().map(|(due, ..)| due.saturating_duration_since(Instant::now()));
        if wait.is_some_and(|wait| wait.is_zero()) {
            let (_, from, packet) = kept.pop_front().unwrap();
            for to in ranks.iter().filter(|to| **to != from) {
                // As on a cable: what cannot be sent is lost.
                let _ = socket.send_to(&packet, SocketAddr::new(*to, PORT));
            }
            continue;
        }
        socket.set_read_timeout(wait).unwrap();
        if let Ok((length, from)) = socket.recv_from(&mut packet) {
            kept.push_back((Instant::now() + LATENCY, from.ip(), packet[..length].to_vec()));
        }
    }
}
