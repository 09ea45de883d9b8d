//! How the four activation types reach the arithmetic, which is all in `f64`.

use syncbn_core::{Element, bf16, f16};

use crate::vector::{STRIP, Vector};

/// An activation type.
pub(crate) trait Number: Element + bytemuck::Pod {
    /// The values, exactly.
    fn widen<V: Vector>(set: V::Set, elements: &[Self; STRIP]) -> V;
    /// The values rounded, as [`Vector`] says.
    fn narrow<V: Vector>(values: V) -> [Self; STRIP];
}

macro_rules! number {
    ($type:ty, $from:ident, $to:ident) => {
        impl Number for $type {
            #[inline(always)]
            fn widen<V: Vector>(set: V::Set, elements: &[Self; STRIP]) -> V {
                V::$from(set, elements)
            }
            #[inline(always)]
            fn narrow<V: Vector>(values: V) -> [Self; STRIP] {
                values.$to()
            }
        }
    };
}

number!(f64, from_f64, to_f64);
number!(f32, from_f32, to_f32);
number!(f16, from_f16, to_f16);
number!(bf16, from_bf16, to_bf16);

/// The elements that do not fill a strip, with zeros behind them.
#[inline(always)]
pub(crate) fn padded<T: Number>(elements: &[T]) -> [T; STRIP] {
    let mut strip = [T::default(); STRIP];
    for (target, element) in strip.iter_mut().zip(elements) {
        *target = *element;
    }
    strip
}
