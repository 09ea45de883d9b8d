//! The side that comes: every address of the host is tried, side by side and again and again, until one of them lets in.
//!
//! Deliberately not here: who is behind the door, beyond that it belongs to the job.

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

/// How long an address may take to let in, before it is tried again.
const COURTESY: Duration = Duration::from_secs(5);

pub(crate) struct Knock<'a> {
    token: &'a JobToken,
    greeting: Greeting,
    /// The length of the answer; none where being let in is all.
    answer: Option<usize>,
    addresses: Vec<Address>,
    attempts: BTreeMap<Token, Attempt>,
    let_in: Option<Token>,
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
    patience: Deadline,
}

/// How far it has come.
pub(crate) enum Progress {
    Waiting,
    /// Let in, and not answered yet.
    Welcome,
    /// The whole answer.
    Answered(Vec<u8>),
    /// By whom it was looked for, and for good.
    Refused(Refusal),
}

impl<'a> Knock<'a> {
    pub(crate) fn new(token: &'a JobToken, greeting: Greeting, answer: Option<usize>) -> Self {
        let (addresses, attempts) = (Vec::new(), BTreeMap::new());
        Self { token, greeting, answer, addresses, attempts, let_in: None }
    }

    /// Tries these addresses, too.
    pub(crate) fn also_at(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        for at in addresses {
            if self.addresses.iter().all(|address| address.at != at) {
                self.addresses.push(Address { at, again: Deadline::after(Duration::ZERO), reason: None });
            }
        }
    }

    /// Does what can be done now; `ready` is what the net said.
    pub(crate) fn attend(&mut self, net: &mut Net, ready: &[Token]) -> Progress {
        for token in ready {
            let Some(attempt) = self.attempts.get_mut(token) else { continue };
            match attempt.listen(self.token, &self.greeting, self.answer) {
                Ok(Progress::Waiting) => {}
                Ok(Progress::Welcome) => self.enter(*token),
                Ok(end) => {
                    self.let_in = Some(*token);
                    return end;
                }
                Err(reason) => self.give_up(*token, reason),
            }
        }
        let slow = |(token, attempt): (&Token, &Attempt)| attempt.patience.has_passed().then_some(*token);
        for token in self.attempts.iter().filter_map(slow).collect::<Vec<_>>() {
            self.give_up(token, "no reply".into());
        }
        if self.let_in.is_some() {
            return Progress::Welcome;
        }
        for address in 0..self.addresses.len() {
            self.call(net, address);
        }
        Progress::Waiting
    }

    /// The connection that was let in.
    pub(crate) fn into_connection(mut self) -> Option<Connection> {
        self.attempts.remove(&self.let_in?).map(|attempt| attempt.connection)
    }

    /// The address that let in.
    pub(crate) fn reached(&self) -> Option<SocketAddr> {
        self.attempts.get(&self.let_in?).and_then(|attempt| attempt.connection.stream.peer_addr().ok())
    }

    fn call(&mut self, net: &mut Net, place: usize) {
        let Some(address) = self.addresses.get_mut(place) else { return };
        let busy = self.attempts.values().any(|attempt| attempt.address == place);
        if busy || !address.again.has_passed() {
            return;
        }
        match connect(net, address.at) {
            Ok((token, connection)) => {
                let patience = Deadline::after(COURTESY);
                self.attempts.insert(token, Attempt { address: place, connection, greeted: false, patience });
            }
            Err(error) => address.failed(error.to_string()),
        }
    }

    /// One address has let in: the others are not needed.
    fn enter(&mut self, token: Token) {
        self.let_in = Some(token);
        self.attempts.retain(|other, _| *other == token);
        if let Some(attempt) = self.attempts.get_mut(&token) {
            attempt.patience = Deadline::after(Duration::MAX);
        }
    }

    fn give_up(&mut self, token: Token, reason: String) {
        self.let_in = self.let_in.filter(|let_in| *let_in != token);
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
    fn listen(
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
                match self.listen(token, greeting, answer)? {
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

/// Why nobody has let in yet.
impl fmt::Display for Knock<'_> {
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
