//! Batch norm over borrowed memory: what adapters to frameworks call.
//!
//! [`FunctionalBatchNorm`] owns a name, settings, a group and scratch memory. Activations, weight, bias, running statistics and saved
//! statistics belong to the framework and are borrowed for each call. Its arguments are [`Forward`], [`Backward`], [`Recompute`]
//! and [`UpdateRunning`].
//!
//! # An adapter, step by step
//!
//! 1. For each layer of each rank make one [`FunctionalBatchNorm`], in the same order on every rank, with a clone of one
//!    [`Group`]. It has to live from forward to backward: a framework that has only functions makes it at the first call, and
//!    keeps it beside the running statistics. One for each call works, too, but costs an allocation of scratch.
//! 2. In the framework's forward function, make a [`View`](crate::View) of x and a [`ViewMut`](crate::ViewMut) of y. Most frameworks have strides:
//!    [`Geometry::strided`] and [`View::new`](crate::View::new), over memory that begins at the tensor's first element. Allocate y, and later dx, with
//!    the strides of x. If the strides are refused ([`ShapeError::Strides`](crate::ShapeError::Strides)), copy the tensor; if dy has another
//!    memory order than x, copy dy to x's. Pass slices as `&values[..]`, since Rust infers the backend from the type of memory, and takes a
//!    `&Vec` for another type; or name the backend, as in `View::<Cpu, f32>::new`. A view that cannot be made is a [`ShapeError`](crate::ShapeError); [`error`](FunctionalBatchNorm::error) gives it the layer's name. Take memory for
//!    [`saved_len`](crate::saved_len) values of `f64`, and call [`forward`](FunctionalBatchNorm::forward). Keep x, the saved values and the
//!    token ([`SavedToken::to_words`]) for the backward function.
//! 3. In the backward function, call [`backward`](FunctionalBatchNorm::backward) with them. It has to be called on every rank, in the
//!    same order, even where the framework needs no dx ([`Gradients::parameters_only`](crate::Gradients::parameters_only)).
//! 4. If the framework's functions may not change state, pass no running statistics to forward and move them later with
//!    [`update_running`](FunctionalBatchNorm::update_running).
//! 5. For evaluation pass [`Statistics::Frozen`] with the running statistics.
//!
//! All calls take a queue of the backend: a CUDA stream, for instance, and `()` on the CPU. A function that is generic over the type of
//! activations has the bounds `T: Element<Param = P>` and `B: Kernels<T>`; if the type is known only at run time, match on it and call
//! that function for each type of one `P`. `docs/adding-an-adapter.md` in the repository builds a whole
//! adapter.

mod args;
mod check;
mod meet;
mod passes;

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::backend::Backend;
use crate::communicator::Communicator;
use crate::config::{Config, check_momentum};
use crate::context::PassContext;
use crate::error::{Error, ErrorKind, Operation, Stage};
use crate::geometry::Geometry;
use crate::group::Group;
use crate::saved::{SavedToken, Scope};
use crate::scalar::Param;

pub use args::{Backward, Forward, Recompute, Statistics, UpdateRunning};

/// Batch normalisation over all ranks of a group, over borrowed memory.
///
/// `B` is the backend. `P` is the type of weight, bias and running statistics: `f64` for `f64` activations, `f32` for all others.
///
/// The passes take `&self`, and the type is `Send` and `Sync`, so that the closures of a graph can share one layer. Collective calls
/// have to be made in the same order on every rank.
///
/// The backward pass uses the weight that it is given, and cannot detect that it is another than the forward pass's.
/// [`SyncBatchNorm`](crate::SyncBatchNorm), which owns its parameters, can.
///
/// ```
/// use example_backend::Plain; // as syncbn_cpu::Cpu, memory is a slice
/// use syncbn_core::functional::{Backward, Forward, Statistics};
/// use syncbn_core::{
///     Config, FunctionalBatchNorm, Gradients, SavedRef, SingleRank, View, ViewMut, saved_len,
/// };
///
/// let norm = FunctionalBatchNorm::<Plain, f32>::new("norm", Config::new(2), Plain, &(), SingleRank)?;
/// let shape = [3, 2];
/// let x = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0];
/// let (weight, bias) = ([1.0, 2.0], [0.0, 0.5]);
/// let (mut y, mut saved) = ([0.0; 6], vec![0.0; saved_len(2)]);
/// let args = Forward::new(
///     View::channels_first(&x[..], &shape)?,
///     ViewMut::channels_first(&mut y[..], &shape)?,
///     Statistics::Group { running: None },
///     &mut saved[..],
/// );
/// let token = norm.forward(&(), args.affine(Some(&weight[..]), Some(&bias[..])))?;
/// assert!((y[0] + 1.2247).abs() < 1e-4 && (y[3] - 0.5).abs() < 1e-6);
///
/// let (dy, mut dx) = ([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0; 6]);
/// let (mut d_weight, mut d_bias) = ([0.0; 2], [0.0; 2]);
/// let gradients = Gradients::out_of_place(
///     View::<Plain, f32>::channels_first(&dy[..], &shape),
///     ViewMut::channels_first(&mut dx[..], &shape),
/// )?;
/// let args = Backward::new(SavedRef { token, mem: &saved[..] }, View::channels_first(&x[..], &shape)?, gradients)
///     .weight(Some(&weight[..]))
///     .parameters(Some(&mut d_weight[..]), Some(&mut d_bias[..]));
/// norm.backward(&(), args)?;
/// assert_eq!(d_bias, [1.0, 0.0]);
/// assert!((dx[0] + dx[2] + dx[4]).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FunctionalBatchNorm<B: Backend, P: Param> {
    name: Arc<str>,
    /// Unique among the layers of this process.
    id: u64,
    /// The number of this layer in the group's order of construction.
    ordinal: u64,
    config: Config,
    backend: B,
    group: Group<B>,
    uses: AtomicU64,
    workspaces: Mutex<Vec<B::Workspace>>,
    /// Whether the [`SyncBatchNorm`](crate::SyncBatchNorm) that owns this moves its running statistics, which ranks compare. Frameworks
    /// may move them apart on one rank and within the pass on another, so it is true for them.
    pub(crate) updates_running: bool,
    params: PhantomData<P>,
}

impl<B: Backend, P: Param> FunctionalBatchNorm<B, P> {
    /// A layer for `config.channels` channels.
    ///
    /// `name` appears in errors, and ranks compare it. `group` is a [`Group`] that layers share, or a communicator, which becomes a group
    /// of this layer alone; [`SingleRank`](crate::SingleRank) is local batch norm. The ranks of a group make their layers in the
    /// same order. `queue` is used to allocate.
    ///
    /// The passes use `channels` and `eps` of `config`. An update has the momentum and the [`NonFinite`](crate::NonFinite) of
    /// [`RunningMut`](crate::RunningMut), and `config`'s are what a framework may read again from [`config`](Self::config). Ranks compare
    /// all settings, and in a pass that updates those of the update.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a setting is out of range, [`ErrorKind::Backend`] if the device fails. No rank is asked.
    pub fn new(
        name: &str,
        config: Config,
        backend: B,
        queue: &B::Queue,
        group: impl Communicator<B> + 'static,
    ) -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (name, group): (Arc<str>, _) = (name.into(), group.into_group());
        let context = PassContext { layer: &name, group: &group, operation: Operation::Construct };
        config.validate().map_err(|e| context.error(e))?;
        let workspace = backend.workspace(queue, config.channels, P::DTYPE);
        let workspace = context.device(Stage::Allocation, workspace)?;
        let ordinal = group.next_layer();
        Ok(Self {
            name,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            ordinal,
            config,
            backend,
            group,
            uses: AtomicU64::new(0),
            workspaces: Mutex::new(vec![workspace]),
            updates_running: true,
            params: PhantomData,
        })
    }

    /// The layer's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The layer's group.
    #[must_use]
    pub fn group(&self) -> &Group<B> {
        &self.group
    }

    /// An error of an adapter's own, found before a pass, with this layer's name and rank.
    ///
    /// ```
    /// use syncbn_core::{Backend, Error, ErrorKind, FunctionalBatchNorm, Geometry, Operation, Tensor};
    ///
    /// fn geometry<B: Backend>(norm: &FunctionalBatchNorm<B, f32>, shape: &[usize]) -> Result<Geometry, Error> {
    ///     Geometry::channels_first(shape)
    ///         .map_err(|source| norm.error(Operation::Forward, ErrorKind::Shape { tensor: Tensor::X, source }))
    /// }
    /// ```
    #[must_use]
    pub fn error(&self, operation: Operation, kind: impl Into<ErrorKind>) -> Error {
        self.context(operation).error(kind)
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Changes the momentum: the weight of the newest batch in the running statistics, 0 to 1, or `None` for the cumulative average. Every
    /// rank sets the same before its next pass.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if it is not a number from 0 to 1; the momentum is then unchanged.
    pub fn set_momentum(&mut self, momentum: Option<f64>) -> Result<(), Error> {
        check_momentum(momentum).map_err(|e| self.context(Operation::SetMode).error(e))?;
        self.config.momentum = momentum;
        Ok(())
    }

    /// Moves the layer to another group: after a failure, or when the number of ranks changes.
    ///
    /// The layer counts its passes from 0 again and gets the next number in the new group's order of construction. So every rank of the
    /// new group calls this, or makes a new layer, in the same order. Statistics that were saved in the old group are refused from now
    /// on ([`ErrorKind::OtherGroup`]). No rank is asked, and nothing can fail.
    pub fn set_group(&mut self, group: impl Communicator<B> + 'static) {
        self.group = group.into_group();
        self.ordinal = self.group.next_layer();
        *self.uses.get_mut() = 0;
    }

    fn token(&self, scope: Scope, use_number: u64, geometry: Geometry) -> SavedToken {
        let (group, layer, ordinal) = (self.group.id(), self.id, self.ordinal);
        SavedToken { group, layer, ordinal, use_number, scope, parameters: 0, geometry }
    }

    pub(crate) fn context(&self, operation: Operation) -> PassContext<'_, B> {
        PassContext { layer: &self.name, group: &self.group, operation }
    }

    pub(crate) fn is_owner(&self, token: &SavedToken) -> bool {
        token.layer == self.id
    }

    /// Refuses statistics of another layer or of another group, and those from before the layer left this one and came back.
    pub(crate) fn check_owner(&self, context: &PassContext<'_, B>, token: &SavedToken) -> Result<(), Error> {
        if !self.is_owner(token) {
            return Err(context.error(ErrorKind::ForeignSaved));
        }
        let (saved, current) = (token.group, self.group.id());
        if (saved, token.ordinal) == (current, self.ordinal) {
            return Ok(());
        }
        Err(context.error(ErrorKind::OtherGroup { saved, current }))
    }
}

impl<B: Backend, P: Param> fmt::Debug for FunctionalBatchNorm<B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionalBatchNorm")
            .field("name", &self.name)
            .field("config", &self.config)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}
