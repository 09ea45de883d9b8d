//! Processes become the first group: they connect to rank 0, which sends each of them the addresses of all.
//!
//! Deliberately not here: the rendezvous itself, which is `bootstrap`'s.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::mesh::{self, MeshError, Plan};
use super::{Member, Members, TcpCommunicator};
use crate::bootstrap::accept::Accepted;
use crate::bootstrap::connection::listen_somewhere;
use crate::bootstrap::exchange::{Meeting, random, system};
use crate::bootstrap::wire::Purpose;
use crate::bootstrap::{BootstrapError, LaunchEnv};

/// A rank's line in the table: 16 bytes of address, as IPv6, and 2 of port.
const LINE: usize = 18;
/// Before the table: the group's number, which no other group has.
const GROUP: usize = 16;

pub(super) fn join(
    env: &LaunchEnv,
    timeout: Duration,
    announce: impl FnOnce(u16),
) -> Result<TcpCommunicator, BootstrapError> {
    let meeting = Meeting::new(env, timeout, Purpose::Group)?;
    let size = env.world_size.get();
    let (listeners, port) = if size == 1 { (Vec::new(), 0) } else { listen_somewhere().map_err(system)? };
    let (table, reached) = if env.rank == 0 {
        let group = random().map_err(system)?;
        (meeting.host(announce, |accepted| table(group, port, accepted))?, None)
    } else {
        let (table, reached) = meeting.visit(port.into(), GROUP + size * LINE)?;
        (table, Some(reached))
    };
    let group = table.first_chunk::<GROUP>().copied().unwrap_or_default();
    let listening = table.get(GROUP..).unwrap_or_default().as_chunks::<LINE>().0.iter();
    let dialed = (0_u64..).zip(listening).take(env.rank).map(|(rank, line)| (rank, address(*line, reached)));
    let plan = Plan {
        token: &env.token,
        group,
        world_size: size as u64,
        rank: env.rank as u64,
        dialed: dialed.collect(),
        awaited: (env.rank as u64 + 1..size as u64).collect(),
    };
    let streams =
        mesh::connect(&plan, listeners, meeting.deadline).map_err(|error| unlinked(env, timeout, error))?;
    let list = (0..size as u64).map(|first_rank| Member { first_rank, host: None }).collect();
    let members = Members { token: env.token.clone(), group, first_size: size as u64, list };
    TcpCommunicator::assemble(env.rank, timeout, members, streams).map_err(system)
}

/// The addresses at which all listen, as rank 0 sees them.
fn table(group: [u8; GROUP], port: u16, accepted: &BTreeMap<u64, Accepted>) -> Vec<u8> {
    let mut table = group.to_vec();
    let own = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let others = accepted.values().map(|rank| SocketAddr::new(rank.from.ip(), rank.greeting.card as u16));
    for address in std::iter::once(own).chain(others) {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        table.extend(ip.octets());
        table.extend(address.port().to_le_bytes());
    }
    table
}

/// A line of the table, as this rank can reach it. Ranks on rank 0's machine have the address at which rank 0 was reached.
fn address(line: [u8; LINE], reached: Option<SocketAddr>) -> SocketAddr {
    let (ip, port) = line.split_at(16);
    let ip = Ipv6Addr::from(ip.first_chunk().copied().unwrap_or([0; 16]));
    let port = port.first_chunk().copied().map_or(0, u16::from_le_bytes);
    let ip_seen = ip.to_canonical();
    match reached {
        Some(mut reached) if ip_seen.is_loopback() || ip_seen.is_unspecified() => {
            reached.set_port(port);
            reached
        }
        // A link-local address needs the scope that this machine has for it.
        Some(SocketAddr::V6(mut reached)) if ip.is_unicast_link_local() => {
            reached.set_ip(ip);
            reached.set_port(port);
            reached.into()
        }
        _ => SocketAddr::new(ip_seen, port),
    }
}

fn unlinked(env: &LaunchEnv, timeout: Duration, error: MeshError) -> BootstrapError {
    match error {
        MeshError::System(source) => system(source),
        MeshError::Missing { missing, reason } => BootstrapError::Unlinked {
            rank: env.rank,
            world_size: env.world_size.get(),
            missing: missing.into_iter().map(|rank| rank as usize).collect(),
            timeout,
            reason,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(from: &str, reached: &str) -> String {
        let from: IpAddr = from.parse().unwrap();
        let ip = match from {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut line = [0; LINE];
        line[..16].copy_from_slice(&ip.octets());
        line[16..].copy_from_slice(&7_u16.to_le_bytes());
        address(line, Some(reached.parse().unwrap())).to_string()
    }

    #[test]
    fn a_rank_on_rank_0s_machine_is_where_rank_0_was_reached() {
        assert_eq!(seen("127.0.0.1", "10.0.0.1:5"), "10.0.0.1:7");
        assert_eq!(seen("::1", "[fd00::1]:5"), "[fd00::1]:7");
        assert_eq!(seen("::", "127.0.0.1:5"), "127.0.0.1:7");
        assert_eq!(seen("127.0.0.1", "127.0.0.1:5"), "127.0.0.1:7");
    }

    #[test]
    fn any_other_rank_is_where_rank_0_saw_it() {
        assert_eq!(seen("10.0.0.2", "10.0.0.1:5"), "10.0.0.2:7");
        assert_eq!(seen("10.0.0.2", "127.0.0.1:5"), "10.0.0.2:7");
        assert_eq!(seen("fd00::2", "[fd00::1]:5"), "[fd00::2]:7");
        assert_eq!(seen("fe80::2", "[fe80::1%3]:5"), "[fe80::2%3]:7");
    }
}
