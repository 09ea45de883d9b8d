//! What each rank is told when the ranks cannot meet: the first failure, from where that rank stands.
//!
//! Deliberately not here: how a failure is noticed, which is `meeting`'s business.

use std::fmt;
use std::sync::Arc;

use syncbn_core::{Call, CommError, CommErrorKind};

/// What a rank is doing in the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    AllReduce(Call),
    Split,
}

impl Step {
    pub(super) fn call(&self) -> Option<&Call> {
        match self {
            Self::AllReduce(call) => Some(call),
            Self::Split => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllReduce(call) => call.fmt(f),
            Self::Split => f.write_str("a split of the group"),
        }
    }
}

/// How a rank that is in `mine` is told that another is elsewhere.
pub(super) fn out_of_step(mine: &Step, (other_rank, theirs): &(usize, Step)) -> CommErrorKind {
    match (mine, theirs) {
        (Step::AllReduce(_), Step::AllReduce(other)) => {
            CommErrorKind::OutOfStep { other_rank: *other_rank, other: Box::new(other.clone()) }
        }
        _ => CommErrorKind::Disagree(format!("rank {other_rank} is in {theirs}, this rank in {mine}")),
    }
}

/// The first failure of a group, which it never recovers from.
pub(super) struct Failure {
    /// As the rank that noticed it reports it.
    origin: Arc<CommError>,
    /// Two ranks that are in different steps, if that is the failure. A third differs from one of them at least.
    apart: Option<[(usize, Step); 2]>,
    /// Which ranks' calls have failed with it.
    told: Vec<bool>,
}

impl Failure {
    pub(super) fn new(origin: CommError) -> Self {
        let told = vec![false; origin.world_size];
        Self { origin: Arc::new(origin), apart: None, told }
    }

    pub(super) fn apart(origin: CommError, apart: [(usize, Step); 2]) -> Self {
        Self { apart: Some(apart), ..Self::new(origin) }
    }

    /// The error of a rank's call: the failure itself the first time, if it concerns the rank, and later that there was one.
    pub(super) fn tell(&mut self, rank: usize, step: &Step) -> CommError {
        let kind = self.kind(rank, Some(step));
        self.told[rank] = true;
        CommError { rank, call: step.call().cloned(), kind, ..CommError::clone(&self.origin) }
    }

    /// What a rank that asks finds.
    pub(super) fn status(&self, rank: usize) -> CommError {
        CommError { rank, call: None, kind: self.kind(rank, None), ..CommError::clone(&self.origin) }
    }

    fn kind(&self, rank: usize, step: Option<&Step>) -> CommErrorKind {
        let news = if self.told[rank] { None } else { self.news(rank, step) };
        news.unwrap_or_else(|| CommErrorKind::Poisoned(Arc::clone(&self.origin)))
    }

    /// The failure from where this rank stands, unless it is the others' alone.
    fn news(&self, rank: usize, step: Option<&Step>) -> Option<CommErrorKind> {
        if let (Some(apart), Some(mine)) = (&self.apart, step) {
            return apart.iter().find(|(_, theirs)| theirs != mine).map(|other| out_of_step(mine, other));
        }
        let concerned = match &self.origin.kind {
            CommErrorKind::Left { .. } => true,
            CommErrorKind::Timeout { missing, .. } => !missing.contains(&rank),
            _ => rank == self.origin.rank,
        };
        concerned.then(|| self.origin.kind.clone())
    }
}
