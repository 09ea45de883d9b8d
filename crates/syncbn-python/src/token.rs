//! Which forward pass saved something, as Python keeps it.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use syncbn_core::{SavedToken, Scope};

use crate::error::Place;
use crate::tensor::activations;

/// What a forward pass gives back: whose statistics lie beside it.
#[pyclass(frozen, module = "syncbn._syncbn")]
pub(crate) struct Token(pub(crate) SavedToken);

#[pymethods]
impl Token {
    /// The token of a pass that only differs in the shape and layout of x.
    fn with_input(&self, x: &Bound<'_, PyAny>) -> PyResult<Self> {
        let place = Place { operation: "reading x", layer: None, rank: 0, world_size: 1 };
        let x = activations("x", x).map_err(|failure| failure.at(x.py(), &place))?;
        let geometry = x.geometry.map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self(self.0.with_geometry(geometry)))
    }

    /// Whether the statistics are the group's.
    #[getter]
    fn is_group(&self) -> bool {
        self.0.scope() == Scope::Group
    }
}
