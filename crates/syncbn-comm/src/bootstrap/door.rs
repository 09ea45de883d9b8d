//! The side that is come to: every connection may greet, side by side, and those that are expected become guests.
//!
//! Whoever does not greet, or greets wrongly, stays outside and disturbs nobody; what it did is kept, for the error if the
//! expected ones do not come.
//!
//! Deliberately not here: what guests are told in the end.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::Token;
use mio::net::TcpListener;

use super::connection::{Connection, Net};
use super::token::JobToken;
use super::wire::{GREETING, Greeting, Purpose, Refusal, Reply};
use crate::deadline::Deadline;

/// How long a connection may take to greet.
const COURTESY: Duration = Duration::from_secs(5);
/// How many may be about to greet at once; more push out those who have taken longest.
const CROWD: usize = 128;
/// How many different things are kept of what happened outside.
const NOTES: usize = 8;

/// Who is expected.
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

pub(crate) struct Door<'a> {
    expected: Expected<'a>,
    listeners: BTreeMap<Token, TcpListener>,
    outside: BTreeMap<Token, Stranger>,
    guests: BTreeMap<u64, Guest>,
    notes: Notes,
}

/// A connection that has not greeted.
struct Stranger {
    connection: Connection,
    from: SocketAddr,
    patience: Deadline,
}

/// A rank that has come.
pub(crate) struct Guest {
    pub(crate) connection: Connection,
    pub(crate) from: SocketAddr,
    pub(crate) greeting: Greeting,
    token: Token,
}

impl<'a> Door<'a> {
    pub(crate) fn open(
        net: &mut Net,
        listeners: Vec<TcpListener>,
        expected: Expected<'a>,
    ) -> io::Result<Self> {
        let with_token = |mut listener| Ok((net.add(&mut listener)?, listener));
        let listeners = listeners.into_iter().map(with_token).collect::<io::Result<_>>()?;
        let (outside, guests, notes) = (BTreeMap::new(), BTreeMap::new(), Notes::default());
        Ok(Self { expected, listeners, outside, guests, notes })
    }

    /// Does what can be done now; `ready` is what the net said.
    pub(crate) fn attend(&mut self, net: &mut Net, ready: &[Token]) {
        // Not only when the net says so: a machine short of file descriptors may have some again.
        self.accept(net);
        for token in ready {
            if let Some(stranger) = self.outside.remove(token) {
                self.listen_to(*token, stranger);
            }
            self.let_go_of_the_dead(*token);
        }
        self.outside.retain(|_, stranger| {
            let keep = !stranger.patience.has_passed();
            if !keep {
                self.notes.add(stranger.from, "it sent no greeting");
            }
            keep
        });
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.expected.ranks.len() == self.guests.len()
    }

    /// The expected ranks that are not here.
    pub(crate) fn missing(&self) -> Vec<u64> {
        self.expected.ranks.iter().copied().filter(|rank| !self.guests.contains_key(rank)).collect()
    }

    /// Closes the door.
    pub(crate) fn into_guests(self) -> BTreeMap<u64, Guest> {
        self.guests
    }

    /// Closes the door, and tells what happened outside.
    pub(crate) fn into_guests_and_notes(mut self) -> (BTreeMap<u64, Guest>, Vec<String>) {
        for stranger in self.outside.values() {
            self.notes.add(stranger.from, "it sent no greeting");
        }
        (self.guests, self.notes.lines())
    }

    fn accept(&mut self, net: &mut Net) {
        for listener in self.listeners.values() {
            loop {
                match listener.accept() {
                    Ok((mut stream, from)) => {
                        let Ok(token) = net.add(&mut stream) else { continue };
                        let (connection, patience) = (Connection::new(stream), Deadline::after(COURTESY));
                        self.outside.insert(token, Stranger { connection, from, patience });
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        self.notes.add_line(format!("a connection could not be accepted: {error}"));
                        break;
                    }
                }
            }
            // Tokens count up: the first is the oldest.
            while self.outside.len() > CROWD {
                let Some((_, oldest)) = self.outside.pop_first() else { break };
                self.notes.add(oldest.from, "it sent no greeting before many others came");
            }
        }
    }

    fn listen_to(&mut self, token: Token, mut stranger: Stranger) {
        match stranger.connection.read(GREETING).map(|read| read.and_then(<[u8]>::first_chunk).copied()) {
            Ok(None) => drop(self.outside.insert(token, stranger)),
            Ok(Some(bytes)) => self.judge(token, stranger, &bytes),
            Err(error) => self.notes.add(stranger.from, format!("it sent no whole greeting: {error}")),
        }
    }

    fn judge(&mut self, token: Token, stranger: Stranger, bytes: &[u8; GREETING]) {
        let Stranger { mut connection, from, .. } = stranger;
        let key = self.expected.token;
        let greeting = Greeting::parse(bytes, key);
        match greeting.clone().and_then(|greeting| self.check(&greeting)) {
            Ok(greeting) => {
                connection.taken();
                if connection.send(&Reply::Welcome.to_bytes(key, &greeting.nonce)).is_ok() {
                    self.seat(Guest { connection, from, greeting, token });
                }
            }
            Err(refusal) => {
                self.notes.add(from, &refusal);
                // Whoever belongs to another job cannot read why, and learns that much from it.
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
    fn seat(&mut self, guest: Guest) {
        let (from, greeting) = (guest.from, guest.greeting);
        let Some(mut older) = self.guests.insert(greeting.rank, guest) else { return };
        if older.greeting.nonce != greeting.nonce {
            let both = format!("it and {} came as rank {}", older.from, greeting.rank);
            self.notes.add(from, both);
            let replaced = Reply::Refused(Refusal::Replaced);
            let _ = older.connection.send(&replaced.to_bytes(self.expected.token, &older.greeting.nonce));
        }
    }

    /// A guest whose connection has ended makes room for its next one.
    fn let_go_of_the_dead(&mut self, token: Token) {
        let seat = self.guests.iter_mut().find(|(_, guest)| guest.token == token);
        let Some((&rank, guest)) = seat else { return };
        let alive = guest.connection.is_alive() && guest.connection.flush().is_ok();
        if !alive {
            self.notes.add(guest.from, format!("it came as rank {rank} and went again"));
            self.guests.remove(&rank);
        }
    }
}

/// What happened outside, each thing once.
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
        if self.lines.len() < NOTES {
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
