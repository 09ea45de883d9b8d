//! A view is a proof that memory holds what a geometry says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use example_backend::Plain;
use syncbn_core::{Geometry, ShapeError, View};

fn error(channels: usize) -> ShapeError {
    let geometry = Geometry::channels_first(&[1, channels]).unwrap();
    View::<Plain, f32>::new(&[0.0; 3], geometry).unwrap_err()
}

#[test]
fn memory_that_is_too_short_is_told_from_a_tensor_that_no_memory_holds() {
    let most = isize::MAX as usize / size_of::<f32>();
    for (channels, overflows) in [(4, false), (most, false), (most + 1, true), (isize::MAX as usize, true)] {
        let error = error(channels);
        let (short, long) =
            (matches!(error, ShapeError::Memory { .. }), matches!(error, ShapeError::Overflow { .. }));
        assert_eq!((short, long), (!overflows, overflows), "{channels} channels: {error}");
    }
}
