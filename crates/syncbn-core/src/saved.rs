//! What a forward pass saves: statistics in device memory, and a token that identifies the pass.

use std::fmt;
use std::sync::Arc;

use crate::backend::Backend;
use crate::geometry::{Geometry, Layout, MAX_AXES};

/// Where the statistics of a forward pass come from. It decides whether the backward pass is collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The batch of all ranks. The backward pass is collective.
    Group,
    /// The batch of this rank. No rank is asked.
    Local,
    /// They were given, and have no gradient. No rank is asked.
    Frozen,
}

/// Identifies the forward pass that saved statistics: its layer, the layer's place in its group, use number, scope and geometry.
///
/// It is data of a fixed length ([`SavedToken::WORDS`] numbers), which a framework can keep beside its tensors. It is valid in the
/// process that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedToken {
    pub(crate) group: u64,
    pub(crate) layer: u64,
    /// The layer's number in its group, which is another one each time that it is moved to a group.
    pub(crate) ordinal: u64,
    pub(crate) use_number: u64,
    pub(crate) scope: Scope,
    /// How often the layer's parameters had been borrowed to be changed.
    pub(crate) parameters: u64,
    pub(crate) geometry: Geometry,
}

impl SavedToken {
    /// How many numbers a token is.
    pub const WORDS: usize = HEAD + MAX_AXES;

    /// The shape and layout of x.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Where the statistics came from.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// The same token for another geometry of x. For adapters to compilers whose graphs keep tensors but no tokens: they keep one token
    /// for each layer, and complete it with the geometry of the x that the graph gives back.
    #[must_use]
    pub fn with_geometry(self, geometry: Geometry) -> Self {
        Self { geometry, ..self }
    }

    /// The token as numbers.
    ///
    /// ```
    /// # use syncbn_core::{Config, SavedToken, SyncBatchNorm, View, ViewMut};
    /// # use example_backend::Plain;
    /// # let mut layer = SyncBatchNorm::<Plain, f32>::local("bn", Config::new(2), Plain, &())?;
    /// # let (x, mut y) = ([1.0, 2.0, 3.0, 5.0], [0.0; 4]);
    /// # let view = View::channels_first(&x[..], &[2, 2]);
    /// let saved = layer.forward::<f32>(&(), view, ViewMut::channels_first(&mut y[..], &[2, 2]))?;
    /// let words: [u64; SavedToken::WORDS] = saved.token().to_words();
    /// assert_eq!(SavedToken::from_words(words), Some(*saved.token()));
    /// # Ok::<(), syncbn_core::Error>(())
    /// ```
    #[must_use]
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        let shape = self.geometry.shape();
        let sizes = shape.sizes();
        let scope = match self.scope {
            Scope::Group => 0,
            Scope::Local => 1,
            Scope::Frozen => 2,
        };
        let layout = match self.geometry.layout() {
            Layout::ChannelsFirst => 0,
            Layout::ChannelsLast => 1,
        };
        let mut words = [0; Self::WORDS];
        let Self { group, layer, ordinal, use_number, parameters, .. } = *self;
        let head = [group, layer, ordinal, use_number, parameters, scope, layout, sizes.len() as u64];
        words[..HEAD].copy_from_slice(&head);
        words[HEAD..].iter_mut().zip(sizes).for_each(|(word, &size)| *word = size as u64);
        words
    }

    /// The token of these numbers; `None` if they are not a token's.
    #[must_use]
    pub fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        let (head, sizes) = words.split_first_chunk::<HEAD>()?;
        let &[group, layer, ordinal, use_number, parameters, scope, layout, axes] = head;
        let scope = match scope {
            0 => Scope::Group,
            1 => Scope::Local,
            2 => Scope::Frozen,
            _ => return None,
        };
        let axes = usize::try_from(axes).ok()?;
        let (sizes, unused) = sizes.split_at_checked(axes)?;
        if unused.iter().any(|&word| word != 0) {
            return None;
        }
        let sizes = sizes.iter().map(|&size| usize::try_from(size).ok());
        let mut sizes: Vec<usize> = sizes.collect::<Option<_>>()?;
        let geometry = match layout {
            0 => Geometry::channels_first(&sizes),
            1 => {
                let spatial_and_channels = sizes.get_mut(1..).filter(|axes| !axes.is_empty())?;
                spatial_and_channels.rotate_left(1);
                Geometry::channels_last(&sizes)
            }
            _ => return None,
        };
        Some(Self { group, layer, ordinal, use_number, scope, parameters, geometry: geometry.ok()? })
    }
}

/// The numbers of a token before the sizes of the axes.
const HEAD: usize = 8;

/// Saved statistics, borrowed: the token, and [`saved_len`](crate::backend::saved_len) words of device memory. The fields are public:
/// `SavedRef { token, mem }` makes one.
pub struct SavedRef<'a, B: Backend> {
    /// What [`FunctionalBatchNorm::forward`](crate::FunctionalBatchNorm::forward) returned.
    pub token: SavedToken,
    /// What it wrote.
    pub mem: B::Mem<'a, f64>,
}

/// What [`SyncBatchNorm::forward`](crate::SyncBatchNorm::forward) saves for the backward pass and for recomputation.
///
/// The statistics stay on the device, and clones share them. A layer may be called several times before the first backward pass;
/// each call has saved statistics of its own.
pub struct SavedStatistics<B: Backend> {
    token: SavedToken,
    memory: Arc<B::Saved>,
}

impl<B: Backend> SavedStatistics<B> {
    /// The reverse of [`into_parts`](Self::into_parts).
    #[must_use]
    pub fn from_parts(token: SavedToken, memory: impl Into<Arc<B::Saved>>) -> Self {
        Self { token, memory: memory.into() }
    }

    /// The token, and the memory of [`saved_len`](crate::backend::saved_len) words.
    #[must_use]
    pub fn into_parts(self) -> (SavedToken, Arc<B::Saved>) {
        (self.token, self.memory)
    }

    /// Identifies the forward pass.
    #[must_use]
    pub fn token(&self) -> &SavedToken {
        &self.token
    }

    /// The shape and layout of x.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        self.token.geometry()
    }

    /// Where the statistics came from.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.token.scope()
    }

    /// The device's memory: `[mean | var | invstd | count]`.
    #[must_use]
    pub fn mem(&self) -> B::Mem<'_, f64> {
        B::saved_mem(&self.memory)
    }

    pub(crate) fn borrow(&self) -> SavedRef<'_, B> {
        SavedRef { token: self.token, mem: self.mem() }
    }
}

impl<B: Backend> Clone for SavedStatistics<B> {
    fn clone(&self) -> Self {
        Self { token: self.token, memory: Arc::clone(&self.memory) }
    }
}

impl<B: Backend> fmt::Debug for SavedStatistics<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SavedStatistics({:?}, {:?})", self.geometry(), self.scope())
    }
}
