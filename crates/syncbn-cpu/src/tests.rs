//! A whole pass of a rank alone has the bits of two kernels.

use syncbn_core::backend::{BackwardArgs, ForwardArgs, Gradients};
use syncbn_core::meeting::{backward_by_kernels, forward_by_kernels};
use syncbn_core::{
    Backend, Element, Geometry, Kernels, Meeting, NonFinite, RunningMut, Scalar, View, ViewMut, bf16, f16,
    saved_len,
};

use crate::number::Number;
use crate::plan::{Blocks, Dims, Tiles};
use crate::{Cpu, backward, forward};

/// How a pass is done: by two kernels, or whole.
type Way = Option<Blocks>;

fn values<T: Scalar>(len: usize, seed: usize, of: impl Fn(f64) -> T) -> Vec<T> {
    (0..len).map(|i| of(((i * 31 + seed) * 2_654_435_761 % 4093) as f64 / 1000.0 - 1.5)).collect()
}

/// Everything that a forward and a backward pass write, as bytes.
fn written<T: Number>(geometry: Geometry, [first, second]: [Way; 2], in_place: bool) -> Vec<u8>
where
    Cpu: Kernels<T>,
{
    let (len, channels) = (geometry.len(), geometry.channels());
    let params = |seed| values(channels, seed, <T::Param as Element>::from_f64);
    let [weight, bias, mut mean, mut var] = [1, 2, 3, 4].map(params);
    let mut tracked = [7_i64];
    let (x, dy) = (values(len, 5, T::from_f64), values(len, 6, T::from_f64));
    let (mut y, mut dx) = (vec![T::default(); len + 1], dy.clone());
    let [mut d_weight, mut d_bias] = [1, 2].map(params);
    let mut saved = vec![f64::NAN; saved_len(channels)];
    let mut workspace = Cpu.workspace(&(), channels, T::Param::DTYPE).unwrap();

    let running = RunningMut {
        mean: &mut mean[..],
        var: &mut var[..],
        num_batches_tracked: &mut tracked[..],
        momentum: None,
        non_finite: NonFinite::Propagate,
    };
    let args = ForwardArgs {
        x: View::new(&x[..], geometry).unwrap(),
        y: ViewMut::new(&mut y[..], geometry).unwrap(),
        weight: Some(&weight[..]),
        bias: Some(&bias[..]),
        eps: 1e-5,
        running: Some(running),
        saved: &mut saved[..],
        workspace: &mut workspace,
    };
    match first {
        Some(blocks) => forward::alone(args, blocks).unwrap(),
        None => forward_by_kernels(&Cpu, &(), args, Meeting::Alone).unwrap(),
    }

    let target = ViewMut::new(&mut dx[..], geometry).unwrap();
    let args = BackwardArgs {
        x: View::new(&x[..], geometry).unwrap(),
        gradients: if in_place {
            Gradients::InPlace(target)
        } else {
            Gradients::OutOfPlace { dy: View::new(&dy[..], geometry).unwrap(), dx: target }
        },
        saved: &saved[..],
        weight: Some(&weight[..]),
        d_weight: Some(&mut d_weight[..]),
        d_bias: Some(&mut d_bias[..]),
        workspace: &mut workspace,
    };
    match second {
        Some(blocks) => backward::alone(args, blocks).unwrap(),
        None => backward_by_kernels(&Cpu, &(), args, Meeting::Alone).unwrap(),
    }
    let parameters = [mean, var, d_weight, d_bias];
    let bytes: [&[u8]; 4] = [
        bytemuck::cast_slice(&y),
        bytemuck::cast_slice(&dx),
        bytemuck::cast_slice(&saved),
        bytemuck::cast_slice(&tracked),
    ];
    let parameters = parameters.iter().flatten().flat_map(|value| value.to_f64().to_le_bytes());
    bytes.concat().into_iter().chain(parameters).collect()
}

/// Every block that [`Blocks::new`] may choose, and some that it would not for so small a tensor.
fn blocks(dims: Dims) -> Vec<Blocks> {
    let tiles = Tiles::new(dims);
    (1..=dims.channels).filter(|&step| tiles.can_be_cut(step)).map(|step| Blocks { step }).collect()
}

fn whole_passes_have_the_bits_of_two_kernels<T: Number>()
where
    Cpu: Kernels<T>,
{
    for shape in [
        [0, 3, 4],
        [1, 1, 9],
        [5, 24, 1],
        [700, 40, 1],
        [70, 9, 1],
        [3, 1100, 2],
        [9, 5, 8],
        [7, 6, 31],
        [30, 3, 33],
        [5, 7, 49],
        [9, 20, 70],
        [3, 6, 196],
        [2, 2, 66_000],
    ] {
        let geometry = Geometry::channels_first(&shape).unwrap();
        for in_place in [false, true] {
            let expected = written::<T>(geometry, [None, None], in_place);
            let all = blocks(Dims::from(&geometry));
            let few = all.len().div_ceil(12);
            for blocks in all.into_iter().step_by(few) {
                let whole = written::<T>(geometry, [Some(blocks), Some(blocks)], in_place);
                assert!(whole == expected, "{} {shape:?} {blocks:?} {in_place}", T::DTYPE);
            }
        }
    }
}

#[test]
fn whole_passes_have_the_bits_of_two_kernels_of_f32() {
    whole_passes_have_the_bits_of_two_kernels::<f32>();
}

#[test]
fn whole_passes_have_the_bits_of_two_kernels_of_f64() {
    whole_passes_have_the_bits_of_two_kernels::<f64>();
}

#[test]
fn whole_passes_have_the_bits_of_two_kernels_of_halves() {
    whole_passes_have_the_bits_of_two_kernels::<f16>();
    whole_passes_have_the_bits_of_two_kernels::<bf16>();
}
