//! Running a drawn case, and the results that the oracle expects of it.

use syncbn_core::{Element, Kernels, State};

use crate::bars::{check_dx, check_parameter_gradients, check_running, check_y};
use crate::harness::{Harness, Join};
use crate::oracle::{self, Affine, Channel, GradSums};
use crate::outcome::Outcome;
use crate::rank::{Rank, Step, ranks_of};
use crate::strategies::Case;
use crate::tensor::Tensor;
use crate::{broken, ensure};

/// One training step of a case on all its ranks.
pub fn train<H: Harness, T: Element>(harness: &H, case: &Case) -> Outcome<Vec<Step<T>>>
where
    H::Backend: Kernels<T>,
{
    train_on(harness, case, &case.all(Case::x::<T>))
}

/// The same with another x on each rank.
pub fn train_on<H: Harness, T: Element>(harness: &H, case: &Case, x: &[Tensor<T>]) -> Outcome<Vec<Step<T>>>
where
    H::Backend: Kernels<T>,
{
    let world_size = case.world_size().try_into()?;
    train_in(harness, harness.group(world_size), case, x)
}

/// The same in another group than the harness's.
pub fn train_in<H: Harness, T: Element>(
    harness: &H,
    group: Vec<Join<H::Backend>>,
    case: &Case,
    x: &[Tensor<T>],
) -> Outcome<Vec<Step<T>>>
where
    H::Backend: Kernels<T>,
{
    ranks_of(harness, group, |rank: &Rank<H::Backend>| {
        let mut layer = rank.layer(case.config(), &case.state())?;
        rank.train(&mut layer, &x[rank.index], &case.dy::<T>(rank.index), case.layout)
    })
}

/// The oracle's view of a batch: what its training step should give.
pub struct Expected<T: Element> {
    /// In words.
    case: String,
    eps: f64,
    before: State<T::Param>,
    /// The weight of this batch in the running statistics.
    share: f64,
    affine: Affine,
    statistics: Vec<Channel>,
    /// Of each rank.
    xhat: Vec<Tensor<f64>>,
    /// Of each rank.
    sums: Vec<Vec<GradSums>>,
    /// Of each rank, with the size of the terms.
    dx: Vec<Tensor<(f64, f64)>>,
}

impl<T: Element> Expected<T> {
    /// With the statistics of the whole batch.
    #[must_use]
    pub fn of(case: &Case) -> Self {
        Self::on(case, &case.all(Case::x::<T>))
    }

    /// The same with another x on each rank.
    #[must_use]
    pub fn on(case: &Case, x: &[Tensor<T>]) -> Self {
        let statistics = oracle::statistics(&Tensor::concat(x));
        Self::with(case, case.state(), (x, &case.all(Case::dy::<T>)), statistics, true)
    }

    /// With the statistics of the whole batch, for a layer of another state.
    #[must_use]
    pub fn given(case: &Case, before: State<T::Param>) -> Self {
        let x = case.all(Case::x::<T>);
        let statistics = oracle::statistics(&Tensor::concat(&x));
        Self::with(case, before, (&x, &case.all(Case::dy::<T>)), statistics, true)
    }

    /// With fixed statistics.
    #[must_use]
    pub fn frozen(case: &Case) -> Self {
        let before = case.state::<T::Param>();
        let (mean, var) = (before.running_mean.unwrap_or_default(), before.running_var.unwrap_or_default());
        let fixed = |(mean, var): (&T::Param, &T::Param)| Channel {
            count: 1.0,
            mean: mean.to_f64(),
            var: var.to_f64(),
            ..Channel::default()
        };
        let statistics = mean.iter().zip(&var).map(fixed).collect();
        let (x, dy) = (case.all(Case::x::<T>), case.all(Case::dy::<T>));
        Self::with(case, case.state(), (&x, &dy), statistics, false)
    }

    /// Of one rank of the case, with the statistics of its own batch.
    #[must_use]
    pub fn local(case: &Case, rank: usize) -> Self {
        let (x, dy) = (case.x::<T>(rank), case.dy::<T>(rank));
        let statistics = oracle::statistics(&x);
        Self::with(case, case.state(), (&[x], &[dy]), statistics, true)
    }

    fn with(
        case: &Case,
        before: State<T::Param>,
        (x, dy): (&[Tensor<T>], &[Tensor<T>]),
        statistics: Vec<Channel>,
        differentiate: bool,
    ) -> Self {
        let eps = case.eps;
        let affine = Affine::new(case.channels, before.weight.as_ref(), before.bias.as_ref());
        let xhat: Vec<_> = x.iter().map(|x| oracle::xhat(x, &statistics, eps)).collect();
        let sums: Vec<_> = xhat.iter().zip(dy).map(|(xhat, dy)| oracle::grad_sums(xhat, dy)).collect();
        let whole = oracle::grad_sums(&Tensor::concat(&xhat), &Tensor::concat(dy));
        let whole = differentiate.then_some(whole.as_slice());
        let dx = xhat.iter().zip(dy).map(|(xhat, dy)| oracle::dx(xhat, dy, &statistics, whole, &affine, eps));
        let dx = dx.collect();
        let seen = before.num_batches_tracked.unwrap_or_default() + 1;
        let share = case.momentum.unwrap_or(1.0 / seen as f64);
        Self { case: case.to_string(), eps, before, share, affine, statistics, xhat, sums, dx }
    }

    /// Are these the batch's y, gradients and running statistics?
    pub fn check(&self, steps: &[Step<T>]) -> Outcome {
        self.check_y(&steps.iter().map(|step| step.y.clone()).collect::<Vec<_>>())?;
        self.check_gradients(steps)?;
        steps.iter().try_for_each(|step| self.check_state(&step.state))
    }

    /// Are these the y of the batch?
    pub fn check_y(&self, got: &[Tensor<T>]) -> Outcome {
        let xhat = Tensor::concat(&self.xhat);
        check_y(&Tensor::concat(got), &xhat, &self.statistics, &self.affine, self.eps)
            .map_err(|why| why.at(&self.case))
    }

    /// Are these the gradients: dx of the whole batch, those of the parameters each rank's own, and together the whole's?
    pub fn check_gradients(&self, steps: &[Step<T>]) -> Outcome {
        let dx: Vec<_> = steps.iter().map(|step| step.gradients.dx.clone()).collect();
        self.check_dx(&dx)?;
        for (rank, (step, sums)) in steps.iter().zip(&self.sums).enumerate() {
            let (d_weight, d_bias) = (&step.gradients.d_weight, &step.gradients.d_bias);
            self.check_parameters(d_weight, d_bias, sums).map_err(|why| why.at(format!("rank {rank}")))?;
        }
        Ok(())
    }

    /// Are these the gradients of x?
    pub fn check_dx(&self, got: &[Tensor<T>]) -> Outcome {
        check_dx(&Tensor::concat(got), &Tensor::concat(&self.dx), &self.statistics, self.eps)
            .map_err(|why| why.at(&self.case))
    }

    /// Are these one rank's gradients of the parameters?
    pub fn check_rank_parameters(&self, rank: usize, d_weight: &[T::Param], d_bias: &[T::Param]) -> Outcome {
        self.check_parameters(d_weight, d_bias, &self.sums[rank])
    }

    fn check_parameters(&self, d_weight: &[T::Param], d_bias: &[T::Param], sums: &[GradSums]) -> Outcome {
        check_parameter_gradients::<T>(d_weight, d_bias, sums, &self.statistics, self.eps)
            .map_err(|why| why.at(&self.case))
    }

    /// Have the running statistics moved towards the batch's, and the parameters not at all?
    pub fn check_state(&self, got: &State<T::Param>) -> Outcome {
        self.state_is(got).map_err(|why| why.at(&self.case))
    }

    fn state_is(&self, got: &State<T::Param>) -> Outcome {
        ensure!(
            got.weight == self.before.weight && got.bias == self.before.bias,
            "the parameters have changed"
        );
        let mut expected = self.before.num_batches_tracked;
        if self.statistics[0].count == 0.0 {
            ensure!(*got == self.before, "a batch without elements has changed the state");
            return Ok(());
        }
        if let Some(count) = &mut expected {
            *count += 1;
        }
        let count = got.num_batches_tracked;
        ensure!(count == expected, "num_batches_tracked is {count:?}, expected {expected:?}");
        let (Some(mean), Some(var)) = (&got.running_mean, &got.running_var) else {
            return Ok(());
        };
        let (Some(old_mean), Some(old_var)) = (&self.before.running_mean, &self.before.running_var) else {
            return Err(broken!("running statistics came from nowhere"));
        };
        check_running((mean, var), (old_mean, old_var), &self.statistics, self.share)
    }
}
