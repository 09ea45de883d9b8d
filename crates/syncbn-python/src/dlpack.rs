//! A tensor's properties in one question: `DLPack`'s exchange of C structures, which torch's tensors have from `PyTorch` 2.10 on.
//!
//! The structures are those of dlpack.h, version 1.3, with its enumerations as the integers that they are in C: torch may answer with
//! one that is not known here. Nothing is owned, and arrays are read before the interpreter can run anything else.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::slice;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyType};
use syncbn_core::Dtype;

use crate::memory::Memory;
use crate::tensor::{Described, Place};

/// `DLPackExchangeAPIHeader`, with which the table of any version begins.
#[repr(C)]
struct Header {
    major: u32,
    _minor: u32,
    _earlier: *const Header,
}

/// `DLPackExchangeAPI` of major version 1.
#[repr(C)]
struct Table {
    _header: Header,
    _unused: [*const c_void; 3],
    describe: Option<Describe>,
    current_stream: Option<CurrentStream>,
}

/// `DLPackDLTensorFromPyObjectNoSync`
type Describe = unsafe extern "C" fn(object: *mut c_void, out: *mut Tensor) -> c_int;
/// `DLPackCurrentWorkStream`
type CurrentStream = unsafe extern "C" fn(device_type: u32, device_id: i32, out: *mut *mut c_void) -> c_int;

/// `DLTensor`
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: u32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

const CPU: u32 = 1;
const CUDA: u32 = 2;
const INT: u8 = 0;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;

/// The functions of a class of tensors.
#[derive(Clone, Copy)]
pub(crate) struct Exchange {
    describe: Describe,
    current_stream: CurrentStream,
}

impl Exchange {
    /// Those of the class; None if it has none, or of a version that is not known here.
    pub(crate) fn of(class: &Bound<'_, PyType>) -> PyResult<Option<Self>> {
        let Some(capsule) = class.getattr_opt(intern!(class.py(), "__dlpack_c_exchange_api__"))? else {
            return Ok(None);
        };
        let capsule = capsule.cast_into::<PyCapsule>().map_err(PyErr::from)?;
        let table = capsule.pointer_checked(Some(c"dlpack_exchange_api"))?;
        // SAFETY: a capsule of this name has a table that lives as long as the process, and begins with a header.
        let header = unsafe { table.cast::<Header>().as_ref() };
        if header.major != 1 {
            return Ok(None);
        }
        // SAFETY: as above, and the table is of this version.
        let table = unsafe { table.cast::<Table>().as_ref() };
        let functions = table.describe.zip(table.current_stream);
        Ok(functions.map(|(describe, current_stream)| Self { describe, current_stream }))
    }

    /// A tensor of the class; None if it has no memory, or is of a type or on a device that is not known here.
    pub(crate) fn describe(self, tensor: &Bound<'_, PyAny>) -> Option<Described> {
        let mut told = MaybeUninit::<Tensor>::uninit();
        // SAFETY: the interpreter is held, the object is of the class, and there is room for the answer.
        let status = unsafe { (self.describe)(tensor.as_ptr().cast(), told.as_mut_ptr()) };
        if status != 0 {
            drop(PyErr::take(tensor.py()));
            return None;
        }
        // SAFETY: the call has filled it, and any bits are integers and pointers.
        let told = unsafe { told.assume_init() };
        // SAFETY: the arrays have a number for each axis, for as long as the tensor stays as it is.
        let sizes = unsafe { array(told.shape, told.ndim) };
        // SAFETY: as above.
        let strides = unsafe { array(told.strides, told.ndim) };
        let memory = Memory {
            pointer: told.data as u64 + told.byte_offset,
            len: 0,
            dtype: told.dtype()?,
            place: told.place()?,
        };
        Some(Described { memory, sizes: all(sizes)?, strides: all(strides)? })
    }

    /// The address of the stream that torch gives work on this CUDA device to, in this thread.
    pub(crate) fn current_stream(self, py: Python<'_>, ordinal: usize) -> PyResult<u64> {
        let (mut stream, ordinal) = (null_mut(), i32::try_from(ordinal)?);
        // SAFETY: the interpreter is held, and there is room for the answer.
        match unsafe { (self.current_stream)(CUDA, ordinal, &raw mut stream) } {
            0 => Ok(stream as u64),
            _ => Err(PyErr::fetch(py)),
        }
    }
}

impl Tensor {
    fn place(&self) -> Option<Place> {
        match self.device_type {
            CPU => Some(Place::Cpu),
            CUDA => self.device_id.try_into().ok().map(Place::Cuda),
            _ => None,
        }
    }

    fn dtype(&self) -> Option<Dtype> {
        match (self.code, self.bits, self.lanes) {
            (FLOAT, 16, 1) => Some(Dtype::F16),
            (BFLOAT, 16, 1) => Some(Dtype::Bf16),
            (FLOAT, 32, 1) => Some(Dtype::F32),
            (FLOAT, 64, 1) => Some(Dtype::F64),
            (INT, 64, 1) => Some(Dtype::I64),
            _ => None,
        }
    }
}

/// # Safety
///
/// There are `len` numbers for as long as the result is used; if `len` is 0 there may be no array.
unsafe fn array<'a>(numbers: *const i64, len: i32) -> &'a [i64] {
    match usize::try_from(len) {
        // SAFETY: the caller's promise.
        Ok(len) if len > 0 => unsafe { slice::from_raw_parts(numbers, len) },
        _ => &[],
    }
}

/// All of them in another type; None if one does not fit.
fn all<T: TryFrom<i64>>(numbers: &[i64]) -> Option<Vec<T>> {
    numbers.iter().map(|&number| T::try_from(number).ok()).collect()
}
