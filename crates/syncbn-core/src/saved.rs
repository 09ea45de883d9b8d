//! What a forward pass saves for its backward pass and its recomputation: statistics in device memory, and a token that says whose
//! they are.

use std::fmt;
use std::sync::Arc;

use crate::backend::Backend;
use crate::geometry::{Geometry, Layout, MAX_AXES};

/// Whose elements the statistics of a forward pass come from, and so what its backward pass has to sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All ranks' elements: one collective forward, one backward.
    Group,
    /// This rank's elements: no collective.
    Local,
    /// None: the statistics were given, and have no gradient. No collective.
    Frozen,
}

/// Which forward pass saved something, as data of a fixed length: [`SavedToken::WORDS`] numbers, which a framework can keep beside
/// its tensors. It is valid in the process that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedToken {
    pub(crate) group: u64,
    pub(crate) layer: u64,
    pub(crate) use_number: u64,
    pub(crate) scope: Scope,
    /// How often the parameters of the layer that owns them had been lent to be changed.
    pub(crate) parameters: u64,
    pub(crate) geometry: Geometry,
}

impl SavedToken {
    /// The length of a token taken apart.
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

    /// The token of a pass that differs in x's shape and layout alone: for graphs that keep tensors and no tokens, and pair a forward
    /// pass with its backward pass themselves.
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
        let head =
            [self.group, self.layer, self.use_number, self.parameters, scope, layout, sizes.len() as u64];
        words[..HEAD].copy_from_slice(&head);
        words[HEAD..].iter_mut().zip(sizes).for_each(|(word, &size)| *word = size as u64);
        words
    }

    /// The token of these numbers; `None` if no token gave them.
    #[must_use]
    pub fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        let (head, sizes) = words.split_first_chunk::<HEAD>()?;
        let &[group, layer, use_number, parameters, scope, layout, axes] = head;
        let scope = match scope {
            0 => Scope::Group,
            1 => Scope::Local,
            2 => Scope::Frozen,
            _ => return None,
        };
        let axes = usize::try_from(axes).ok()?;
        let sizes = sizes.get(..axes)?.iter().map(|&size| usize::try_from(size).ok());
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
        Some(Self { group, layer, use_number, scope, parameters, geometry: geometry.ok()? })
    }
}

/// The numbers of a token before the sizes of the axes.
const HEAD: usize = 7;

/// What a forward pass saved, borrowed: the token, and the [`saved_len`](crate::backend::saved_len) words of device memory.
pub struct SavedRef<'a, B: Backend> {
    /// Which forward pass it was.
    pub token: SavedToken,
    /// What it saved.
    pub mem: B::Mem<'a, f64>,
}

/// What a layer that owns its parameters keeps of a forward pass for its backward pass, and for its recomputation.
///
/// The statistics stay on the device; a clone shares them. A layer may be used several times before the first backward pass: each
/// use has a `SavedStatistics` of its own. It can be taken apart into its token and the device's memory, and made again.
pub struct SavedStatistics<B: Backend> {
    token: SavedToken,
    memory: Arc<B::Saved>,
}

impl<B: Backend> SavedStatistics<B> {
    /// What [`into_parts`](Self::into_parts) has taken apart.
    #[must_use]
    pub fn from_parts(token: SavedToken, memory: impl Into<Arc<B::Saved>>) -> Self {
        Self { token, memory: memory.into() }
    }

    /// The token, and the memory of [`saved_len`](crate::backend::saved_len) words.
    #[must_use]
    pub fn into_parts(self) -> (SavedToken, Arc<B::Saved>) {
        (self.token, self.memory)
    }

    /// Which forward pass it was.
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
