//! The side that connects: tries every address of the host, all at once and again and again, until one of them accepts.
//!
//! Deliberately not here: who accepts, beyond that it belongs to the job.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::Token;
use mio::net::TcpStream;

use super::connection::{Connection, Net, PAUSE};
use super::token::JobToken;
use super::wire::{Greeting, HEAD, Refusal, Reply};
use crate::deadline::Deadline;

/// How long an address may take to accept, before it is tried again.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Connector<'a> {
    token: &'a JobToken,
    greeting: Greeting,
    /// The length of the answer; none where being accepted is all.
    answer: Option<usize>,
    addresses: Vec<Address>,
    attempts: BTreeMap<Token, Attempt>,
    accepted_by: Option<Token>,
}

struct Address {
    at: SocketAddr,
    /// Not before then.
    again: Deadline,
    /// What the last attempt said.
    reason: Option<String>,
}

struct Attempt {
    /// Its place among the addresses.
    address: usize,
    connection: Connection,
    greeted: bool,
    deadline: Deadline,
}

/// How far it has come.
pub(crate) enum Progress {
    Waiting,
    /// Accepted, and not answered yet.
    Welcome,
    /// The whole answer.
    Answered(Vec<u8>),
    /// By a process of this job, for good.
    Refused(Refusal),
}

impl<'a> Connector<'a> {
    pub(crate) fn new(token: &'a JobToken, greeting: Greeting, answer: Option<usize>) -> Self {
        let (addresses, attempts) = (Vec::new(), BTreeMap::new());
        Self { token, greeting, answer, addresses, attempts, accepted_by: None }
    }

    /// Tries these addresses, too.
    pub(crate) fn add_addresses(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        for at in addresses {
            if self.addresses.iter().all(|address| address.at != at) {
                self.addresses.push(Address { at, again: Deadline::after(Duration::ZERO), reason: None });
            }
        }
    }

    /// Does what can be done now; `ready` is what [`Net::wait`] returned.
    pub(crate) fn progress(&mut self, net: &mut Net, ready: &[Token]) -> Progress {
        for token in ready {
            let Some(attempt) = self.attempts.get_mut(token) else { continue };
            match attempt.progress(self.token, &self.greeting, self.answer) {
                Ok(Progress::Waiting) => {}
                Ok(Progress::Welcome) => self.keep_only(*token),
                Ok(end) => {
                    self.accepted_by = Some(*token);
                    return end;
                }
                Err(reason) => self.end(*token, reason),
            }
        }
        let slow = |(token, attempt): (&Token, &Attempt)| attempt.deadline.has_passed().then_some(*token);
        for token in self.attempts.iter().filter_map(slow).collect::<Vec<_>>() {
            self.end(token, "no reply".into());
        }
        if self.accepted_by.is_some() {
            return Progress::Welcome;
        }
        for address in 0..self.addresses.len() {
            self.connect_to(net, address);
        }
        Progress::Waiting
    }

    /// The connection that was accepted.
    pub(crate) fn into_connection(mut self) -> Option<Connection> {
        self.attempts.remove(&self.accepted_by?).map(|attempt| attempt.connection)
    }

    /// The address that accepted.
    pub(crate) fn reached(&self) -> Option<SocketAddr> {
        self.attempts.get(&self.accepted_by?).and_then(|attempt| attempt.connection.stream.peer_addr().ok())
    }

    fn connect_to(&mut self, net: &mut Net, place: usize) {
        let Some(address) = self.addresses.get_mut(place) else { return };
        let busy = self.attempts.values().any(|attempt| attempt.address == place);
        if busy || !address.again.has_passed() {
            return;
        }
        match connect(net, address.at) {
            Ok((token, connection)) => {
                let deadline = Deadline::after(REPLY_TIMEOUT);
                self.attempts.insert(token, Attempt { address: place, connection, greeted: false, deadline });
            }
            Err(error) => address.failed(error.to_string()),
        }
    }

    /// One address has accepted: the others are not needed.
    fn keep_only(&mut self, token: Token) {
        self.accepted_by = Some(token);
        self.attempts.retain(|other, _| *other == token);
        if let Some(attempt) = self.attempts.get_mut(&token) {
            attempt.deadline = Deadline::after(Duration::MAX);
        }
    }

    fn end(&mut self, token: Token, reason: String) {
        self.accepted_by = self.accepted_by.filter(|accepted_by| *accepted_by != token);
        let Some(attempt) = self.attempts.remove(&token) else { return };
        if let Some(address) = self.addresses.get_mut(attempt.address) {
            address.failed(reason);
        }
    }
}

impl Address {
    fn failed(&mut self, reason: String) {
        self.again = Deadline::after(PAUSE);
        self.reason = Some(reason);
    }
}

fn connect(net: &mut Net, at: SocketAddr) -> io::Result<(Token, Connection)> {
    let mut stream = TcpStream::connect(at)?;
    let token = net.add(&mut stream)?;
    Ok((token, Connection::new(stream)))
}

impl Attempt {
    fn progress(
        &mut self,
        token: &JobToken,
        greeting: &Greeting,
        answer: Option<usize>,
    ) -> Result<Progress, String> {
        let lost = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "the connection was closed without a reply".to_owned(),
            _ => error.to_string(),
        };
        if !self.greeted {
            if !self.connection.is_open().map_err(lost)? {
                return Ok(Progress::Waiting);
            }
            self.greeted = true;
            self.connection.send(&greeting.to_bytes(token)).map_err(lost)?;
        }
        self.connection.flush().map_err(lost)?;
        match self.reply(token, greeting, answer).map_err(lost)?.transpose() {
            Ok(None) => Ok(Progress::Waiting),
            Ok(Some(Reply::Welcome)) => {
                self.connection.taken();
                if answer.is_none() {
                    return Ok(Progress::Welcome);
                }
                // The answer may have come with it.
                match self.progress(token, greeting, answer)? {
                    Progress::Waiting => Ok(Progress::Welcome),
                    further => Ok(further),
                }
            }
            Ok(Some(Reply::Answer(bytes))) => Ok(Progress::Answered(bytes)),
            // Rank 0 may still be busy with another meeting of this job.
            Ok(Some(Reply::Refused(Refusal::OtherGroup))) => {
                Err(format!("refused this rank: {}", Refusal::OtherGroup))
            }
            Ok(Some(Reply::Refused(refusal))) => Ok(Progress::Refused(refusal)),
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    fn reply(
        &mut self,
        token: &JobToken,
        greeting: &Greeting,
        answer: Option<usize>,
    ) -> io::Result<Option<Result<Reply, Refusal>>> {
        let Some(head) = self.connection.read(HEAD)?.and_then(<[u8]>::first_chunk) else { return Ok(None) };
        let len = match Reply::len(head, answer.unwrap_or(0)) {
            Ok(len) => len,
            Err(refusal) => return Ok(Some(Err(refusal))),
        };
        let whole = self.connection.read(len)?;
        Ok(whole.map(|bytes| Reply::parse(bytes, token, &greeting.nonce)))
    }
}

/// Why no address has accepted yet.
impl fmt::Display for Connector<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = self.reached() {
            return write!(f, "{at} was reached, and other ranks did not come");
        }
        for (i, Address { at, reason, .. }) in self.addresses.iter().enumerate() {
            let reason = reason.as_deref().unwrap_or("no connection");
            write!(f, "{}{at}: {reason}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}
