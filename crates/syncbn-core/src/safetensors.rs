//! Checkpoints in `.safetensors` files, by the `safetensors` crate.

use std::borrow::Cow;

use safetensors::{Dtype, SafeTensorError, SafeTensors, View};

use crate::state::{Checkpoint, FileDtype, NamedTensor, StateError};

impl<'a> Checkpoint<'a> {
    /// The tensors of a `.safetensors` file, whose bytes are borrowed, and its metadata.
    ///
    /// # Errors
    ///
    /// [`StateError`] if the bytes are not such a file.
    ///
    /// ```
    /// use syncbn_core::{Checkpoint, State};
    ///
    /// // let bytes = std::fs::read("model.safetensors")?;
    /// # let all = |value| Some(vec![value; 2]);
    /// # let state =
    /// #     State { weight: all(1.0_f32), bias: all(0.0), running_mean: all(0.5), running_var: all(2.0), num_batches_tracked: Some(7) };
    /// # let bytes = Checkpoint::new(state.to_tensors("bn1."))?.to_safetensors()?;
    /// let mut file = Checkpoint::from_safetensors(&bytes)?;
    /// for layer in file.layers() {
    ///     let config = file.config(&layer.prefix)?;
    ///     let loaded = file.load::<f32>(&layer.prefix, &config)?;
    ///     // Train a layer that has loaded `loaded.state`, then put its state in the place of the old one.
    ///     file.store(&layer.prefix, &loaded.state)?;
    /// }
    /// let trained = file.to_safetensors()?; // to be written with `std::fs::write`
    /// # assert_eq!(trained, bytes);
    /// # Ok::<(), syncbn_core::StateError>(())
    /// ```
    pub fn from_safetensors(bytes: &'a [u8]) -> Result<Self, StateError> {
        if header_has_huge_numbers(bytes) {
            return Err(SafeTensorError::ValidationOverflow.into());
        }
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let tensors = SafeTensors::deserialize(bytes)?.tensors();
        let mut file = Self::new(tensors.into_iter().map(|(name, found)| NamedTensor {
            name,
            dtype: from_format(found.dtype()),
            shape: found.shape().to_vec(),
            bytes: Cow::Borrowed(found.data()),
        }))?;
        file.metadata.clone_from(header.metadata());
        Ok(file)
    }

    /// The bytes of a `.safetensors` file of these tensors, with the metadata of the file that they came from.
    ///
    /// # Errors
    ///
    /// [`StateError`] if a tensor's type is not one of that format.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, StateError> {
        let tensors =
            self.tensors().map(|tensor| Ok((&*tensor.name, Typed { dtype: to_format(tensor)?, tensor })));
        let tensors = tensors.collect::<Result<Vec<_>, StateError>>()?;
        let bytes = safetensors::serialize(tensors, self.metadata.clone())?;
        // A name that the format has taken would make a file that no one can read.
        SafeTensors::read_metadata(&bytes)?;
        Ok(bytes)
    }
}

struct Typed<'t> {
    dtype: Dtype,
    tensor: &'t NamedTensor<'t>,
}

impl View for Typed<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.tensor.bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.bytes.len()
    }
}

/// Every type of the format; those that no batch norm has go by the format's own names.
const TYPES: [(Dtype, FileDtype); 22] = [
    (Dtype::F16, FileDtype::F16),
    (Dtype::BF16, FileDtype::Bf16),
    (Dtype::F32, FileDtype::F32),
    (Dtype::F64, FileDtype::F64),
    (Dtype::I8, FileDtype::I8),
    (Dtype::I16, FileDtype::I16),
    (Dtype::I32, FileDtype::I32),
    (Dtype::I64, FileDtype::I64),
    (Dtype::U8, FileDtype::U8),
    (Dtype::U16, FileDtype::U16),
    (Dtype::U32, FileDtype::U32),
    (Dtype::U64, FileDtype::U64),
    (Dtype::BOOL, FileDtype::Other("BOOL")),
    (Dtype::C64, FileDtype::Other("C64")),
    (Dtype::F4, FileDtype::Other("F4")),
    (Dtype::F6_E2M3, FileDtype::Other("F6_E2M3")),
    (Dtype::F6_E3M2, FileDtype::Other("F6_E3M2")),
    (Dtype::F8_E5M2, FileDtype::Other("F8_E5M2")),
    (Dtype::F8_E4M3, FileDtype::Other("F8_E4M3")),
    (Dtype::F8_E8M0, FileDtype::Other("F8_E8M0")),
    (Dtype::F8_E4M3FNUZ, FileDtype::Other("F8_E4M3FNUZ")),
    (Dtype::F8_E5M2FNUZ, FileDtype::Other("F8_E5M2FNUZ")),
];

fn from_format(dtype: Dtype) -> FileDtype {
    let known = TYPES.into_iter().find(|(theirs, _)| *theirs == dtype);
    known.map_or(FileDtype::Other("a type that is newer than this crate"), |(_, ours)| ours)
}

fn to_format(tensor: &NamedTensor<'_>) -> Result<Dtype, StateError> {
    let known = TYPES.into_iter().find(|(_, ours)| *ours == tensor.dtype);
    known.map(|(theirs, _)| theirs).ok_or_else(|| StateError::Dtype {
        name: tensor.name.clone(),
        expected: "a type that safetensors has",
        got: tensor.dtype,
    })
}

/// Whether the header, outside of its names, has a number of 19 digits or more: no file is that long, and `safetensors` 0.8 adds
/// such numbers without looking whether they overflow.
fn header_has_huge_numbers(bytes: &[u8]) -> bool {
    let Some((len, rest)) = bytes.split_first_chunk() else {
        return false;
    };
    let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
    let (mut in_name, mut escaped, mut digits) = (false, false, 0);
    rest.iter().take(len).any(|&byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_name,
            b'"' => in_name = !in_name,
            _ => {}
        }
        digits = if !in_name && byte.is_ascii_digit() { digits + 1 } else { 0 };
        digits > 18
    })
}
