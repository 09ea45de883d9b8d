//! The identity of a collective, which ranks compare: ranks in different collectives get an error instead of a wrong sum.

use std::fmt;
use std::sync::Arc;

use crate::message::Pass;

/// The identity of a collective. Ranks whose ids differ are out of step, or were set up differently.
///
/// ```
/// use syncbn_core::CollectiveId;
///
/// let norm = CollectiveId::new("gradient norm", 1);
/// assert_eq!(norm.to_string(), "all_reduce of `gradient norm` (1 number, use 0, step 0)");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CollectiveId {
    /// The layer's name, or the name of a caller's numbers.
    pub label: Arc<str>,
    /// What is summed.
    pub kind: CollectiveKind,
    /// How many numbers are summed.
    pub length: usize,
    /// The layer's number in the group's order of construction; 0 for plain sums.
    pub ordinal: u64,
    /// How many collective forward passes the layer has had in its group, or how many plain sums the group. A backward pass has the
    /// number of its forward pass, so that ranks which take two backward passes in different orders are noticed.
    pub use_number: u64,
    /// The trainer's step ([`Group::set_step`](crate::Group::set_step)).
    pub step: u64,
    /// A digest of the layer's settings, of the type of its parameters and, in a forward pass, of whether it updates running statistics
    /// ([`set_updates_running_stats`](crate::SyncBatchNorm::set_updates_running_stats)); 0 for plain sums.
    pub settings: u64,
}

/// What a collective sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CollectiveKind {
    /// The message of a layer's pass.
    Pass(Pass),
    /// A plain sum of a caller's numbers.
    AllReduce,
}

impl CollectiveId {
    /// A plain sum of `length` numbers.
    #[must_use]
    pub fn new(label: impl Into<Arc<str>>, length: usize) -> Self {
        let kind = CollectiveKind::AllReduce;
        Self { label: label.into(), kind, length, ordinal: 0, use_number: 0, step: 0, settings: 0 }
    }

    /// The same with another kind.
    #[must_use]
    pub fn with_kind(self, kind: CollectiveKind) -> Self {
        Self { kind, ..self }
    }

    /// The same with a layer's number and the digest of its settings.
    #[must_use]
    pub fn with_layer(self, ordinal: u64, settings: u64) -> Self {
        Self { ordinal, settings, ..self }
    }

    /// The same with a use number and the trainer's step.
    #[must_use]
    pub fn with_use(self, use_number: u64, step: u64) -> Self {
        Self { use_number, step, ..self }
    }

    /// A digest of what is the same in every use: label, kind, length, ordinal and settings. It is the same in every process, for
    /// communicators whose ranks have no room for more.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let Self { label, kind, length, ordinal, use_number: _, step: _, settings } = self;
        let kind = match kind {
            CollectiveKind::Pass(Pass::Forward) => 0,
            CollectiveKind::Pass(Pass::Backward) => 1,
            CollectiveKind::AllReduce => 2,
        };
        let words = [kind, *length as u64, *ordinal, *settings].into_iter().flat_map(u64::to_le_bytes);
        fnv(words.chain(label.bytes()))
    }

    /// The name of the first field in which the two differ; `None` if they are the same collective.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let differences = [
            (self.step != other.step, "step"),
            (self.label != other.label, "name"),
            (self.ordinal != other.ordinal, "place in the order of construction"),
            (self.kind != other.kind, "pass"),
            (self.use_number != other.use_number, "use"),
            (self.length != other.length, "number of numbers"),
            (
                self.settings != other.settings,
                "settings (eps, momentum, affine, tracking, updates, non_finite or type of parameters)",
            ),
        ];
        differences.into_iter().find_map(|(differs, what)| differs.then_some(what))
    }
}

impl fmt::Display for CollectiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, kind, length, ordinal, use_number, step, settings: _ } = self;
        match kind {
            CollectiveKind::Pass(pass) => write!(f, "{pass} of layer `{label}` (number {ordinal}, ")?,
            CollectiveKind::AllReduce => write!(f, "all_reduce of `{label}` (")?,
        }
        let numbers = if *length == 1 { "number" } else { "numbers" };
        write!(f, "{length} {numbers}, use {use_number}, step {step})")
    }
}

/// FNV-1a.
pub(crate) fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
