//! Rank 0's bytes, to every rank, over TCP.
//!
//! Every rank sends a greeting; once all have come, rank 0 answers each with the bytes. A rank that gets them knows that all
//! ranks have come.
//!
//! Deliberately not here: encryption. The sums that follow are not encrypted either.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use super::accept::{Accepted, Acceptor, Expected};
use super::connect::{Connector, Progress};
use super::connection::{Net, listen, listen_somewhere};
use super::resolve::Resolver;
use super::wire::{Greeting, Purpose, Refusal, Reply};
use super::{BootstrapError, LaunchEnv};
use crate::deadline::Deadline;

/// How long rank 0 takes to tell the ranks that did come which ones did not.
const LAST_REPLY: Duration = Duration::from_millis(400);

/// Gives rank 0's bytes to all ranks, and returns them. Every rank calls it; `bytes` are asked for on rank 0 alone.
///
/// It returns once all ranks have come, or after `timeout`, with the ranks that have not where that is known. The time-out
/// covers everything, the resolution of rank 0's name as well.
///
/// # Errors
///
/// [`BootstrapError`], which names the ranks that did not come; on rank 0 what `bytes` returns, which the others are not told: they get
/// [`BootstrapError::NoAnswer`].
pub fn share<const N: usize, E: From<BootstrapError>>(
    env: &LaunchEnv,
    timeout: Duration,
    bytes: impl FnOnce() -> Result<[u8; N], E>,
) -> Result<[u8; N], E> {
    let meeting = Meeting::new(env, timeout, Purpose::Share)?;
    if env.rank != 0 {
        let (answer, _) = meeting.visit(0, N)?;
        let bytes = answer.first_chunk().copied();
        return bytes.ok_or_else(|| meeting.no_answer("an answer of another length".into()).into());
    }
    let bytes = bytes()?;
    meeting.host(|_| (), |_| bytes.to_vec())?;
    Ok(bytes)
}

/// All ranks of a launcher, once.
pub(crate) struct Meeting<'a> {
    env: &'a LaunchEnv,
    timeout: Duration,
    pub(crate) deadline: Deadline,
    purpose: Purpose,
    /// This process, told apart from every other.
    nonce: [u8; 16],
}

impl<'a> Meeting<'a> {
    pub(crate) fn new(
        env: &'a LaunchEnv,
        timeout: Duration,
        purpose: Purpose,
    ) -> Result<Self, BootstrapError> {
        env.check()?;
        let nonce = random().map_err(system)?;
        Ok(Self { env, timeout, deadline: Deadline::after(timeout), purpose, nonce })
    }

    /// Rank 0's side: waits for all others, and answers each with what `answer` makes of them. The port that it listens at is
    /// announced once it does; the rendezvous' own may be 0, for one of the system's choice.
    pub(crate) fn host(
        &self,
        announce: impl FnOnce(u16),
        answer: impl FnOnce(&BTreeMap<u64, Accepted>) -> Vec<u8>,
    ) -> Result<Vec<u8>, BootstrapError> {
        if self.env.world_size.get() == 1 {
            return Ok(answer(&BTreeMap::new()));
        }
        let port = self.env.rendezvous.port;
        let cannot = |source: io::Error| match source.kind() {
            ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable | ErrorKind::PermissionDenied => {
                BootstrapError::Listen { port, source }
            }
            _ => system(source),
        };
        let mut net = Net::new().map_err(system)?;
        let (listeners, port) = match port {
            0 => listen_somewhere(),
            _ => listen(port).map(|listeners| (listeners, port)),
        }
        .map_err(cannot)?;
        let mut acceptor = Acceptor::new(&mut net, listeners, self.expected()).map_err(cannot)?;
        announce(port);
        while !acceptor.is_complete() {
            if self.deadline.has_passed() {
                return Err(self.some_are_missing(&mut net, acceptor));
            }
            let ready = net.wait(self.deadline).map_err(system)?;
            acceptor.progress(&mut net, &ready);
        }
        let accepted = acceptor.into_accepted();
        let bytes = answer(&accepted);
        self.tell(&mut net, accepted, &Reply::Answer(bytes.clone()), self.deadline)?;
        Ok(bytes)
    }

    /// The other ranks' side: rank 0's answer of `len` bytes, and where rank 0 was reached.
    pub(crate) fn visit(&self, card: u64, len: usize) -> Result<(Vec<u8>, SocketAddr), BootstrapError> {
        let mut net = Net::new().map_err(system)?;
        let mut resolver = Resolver::new(&self.env.rendezvous);
        let mut connector = Connector::new(&self.env.token, self.greeting(card), Some(len));
        let mut ready = Vec::new();
        let mut reached = None;
        let last_reply = Deadline::after(self.timeout.saturating_add(LAST_REPLY));
        loop {
            if reached.is_none() {
                connector.add_addresses(resolver.attend());
            }
            match connector.progress(&mut net, &ready) {
                Progress::Waiting => reached = None,
                Progress::Welcome => reached = connector.reached(),
                Progress::Answered(answer) => match connector.reached() {
                    Some(at) => return Ok((answer, at)),
                    None => return Err(self.no_answer("the connection was lost".into())),
                },
                Progress::Refused(refusal) => return Err(self.refused(refusal)),
            }
            // Rank 0 has the same deadline, and knows who is missing.
            let deadline = if reached.is_some() { last_reply } else { self.deadline };
            if deadline.has_passed() {
                let reason = resolver.failure.unwrap_or_else(|| connector.to_string());
                return Err(self.no_answer(reason));
            }
            ready = net.wait(deadline).map_err(system)?;
        }
    }

    /// Sends every rank a reply. A rank that leaves now is found missing by the first sum, and delays no other here.
    fn tell(
        &self,
        net: &mut Net,
        mut accepted: BTreeMap<u64, Accepted>,
        reply: &Reply,
        deadline: Deadline,
    ) -> Result<(), BootstrapError> {
        let token = &self.env.token;
        accepted.retain(|_, rank| {
            let bytes = reply.to_bytes(token, &rank.greeting.nonce);
            matches!(rank.connection.send(&bytes), Ok(false))
        });
        while !accepted.is_empty() && !deadline.has_passed() {
            net.wait(deadline).map_err(system)?;
            accepted.retain(|_, rank| matches!(rank.connection.flush(), Ok(false)));
        }
        Ok(())
    }

    fn some_are_missing(&self, net: &mut Net, acceptor: Acceptor<'_>) -> BootstrapError {
        let missing = acceptor.missing();
        let (accepted, rejected) = acceptor.into_accepted_and_notes();
        let refusal = Reply::Refused(Refusal::Missing(missing.clone()));
        if let Err(error) = self.tell(net, accepted, &refusal, Deadline::after(LAST_REPLY)) {
            return error;
        }
        self.missing(missing, rejected)
    }

    fn missing(&self, missing: Vec<u64>, rejected: Vec<String>) -> BootstrapError {
        BootstrapError::Missing {
            missing: missing.into_iter().map(|rank| rank as usize).collect(),
            world_size: self.env.world_size.get(),
            timeout: self.timeout,
            rejected,
        }
    }

    fn refused(&self, refusal: Refusal) -> BootstrapError {
        let (rank, world_size) = (self.env.rank, self.env.world_size.get());
        match refusal {
            Refusal::Missing(missing) => self.missing(missing, Vec::new()),
            Refusal::WorldSize { expected, .. } => {
                BootstrapError::WorldSize { rank, got: world_size, expected: expected as usize }
            }
            Refusal::Replaced => BootstrapError::TwoOfOneRank { rank, world_size },
            other => self.no_answer(other.to_string()),
        }
    }

    fn no_answer(&self, reason: String) -> BootstrapError {
        BootstrapError::NoAnswer {
            rank: self.env.rank,
            world_size: self.env.world_size.get(),
            rendezvous: self.env.rendezvous.clone(),
            timeout: self.timeout,
            reason,
        }
    }

    fn expected(&self) -> Expected<'a> {
        let world_size = self.env.world_size.get() as u64;
        let (token, purpose) = (&self.env.token, self.purpose);
        Expected { token, purpose, group: [0; 16], world_size, host: 0, ranks: (1..world_size).collect() }
    }

    fn greeting(&self, card: u64) -> Greeting {
        let (world_size, rank) = (self.env.world_size.get() as u64, self.env.rank as u64);
        Greeting { purpose: self.purpose, group: [0; 16], world_size, rank, host: 0, card, nonce: self.nonce }
    }
}

/// A random number, unique in practice.
pub(crate) fn random() -> std::io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes)
}

pub(crate) fn system(source: std::io::Error) -> BootstrapError {
    BootstrapError::System { source }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::num::NonZeroUsize;
    use std::thread;

    use super::super::{JobToken, Rendezvous};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn env(rank: usize, world_size: usize, port: u16) -> LaunchEnv {
        let (host, world_size) = ("127.0.0.1".into(), NonZeroUsize::new(world_size).unwrap());
        let (rendezvous, token) = (Rendezvous { host, port }, JobToken::of_secret("ours"));
        LaunchEnv { rank, world_size, local_rank: 0, rendezvous, token }
    }

    fn somewhere() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    fn share_with(env: &LaunchEnv) -> [u8; 4] {
        share::<4, BootstrapError>(env, PATIENCE, || Ok(*b"here")).unwrap()
    }

    #[test]
    fn an_address_that_is_silent_or_closed_does_not_keep_the_others_from_being_tried() {
        let ((silent, silent_port), closed_port) = (somewhere(), somewhere().1);
        let port = somewhere().1;
        let (zero, one) = (env(0, 2, port), env(1, 2, port));
        thread::scope(|scope| {
            scope.spawn(|| share_with(&zero));
            let meeting = Meeting::new(&one, PATIENCE, Purpose::Share).unwrap();
            let mut net = Net::new().unwrap();
            let mut connector = Connector::new(&one.token, meeting.greeting(0), Some(4));
            let addresses =
                [silent_port, closed_port, port].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
            connector.add_addresses(addresses);
            let mut ready = Vec::new();
            let answer = loop {
                match connector.progress(&mut net, &ready) {
                    Progress::Answered(answer) => break answer,
                    Progress::Refused(refusal) => panic!("{refusal}"),
                    Progress::Waiting | Progress::Welcome => ready = net.wait(meeting.deadline).unwrap(),
                }
            };
            assert_eq!((answer.as_slice(), connector.reached()), (b"here".as_slice(), Some(addresses[2])));
        });
        drop(silent);
    }

    #[test]
    fn a_newer_connection_of_a_rank_replaces_one_that_nobody_listens_to_any_more() {
        let port = somewhere().1;
        let [zero, one, two] = [0, 1, 2].map(|rank| env(rank, 3, port));
        thread::scope(|scope| {
            let host = scope.spawn(|| share_with(&zero));
            let mut abandoned = loop {
                match TcpStream::connect(("127.0.0.1", port)) {
                    Ok(stream) => break stream,
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            };
            let meeting = Meeting::new(&one, PATIENCE, Purpose::Share).unwrap();
            abandoned.write_all(&meeting.greeting(0).to_bytes(&one.token)).unwrap();
            thread::sleep(Duration::from_millis(100));
            let again = scope.spawn(|| share_with(&one));
            thread::sleep(Duration::from_millis(100));
            let last = scope.spawn(|| share_with(&two));
            for rank in [host, again, last] {
                assert_eq!(&rank.join().unwrap(), b"here");
            }
        });
    }
}
