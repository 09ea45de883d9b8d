//! Where the ranks of a group meet: one lock, one condition to wait for, one place per rank.
//!
//! A collective is a round. Each rank enters, lays its contribution in its place, and waits; the last to come works out the
//! result and closes the round. The next round cannot close before every rank has entered it, and so has taken the result
//! of this one: one result is enough, and a failure after the close does not reach those who have yet to read.
//!
//! Deliberately not here: what is summed or dealt out, which the caller of [`Meeting::meet`] brings.

use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use syncbn_core::{CommError, CommErrorKind};

use super::ThreadComm;
use crate::failure::{Failure, Places, Step, out_of_step};

/// What the ranks of a group share.
pub(super) struct Meeting {
    world_size: NonZeroUsize,
    timeout: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) struct State {
    /// How many rounds have been closed.
    closed: u64,
    /// How many ranks have entered the open round.
    present: usize,
    /// The first of them, and what it does: what the others have to do, too.
    first: Option<(usize, Step)>,
    failure: Option<Failure>,
    /// The rank whose panic was seen first, on leaving the group or at the end of its thread.
    first_panic: Option<usize>,
    /// By rank.
    pub(super) places: Vec<Place>,
    /// The result of the last sum.
    pub(super) sum: Vec<f64>,
}

/// One rank's contribution and share. The memory is kept from round to round.
#[derive(Default)]
pub(super) struct Place {
    /// How many rounds the rank has entered.
    entered: u64,
    /// How many results it has taken.
    taken: u64,
    /// What the rank adds to the sum.
    pub(super) message: Vec<f64>,
    /// The colour and key that the rank brought to a split.
    pub(super) side: Option<(u32, i64)>,
    /// What the split made for it.
    pub(super) dealt: Option<ThreadComm>,
}

impl Meeting {
    pub(super) fn new(world_size: NonZeroUsize, timeout: Duration) -> Self {
        let state = State {
            closed: 0,
            present: 0,
            first: None,
            failure: None,
            first_panic: None,
            places: std::iter::repeat_with(Place::default).take(world_size.get()).collect(),
            sum: Vec::new(),
        };
        Self { world_size, timeout, state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn world_size(&self) -> NonZeroUsize {
        self.world_size
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Opens a round or joins the open one, if the group works and this is what the others do.
    pub(super) fn enter(&self, rank: usize, step: &Step) -> Result<MutexGuard<'_, State>, CommError> {
        let mut state = self.lock();
        if let Some(failure) = &mut state.failure {
            return Err(failure.tell(rank, step));
        }
        if state.places[rank].is_inside() {
            let twice = "this rank is in another collective already, on another of its threads".to_owned();
            return Err(self.fail(state, rank, step, CommErrorKind::Disagree(twice)));
        }
        match &state.first {
            None => state.first = Some((rank, step.clone())),
            Some((_, theirs)) if theirs != step => {
                let mut places: Places =
                    state.present().into_iter().map(|other| (other, theirs.clone())).collect();
                let kind = out_of_step(Some(step), &places.iter().collect::<Vec<_>>());
                let origin = self.error(rank, Some(step), kind);
                places.push((rank, step.clone()));
                return Err(self.fail_with(state, rank, step, Failure::apart(origin, places)));
            }
            Some(_) => {}
        }
        Ok(state)
    }

    /// Waits until every rank has entered; the last one works out the result. What is returned gives access to it.
    pub(super) fn meet<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        rank: usize,
        step: &Step,
        work_out: impl FnOnce(&mut State),
    ) -> Result<MutexGuard<'a, State>, CommError> {
        state.places[rank].entered += 1;
        state.present += 1;
        if state.present == self.world_size.get() {
            work_out(&mut state);
            state.present = 0;
            state.first = None;
            state.closed += 1;
            self.changed.notify_all();
        } else {
            state = self.wait_for_close(state, rank, step)?;
        }
        state.places[rank].taken += 1;
        Ok(state)
    }

    fn wait_for_close<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        rank: usize,
        step: &Step,
    ) -> Result<MutexGuard<'a, State>, CommError> {
        let round = state.closed;
        // No deadline if it lies beyond what the clock can tell.
        let deadline = Instant::now().checked_add(self.timeout);
        while state.closed == round {
            if let Some(failure) = &mut state.failure {
                return Err(failure.tell(rank, step));
            }
            let remaining = deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            if remaining.is_zero() {
                let kind = CommErrorKind::Timeout { missing: state.missing(), timeout: self.timeout };
                return Err(self.fail(state, rank, step, kind));
            }
            (state, _) = self.changed.wait_timeout(state, remaining).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(state)
    }

    /// Poisons the group, and returns what the rank that noticed is told.
    pub(super) fn fail(
        &self,
        state: MutexGuard<'_, State>,
        rank: usize,
        step: &Step,
        kind: CommErrorKind,
    ) -> CommError {
        let failure = Failure::new(self.error(rank, Some(step), kind));
        self.fail_with(state, rank, step, failure)
    }

    fn fail_with(
        &self,
        mut state: MutexGuard<'_, State>,
        rank: usize,
        step: &Step,
        failure: Failure,
    ) -> CommError {
        self.changed.notify_all();
        state.failure.get_or_insert(failure).tell(rank, step)
    }

    /// A rank cannot go on, for a reason of its own, which may be the failure of another group.
    pub(super) fn poison(&self, rank: usize, cause: &CommError) {
        let origin = CommError { rank, world_size: self.world_size.get(), ..cause.clone() };
        self.lock().failure.get_or_insert_with(|| Failure::new(origin));
        self.changed.notify_all();
    }

    /// The rank takes part in no more rounds.
    pub(super) fn leave(&self, rank: usize, panicked: bool) {
        let left = || Failure::new(self.error(rank, None, CommErrorKind::Left { rank, panicked }));
        let mut state = self.lock();
        state.failure.get_or_insert_with(left);
        if panicked {
            state.first_panic.get_or_insert(rank);
        }
        self.changed.notify_all();
    }

    /// The rank whose panic came first, now that `rank` has panicked, too.
    pub(super) fn first_panic(&self, rank: usize) -> usize {
        *self.lock().first_panic.get_or_insert(rank)
    }

    pub(super) fn status(&self, rank: usize) -> Result<(), CommError> {
        self.lock().failure.as_ref().map_or(Ok(()), |failure| Err(failure.status(rank)))
    }

    fn error(&self, rank: usize, step: Option<&Step>, kind: CommErrorKind) -> CommError {
        let call = step.and_then(Step::call).cloned();
        CommError { rank, world_size: self.world_size.get(), call, late: false, kind }
    }

    /// A panic cannot leave the state half changed: nothing of a caller's runs under the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The ranks that have not entered the open round.
    fn missing(&self) -> Vec<usize> {
        self.ranks(|place| place.entered == self.closed)
    }

    /// The ranks that have.
    fn present(&self) -> Vec<usize> {
        self.ranks(|place| place.entered > self.closed)
    }

    fn ranks(&self, is: impl Fn(&Place) -> bool) -> Vec<usize> {
        self.places.iter().enumerate().filter(|(_, place)| is(place)).map(|(rank, _)| rank).collect()
    }
}

impl Place {
    /// Whether one of the rank's threads is in a collective.
    fn is_inside(&self) -> bool {
        self.entered > self.taken
    }
}
