//! The error that each rank gets when a collective fails: the first failure, as it concerns that rank.
//!
//! Deliberately not here: how a failure is noticed, which is each communicator's business.

use std::fmt;
use std::sync::Arc;

use syncbn_core::{CollectiveId, CommError, CommErrorKind};

/// What a rank is doing in the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    AllReduce(CollectiveId),
    Split,
}

impl Step {
    pub(crate) fn call(&self) -> Option<&CollectiveId> {
        match self {
            Self::AllReduce(id) => Some(id),
            Self::Split => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllReduce(id) => id.fmt(f),
            Self::Split => f.write_str("a split of the group"),
        }
    }
}

/// Which step each rank was in when they were found out of step.
pub(crate) type Places = Vec<(usize, Step)>;

/// The error of a rank whose peers are in other steps: sums, or a split.
pub(crate) fn out_of_step(mine: Option<&Step>, others: &[&(usize, Step)]) -> CommErrorKind {
    let sums = others.iter().map(|(rank, step)| Some((*rank, step.call()?.clone())));
    match (mine, sums.collect::<Option<_>>()) {
        (Some(Step::Split), _) | (_, None) => {
            let theirs: Vec<_> =
                others.iter().map(|(rank, step)| format!("rank {rank} is in {step}")).collect();
            let mine = mine.map_or_else(String::new, |mine| format!(", this rank in {mine}"));
            CommErrorKind::Disagree(theirs.join(", ") + &mine)
        }
        (_, Some(others)) => CommErrorKind::OutOfStep { others },
    }
}

/// The first failure of a group, which it never recovers from.
pub(crate) struct Failure {
    /// As the rank that noticed it reports it.
    origin: Arc<CommError>,
    /// Where the ranks were that had come, if they were in different steps.
    apart: Option<Places>,
    /// Which ranks' calls have failed with it.
    told: Vec<bool>,
}

impl Failure {
    pub(crate) fn new(origin: CommError) -> Self {
        let told = vec![false; origin.world_size];
        Self { origin: Arc::new(origin), apart: None, told }
    }

    /// As another rank has reported it.
    pub(crate) fn told(origin: CommError, apart: Option<Places>) -> Self {
        Self { apart, ..Self::new(origin) }
    }

    /// What is sent to the other ranks.
    pub(crate) fn report(&self) -> (CommError, Option<Places>) {
        (CommError::clone(&self.origin), self.apart.clone())
    }

    pub(crate) fn apart(origin: CommError, apart: Places) -> Self {
        Self { apart: Some(apart), ..Self::new(origin) }
    }

    /// The error of a rank's call: the failure itself the first time, if it concerns the rank, and later that there was one.
    pub(crate) fn tell(&mut self, rank: usize, step: &Step) -> CommError {
        let kind = self.kind(rank, Some(step));
        self.told[rank] = true;
        CommError { rank, call: step.call().cloned(), kind, ..CommError::clone(&self.origin) }
    }

    /// The error of a rank that asks for the group's status.
    pub(crate) fn status(&self, rank: usize) -> CommError {
        CommError { rank, call: None, kind: self.kind(rank, None), ..CommError::clone(&self.origin) }
    }

    fn kind(&self, rank: usize, step: Option<&Step>) -> CommErrorKind {
        let news = if self.told[rank] { None } else { self.news(rank, step) };
        news.unwrap_or_else(|| CommErrorKind::Poisoned(Arc::clone(&self.origin)))
    }

    /// The failure as it concerns this rank; None if it concerns only others.
    fn news(&self, rank: usize, step: Option<&Step>) -> Option<CommErrorKind> {
        if let Some(apart) = &self.apart {
            let elsewhere = |(other, theirs): &&(usize, Step)| *other != rank && Some(theirs) != step;
            let others: Vec<_> = apart.iter().filter(elsewhere).collect();
            return (!others.is_empty()).then(|| out_of_step(step, &others));
        }
        let concerned = match &self.origin.kind {
            CommErrorKind::Left { .. } => true,
            CommErrorKind::Timeout { missing, .. } => !missing.contains(&rank),
            _ => rank == self.origin.rank,
        };
        concerned.then(|| self.origin.kind.clone())
    }
}
