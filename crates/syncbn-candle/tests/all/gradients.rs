//! The layer against candle's own autograd of the formula, on the whole batch.

use crate::common::{difference, drawn, formula, layer, moments, per_channel, ranks, values, wide};
use crate::place::{available, device};
use candle_core::{DType, ModuleT, Result, Tensor, Var};
use syncbn_candle::SyncBatchNormConfig;

const EPS: f64 = 1e-5;

/// How a rank's x lies in memory.
#[derive(Clone, Copy, Debug)]
enum Lies {
    Contiguous,
    /// NHWC memory, seen as NCHW.
    ChannelsLast,
    /// Every other element of the last axis.
    WithGaps,
    /// The last axis is the slowest.
    Reversed,
    /// Behind other elements.
    WithOffset,
}

impl Lies {
    const ALL: [Self; 5] =
        [Self::Contiguous, Self::ChannelsLast, Self::WithGaps, Self::Reversed, Self::WithOffset];

    /// The tensor in memory of which [`view`](Self::view) makes x.
    fn store(self, x: &Tensor) -> Result<Tensor> {
        let rank = x.rank();
        match self {
            Self::Contiguous => Ok(x.clone()),
            Self::ChannelsLast => x.permute(rotated(rank, 1))?.contiguous(),
            Self::WithGaps => Tensor::stack(&[x, &x.ones_like()?], rank),
            Self::Reversed => x.permute(reversed(rank))?.contiguous(),
            Self::WithOffset => Tensor::cat(&[&x.ones_like()?, x], 0),
        }
    }

    fn view(self, stored: &Tensor) -> Result<Tensor> {
        let rank = stored.rank();
        match self {
            Self::Contiguous => Ok(stored.clone()),
            Self::ChannelsLast => stored.permute(rotated(rank, rank - 2)),
            Self::WithGaps => stored.narrow(rank - 1, 0, 1)?.squeeze(rank - 1),
            Self::Reversed => stored.permute(reversed(rank)),
            Self::WithOffset => {
                let samples = stored.dim(0)? / 2;
                stored.narrow(0, samples, samples)
            }
        }
    }
}

fn rotated(rank: usize, by: usize) -> Vec<usize> {
    let mut axes: Vec<usize> = (0..rank).collect();
    axes[1..].rotate_left(by);
    axes
}

fn reversed(rank: usize) -> Vec<usize> {
    (0..rank).rev().collect()
}

/// What one rank has after a step, in `f64`.
struct Outcome {
    y: Tensor,
    dx: Tensor,
    d_affine: Option<(Tensor, Tensor)>,
    running: (Tensor, Tensor),
}

struct Case<'a> {
    shape: &'a [usize],
    split: &'a [usize],
    dtype: DType,
    lies: Lies,
    affine: bool,
}

impl Case<'_> {
    fn params(&self) -> DType {
        if self.dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }

    fn affine_values(&self) -> (Tensor, Tensor) {
        let channels = [self.shape[1]];
        (drawn(&channels, self.params(), 3), drawn(&channels, self.params(), 4))
    }

    /// `sum(y g)` is the loss, so that dy is g.
    fn run(&self, x: &Tensor, g: &Tensor) -> Vec<Outcome> {
        ranks(self.split.len(), |group| {
            let (from, len) = (self.split[..group.rank()].iter().sum(), self.split[group.rank()]);
            let (x, g) = (x.narrow(0, from, len)?, g.narrow(0, from, len)?);
            let config = SyncBatchNormConfig { affine: self.affine, ..EPS.into() };
            let (mut vars, norm) = layer(self.shape[1], config, self.dtype, group)?;
            if self.affine {
                let (weight, bias) = self.affine_values();
                vars.set([("bn1.weight", weight), ("bn1.bias", bias)].into_iter())?;
            }
            let stored = Var::from_tensor(&self.lies.store(&x)?)?;
            let y = norm.forward_t(&self.lies.view(&stored)?, true)?;
            assert_eq!((y.dims(), y.dtype()), (x.dims(), self.dtype));
            let is_permuted = matches!(self.lies, Lies::ChannelsLast) && x.rank() > 2 && x.dim(0)? > 0;
            assert_eq!(y.is_contiguous(), !is_permuted, "y lies as x");
            let grads = (&y * &g)?.sum_all()?.backward()?;
            let grad = |of: Option<&Tensor>| Some(wide(grads.get(of?).unwrap()));
            Ok(Outcome {
                y: wide(&y),
                dx: wide(&self.lies.view(grads.get(&stored).unwrap())?),
                d_affine: grad(norm.weight()).zip(grad(norm.bias())),
                running: (wide(norm.running_mean().unwrap()), wide(norm.running_var().unwrap())),
            })
        })
    }

    fn check(&self) {
        let Self { shape, split, dtype, lies, affine } = self;
        let named = format!("{dtype:?} {shape:?} split as {split:?}, {lies:?}, affine {affine}");
        let (x, g) = (drawn(shape, *dtype, 1), drawn(shape, *dtype, 2));
        let outcomes = self.run(&x, &g);
        let expected =
            Expected::new(&wide(&x), &wide(&g), affine.then(|| self.affine_values()).as_ref()).unwrap();

        let joined = |of: fn(&Outcome) -> &Tensor| {
            Tensor::cat(&outcomes.iter().map(of).collect::<Vec<_>>(), 0).unwrap()
        };
        let bar = Bar::of(*dtype);
        bar.check(&format!("y, {named}"), &joined(|o| &o.y), &expected.y, &expected.y_terms);
        bar.check(&format!("dx, {named}"), &joined(|o| &o.dx), &expected.dx, &expected.dx_terms);
        if let Some((d_weight, d_bias, d_weight_terms, d_bias_terms)) = &expected.d_affine {
            let total = |of: fn(&(Tensor, Tensor)) -> &Tensor| {
                let parts = outcomes.iter().map(|outcome| of(outcome.d_affine.as_ref().unwrap()).clone());
                parts.reduce(|sum, part| (sum + part).unwrap()).unwrap()
            };
            bar.check_sums(&format!("d_weight, {named}"), &total(|o| &o.0), d_weight, d_weight_terms);
            bar.check_sums(&format!("d_bias, {named}"), &total(|o| &o.1), d_bias, d_bias_terms);
        }
        for outcome in &outcomes {
            let (mean, var) = &outcome.running;
            bar.check_sums(&named, mean, &expected.running_mean, &expected.running_mean.abs().unwrap());
            bar.check_sums(&named, var, &expected.running_var, &expected.running_var);
        }
    }
}

/// Candle's autograd of the formula, and the size of the terms that make up each result.
struct Expected {
    y: Tensor,
    y_terms: Tensor,
    dx: Tensor,
    dx_terms: Tensor,
    d_affine: Option<(Tensor, Tensor, Tensor, Tensor)>,
    running_mean: Tensor,
    running_var: Tensor,
}

impl Expected {
    fn new(x: &Tensor, g: &Tensor, affine: Option<&(Tensor, Tensor)>) -> Result<Self> {
        let (channels, rank) = (x.dim(1)?, x.rank());
        let x = Var::from_tensor(x)?;
        let ones =
            (Tensor::ones(channels, DType::F64, &device())?, Tensor::zeros(channels, DType::F64, &device())?);
        let (weight, bias) = affine.unwrap_or(&ones);
        let (weight, bias) = (Var::from_tensor(&wide(weight))?, Var::from_tensor(&wide(bias))?);
        let y = formula(&x, Some((&weight, &bias)), EPS)?;
        let grads = (&y * g)?.sum_all()?.backward()?;

        let (mean, var) = moments(&x.detach())?;
        let invstd = (var.clone() + EPS)?.sqrt()?.recip()?;
        let normal = formula(&x.detach(), None, EPS)?;
        let (weight_of, bias_of) = (per_channel(&weight.detach(), rank)?, per_channel(&bias.detach(), rank)?);
        let others: Vec<usize> = (0..rank).filter(|&axis| axis != 1).collect();
        let mean_g = g.mean_keepdim(&others[..])?.abs()?;
        let mean_g_normal = (g * &normal)?.mean_keepdim(&others[..])?;
        let terms = g.abs()?.broadcast_add(&mean_g)?.add(&normal.broadcast_mul(&mean_g_normal)?.abs()?)?;
        let sum = |terms: &Tensor| terms.abs()?.sum_keepdim(&others[..])?.flatten_all();

        let count = (x.elem_count() / channels) as f64;
        let var = (var.flatten_all()? * (count / (count - 1.0)))?;
        Ok(Self {
            y_terms: normal.broadcast_mul(&weight_of)?.abs()?.broadcast_add(&bias_of.abs()?)?,
            dx_terms: terms.broadcast_mul(&invstd.broadcast_mul(&weight_of.abs()?)?)?,
            dx: grads.get(&x).unwrap().clone(),
            d_affine: affine
                .is_some()
                .then(|| -> Result<_> {
                    let (d_weight, d_bias) = (grads.get(&weight).unwrap(), grads.get(&bias).unwrap());
                    Ok((d_weight.clone(), d_bias.clone(), sum(&(g * &normal)?)?, sum(g)?))
                })
                .transpose()?,
            y: y.detach(),
            running_mean: (mean.flatten_all()? * 0.1)?,
            running_var: ((var * 0.1)? + 0.9)?,
        })
    }
}

/// How far a result may be from the formula's, as /docs/numerics.md has it for every backend.
struct Bar {
    /// Of tensors: the norm of the error over that of the terms, per channel.
    norm: f64,
    /// Of sums, relative to the sum of their terms' sizes.
    sums: f64,
    /// Of one element, relative to its size: the rounding of the activations' type.
    ulp: Option<f64>,
}

impl Bar {
    fn of(dtype: DType) -> Self {
        match dtype {
            DType::F64 => Self { norm: 1e-12, sums: 1e-12, ulp: None },
            DType::F32 => Self { norm: 5e-7, sums: 1e-6, ulp: None },
            DType::F16 => Self { norm: f64::NAN, sums: 1e-6, ulp: Some(2.0_f64.powi(-10)) },
            _ => Self { norm: f64::NAN, sums: 1e-6, ulp: Some(2.0_f64.powi(-7)) },
        }
    }

    fn check(&self, named: &str, got: &Tensor, expected: &Tensor, terms: &Tensor) {
        assert_eq!(got.dims(), expected.dims(), "{named}");
        let Some(ulp) = self.ulp else {
            for channel in 0..got.dim(1).unwrap() {
                let norm = |tensor: &Tensor| {
                    let tensor = tensor.narrow(1, channel, 1).unwrap();
                    tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
                };
                let error = norm(&(got - expected).unwrap()) / norm(terms);
                assert!(error <= self.norm, "{named}, channel {channel}: {error:e}");
            }
            return;
        };
        let largest = values(terms).into_iter().fold(0.0, f64::max);
        for (got, expected) in values(got).into_iter().zip(values(expected)) {
            let bar = ulp * expected.abs() + 1e-6 * largest;
            assert!((got - expected).abs() <= bar, "{named}: {got} and {expected}");
        }
    }

    fn check_sums(&self, named: &str, got: &Tensor, expected: &Tensor, terms: &Tensor) {
        let all = values(got).into_iter().zip(values(expected)).zip(values(terms));
        for ((got, expected), terms) in all {
            assert!((got - expected).abs() <= self.sums * terms, "{named}: {got} and {expected}");
        }
    }
}

const TYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

#[test]
fn gradients_are_the_formulas_in_every_type_layout_and_number_of_axes() {
    if !available() {
        return;
    }
    let shapes: [&[usize]; 4] = [&[7, 5], &[7, 3, 4], &[7, 3, 4, 5], &[7, 2, 3, 4, 5]];
    for (dtype, shape) in TYPES.into_iter().flat_map(|dtype| shapes.map(|shape| (dtype, shape))) {
        for lies in Lies::ALL {
            Case { shape, split: &[5, 2], dtype, lies, affine: true }.check();
        }
    }
}

#[test]
fn gradients_are_the_formulas_whatever_the_split_and_without_weight_and_bias() {
    if !available() {
        return;
    }
    let splits: [&[usize]; 5] = [&[8], &[1, 7], &[3, 0, 5], &[0, 0, 8], &[1, 1, 1, 1, 1, 1, 1, 1]];
    for (dtype, split) in TYPES.into_iter().flat_map(|dtype| splits.map(|split| (dtype, split))) {
        for affine in [true, false] {
            Case { shape: &[8, 3, 4, 5], split, dtype, lies: Lies::Contiguous, affine }.check();
        }
    }
}

/// A scalar of y whose gradient candle makes in a certain layout.
type Loss = fn(&Tensor) -> Result<Tensor>;

fn same_gradients(
    named: &str,
    loss: Loss,
    graph: impl Fn(&dyn Fn(&Tensor) -> Result<Tensor>, &Tensor) -> Result<Tensor> + Sync,
) {
    let shape = [6, 3, 4, 5];
    let x = drawn(&shape, DType::F64, 1);
    let expected = Var::from_tensor(&x).unwrap();
    let y = graph(&|x| formula(x, None, EPS), &expected).unwrap();
    let grads = loss(&y).unwrap().backward().unwrap();
    let expected = grads.get(&expected).unwrap();
    let parts = ranks(2, |group| {
        let (from, len) = [(0, 4), (4, 2)][group.rank()];
        let (_vars, norm) = layer(3, EPS, DType::F64, group)?;
        let x = Var::from_tensor(&x.narrow(0, from, len)?)?;
        let y = graph(&|x| norm.forward_t(x, true), &x)?;
        Ok(loss(&y)?.backward()?.get(&x).unwrap().clone())
    });
    let got = Tensor::cat(&parts, 0).unwrap();
    let error = difference(&got, expected);
    assert!(error <= 1e-12, "{named}: {error:e}");
}

#[test]
fn dy_may_be_broadcast_strided_or_zero_in_places() {
    if !available() {
        return;
    }
    let losses: [(&str, Loss); 5] = [
        ("broadcast", |y| y.sum_keepdim(3)?.exp()?.sum_all()),
        ("strided", |y| y.permute((3, 1, 0, 2))?.contiguous()?.exp()?.sum_all()),
        ("narrow", |y| y.narrow(3, 1, 2)?.exp()?.sum_all()),
        ("transposed", |y| y.transpose(2, 3)?.exp()?.sum_all()),
        ("channels-last", |y| y.permute((0, 2, 3, 1))?.contiguous()?.exp()?.sum_all()),
    ];
    for (named, loss) in losses {
        same_gradients(named, loss, |norm, x| norm(x));
    }
}

#[test]
fn x_used_twice_and_a_layer_used_twice_have_all_their_gradients() {
    if !available() {
        return;
    }
    let loss: Loss = |y| y.exp()?.sum_all();
    same_gradients("x used twice", loss, |norm, x| x.mul(&norm(x)?));
    same_gradients("a layer used twice in turn", loss, |norm, x| norm(&norm(x)?.sqr()?));
    same_gradients("a layer used twice side by side", loss, |norm, x| norm(&x.sqr()?)? + norm(&x.exp()?)?);
}

#[test]
fn backward_of_an_output_itself_takes_the_ones_that_candle_begins_with() {
    if !available() {
        return;
    }
    let (_vars, norm) = layer(3, EPS, DType::F64, &syncbn_candle::Group::single_rank()).unwrap();
    let x = Var::from_tensor(&drawn(&[4, 3, 2], DType::F64, 1)).unwrap();
    let y = norm.forward_t(&x, true).unwrap();
    let grads = y.backward().unwrap();
    let d_bias = values(grads.get(norm.bias().unwrap()).unwrap());
    assert_eq!(d_bias, [8.0, 8.0, 8.0]);
    assert!(values(grads.get(&x).unwrap()).iter().all(|dx| dx.abs() < 1e-14));
}
