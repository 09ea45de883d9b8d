//! Owned memory whose size may be too large: an allocation that fails is a typed error.

use crate::error::CpuError;

/// An empty vector with room for `len` values; too many are an error, not an abort.
fn reserved<T>(len: usize, what: &'static str) -> Result<Vec<T>, CpuError> {
    let mut values = Vec::new();
    reserve(&mut values, len, what)?;
    Ok(values)
}

/// A vector of these values.
pub(crate) fn copied<T: Copy>(values: &[T], what: &'static str) -> Result<Vec<T>, CpuError> {
    let mut buffer = reserved(values.len(), what)?;
    buffer.extend_from_slice(values);
    Ok(buffer)
}

/// A vector of `len` copies of `value`.
pub(crate) fn filled<T: Clone>(value: T, len: usize, what: &'static str) -> Result<Vec<T>, CpuError> {
    let mut values = reserved(len, what)?;
    values.resize(len, value);
    Ok(values)
}

/// Makes scratch at least `len` long and lends that much of it; what is in it is left over from earlier.
pub(crate) fn scratch<'a, T: Clone + Default>(
    values: &'a mut Vec<T>,
    len: usize,
    what: &'static str,
) -> Result<&'a mut [T], CpuError> {
    if values.len() < len {
        reserve(values, len - values.len(), what)?;
        values.resize(len, T::default());
    }
    Ok(&mut values[..len])
}

fn reserve<T>(values: &mut Vec<T>, additional: usize, what: &'static str) -> Result<(), CpuError> {
    let bytes = additional.saturating_mul(size_of::<T>());
    values.try_reserve_exact(additional).map_err(|_| CpuError::OutOfMemory { what, bytes })
}

/// Overwrites a buffer with values whose number the caller may have got wrong; `what` names them.
pub(crate) fn copy_in<T: Copy>(ours: &mut [T], from: &[T], what: &'static str) -> Result<(), CpuError> {
    same_length(ours.len(), from.len(), what)?;
    ours.copy_from_slice(from);
    Ok(())
}

pub(crate) fn same_length(expected: usize, got: usize, what: &'static str) -> Result<(), CpuError> {
    if expected == got { Ok(()) } else { Err(CpuError::Length { what, expected, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_grows_by_what_is_missing_and_never_shrinks() {
        let mut values = Vec::<u8>::new();
        for (len, kept) in [(3, 3), (5, 5), (2, 5), (5, 5)] {
            assert_eq!(scratch(&mut values, len, "test").unwrap().len(), len);
            assert_eq!(values.len(), kept);
        }
        let missing = isize::MAX as usize + 1;
        let error = scratch(&mut vec![0_u8; 5], missing + 5, "test").unwrap_err();
        assert_eq!(error, CpuError::OutOfMemory { what: "test", bytes: missing });
    }
}
