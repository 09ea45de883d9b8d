//! [`Checkpoint`]: the tensors of a whole file, by name.

use std::collections::{BTreeMap, HashMap};

use super::error::{StateError, nearest};
use super::framework::Framework;
use super::tensor::NamedTensor;
use crate::error::Tensor;

/// The tensors of a file. Those of its batch norms can be loaded and stored, all others are kept as they are.
///
/// Made from the bytes of a `.safetensors` file with `from_safetensors` (feature `safetensors`), or from the tensors of a file of any
/// format with [`new`](Self::new). The tensors may borrow the file's bytes.
///
/// ```
/// use syncbn_core::{Checkpoint, FileDtype, NamedTensor};
///
/// let tensor = |name: &str, value: f64| NamedTensor {
///     name: name.to_owned(),
///     dtype: FileDtype::F64,
///     shape: vec![2],
///     bytes: [value, value].map(f64::to_le_bytes).concat().into(),
/// };
/// let tensors = [("weight", 2.0), ("bias", 0.1), ("running_mean", 0.0), ("running_var", 1e6)];
/// let mut file = Checkpoint::new(tensors.map(|(own, value)| tensor(&format!("stem.bn.{own}"), value)))?;
/// assert_eq!(
///     file.layers()[0].to_string(),
///     "`stem.bn.`: 2 channels, weight f64, bias f64, running_mean f64, running_var f64"
/// );
///
/// // Into a layer whose parameters are f32: `SyncBatchNorm::new(.., config, ..)`, then `layer.load_state(&queue, &loaded.state)`.
/// let config = file.config("stem.bn.")?;
/// let loaded = file.load::<f32>("stem.bn.", &config)?;
/// let changes: Vec<_> = loaded.changes.iter().map(ToString::to_string).collect();
/// assert!(changes.contains(&"`stem.bn.bias`: f64 to f32, 2 rounded, 0 overflowed".to_owned()));
/// assert!(changes.contains(&"num_batches_tracked: not in the file, filled with 0".to_owned()));
///
/// // And back, after some training: the names and types of the file stay.
/// file.store("stem.bn.", &loaded.state)?;
/// # Ok::<(), syncbn_core::StateError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint<'a> {
    pub(super) framework: Framework,
    pub(super) tensors: BTreeMap<String, NamedTensor<'a>>,
    /// The metadata of the file, such as `format: pt`.
    #[cfg_attr(not(feature = "safetensors"), expect(dead_code, reason = "no other format is written here"))]
    pub(crate) metadata: Option<HashMap<String, String>>,
}

impl<'a> Checkpoint<'a> {
    /// A checkpoint of these tensors, whose batch norms are named as in PyTorch.
    ///
    /// # Errors
    ///
    /// [`StateError::Duplicate`] if two tensors have the same name, [`StateError::Bytes`] if a tensor's bytes do not fit its shape and
    /// type.
    pub fn new(tensors: impl IntoIterator<Item = NamedTensor<'a>>) -> Result<Self, StateError> {
        let mut by_name = BTreeMap::new();
        for tensor in tensors {
            tensor.check_bytes()?;
            if let Some(other) = by_name.insert(tensor.name.clone(), tensor) {
                return Err(StateError::Duplicate { name: other.name });
            }
        }
        Ok(Self { framework: Framework::PYTORCH, tensors: by_name, metadata: None })
    }

    /// The same file, whose batch norms are named as in this framework.
    #[must_use]
    pub fn with_framework(self, framework: Framework) -> Self {
        Self { framework, ..self }
    }

    /// All tensors, in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = &NamedTensor<'a>> {
        self.tensors.values()
    }

    /// A layer's tensor, if the framework has a name for it and the file has that name.
    pub(super) fn find(&self, prefix: &str, tensor: Tensor) -> Option<&NamedTensor<'a>> {
        self.framework.name(prefix, tensor).and_then(|name| self.tensors.get(&name))
    }

    /// The error for a tensor that `find` does not find.
    pub(super) fn missing(&self, prefix: &str, tensor: Tensor) -> StateError {
        let name = self.framework.name(prefix, tensor).unwrap_or_else(|| format!("{prefix}{tensor}"));
        let nearest = nearest(&name, self.tensors.keys().map(String::as_str));
        StateError::Missing { name, nearest }
    }
}

impl NamedTensor<'_> {
    fn check_bytes(&self) -> Result<(), StateError> {
        let Some(size) = self.dtype.size() else {
            return Ok(());
        };
        let needed = self.shape.iter().try_fold(size, |bytes, &axis| bytes.checked_mul(axis));
        if needed == Some(self.bytes.len()) { Ok(()) } else { Err(self.wrong_bytes()) }
    }

    pub(super) fn wrong_bytes(&self) -> StateError {
        StateError::Bytes {
            name: self.name.clone(),
            shape: self.shape.clone(),
            dtype: self.dtype,
            bytes: self.bytes.len(),
        }
    }
}
