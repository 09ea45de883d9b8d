//! Ranks as processes, on one host or many, over TCP.
//!
//! The processes meet at rank 0 ([`bootstrap`](crate::bootstrap)), and then every two of them have a connection of their own.
//! A sum is added in the order of the ranks, in `f64`, on every rank: the bits are those of [`threads`](crate::threads). Rank 0
//! is needed to meet, and then no more than any other.
//!
//! `frame` has the messages between ranks, `peer` one connection, `links` all of a rank's and the collectives over them, `mesh`
//! makes them. A rank that waits sleeps: the system wakes it when a peer has sent something.
//!
//! Deliberately not here: encryption. The job's token keeps other processes out of a group. Who can read or change packets on the
//! network can read or change the sums.

mod frame;
mod join;
mod links;
mod mesh;
mod peer;
mod split;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use mio::Waker;
use mio::net::TcpStream;
use syncbn_core::{CollectiveId, CommError, CommErrorKind, HostCommunicator, Membership};

use crate::bootstrap::{BootstrapError, JobToken, LaunchEnv};
use crate::failure::{Failure, Step};
use links::Links;

/// One rank's place in a group of processes.
///
/// It may be sent to, and shared by, any threads, as long as its collectives come one after the other; two at once are
/// an error ([`CommErrorKind::Disagree`]), since ranks could pair them differently.
///
/// Dropping it leaves the group: collectives that were complete stay valid, and a rank that needs it for another gets
/// [`CommErrorKind::Left`] at once. So does a rank that needs one whose process has ended.
pub struct TcpCommunicator {
    rank: usize,
    members: Members,
    links: Mutex<Links>,
    /// Whether one of this rank's threads is in a collective.
    busy: AtomicBool,
    outside: Outside,
    splits: Mutex<u64>,
    membership: Arc<Membership>,
}

/// The group's members, and the token that proves that a process is one.
struct Members {
    token: JobToken,
    group: [u8; 16],
    /// The ranks of the first group of all.
    first_size: u64,
    /// By rank.
    list: Vec<Member>,
}

#[derive(Clone)]
struct Member {
    /// Its rank in the first group of all.
    first_rank: u64,
    /// Where it was reached, if this rank dials it.
    host: Option<IpAddr>,
}

/// A failure that was found while another thread of this rank is in a collective.
struct Outside {
    found: Mutex<Option<Failure>>,
    waker: Waker,
}

impl TcpCommunicator {
    /// Joins all processes of the launcher, as [`LaunchEnv::from_env`] finds them.
    ///
    /// `timeout` is how long a rank waits for the others, here and in each collective: it has to cover the difference in the
    /// ranks' speed. [`Duration::MAX`] waits for ever.
    ///
    /// # Errors
    ///
    /// As [`LaunchEnv::from_env`] and [`new`](Self::new).
    pub fn from_env(timeout: Duration) -> Result<Self, BootstrapError> {
        Self::new(&LaunchEnv::from_env()?, timeout)
    }

    /// Joins the processes that were told of the same rendezvous. Every rank calls it.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::Missing`] on rank 0, with the ranks that did not come, and on those that did;
    /// [`NoAnswer`](BootstrapError::NoAnswer) where rank 0 was not reached; [`Listen`](BootstrapError::Listen), [`WorldSize`](BootstrapError::WorldSize)
    /// and others of the rendezvous.
    pub fn new(env: &LaunchEnv, timeout: Duration) -> Result<Self, BootstrapError> {
        check_port(env)?;
        join::join(env, timeout, |_| ())
    }

    /// As [`new`](Self::new), on rank 0 alone: with port 0 in its rendezvous it listens at one of the system's choice. It calls
    /// `announce` with the port once it listens there, for a launcher's own way of telling the others, who call `new`.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn host(
        env: &LaunchEnv,
        timeout: Duration,
        announce: impl FnOnce(u16),
    ) -> Result<Self, BootstrapError> {
        if env.rank > 0 {
            check_port(env)?;
        }
        join::join(env, timeout, announce)
    }

    /// The same rank with another time-out of its collectives: processes may start minutes apart, and train seconds apart.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        lock(&self.links).set_timeout(timeout);
        self
    }

    fn assemble(
        rank: usize,
        timeout: Duration,
        mut members: Members,
        mut streams: BTreeMap<u64, TcpStream>,
    ) -> io::Result<Self> {
        let own = members.list.get(rank).map_or(0, |member| member.first_rank);
        let mut by_rank = Vec::with_capacity(members.list.len());
        for member in &mut members.list {
            let stream = streams.remove(&member.first_rank);
            let peer = stream.as_ref().map(TcpStream::peer_addr).transpose()?;
            member.host = peer.filter(|_| member.first_rank < own).map(|address: SocketAddr| address.ip());
            by_rank.push(stream);
        }
        let (links, waker) = Links::new(rank, timeout, by_rank)?;
        let outside = Outside { found: Mutex::new(None), waker };
        let (links, busy, splits) = (Mutex::new(links), AtomicBool::new(false), Mutex::new(0));
        Ok(Self { rank, members, links, busy, outside, splits, membership: Arc::default() })
    }

    /// Begins a collective of this rank.
    fn enter(&self, step: &Step) -> Result<Entered<'_>, CommError> {
        if self.busy.swap(true, Ordering::AcqRel) {
            let twice = "this rank is in another collective already, on another of its threads".to_owned();
            let mut failure = Failure::new(self.error(step.call(), CommErrorKind::Disagree(twice)));
            let told = failure.tell(self.rank, step);
            self.found(failure);
            return Err(told);
        }
        Ok(Entered { communicator: self, links: Some(lock(&self.links)) })
    }

    /// Poisons the group, now or as soon as this rank's other thread notices.
    fn found(&self, failure: Failure) {
        lock(&self.outside.found).get_or_insert(failure);
        self.catch_up();
        // If this fails, the other thread finds the failure when it next wakes, at its deadline at the latest.
        let _ = self.outside.waker.wake();
    }

    /// Tells the peers what was found while a thread of this rank held the links. Whoever lets go of them calls it: one that finds them
    /// held leaves it to the holder.
    fn catch_up(&self) {
        while lock(&self.outside.found).is_some() {
            let Some(mut links) = self.try_links() else { return };
            self.settle(&mut links);
        }
    }

    fn settle(&self, links: &mut Links) {
        if let Some(failure) = self.outside.take() {
            links.poison(failure);
        }
    }

    fn try_links(&self) -> Option<MutexGuard<'_, Links>> {
        match self.links.try_lock() {
            Ok(links) => Some(links),
            Err(TryLockError::Poisoned(links)) => Some(links.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn error(&self, call: Option<&CollectiveId>, kind: CommErrorKind) -> CommError {
        CommError {
            rank: self.rank,
            world_size: self.members.list.len(),
            call: call.cloned(),
            late: false,
            kind,
        }
    }
}

impl HostCommunicator for TcpCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.members.list.len()).unwrap_or(NonZeroUsize::MIN)
    }

    fn all_reduce_sum(&self, id: &CollectiveId, values: &mut [f64]) -> Result<(), CommError> {
        let step = Step::AllReduce(id.clone());
        let mut entered = self.enter(&step)?;
        let links = entered.links()?;
        if id.length != values.len() {
            let kind = CommErrorKind::MessageLength { expected: id.length, got: values.len() };
            return Err(links.fail(&step, kind));
        }
        let numbers = values.iter().map(|value| value.to_le_bytes());
        let gathered = links.gather(&step, numbers, || self.outside.take())?;
        for (rank, numbers) in gathered.by_rank().enumerate() {
            for (value, number) in values.iter_mut().zip(numbers) {
                let number = f64::from_le_bytes(*number);
                *value = if rank == 0 { number } else { *value + number };
            }
        }
        Ok(())
    }

    fn poison(&self, cause: &CommError) {
        self.found(Failure::new(CommError {
            rank: self.rank,
            world_size: self.members.list.len(),
            ..cause.clone()
        }));
    }

    fn status(&self) -> Result<(), CommError> {
        let Some(mut links) = self.try_links() else {
            // Another thread of this rank is in a collective, and checks itself.
            return lock(&self.outside.found)
                .as_ref()
                .map_or(Ok(()), |failure| Err(failure.status(self.rank)));
        };
        self.settle(&mut links);
        let status = links.check();
        drop(links);
        self.catch_up();
        status
    }

    fn membership(&self) -> Option<Arc<Membership>> {
        Some(Arc::clone(&self.membership))
    }
}

impl Drop for TcpCommunicator {
    fn drop(&mut self) {
        lock(&self.links).leave(thread::panicking());
    }
}

impl fmt::Debug for TcpCommunicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpCommunicator(rank {} of {})", self.rank, self.world_size())
    }
}

/// A collective of this rank.
struct Entered<'a> {
    communicator: &'a TcpCommunicator,
    links: Option<MutexGuard<'a, Links>>,
}

impl Entered<'_> {
    fn links(&mut self) -> Result<&mut Links, CommError> {
        let gone = || CommErrorKind::Disagree("the collective has ended".into());
        let links = self.links.as_deref_mut().ok_or_else(|| self.communicator.error(None, gone()))?;
        self.communicator.settle(links);
        Ok(links)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.links = None;
        self.communicator.busy.store(false, Ordering::Release);
        self.communicator.catch_up();
    }
}

impl Outside {
    fn take(&self) -> Option<Failure> {
        lock(&self.found).take()
    }
}

fn check_port(env: &LaunchEnv) -> Result<(), BootstrapError> {
    let is_nowhere = env.rendezvous.port == 0 && env.world_size.get() > 1;
    if is_nowhere { Err(BootstrapError::NoPort) } else { Ok(()) }
}

/// No code of a caller runs under a lock: a panic cannot leave half a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For tests that try the frames' parser with bytes of their own: the bytes of the frame that these begin with, written again.
#[doc(hidden)]
#[must_use]
pub fn reparse(bytes: &[u8]) -> Option<Vec<u8>> {
    let (frame, _) = frame::Frame::parse(bytes).ok()??;
    let mut again = Vec::new();
    frame.write(&mut again).ok()?;
    Some(again)
}

/// A transport's failure.
fn transport(error: impl std::error::Error + Send + Sync + 'static) -> CommErrorKind {
    CommErrorKind::Transport(Arc::new(error))
}
