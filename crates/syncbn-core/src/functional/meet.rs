//! The collective part of a pass: a sum between its kernels, inside them, or none; and what a failure means for the group.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::backend::Backend;
use crate::collective::{CollectiveId, CollectiveKind};
use crate::communicator::{CommError, CommErrorKind, Communicator};
use crate::config::Config;
use crate::context::PassContext;
use crate::error::{Error, ErrorKind, Stage};
use crate::group::is_unsent;
use crate::meeting::{Meeting, PassError};
use crate::message::Pass;
use crate::scalar::Param;

use super::FunctionalBatchNorm;

/// A pass of the group: which, and the settings that it uses, which ranks compare.
#[derive(Clone, Copy)]
pub(super) struct GroupCall {
    pub(super) pass: Pass,
    pub(super) use_number: u64,
    pub(super) settings: Config,
}

type Run<B> = Result<(), PassError<<B as Backend>::Error>>;

impl<B: Backend, P: Param> FunctionalBatchNorm<B, P> {
    /// A pass without other ranks.
    pub(super) fn alone(
        &self,
        context: &PassContext<'_, B>,
        queue: &B::Queue,
        run: impl FnOnce(Meeting<'_, B>) -> Run<B>,
    ) -> Result<(), Error> {
        run(Meeting::Alone).map_err(|error| context.pass_error(error))?;
        context.device(Stage::Flush, self.backend.flush(queue))
    }

    /// A collective forward pass, and its use number. The number is consumed once this rank's sums have been sent: a call that fails
    /// before that can be repeated.
    pub(super) fn next_use(
        &self,
        context: &PassContext<'_, B>,
        queue: &B::Queue,
        settings: Config,
        run: impl FnOnce(Meeting<'_, B>) -> Run<B>,
    ) -> Result<u64, Error> {
        let use_number = self.uses.load(Ordering::Relaxed);
        self.meet(context, queue, GroupCall { pass: Pass::Forward, use_number, settings }, run)?;
        Ok(use_number)
    }

    /// A collective pass.
    pub(super) fn meet(
        &self,
        context: &PassContext<'_, B>,
        queue: &B::Queue,
        call: GroupCall,
        run: impl FnOnce(Meeting<'_, B>) -> Run<B>,
    ) -> Result<(), Error> {
        context.communication(self.group.status())?;
        let mut went = Went::Nowhere;
        let result = self.run_in_group(context, queue, call, &mut went, run);
        if call.pass == Pass::Forward && (went != Went::Nowhere || result.is_ok()) {
            self.uses.store(call.use_number.wrapping_add(1), Ordering::Relaxed);
        }
        // Where the sum itself failed, the communicator has poisoned the group.
        if let (Err(error), Went::Summed) = (&result, went) {
            let cause = CommErrorKind::Transport(Arc::new(AfterTheSum(error.to_string())));
            self.group.poison(&self.comm_error(None, cause));
        }
        result
    }

    fn run_in_group(
        &self,
        context: &PassContext<'_, B>,
        queue: &B::Queue,
        call: GroupCall,
        went: &mut Went,
        run: impl FnOnce(Meeting<'_, B>) -> Run<B>,
    ) -> Result<(), Error> {
        if self.group.world_size().get() == 1 {
            return self.alone(context, queue, run);
        }
        let (id, pass) = (self.collective(call), call.pass);
        if let Some(peers) = context.communication(self.peers(&id))? {
            let result = run(Meeting::Inside(peers));
            // A backend without such kernels has refused before any work. After any other error, peers may have this rank's sums.
            let refused = matches!(result, Err(PassError::NoPeers));
            *went = if refused { Went::Nowhere } else { Went::Summed };
            result.map_err(|error| context.pass_error(error))?;
        } else {
            let mut sum = |workspace: &mut B::Workspace| {
                if *went != Went::Nowhere {
                    let twice = CommErrorKind::Disagree("a pass has asked for its sum twice".into());
                    return Err(self.comm_error(Some(id.clone()), twice));
                }
                let sum = self.group.sum_workspace(&id, pass, &self.backend, queue, workspace);
                *went = match &sum {
                    Ok(()) => Went::Summed,
                    Err(_) if is_unsent(&sum) => Went::Nowhere,
                    Err(_) => Went::Failed,
                };
                sum
            };
            run(Meeting::Between(&mut sum)).map_err(|error| context.pass_error(error))?;
            if *went != Went::Summed {
                return Err(context.error(ErrorKind::SumLeftOut));
            }
        }
        context.device(Stage::Flush, self.backend.flush(queue))
    }

    /// Whether passes of the group meet inside the kernels: forward and backward ones do so alike.
    pub(super) fn meets_inside(&self) -> Result<bool, CommError> {
        let call = GroupCall { pass: Pass::Forward, use_number: 0, settings: self.config };
        Ok(self.group.world_size().get() > 1 && self.peers(&self.collective(call))?.is_some())
    }

    fn peers(&self, id: &CollectiveId) -> Result<Option<B::Peers>, CommError> {
        self.group.peers(id, self.config.channels, &self.backend)
    }

    fn collective(&self, call: GroupCall) -> CollectiveId {
        let GroupCall { pass, use_number, settings } = call;
        let length = pass.message_len(self.config.channels, P::DTYPE);
        let updates = pass == Pass::Backward || self.updates_running;
        CollectiveId::new(Arc::clone(&self.name), length)
            .with_kind(CollectiveKind::Pass(pass))
            .with_layer(self.ordinal, settings.digest(P::DTYPE, updates))
            .with_use(use_number, self.group.step())
    }

    fn comm_error(&self, call: Option<CollectiveId>, kind: CommErrorKind) -> CommError {
        let (rank, world_size) = (self.group.rank(), self.group.world_size().get());
        CommError { rank, world_size, call, late: false, kind }
    }
}

/// How far the sum of a pass has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Went {
    /// Nothing was sent to other ranks.
    Nowhere,
    /// The sum was begun, and failed.
    Failed,
    /// The sum succeeded, and the other ranks go on.
    Summed,
}

/// Why a rank could not go on after a sum.
#[derive(Debug, thiserror::Error)]
#[error("after the sum: {0}")]
struct AfterTheSum(String);
