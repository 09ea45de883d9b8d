//! Connections between every two ranks of a group.
//!
//! Of two ranks, the one that came later in the first group of all dials the other, in every group split from it as well: so an
//! address that was reached once is reached again.
//!
//! Deliberately not here: how ranks learn each other's addresses.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};

use crate::bootstrap::JobToken;
use crate::bootstrap::accept::{Acceptor, Expected};
use crate::bootstrap::connect::{Connector, Progress};
use crate::bootstrap::connection::{Connection, Net};
use crate::bootstrap::exchange::random;
use crate::bootstrap::wire::{Greeting, Purpose};
use crate::deadline::Deadline;

/// A group that is to be connected. Ranks are numbered as in the first group of all.
pub(super) struct Plan<'a> {
    pub(super) token: &'a JobToken,
    /// The group's number, which no other group has.
    pub(super) group: [u8; 16],
    /// The ranks of the first group of all.
    pub(super) world_size: u64,
    pub(super) rank: u64,
    /// Where the members before this one listen.
    pub(super) dialed: BTreeMap<u64, SocketAddr>,
    /// The members after this one, in order.
    pub(super) awaited: Vec<u64>,
}

/// Why ranks are missing.
#[derive(Debug)]
pub(super) enum MeshError {
    System(io::Error),
    /// These ranks are not connected by the deadline.
    Missing {
        missing: Vec<u64>,
        reason: String,
    },
}

impl From<io::Error> for MeshError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// A connection to every other member.
pub(super) fn connect(
    plan: &Plan<'_>,
    listeners: Vec<TcpListener>,
    deadline: Deadline,
) -> Result<BTreeMap<u64, TcpStream>, MeshError> {
    let mut net = Net::new()?;
    let mut acceptor = Acceptor::new(&mut net, listeners, plan.expected())?;
    let mut connectors = plan.connectors()?;
    let mut open = BTreeMap::new();
    let mut ready = Vec::new();
    while !(connectors.is_empty() && acceptor.is_complete()) {
        for (rank, mut connector) in std::mem::take(&mut connectors) {
            match connector.progress(&mut net, &ready) {
                Progress::Waiting => drop(connectors.insert(rank, connector)),
                Progress::Welcome => drop(open.insert(rank, connector.into_connection())),
                Progress::Answered(_) => {
                    return Err(Plan::failed(vec![rank], "an answer was not expected".into()));
                }
                Progress::Refused(refusal) => return Err(Plan::failed(vec![rank], refusal.to_string())),
            }
        }
        acceptor.progress(&mut net, &ready);
        if deadline.has_passed() {
            return Err(Plan::some_are_missing(&connectors, acceptor));
        }
        if !(connectors.is_empty() && acceptor.is_complete()) {
            ready = net.wait(deadline)?;
        }
    }
    let awaited = acceptor.into_accepted().into_iter().map(|(rank, accepted)| (rank, accepted.connection));
    let dialed = open.into_iter().filter_map(|(rank, connection)| Some((rank, connection?)));
    dialed.chain(awaited).map(|(rank, connection)| Ok((rank, deregister(&net, connection)?))).collect()
}

/// The connection, no longer registered where it was made.
fn deregister(net: &Net, connection: Connection) -> io::Result<TcpStream> {
    let mut stream = connection.stream;
    net.remove(&mut stream)?;
    Ok(stream)
}

impl<'a> Plan<'a> {
    fn expected(&self) -> Expected<'a> {
        Expected {
            token: self.token,
            purpose: Purpose::Link,
            group: self.group,
            world_size: self.world_size,
            host: self.rank,
            ranks: self.awaited.clone(),
        }
    }

    fn connectors(&self) -> io::Result<BTreeMap<u64, Connector<'a>>> {
        let nonce = random()?;
        let (purpose, group, world_size, rank) = (Purpose::Link, self.group, self.world_size, self.rank);
        let connector = |(&host, &address): (&u64, &SocketAddr)| {
            let greeting = Greeting { purpose, group, world_size, rank, host, card: 0, nonce };
            let mut connector = Connector::new(self.token, greeting, None);
            connector.add_addresses([address]);
            (host, connector)
        };
        Ok(self.dialed.iter().map(connector).collect())
    }

    fn some_are_missing(connectors: &BTreeMap<u64, Connector<'_>>, acceptor: Acceptor<'_>) -> MeshError {
        let missing = connectors.keys().copied().chain(acceptor.missing()).collect();
        let (_, rejected) = acceptor.into_accepted_and_notes();
        let tried = connectors.values().map(ToString::to_string);
        Self::failed(missing, tried.chain(rejected).collect::<Vec<_>>().join("; "))
    }

    fn failed(missing: Vec<u64>, reason: String) -> MeshError {
        MeshError::Missing { missing, reason }
    }
}
