//! The group that laws use unless a harness has its own: threads of this process, summing in host memory in the order of ranks.
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use syncbn_core::{Backend, Call, CommError, CommErrorKind, Communicator, HostCommunicator, Solo, Staged};

use crate::harness::Join;

/// One place per rank.
pub(crate) fn group<B: Backend>(world_size: NonZeroUsize) -> Vec<Join<B>> {
    if world_size.get() == 1 {
        return vec![Box::new(|_, _| Ok(Arc::new(Solo)))];
    }
    let places = host_group(world_size).into_iter();
    places
        .map(|comm| -> Join<B> {
            Box::new(move |_, _| Ok(Arc::new(Staged(comm)) as Arc<dyn Communicator<B>>))
        })
        .collect()
}

pub(crate) fn host_group(world_size: NonZeroUsize) -> Vec<ThreadComm> {
    let shared = Arc::new(Shared { state: Mutex::default(), turn: Condvar::new(), world_size });
    (0..world_size.get()).map(|rank| ThreadComm { rank, shared: shared.clone() }).collect()
}
#[derive(Default)]
struct State {
    round: u64,
    parts: Vec<(usize, Vec<f64>)>,
    result: Vec<f64>,
    gone: Option<(usize, bool)>,
}
struct Shared {
    state: Mutex<State>,
    turn: Condvar,
    world_size: NonZeroUsize,
}
pub(crate) struct ThreadComm {
    rank: usize,
    shared: Arc<Shared>,
}
impl ThreadComm {
    fn left(&self, call: Option<&Call>, gone: (usize, bool)) -> CommError {
        CommError {
            rank: self.rank,
            world_size: self.shared.world_size.get(),
            call: call.cloned(),
            late: false,
            kind: CommErrorKind::Left { rank: gone.0, panicked: gone.1 },
        }
    }
}
impl HostCommunicator for ThreadComm {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world_size(&self) -> NonZeroUsize {
        self.shared.world_size
    }
    fn all_reduce_sum(&self, call: &Call, values: &mut [f64]) -> Result<(), CommError> {
        let mut state = self.shared.state.lock().unwrap();
        if let Some(gone) = state.gone {
            return Err(self.left(Some(call), gone));
        }
        state.parts.push((self.rank, values.to_vec()));
        let round = state.round;
        if state.parts.len() == self.shared.world_size.get() {
            let mut parts = std::mem::take(&mut state.parts);
            parts.sort_by_key(|p| p.0);
            let mut sum = vec![0.0; values.len()];
            for (_, part) in parts {
                for (s, p) in sum.iter_mut().zip(part) {
                    *s += p;
                }
            }
            state.result = sum;
            state.round += 1;
            self.shared.turn.notify_all();
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while state.round == round {
            if let Some(gone) = state.gone {
                return Err(self.left(Some(call), gone));
            }
            assert!(Instant::now() < deadline, "stuck");
            state = self.shared.turn.wait_timeout(state, Duration::from_secs(1)).unwrap().0;
        }
        values.copy_from_slice(&state.result);
        Ok(())
    }
    fn status(&self) -> Result<(), CommError> {
        let gone = self.shared.state.lock().unwrap().gone;
        gone.map_or(Ok(()), |gone| Err(self.left(None, gone)))
    }
}
impl Drop for ThreadComm {
    fn drop(&mut self) {
        if let Ok(mut state) = self.shared.state.lock() {
            state.gone.get_or_insert((self.rank, std::thread::panicking()));
            self.shared.turn.notify_all();
        }
    }
}
