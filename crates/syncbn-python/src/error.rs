//! Failures as Python exceptions, which keep operation, layer and rank (`syncbn.errors`).

use pyo3::prelude::*;
use pyo3::types::PyDict;
use syncbn_comm::BootstrapError;
use syncbn_core::{CommError, CommErrorKind, Dtype, Error, ErrorKind};
use syncbn_cuda::CudaError;

/// What torch's tensors, or their memory, cannot be used for.
#[derive(Debug)]
pub(crate) enum Refused {
    NoTensor { name: &'static str, got: String },
    Dtype { name: &'static str, got: String },
    Type { name: &'static str, got: Dtype, expected: Dtype },
    Activations { got: Dtype, params: Dtype },
    Device { name: &'static str, got: String, expected: String },
    Gaps { name: &'static str },
    Lazy { name: &'static str },
    NoMemory { name: &'static str },
    Overlap { name: &'static str, other: &'static str },
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoTensor { name, got } => write!(f, "{name} is a {got}, expected a torch.Tensor"),
            Self::Dtype { name, got } => {
                write!(f, "{name} holds {got}, expected f16, bf16, f32, f64 or i64 numbers")
            }
            Self::Type { name, got, expected } => write!(f, "{name} holds {got}, expected {expected}"),
            Self::Activations { got, params: Dtype::F64 } => {
                write!(f, "x holds {got}, expected f64, as the parameters and running statistics are")
            }
            Self::Activations { got, params } => write!(
                f,
                "x holds {got}, expected f32, f16 or bf16, as the parameters and running statistics are {params}"
            ),
            Self::Device { name, got, expected } => write!(f, "{name} is on {got}, expected {expected}"),
            Self::Gaps { name } => write!(f, "{name} has gaps, expected contiguous memory"),
            Self::Lazy { name } => {
                write!(f, "{name} is a lazily negated view, expected values: call resolve_neg() first")
            }
            Self::NoMemory { name } => write!(f, "{name} has no memory that numbers could be read from"),
            Self::Overlap { name, other } => {
                write!(f, "{name} is written, and lies in the memory of {other}")
            }
        }
    }
}

/// Why a call has not run.
#[derive(Debug)]
pub(crate) enum Failure {
    Core(Error),
    Refused(Refused),
    /// What torch, or the interpreter, has raised.
    Python(PyErr),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Core(error)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl Failure {
    /// The exception, which says where it was.
    pub(crate) fn at(self, py: Python<'_>, place: &Place<'_>) -> PyErr {
        match self {
            Self::Core(error) => of_layer(py, &error),
            Self::Refused(refused) => argument(py, place, format!("{place}: {refused}")),
            Self::Python(error) => error,
        }
    }
}

/// Where a refusal came up.
pub(crate) struct Place<'a> {
    pub(crate) operation: &'a str,
    /// None for a group's own.
    pub(crate) layer: Option<&'a str>,
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { operation, layer, rank, world_size } = self;
        write!(f, "{operation}")?;
        if let Some(layer) = layer {
            write!(f, " of layer `{layer}`")?;
        }
        write!(f, " on rank {rank} of {world_size}")
    }
}

fn argument(py: Python<'_>, place: &Place<'_>, text: String) -> PyErr {
    let make = || {
        let fields = PyDict::new(py);
        fill(&fields, place)?;
        make(py, "ArgumentError", text, &fields)
    };
    make().unwrap_or_else(|error| error)
}

fn fill(fields: &Bound<'_, PyDict>, place: &Place<'_>) -> PyResult<()> {
    fields.set_item("operation", place.operation)?;
    fields.set_item("layer", place.layer)?;
    fields.set_item("rank", place.rank)?;
    fields.set_item("world_size", place.world_size)
}

/// A layer's failure.
pub(crate) fn of_layer(py: Python<'_>, error: &Error) -> PyErr {
    let operation = error.operation.to_string();
    let place = Place {
        operation: &operation,
        layer: Some(&error.layer),
        rank: error.rank,
        world_size: error.world_size,
    };
    let make = || {
        let fields = PyDict::new(py);
        fill(&fields, &place)?;
        let class = match &*error.kind {
            ErrorKind::Communicator(source) => {
                fill_group(&fields, source)?;
                "GroupError"
            }
            ErrorKind::Backend { .. } => "DeviceError",
            ErrorKind::Shape { .. }
            | ErrorKind::Channels { .. }
            | ErrorKind::Geometry { .. }
            | ErrorKind::Length { .. }
            | ErrorKind::OneElement { .. }
            | ErrorKind::Config(_) => "ArgumentError",
            _ => "Error",
        };
        make(py, class, error.to_string(), &fields)
    };
    make().unwrap_or_else(|error| error)
}

/// A collective's failure, outside a layer.
pub(crate) fn of_group(py: Python<'_>, operation: &str, error: &CommError) -> PyErr {
    let make = || {
        let fields = PyDict::new(py);
        fields.set_item("operation", operation)?;
        fields.set_item("rank", error.rank)?;
        fields.set_item("world_size", error.world_size)?;
        fill_group(&fields, error)?;
        make(py, "GroupError", format!("{operation}: {error}"), &fields)
    };
    make().unwrap_or_else(|error| error)
}

fn fill_group(fields: &Bound<'_, PyDict>, error: &CommError) -> PyResult<()> {
    let (kind, ranks) = kind(&error.kind);
    fields.set_item("kind", kind)?;
    fields.set_item("ranks", ranks)?;
    fields.set_item("late", error.late)
}

/// What went wrong, as a word, and the ranks it is about.
fn kind(kind: &CommErrorKind) -> (&'static str, Vec<usize>) {
    match kind {
        CommErrorKind::Left { rank, .. } => ("left", vec![*rank]),
        CommErrorKind::Timeout { missing, .. } => ("timeout", missing.clone()),
        CommErrorKind::Unfinished { .. } => ("unfinished", Vec::new()),
        CommErrorKind::OutOfStep { others } => {
            ("out_of_step", others.iter().map(|(rank, _)| *rank).collect())
        }
        CommErrorKind::Disagree(_) => ("disagree", Vec::new()),
        CommErrorKind::MessageLength { .. } => ("message_length", Vec::new()),
        CommErrorKind::Unsent(_) => ("unsent", Vec::new()),
        CommErrorKind::Poisoned(cause) => ("poisoned", self::kind(&cause.kind).1),
        _ => ("transport", Vec::new()),
    }
}

/// Processes could not become ranks.
pub(crate) fn of_bootstrap(py: Python<'_>, error: &BootstrapError) -> PyErr {
    let (kind, ranks) = match error {
        BootstrapError::Missing { missing, .. } | BootstrapError::Unlinked { missing, .. } => {
            ("timeout", missing.clone())
        }
        BootstrapError::NoAnswer { .. } => ("timeout", vec![0]),
        _ => ("transport", Vec::new()),
    };
    let make = || {
        let fields = PyDict::new(py);
        fields.set_item("operation", "joining the group")?;
        fields.set_item("kind", kind)?;
        fields.set_item("ranks", ranks)?;
        make(py, "GroupError", format!("joining the group: {error}"), &fields)
    };
    make().unwrap_or_else(|error| error)
}

/// The device's failure, outside a layer.
pub(crate) fn of_device(py: Python<'_>, operation: &str, error: &CudaError) -> PyErr {
    let make = || {
        let fields = PyDict::new(py);
        fields.set_item("operation", operation)?;
        make(py, "DeviceError", format!("{operation}: {error}"), &fields)
    };
    make().unwrap_or_else(|error| error)
}

fn make(py: Python<'_>, class: &str, text: String, fields: &Bound<'_, PyDict>) -> PyResult<PyErr> {
    let class = py.import("syncbn.errors")?.getattr(class)?;
    Ok(PyErr::from_value(class.call((text,), Some(fields))?))
}
