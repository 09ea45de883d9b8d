//! The current call into NCCL, and the group's first failure. One lock guards both, so no call can begin after the group has failed.
//! A thread that holds the group's gate, and has found no failure since it does, may use the communicator.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use syncbn_core::{CollectiveId, CommError};

#[derive(Default)]
pub(super) struct Calls(Mutex<State>);

#[derive(Default)]
struct State {
    under_way: Option<(Instant, CollectiveId)>,
    failure: Option<CommError>,
}

impl Calls {
    /// A call begins. If the group has failed, it gets the failure instead. The caller holds the gate.
    pub(super) fn begin(&self, id: &CollectiveId) -> Result<(), CommError> {
        let mut state = self.state();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.under_way = Some((Instant::now(), id.clone()));
        Ok(())
    }

    /// The call has returned.
    pub(super) fn end(&self) {
        self.state().under_way = None;
    }

    pub(super) fn failure(&self) -> Option<CommError> {
        self.state().failure.clone()
    }

    /// The first failure, which may be this one.
    pub(super) fn fail(&self, error: CommError) -> CommError {
        self.state().failure.get_or_insert(error).clone()
    }

    /// If the current call has taken so long, the group fails with this error, and no other call begins. Then only that call uses the
    /// communicator, which may be aborted to end the call.
    pub(super) fn fail_if_stuck(
        &self,
        timeout: Duration,
        error: impl FnOnce(&CollectiveId) -> CommError,
    ) -> bool {
        let mut state = self.state();
        let State { under_way, failure } = &mut *state;
        let stuck = under_way.as_ref().filter(|(since, _)| since.elapsed() >= timeout);
        if let Some((_, id)) = stuck {
            failure.get_or_insert_with(|| error(id));
        }
        stuck.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use syncbn_core::CommErrorKind;

    use super::*;

    fn id(number: u64) -> CollectiveId {
        CollectiveId::new("bn", 1).with_use(number, 0)
    }

    fn error(id: &CollectiveId) -> CommError {
        let kind = CommErrorKind::Unfinished { timeout: Duration::ZERO };
        CommError { rank: 0, world_size: 2, call: Some(id.clone()), late: true, kind }
    }

    #[test]
    fn a_call_that_has_returned_is_not_stuck() {
        let calls = Calls::default();
        calls.begin(&id(0)).unwrap();
        calls.end();
        assert!(!calls.fail_if_stuck(Duration::ZERO, error));
        calls.begin(&id(1)).unwrap();
        assert!(!calls.fail_if_stuck(Duration::from_secs(3600), error));
        assert!(calls.failure().is_none());
    }

    #[test]
    fn no_call_begins_once_another_was_found_stuck() {
        let calls = Calls::default();
        calls.begin(&id(0)).unwrap();
        assert!(calls.fail_if_stuck(Duration::ZERO, error));
        calls.end();
        assert_eq!(calls.begin(&id(1)).unwrap_err().call, Some(id(0)));
        assert!(!calls.fail_if_stuck(Duration::ZERO, error));
    }

    /// Calls that follow each other without a pause, and a watchdog that finds every one of them too slow: when it decides, the
    /// communicator is used by the call that it names, or by none.
    #[test]
    fn the_call_that_is_ended_is_the_one_that_was_found_stuck() {
        const IDLE: u64 = u64::MAX;
        for _ in 0..200 {
            let (calls, user) = (Calls::default(), AtomicU64::new(IDLE));
            thread::scope(|scope| {
                scope.spawn(|| {
                    for number in 0.. {
                        if calls.begin(&id(number)).is_err() {
                            break;
                        }
                        user.store(number, Ordering::SeqCst);
                        user.store(IDLE, Ordering::SeqCst);
                        calls.end();
                    }
                });
                while !calls.fail_if_stuck(Duration::ZERO, error) {}
                // Here the watchdog aborts.
                let named = calls.failure().unwrap().call.unwrap().use_number;
                for _ in 0..100 {
                    let user = user.load(Ordering::SeqCst);
                    assert!(
                        [named, IDLE].contains(&user),
                        "call {user} uses what was ended for call {named}"
                    );
                }
            });
        }
    }
}
