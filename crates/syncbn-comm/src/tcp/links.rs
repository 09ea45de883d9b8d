//! A rank's connections to all its peers, and the collectives over them.
//!
//! In a collective every rank sends its numbers to every other, and each adds them in the order of the ranks: no rank depends on
//! another's sum, rank 0 included. One thread serves all connections, and sleeps until one of them is ready.
//!
//! The first failure is sent to every peer before this rank does anything else.
//!
//! Deliberately not here: how the connections came about.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token, Waker};
use syncbn_core::{CommError, CommErrorKind};

use super::frame::{Frame, Poison};
use super::peer::{Ending, Peer};
use crate::deadline::Deadline;
use crate::failure::{Failure, Places, Step, out_of_step};

pub(super) struct Links {
    rank: usize,
    world_size: NonZeroUsize,
    timeout: Duration,
    poll: Poll,
    events: Events,
    /// By rank; None at this rank's own place.
    peers: Vec<Option<Peer>>,
    /// The frame and the numbers that this rank sends in the present collective.
    message: Vec<u8>,
    failure: Option<Failure>,
    /// How many collectives were completed.
    completed: u64,
}

/// The token with which another thread of this rank wakes it.
const WAKER: Token = Token(usize::MAX);

/// The bytes of every rank, by rank.
pub(super) struct Gathered<'a> {
    links: &'a mut Links,
    size: usize,
}

impl Links {
    pub(super) fn new(
        rank: usize,
        timeout: Duration,
        mut streams: Vec<Option<mio::net::TcpStream>>,
    ) -> std::io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        for (peer, stream) in streams.iter_mut().enumerate() {
            let Some(stream) = stream else { continue };
            stream.set_nodelay(true)?;
            poll.registry().register(stream, Token(peer), Interest::READABLE | Interest::WRITABLE)?;
        }
        let world_size = NonZeroUsize::new(streams.len()).unwrap_or(NonZeroUsize::MIN);
        let peers = streams.into_iter().map(|stream| stream.map(Peer::new)).collect();
        let (events, message) = (Events::with_capacity(world_size.get().min(1024)), Vec::new());
        Ok((
            Self { rank, world_size, timeout, poll, events, peers, message, failure: None, completed: 0 },
            waker,
        ))
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Gathers the numbers of all ranks, the same count of each. `outside` returns a failure that another thread of this rank
    /// has found.
    pub(super) fn gather(
        &mut self,
        step: &Step,
        numbers: impl Iterator<Item = [u8; 8]>,
        outside: impl Fn() -> Option<Failure>,
    ) -> Result<Gathered<'_>, CommError> {
        if let Some(failure) = &mut self.failure {
            return Err(failure.tell(self.rank, step));
        }
        self.message.clear();
        if let Err(error) = Frame::Step(step.clone()).write(&mut self.message) {
            return Err(self.fail(step, CommErrorKind::Transport(Arc::new(error))));
        }
        let head = self.message.len();
        self.message.extend(numbers.flatten());
        let size = self.message.len() - head;
        match self.exchange(step, size, outside) {
            Ok(()) => Ok(Gathered { links: self, size }),
            Err(failure) => Err(self.fail_with(step, failure)),
        }
    }

    fn exchange(
        &mut self,
        step: &Step,
        size: usize,
        outside: impl Fn() -> Option<Failure>,
    ) -> Result<(), Failure> {
        let deadline = Deadline::after(self.timeout);
        let mut ready: Vec<usize> = (0..self.peers.len()).collect();
        loop {
            for peer in &ready {
                self.progress(*peer, step, size)?;
            }
            let missing = self.missing();
            if missing.is_empty() {
                self.completed += 1;
                return Ok(());
            }
            if let Some(failure) = outside() {
                return Err(failure);
            }
            if deadline.has_passed() {
                let kind = CommErrorKind::Timeout { missing, timeout: self.timeout };
                return Err(self.found(Some(step), kind));
            }
            match self.poll.poll(&mut self.events, Some(deadline.left())) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                    return Err(self.found(Some(step), CommErrorKind::Transport(Arc::new(error))));
                }
                _ => {}
            }
            ready.clear();
            ready.extend(self.events.iter().map(|event| event.token().0).filter(|peer| *peer != WAKER.0));
        }
    }

    /// Does what can be done with one peer now.
    fn progress(&mut self, rank: usize, step: &Step, size: usize) -> Result<(), Failure> {
        let Some(Some(peer)) = self.peers.get_mut(rank) else { return Ok(()) };
        peer.push(&self.message);
        let received = peer.read_step();
        if peer.step.as_ref().is_some_and(|theirs| theirs != step) {
            return Err(self.apart(step));
        }
        peer.receive(size);
        let received = received.and_then(|()| peer.read_failure(size, self.completed));
        let left = if peer.has_arrived() { None } else { peer.gone };
        match (received, left) {
            (Err(ending), _) => Err(self.ended(rank, Some(step), ending)),
            (Ok(()), Some(panicked)) => Err(self.found(Some(step), CommErrorKind::Left { rank, panicked })),
            (Ok(()), None) => Ok(()),
        }
    }

    /// The ranks whose numbers have not come, or to which this rank's could not be sent.
    fn missing(&self) -> Vec<usize> {
        let is_missing = |peer: &Peer| !peer.has_arrived() || !peer.is_sent(&self.message);
        let peers = self.peers.iter().enumerate();
        peers.filter(|(_, peer)| peer.as_ref().is_some_and(is_missing)).map(|(rank, _)| rank).collect()
    }

    /// Ranks are in different collectives: reads which one each is in.
    fn apart(&mut self, step: &Step) -> Failure {
        let mut places = Places::new();
        for (rank, peer) in self.peers.iter_mut().enumerate() {
            let Some(peer) = peer else {
                places.push((rank, step.clone()));
                continue;
            };
            // Any other frame is of no use any more.
            let _ = peer.read_step();
            places.extend(peer.step.clone().map(|theirs| (rank, theirs)));
        }
        let elsewhere = |(rank, theirs): &&(usize, Step)| *rank != self.rank && theirs != step;
        let others: Vec<_> = places.iter().filter(elsewhere).collect();
        let origin = self.error(Some(step), out_of_step(Some(step), &others));
        Failure::apart(origin, places)
    }

    fn ended(&self, rank: usize, step: Option<&Step>, ending: Ending) -> Failure {
        match ending {
            Ending::Poison(Poison { mut origin, apart, .. }) => {
                let world_size = self.world_size.get();
                origin.world_size = world_size;
                if origin.rank >= world_size {
                    origin.rank = rank;
                }
                let reporter = origin.rank;
                if let (CommErrorKind::OutOfStep { others }, Some(places)) = (&mut origin.kind, &apart) {
                    let elsewhere = |(rank, step): &&(usize, Step)| {
                        *rank != reporter && step.call() != origin.call.as_ref()
                    };
                    let id = |(rank, step): &(usize, Step)| Some((*rank, step.call()?.clone()));
                    *others = places.iter().filter(elsewhere).filter_map(id).collect();
                }
                Failure::told(origin, apart)
            }
            Ending::Invalid(error) => {
                let text = format!("rank {rank} sent bytes that are no message: {error}");
                self.found(step, CommErrorKind::Transport(Arc::new(std::io::Error::other(text))))
            }
        }
    }

    /// Checks whether the group still works, without waiting.
    pub(super) fn check(&mut self) -> Result<(), CommError> {
        for rank in 0..self.peers.len() {
            if self.failure.is_some() {
                break;
            }
            let Some(Some(peer)) = self.peers.get_mut(rank) else { continue };
            let failure = match (peer.read_step(), peer.gone) {
                (Err(ending), _) => self.ended(rank, None, ending),
                (Ok(()), Some(panicked)) => self.found(None, CommErrorKind::Left { rank, panicked }),
                (Ok(()), None) => continue,
            };
            self.poison(failure);
        }
        self.failure.as_ref().map_or(Ok(()), |failure| Err(failure.status(self.rank)))
    }

    /// Sends the failure to every peer, if it is the first that this rank knows of.
    pub(super) fn poison(&mut self, failure: Failure) {
        if self.failure.is_some() {
            return;
        }
        let (origin, apart) = failure.report();
        self.failure = Some(failure);
        let mut bytes = Vec::new();
        let frame = Frame::Poison(Poison { completed: self.completed, origin, apart });
        if frame.write(&mut bytes).is_err() {
            bytes.clear();
        }
        self.send_last(&bytes);
    }

    pub(super) fn leave(&mut self, panicked: bool) {
        let mut bytes = Vec::new();
        let written = (Frame::Leave { panicked }).write(&mut bytes);
        if self.failure.is_none() && written.is_ok() {
            self.send_last(&bytes);
        }
    }

    /// A failure of this rank's own call.
    pub(super) fn fail(&mut self, step: &Step, kind: CommErrorKind) -> CommError {
        let failure = self.found(Some(step), kind);
        self.fail_with(step, failure)
    }

    fn fail_with(&mut self, step: &Step, failure: Failure) -> CommError {
        self.poison(failure);
        let told = self.failure.as_mut().map(|failure| failure.tell(self.rank, step));
        told.unwrap_or_else(|| self.error(Some(step), CommErrorKind::Disagree("the group has failed".into())))
    }

    fn send_last(&mut self, frame: &[u8]) {
        for peer in self.peers.iter_mut().flatten() {
            peer.send_last(&self.message, frame, self.timeout);
        }
    }

    fn found(&self, step: Option<&Step>, kind: CommErrorKind) -> Failure {
        Failure::new(self.error(step, kind))
    }

    fn error(&self, step: Option<&Step>, kind: CommErrorKind) -> CommError {
        let call = step.and_then(Step::call).cloned();
        CommError { rank: self.rank, world_size: self.world_size.get(), call, late: false, kind }
    }
}

impl Gathered<'_> {
    /// The numbers of each rank, in the order of the ranks.
    pub(super) fn by_rank(&self) -> impl Iterator<Item = &[[u8; 8]]> {
        let own = &self.links.message[self.links.message.len() - self.size..];
        let peers = self.links.peers.iter();
        peers.map(move |peer| peer.as_ref().map_or(own, |peer| peer.numbers(self.size)).as_chunks().0)
    }
}

impl Drop for Gathered<'_> {
    fn drop(&mut self) {
        self.links.message.clear();
        for peer in self.links.peers.iter_mut().flatten() {
            peer.next(self.size);
        }
    }
}
