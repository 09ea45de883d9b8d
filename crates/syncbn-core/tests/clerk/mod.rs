//! A backend that computes nothing: it notes what it is asked, and fails or misbehaves where told; and its group.

#![allow(dead_code)] // not every test that includes this file misbehaves in every way

use std::mem::take;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use syncbn_core::backend::{
    BackwardArgs, ForwardArgs, GradInputArgs, GradSumsArgs, MomentsArgs, NormalizeArgs,
};
use syncbn_core::meeting::{backward_by_kernels, forward_by_kernels};
use syncbn_core::{
    Backend, CollectiveId, CommError, CommErrorKind, Communicator, Config, Dtype, Error, Geometry, Gradients,
    HostCommunicator, Kernels, Meeting, Numbers, ParamGradients, Pass, PassError, SavedStatistics, Scalar,
    Storage, SyncBatchNorm, View, ViewMut, saved_len,
};

#[derive(Clone, Default)]
pub(crate) struct Clerk(Arc<Mutex<Notes>>);

#[derive(Default)]
struct Notes {
    asked: Vec<&'static str>,
    calls: Vec<CollectiveId>,
    poisoned: Vec<String>,
    refuses: Option<&'static str>,
    conduct: Conduct,
    meets_inside: bool,
}

/// What a backend that takes whole passes does with the closure that sums.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) enum Conduct {
    #[default]
    CallsItOnce,
    LeavesItOut,
    CallsItTwice,
    IgnoresItsError,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("no {0} today")]
pub(crate) struct Refusal(pub(crate) &'static str);

impl Clerk {
    fn note(&self, what: &'static str) -> Result<(), Refusal> {
        let mut notes = self.0.lock().unwrap();
        notes.asked.push(what);
        if notes.refuses == Some(what) { Err(Refusal(what)) } else { Ok(()) }
    }

    pub(crate) fn asked(&self) -> Vec<&'static str> {
        take(&mut self.0.lock().unwrap().asked)
    }

    pub(crate) fn calls(&self) -> Vec<CollectiveId> {
        take(&mut self.0.lock().unwrap().calls)
    }

    /// What the group was poisoned with.
    pub(crate) fn poisoned(&self) -> Vec<String> {
        take(&mut self.0.lock().unwrap().poisoned)
    }

    pub(crate) fn refuse(&self, what: Option<&'static str>) {
        self.0.lock().unwrap().refuses = what;
    }

    pub(crate) fn conduct_itself(&self, conduct: Conduct) {
        self.0.lock().unwrap().conduct = conduct;
    }

    /// Whether its group lets kernels meet their peers.
    pub(crate) fn meet_inside(&self, inside: bool) {
        self.0.lock().unwrap().meets_inside = inside;
    }

    /// A pass as the conduct has it.
    fn pass<R>(
        &self,
        meeting: Meeting<'_, Self>,
        run: impl FnOnce(Meeting<'_, Self>) -> Result<R, PassError<Refusal>>,
    ) -> Result<R, PassError<Refusal>> {
        let conduct = self.0.lock().unwrap().conduct;
        let sum = match meeting {
            Meeting::Between(sum) if conduct != Conduct::CallsItOnce => sum,
            other => return run(other),
        };
        match conduct {
            Conduct::LeavesItOut => run(Meeting::Alone),
            Conduct::CallsItTwice => run(Meeting::Between(&mut |workspace| {
                sum(workspace)?;
                sum(workspace)
            })),
            _ => run(Meeting::Between(&mut |workspace| {
                let _ = sum(workspace);
                Ok(())
            })),
        }
    }
}

impl Backend for Clerk {
    type Queue = ();
    type Workspace = ();
    type Saved = usize;
    type Peers = ();
    // Nobody reads or writes it, so memory is its length.
    type Mem<'a, T: Scalar> = usize;
    type MemMut<'a, T: Scalar> = usize;
    type Error = Refusal;

    fn mem_len<T: Scalar>(mem: &usize) -> usize {
        *mem
    }
    fn mem_mut_len<T: Scalar>(mem: &usize) -> usize {
        *mem
    }
    fn reborrow<T: Scalar>(mem: &usize) -> usize {
        *mem
    }
    fn reborrow_mut<T: Scalar>(mem: &mut usize) -> usize {
        *mem
    }
    fn as_mem<T: Scalar>(mem: &usize) -> usize {
        *mem
    }
    fn empty<'a, T: Scalar>() -> Self::Mem<'a, T> {
        0
    }
    fn empty_mut<'a, T: Scalar>() -> Self::MemMut<'a, T> {
        0
    }
    fn read<T: Scalar>(&self, (): &(), _: usize, _: &mut [T]) -> Result<(), Refusal> {
        self.note("read")
    }
    fn write<T: Scalar>(&self, (): &(), _: usize, _: &[T]) -> Result<(), Refusal> {
        self.note("write")
    }
    fn workspace(&self, (): &(), _: usize, _: Dtype) -> Result<(), Refusal> {
        self.note("workspace")
    }
    fn saved(&self, (): &(), channels: usize) -> Result<usize, Refusal> {
        self.note("saved").map(|()| saved_len(channels))
    }
    fn saved_mem(saved: &usize) -> usize {
        *saved
    }
    fn saved_mem_mut(saved: &mut usize) -> usize {
        *saved
    }
    fn read_message(&self, (): &(), _: Pass, (): &mut (), _: &mut [f64]) -> Result<(), Refusal> {
        self.note("read_message")
    }
    fn write_message(&self, (): &(), _: Pass, (): &mut (), _: &[f64]) -> Result<(), Refusal> {
        self.note("write_message")
    }
    fn flush(&self, (): &()) -> Result<(), Refusal> {
        self.note("flush")
    }
}

impl Storage for Clerk {
    type Buffer<T: Scalar> = Vec<T>;

    fn upload<T: Scalar>(&self, (): &(), values: &[T]) -> Result<Vec<T>, Refusal> {
        self.note("upload").map(|()| values.to_vec())
    }
    fn mem<T: Scalar>(buffer: &Vec<T>) -> usize {
        buffer.len()
    }
    fn mem_mut<T: Scalar>(buffer: &mut Vec<T>) -> usize {
        buffer.len()
    }
}

impl Kernels<f32> for Clerk {
    fn prepare(&self, (): &(), _: &Geometry, _: bool) -> Result<(), Refusal> {
        self.note("prepare")
    }
    fn moments(&self, (): &(), _: MomentsArgs<'_, Self, f32>) -> Result<(), Refusal> {
        self.note("moments")
    }
    fn normalize(&self, (): &(), _: NormalizeArgs<'_, Self, f32>) -> Result<(), Refusal> {
        self.note("normalize")
    }
    fn grad_sums(&self, (): &(), _: GradSumsArgs<'_, Self, f32>) -> Result<(), Refusal> {
        self.note("grad_sums")
    }
    fn grad_input(&self, (): &(), _: GradInputArgs<'_, Self, f32>) -> Result<(), Refusal> {
        self.note("grad_input")
    }
    fn forward(
        &self,
        queue: &(),
        args: ForwardArgs<'_, Self, f32>,
        meeting: Meeting<'_, Self>,
    ) -> Result<(), PassError<Refusal>> {
        self.pass(meeting, |meeting| forward_by_kernels(self, queue, args, meeting))
    }
    fn backward(
        &self,
        queue: &(),
        args: BackwardArgs<'_, Self, f32>,
        meeting: Meeting<'_, Self>,
    ) -> Result<(), PassError<Refusal>> {
        self.pass(meeting, |meeting| backward_by_kernels(self, queue, args, meeting))
    }
}

/// Rank 1 of 3; notes the sum among the kernels.
pub(crate) struct ClerksGroup(pub(crate) Clerk);

impl ClerksGroup {
    fn note(&self, id: &CollectiveId, what: &'static str) -> Result<(), CommError> {
        self.0.0.lock().unwrap().calls.push(id.clone());
        self.0.note(what).map_err(|_| {
            let kind = CommErrorKind::Left { rank: 2, panicked: false };
            CommError { rank: 1, world_size: 3, call: Some(id.clone()), late: false, kind }
        })
    }
}

impl Communicator<Clerk> for ClerksGroup {
    fn rank(&self) -> usize {
        1
    }
    fn world_size(&self) -> NonZeroUsize {
        NonZeroUsize::MIN.saturating_add(2)
    }
    fn sum_workspace(
        &self,
        id: &CollectiveId,
        pass: Pass,
        _: &Clerk,
        (): &(),
        (): &mut (),
    ) -> Result<(), CommError> {
        self.note(id, if pass == Pass::Forward { "sum forward" } else { "sum backward" })
    }
    fn sum_numbers(
        &self,
        id: &CollectiveId,
        _: &Clerk,
        (): &(),
        _: Numbers<'_, Clerk>,
    ) -> Result<(), CommError> {
        self.note(id, "sum numbers")
    }
    fn peers(&self, _: &CollectiveId, _: usize, clerk: &Clerk) -> Result<Option<()>, CommError> {
        Ok(clerk.0.lock().unwrap().meets_inside.then_some(()))
    }
    fn poison(&self, cause: &CommError) {
        self.0.0.lock().unwrap().poisoned.push(cause.to_string());
    }
    fn status(&self) -> Result<(), CommError> {
        Ok(())
    }
}

/// The same in host memory.
impl HostCommunicator for ClerksGroup {
    fn rank(&self) -> usize {
        1
    }
    fn world_size(&self) -> NonZeroUsize {
        Communicator::<Clerk>::world_size(self)
    }
    fn all_reduce_sum(&self, id: &CollectiveId, _: &mut [f64]) -> Result<(), CommError> {
        self.note(id, "sum")
    }
    fn poison(&self, cause: &CommError) {
        Communicator::<Clerk>::poison(self, cause);
    }
    fn status(&self) -> Result<(), CommError> {
        Ok(())
    }
}

pub(crate) type Layer = SyncBatchNorm<Clerk, f32>;

pub(crate) fn layer(clerk: &Clerk) -> Result<Layer, Error> {
    layer_in(clerk, ClerksGroup(clerk.clone()))
}

pub(crate) fn layer_in(clerk: &Clerk, group: impl Communicator<Clerk> + 'static) -> Result<Layer, Error> {
    Layer::new("bn", Config::new(2), clerk.clone(), &(), group)
}

pub(crate) fn read() -> View<'static, Clerk, f32> {
    View::channels_first(4, &[2, 2]).unwrap()
}

pub(crate) fn written() -> ViewMut<'static, Clerk, f32> {
    ViewMut::channels_first(4, &[2, 2]).unwrap()
}

pub(crate) fn forward(layer: &mut Layer) -> Result<SavedStatistics<Clerk>, Error> {
    layer.forward(&(), read(), written())
}

pub(crate) fn recompute(layer: &Layer, saved: &SavedStatistics<Clerk>) -> Result<(), Error> {
    layer.recompute(&(), saved, read(), written())
}

pub(crate) fn backward(layer: &mut Layer, saved: &SavedStatistics<Clerk>) -> Result<(), Error> {
    let wanted = Gradients::out_of_place(read(), written());
    layer.backward(&(), saved, read(), wanted, ParamGradients::default())
}
