//! The side that listens: reads a greeting from each connection, all at once, and accepts those of the ranks that it expects.
//!
//! A connection that sends no greeting, or a wrong one, delays no other. What it did is noted, for the error if an expected rank
//! does not come.
//!
//! Deliberately not here: what accepted ranks are answered in the end.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use mio::Token;
use mio::net::{TcpListener, TcpStream};

use super::connection::{Connection, Net};
use super::token::JobToken;
use super::wire::{GREETING, Greeting, Purpose, Refusal, Reply};
use crate::deadline::Deadline;

/// How long a connection may take to send its greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How many connections may be without a greeting at once; beyond it the oldest is closed.
const MOST_PENDING: usize = 128;
/// How many different notes are kept.
const MOST_NOTES: usize = 8;

/// The ranks that are expected.
#[derive(Clone, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) token: &'a JobToken,
    pub(crate) purpose: Purpose,
    pub(crate) group: [u8; 16],
    pub(crate) world_size: u64,
    /// This rank.
    pub(crate) host: u64,
    /// In order: of a million ranks, a set would take seconds to make.
    pub(crate) ranks: Vec<u64>,
}

pub(crate) struct Acceptor<'a> {
    expected: Expected<'a>,
    listeners: BTreeMap<Token, TcpListener>,
    pending: BTreeMap<Token, Pending>,
    accepted: BTreeMap<u64, Accepted>,
    notes: Notes,
}

/// A connection that has not sent its greeting.
struct Pending {
    connection: Connection,
    from: SocketAddr,
    deadline: Deadline,
}

/// A rank that has come.
pub(crate) struct Accepted {
    pub(crate) connection: Connection,
    pub(crate) from: SocketAddr,
    pub(crate) greeting: Greeting,
    token: Token,
}

impl<'a> Acceptor<'a> {
    pub(crate) fn new(
        net: &mut Net,
        listeners: Vec<TcpListener>,
        expected: Expected<'a>,
    ) -> io::Result<Self> {
        let with_token = |mut listener| Ok((net.add(&mut listener)?, listener));
        let listeners = listeners.into_iter().map(with_token).collect::<io::Result<_>>()?;
        let (pending, accepted, notes) = (BTreeMap::new(), BTreeMap::new(), Notes::default());
        Ok(Self { expected, listeners, pending, accepted, notes })
    }

    /// Does what can be done now; `ready` is what [`Net::wait`] returned.
    pub(crate) fn progress(&mut self, net: &mut Net, ready: &[Token]) {
        // Not only when a listener is ready: a process short of file descriptors may have some again.
        self.accept_all(net);
        for token in ready {
            if let Some(pending) = self.pending.remove(token) {
                self.read_greeting(*token, pending);
            }
            self.remove_if_closed(*token);
        }
        self.pending.retain(|_, pending| {
            let keep = !pending.deadline.has_passed();
            if !keep {
                self.notes.add(pending.from, "it sent no greeting");
            }
            keep
        });
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.expected.ranks.len() == self.accepted.len()
    }

    /// The expected ranks that have not come.
    pub(crate) fn missing(&self) -> Vec<u64> {
        self.expected.ranks.iter().copied().filter(|rank| !self.accepted.contains_key(rank)).collect()
    }

    /// Stops listening.
    pub(crate) fn into_accepted(self) -> BTreeMap<u64, Accepted> {
        self.accepted
    }

    /// Stops listening; the notes are about every connection that was not accepted.
    pub(crate) fn into_accepted_and_notes(mut self) -> (BTreeMap<u64, Accepted>, Vec<String>) {
        for pending in self.pending.values() {
            self.notes.add(pending.from, "it sent no greeting");
        }
        (self.accepted, self.notes.lines())
    }

    fn accept_all(&mut self, net: &mut Net) {
        let listeners = std::mem::take(&mut self.listeners);
        for listener in listeners.values() {
            while self.accept_one(net, listener) {}
        }
        self.listeners = listeners;
    }

    /// Whether there may be more to accept.
    fn accept_one(&mut self, net: &mut Net, listener: &TcpListener) -> bool {
        match listener.accept() {
            Ok((stream, from)) => {
                self.add(net, stream, from);
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {
                true
            }
            // No file descriptor is left: a connection that has not greeted gives its own.
            Err(error) => {
                self.notes.add_line(format!("a connection could not be accepted: {error}"));
                self.close_oldest()
            }
        }
    }

    fn add(&mut self, net: &mut Net, mut stream: TcpStream, from: SocketAddr) {
        if self.pending.len() >= MOST_PENDING {
            self.close_oldest();
        }
        let Ok(token) = net.add(&mut stream) else { return };
        let (connection, deadline) = (Connection::new(stream), Deadline::after(GREETING_TIMEOUT));
        self.pending.insert(token, Pending { connection, from, deadline });
    }

    /// Closes the connection that has been without a greeting for the longest time, unless its greeting is there by now.
    fn close_oldest(&mut self) -> bool {
        // Tokens count up: the first is the oldest.
        let Some((token, mut oldest)) = self.pending.pop_first() else { return false };
        match oldest.connection.read(GREETING) {
            Ok(Some(_)) => self.read_greeting(token, oldest),
            _ => self.notes.add(oldest.from, "it sent no greeting before many others came"),
        }
        true
    }

    fn read_greeting(&mut self, token: Token, mut pending: Pending) {
        match pending.connection.read(GREETING).map(|read| read.and_then(<[u8]>::first_chunk).copied()) {
            Ok(None) => drop(self.pending.insert(token, pending)),
            Ok(Some(bytes)) => self.check_greeting(token, pending, &bytes),
            Err(error) => self.notes.add(pending.from, format!("it sent no whole greeting: {error}")),
        }
    }

    fn check_greeting(&mut self, token: Token, pending: Pending, bytes: &[u8; GREETING]) {
        let Pending { mut connection, from, .. } = pending;
        let key = self.expected.token;
        let greeting = Greeting::parse(bytes, key);
        match greeting.clone().and_then(|greeting| self.check(&greeting)) {
            Ok(greeting) => {
                connection.taken();
                if connection.send(&Reply::Welcome.to_bytes(key, &greeting.nonce)).is_ok() {
                    self.accept(Accepted { connection, from, greeting, token });
                }
            }
            Err(refusal) => {
                self.notes.add(from, &refusal);
                // A process of another job cannot read the reason, and learns that much from it.
                let nonce = greeting.map_or([0; 16], |greeting| greeting.nonce);
                if refusal != Refusal::NotSyncbn {
                    let _ = connection.send(&Reply::Refused(refusal).to_bytes(key, &nonce));
                }
            }
        }
    }

    fn check(&self, greeting: &Greeting) -> Result<Greeting, Refusal> {
        let Expected { purpose, group, world_size, host, ranks, .. } = &self.expected;
        if (greeting.purpose, greeting.group) != (*purpose, *group) {
            return Err(Refusal::OtherGroup);
        }
        if greeting.world_size != *world_size {
            return Err(Refusal::WorldSize { got: greeting.world_size, expected: *world_size });
        }
        if greeting.host != *host || ranks.binary_search(&greeting.rank).is_err() {
            return Err(Refusal::Rank(greeting.rank));
        }
        Ok(*greeting)
    }

    /// A newer connection replaces an older one of its rank, which may be dead without this side's knowing.
    fn accept(&mut self, rank: Accepted) {
        let (from, greeting) = (rank.from, rank.greeting);
        let Some(mut older) = self.accepted.insert(greeting.rank, rank) else { return };
        if older.greeting.nonce != greeting.nonce {
            let both = format!("it and {} came as rank {}", older.from, greeting.rank);
            self.notes.add(from, both);
            let replaced = Reply::Refused(Refusal::Replaced);
            let _ = older.connection.send(&replaced.to_bytes(self.expected.token, &older.greeting.nonce));
        }
    }

    /// A rank whose connection has ended may connect again.
    fn remove_if_closed(&mut self, token: Token) {
        let found = self.accepted.iter_mut().find(|(_, accepted)| accepted.token == token);
        let Some((&rank, accepted)) = found else { return };
        let alive = accepted.connection.is_alive() && accepted.connection.flush().is_ok();
        if !alive {
            self.notes.add(accepted.from, format!("it came as rank {rank} and went again"));
            self.accepted.remove(&rank);
        }
    }
}

/// Why connections were not accepted, each reason once.
#[derive(Default)]
struct Notes {
    lines: Vec<String>,
    more: usize,
}

impl Notes {
    fn add(&mut self, from: SocketAddr, what: impl fmt::Display) {
        self.add_line(format!("{}: {what}", from.ip()));
    }

    fn add_line(&mut self, line: String) {
        if self.lines.contains(&line) {
            return;
        }
        if self.lines.len() < MOST_NOTES {
            self.lines.push(line);
        } else {
            self.more += 1;
        }
    }

    fn lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.lines.push(format!("and {} more", self.more));
        }
        self.lines
    }
}
