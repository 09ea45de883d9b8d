//! Which forward pass saved something, as Python keeps it.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use syncbn_core::{SavedToken, Scope};

/// What a forward pass gives back: whose statistics lie beside it.
#[pyclass(frozen, module = "syncbn._syncbn")]
pub(crate) struct Token(pub(crate) SavedToken);

#[pymethods]
impl Token {
    /// The token as numbers, for graphs that keep data alone.
    fn words(&self) -> [i64; SavedToken::WORDS] {
        self.0.to_words().map(u64::cast_signed)
    }

    /// The token of these numbers.
    #[staticmethod]
    fn from_words(words: [i64; SavedToken::WORDS]) -> PyResult<Self> {
        let token = SavedToken::from_words(words.map(i64::cast_unsigned));
        token.map(Self).ok_or_else(|| PyValueError::new_err(format!("{words:?} is no token of a forward pass")))
    }

    /// Whether the statistics are the group's.
    #[getter]
    fn is_group(&self) -> bool {
        self.0.scope() == Scope::Group
    }
}
