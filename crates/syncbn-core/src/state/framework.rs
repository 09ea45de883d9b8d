//! What frameworks call the tensors of a batch norm, and which defaults they have.
//!
//! Deliberately not here: guessing which framework a file comes from.

use std::borrow::Cow;

use crate::error::Tensor;

/// What a framework calls the tensors of a batch norm, and the settings that its files do not hold.
///
/// A tensor's full name is the name of its collection, the layer's prefix, and its own name: `batch_stats.` `block1.` `mean`. The
/// fields are public to be changed; files whose names are joined with slashes, say, or which end in `:0`:
///
/// ```
/// use syncbn_core::Framework;
///
/// let slashes = Framework { parameters: "params/".into(), statistics: "batch_stats/".into(), ..Framework::FLAX };
/// let tensorflow = Framework { weight: "gamma:0".into(), bias: "beta:0".into(), ..Framework::KERAS };
/// ```
///
/// # What differs besides the names
///
/// | | own names | new running value | default | running variance | default eps | one of weight and bias alone |
/// |---|---|---|---|---|---|---|
/// | [`PYTORCH`](Self::PYTORCH), and this crate | `weight`, `bias`, `running_mean`, `running_var`, `num_batches_tracked` | (1 - a) old + a batch | a = 0.1 | unbiased | 1e-5 | no |
/// | [`FLAX`](Self::FLAX) | `scale`, `bias`, `mean`, `var` | m old + (1 - m) batch | m = 0.99 | biased | 1e-5 | possible |
/// | [`KERAS`](Self::KERAS) | `gamma`, `beta`, `moving_mean`, `moving_variance` | m old + (1 - m) batch | m = 0.99 | biased (Keras 3) | 1e-3 | possible |
/// | [`BURN`](Self::BURN) | `gamma`, `beta`, `running_mean`, `running_var` | (1 - a) old + a batch | a = 0.1 | biased | 1e-5 | no |
///
/// Files hold neither eps nor momentum: look into the program that made the file. [`Checkpoint::config`](crate::Checkpoint::config)
/// takes the framework's defaults, with momentum as this crate counts it: `a = 1 - m`.
///
/// A biased running variance is loaded as it is. It is (M - 1)/M of the unbiased one, where M is the number of elements per channel
/// of a batch, over all ranks: one part in 12,544 less for 16 samples of 28 x 28, but half of it for M = 2. Evaluation gives
/// what the framework gives; training goes on with unbiased variances, and the first ones are forgotten at the rate of
/// momentum.
///
/// # Sources
///
/// - PyTorch: [`BatchNorm2d`](https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html); a missing counter is 0 in
///   `_load_from_state_dict` of `torch/nn/modules/batchnorm.py`.
/// - Flax: [`BatchNorm`](https://flax.readthedocs.io/en/latest/api_reference/flax.linen/layers.html#flax.linen.BatchNorm) and
///   `_compute_stats` of `flax/linen/normalization.py`, whose variance is `E[x^2] - E[x]^2`.
/// - Keras: [`BatchNormalization`](https://keras.io/api/layers/normalization_layers/batch_normalization/). Keras 2 stored the unbiased
///   variance where its fused kernel ran
///   ([tensorflow #55545](https://github.com/tensorflow/tensorflow/issues/55545)).
/// - Burn: [`BatchNorm`](https://docs.rs/burn-nn/0.21.0/burn_nn/struct.BatchNorm.html), whose `forward_train` averages the squares of
///   `x - mean`; momentum is the weight of the newest batch, as in PyTorch.
#[derive(Clone, Debug, PartialEq)]
pub struct Framework {
    /// What comes before the layer's prefix in the names of weight and bias; usually nothing.
    pub parameters: Cow<'static, str>,
    /// What comes before the layer's prefix in the names of the other tensors; usually nothing.
    pub statistics: Cow<'static, str>,
    /// The scale's own name.
    pub weight: Cow<'static, str>,
    /// The shift's own name.
    pub bias: Cow<'static, str>,
    /// The running mean's own name.
    pub running_mean: Cow<'static, str>,
    /// The running variance's own name.
    pub running_var: Cow<'static, str>,
    /// The counter's own name, where there is one.
    pub num_batches_tracked: Option<Cow<'static, str>>,
    /// Whether a layer may have a weight or a bias without the other. The other is then filled in: weight 1, bias 0.
    pub parameters_apart: bool,
    /// The default of [`Config::eps`](crate::Config::eps).
    pub eps: f64,
    /// The default of [`Config::momentum`](crate::Config::momentum): the weight of the newest batch.
    pub momentum: f64,
}

impl Framework {
    /// PyTorch and what follows it, this crate included: `bn1.weight`, `bn1.running_mean`.
    pub const PYTORCH: Self = Self {
        parameters: Cow::Borrowed(""),
        statistics: Cow::Borrowed(""),
        weight: Cow::Borrowed("weight"),
        bias: Cow::Borrowed("bias"),
        running_mean: Cow::Borrowed("running_mean"),
        running_var: Cow::Borrowed("running_var"),
        num_batches_tracked: Some(Cow::Borrowed("num_batches_tracked")),
        parameters_apart: false,
        eps: 1e-5,
        momentum: 0.1,
    };

    /// Flax, its variables flattened with dots: `params.BatchNorm_0.scale`, `batch_stats.BatchNorm_0.mean`. For `flax.nnx`, which has
    /// no collections, set [`parameters`](Self::parameters) and [`statistics`](Self::statistics) to nothing.
    pub const FLAX: Self = Self {
        parameters: Cow::Borrowed("params."),
        statistics: Cow::Borrowed("batch_stats."),
        weight: Cow::Borrowed("scale"),
        running_mean: Cow::Borrowed("mean"),
        running_var: Cow::Borrowed("var"),
        num_batches_tracked: None,
        parameters_apart: true,
        momentum: 0.01,
        ..Self::PYTORCH
    };

    /// Keras, by the paths of its variables: `batch_normalization/gamma`, `batch_normalization/moving_mean`.
    pub const KERAS: Self = Self {
        weight: Cow::Borrowed("gamma"),
        bias: Cow::Borrowed("beta"),
        running_mean: Cow::Borrowed("moving_mean"),
        running_var: Cow::Borrowed("moving_variance"),
        num_batches_tracked: None,
        parameters_apart: true,
        eps: 1e-3,
        momentum: 0.01,
        ..Self::PYTORCH
    };

    /// Burn: `norm.gamma`, `norm.running_mean`.
    pub const BURN: Self = Self {
        weight: Cow::Borrowed("gamma"),
        bias: Cow::Borrowed("beta"),
        num_batches_tracked: None,
        ..Self::PYTORCH
    };

    /// The full name of a layer's tensor, where the framework has such a tensor.
    #[must_use]
    pub fn name(&self, prefix: &str, tensor: Tensor) -> Option<String> {
        let (collection, own) = self.parts(tensor)?;
        Some(format!("{collection}{prefix}{own}"))
    }

    /// The prefix of the layer whose tensor has this full name. A prefix is empty or ends with a separator, so that `moving_mean`
    /// is not the `mean` of a layer `moving_`.
    pub(super) fn prefix<'n>(&self, tensor: Tensor, name: &'n str) -> Option<&'n str> {
        let (collection, own) = self.parts(tensor)?;
        let prefix = name.strip_prefix(collection)?.strip_suffix(own)?;
        let in_a_word = prefix.ends_with(|last: char| last.is_alphanumeric() || last == '_');
        (!in_a_word).then_some(prefix)
    }

    fn parts(&self, tensor: Tensor) -> Option<(&str, &str)> {
        Some(match tensor {
            Tensor::Weight => (&self.parameters, &self.weight),
            Tensor::Bias => (&self.parameters, &self.bias),
            Tensor::RunningMean => (&self.statistics, &self.running_mean),
            Tensor::RunningVar => (&self.statistics, &self.running_var),
            Tensor::NumBatchesTracked => (&self.statistics, self.num_batches_tracked.as_deref()?),
            _ => return None,
        })
    }
}
