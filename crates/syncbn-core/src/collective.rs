//! Which collective a rank takes part in: what ranks compare, so that those that have fallen out of step hear it.

use std::fmt;
use std::sync::Arc;

use crate::message::Pass;

/// A collective's identity. Ranks whose identities differ have fallen out of step, or were set up differently.
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
    /// The layer's name, or the name that a caller has given to its own numbers.
    pub label: Arc<str>,
    /// What is summed.
    pub kind: CollectiveKind,
    /// How many numbers are summed.
    pub length: usize,
    /// Which of the group's layers, by the order of construction; 0 where it is no layer's.
    pub ordinal: u64,
    /// Which use of the layer in its group, from 0, or which of the group's plain sums. A backward pass has the number of its
    /// forward pass. So a rank that has left out a use, or goes back through two of them in another order, is told apart.
    pub use_number: u64,
    /// The trainer's step, as [`Group::set_step`](crate::Group::set_step) has it.
    pub step: u64,
    /// A digest of the layer's settings: eps, momentum, affine, tracking, the type of the parameters; 0 where it is no layer's.
    pub settings: u64,
}

/// What a collective sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CollectiveKind {
    /// The message of a layer's pass.
    Pass(Pass),
    /// A caller's own numbers.
    AllReduce,
}

impl CollectiveId {
    /// The sum of `length` numbers of a caller's own.
    #[must_use]
    pub fn new(label: impl Into<Arc<str>>, length: usize) -> Self {
        let kind = CollectiveKind::AllReduce;
        Self { label: label.into(), kind, length, ordinal: 0, use_number: 0, step: 0, settings: 0 }
    }

    /// What it sums, where that is another thing than a caller's own numbers.
    #[must_use]
    pub fn with_kind(self, kind: CollectiveKind) -> Self {
        Self { kind, ..self }
    }

    /// Which of the group's layers it belongs to, and the digest of that layer's settings.
    #[must_use]
    pub fn with_layer(self, ordinal: u64, settings: u64) -> Self {
        Self { ordinal, settings, ..self }
    }

    /// Which use it is, in which of the trainer's steps.
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

    /// The first thing in which the two differ, as a noun; `None` if they are the same collective.
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
                "settings (eps, momentum, affine, tracking or type of parameters)",
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
